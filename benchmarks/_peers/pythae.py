"""pythae: its VAE with networks of the given sizes, and its trainer."""

import logging
import tempfile

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback

from _peers import _bound
from _peers._task import seconds_of
from _peers._torch import network

PACKAGES = ("pythae",)
NOTE = "train_step of its trainer; the copy of the best model after every epoch is not counted"
logging.disable(logging.WARNING)


class Encoder(BaseEncoder):
    """Encoder of the given sizes, in pythae's form."""

    def __init__(self, widths):
        super().__init__()
        self.layers = network(widths)

    def forward(self, x):
        """Return mean and log-variance of the posterior."""
        mean, log_variance = self.layers(x).chunk(2, dim=1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """Decoder of the given sizes, in pythae's form: probabilities, not logits, for the Bernoulli likelihood."""

    def __init__(self, widths, bernoulli):
        super().__init__()
        self.layers = network(widths)
        self.last = torch.nn.Sigmoid() if bernoulli else torch.nn.Identity()

    def forward(self, z):
        """Return the mean of the rows."""
        return ModelOutput(reconstruction=self.last(self.layers(z)))


class Training:
    """A trainer whose epochs are called one by one."""

    def __init__(self, task, X):
        torch.set_num_threads(task.threads)
        encoder, decoder = task.widths(X.shape[1])
        bernoulli = task.likelihood == "bernoulli"
        loss = "bce" if bernoulli else "mse"
        config = VAEConfig(input_dim=(X.shape[1],), latent_dim=task.latent, reconstruction_loss=loss)
        self.folder = tempfile.TemporaryDirectory()
        settings = BaseTrainerConfig(
            output_dir=self.folder.name, per_device_train_batch_size=task.batch_size, learning_rate=task.learning_rate,
            num_epochs=1, no_cuda=True,
        )  # fmt: skip
        data = BaseDataset(torch.from_numpy(X), torch.ones(len(X)))
        model = VAE(config, encoder=Encoder(encoder), decoder=Decoder(decoder, bernoulli))
        self.trainer = BaseTrainer(model, data, training_config=settings)
        self.trainer.prepare_training()
        self.epoch = 0

    def epochs(self, n):
        """Train for n epochs; return their seconds."""
        return seconds_of(self._train, n)

    def _train(self, n):
        for _ in range(n):
            self.epoch += 1
            self.trainer.train_step(self.epoch)


class Watch(TrainingCallback):
    """Measures the bound at the ends of epochs."""

    def __init__(self, course, bound):
        self.course, self.bound, self.number = course, bound, 0

    def on_epoch_end(self, training_config, **kwargs):
        """Measure."""
        self.number += 1
        self.course.epoch(self.number, lambda: self.bound(kwargs["model"].eval()), self.number == training_config.num_epochs)


def default(train, held=None, likelihood="gaussian", target=None):
    """Fit with the defaults; tables are scaled to the unit interval, which is all that the default decoder can give."""
    X = np.load(train)
    low, scale = (0.0, 1.0) if likelihood == "bernoulli" else (X.min(0), np.ptp(X, 0))
    course = _bound.Course(target)
    config = VAEConfig(input_dim=(X.shape[1],), reconstruction_loss="bce" if likelihood == "bernoulli" else "mse")

    def bound(model):
        def encode(x):
            output = model.encoder((x - low) / scale)
            return output.embedding, output.log_covariance

        return _bound.elbo(encode, lambda z: model.decoder(z).reconstruction * scale + low, X, np.load(held), likelihood)

    def fit():
        with tempfile.TemporaryDirectory() as folder:
            pipeline = TrainingPipeline(model=VAE(config), training_config=BaseTrainerConfig(output_dir=folder, no_cuda=True))
            pipeline((X - low) / scale, callbacks=[Watch(course, bound)] if held else None)

    return _bound.run(fit, course)
