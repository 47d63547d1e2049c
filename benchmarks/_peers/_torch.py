"""What the loops in torch share: the textbook model and its loss."""

import torch
from torch import nn
from torch.nn import functional as F


def network(widths: list[int]) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers = []
    for n_in, n_out in zip(widths[:-1], widths[1:]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class VAE(nn.Module):
    """The variational auto-encoder of the textbooks."""

    def __init__(self, encoder_widths, decoder_widths):
        super().__init__()
        self.encoder, self.decoder = network(encoder_widths), network(decoder_widths)

    def forward(self, x):
        """Return the decoder's output, and mean and log-variance of the posterior."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def train_one_epoch(model: VAE, optimizer: torch.optim.Optimizer, X: torch.Tensor, task) -> None:
    """Take a model over rows in memory, or on a device, once: no DataLoader, no copies of the rows."""
    for rows in torch.randperm(len(X), device=X.device).split(task.batch_size):
        x = X.index_select(0, rows)
        output, mean, log_variance = model(x)
        loss = negative_elbo(output, x, mean, log_variance, task.likelihood) / len(x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def negative_elbo(output, x, mean, log_variance, likelihood):
    """Return minus the evidence lower bound, summed over the batch (Gaussian: variance one, without its constant)."""
    if likelihood == "bernoulli":
        reconstruction = F.binary_cross_entropy_with_logits(output, x, reduction="sum")
    else:
        reconstruction = 0.5 * F.mse_loss(output, x, reduction="sum")
    return reconstruction - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
