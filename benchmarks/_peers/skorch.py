"""skorch: the textbook model in a NeuralNet, its usual way into a grid search."""

import torch
from skorch import NeuralNet

from _peers import _search
from _peers._torch import VAE, negative_elbo

PACKAGES = ("skorch",)


class Module(VAE):
    """The textbook model with a latent size that a search can set."""

    def __init__(self, latent=5):
        super().__init__([30, 64, 2 * latent], [latent, 64, 30])


class Net(NeuralNet):
    """A net whose loss is minus the bound."""

    def get_loss(self, y_pred, y_true, X=None, *args, **kwargs):
        """Return minus the bound per row."""
        output, mean, log_variance = y_pred
        return negative_elbo(output, X, mean, log_variance, "gaussian") / len(X)

    def score(self, X, y=None):
        """Return the bound per row."""
        with torch.no_grad():
            return -float(self.get_loss(self.module_.eval()(torch.from_numpy(X)), None, torch.from_numpy(X)))


def search(**request):
    """Search over nets."""
    torch.set_num_threads(request["threads"])
    net = Net(
        Module, criterion=torch.nn.MSELoss, optimizer=torch.optim.Adam, max_epochs=request["epochs"], train_split=None,
        batch_size=request["batch_size"], iterator_train__shuffle=True, verbose=0, predict_nonlinearity=None,
    )  # fmt: skip
    return _search.search(net, ("module__latent", "lr"), request)
