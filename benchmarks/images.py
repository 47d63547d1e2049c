"""Convolutions against the MLP at equal time: bounds on test images of MNIST, pixels drawn anew in every epoch.

    python benchmarks/images.py [seconds]

Each network trains for the same time (300 s unless told otherwise) on one thread, one after the other, with 20 components,
batches of 128 and a constant learning rate; nothing else should run on the machine. The folder that SKVAE_DATA
names must hold MNIST.
"""

import argparse
import warnings

import torch
from _workloads import mnist, mnist_test
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer
from skvae.likelihoods import Bernoulli
from skvae.networks import Conv, ConvTranspose

NETWORKS = {
    "MLP (128,)": {"hidden_layer_sizes": (128,)},
    "MLP (500,)": {"hidden_layer_sizes": (500,)},
    "Conv (32, 64)": {"encoder": "conv", "decoder": "conv"},
    "Conv (16, 32)": {"encoder": Conv(channels=(16, 32)), "decoder": ConvTranspose(channels=(32, 16))},
    "Conv (32, 64), MLP (500,)": {"encoder": "conv", "hidden_layer_sizes": (500,)},
}


def main(seconds: float):
    """Print a line per network."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, X_test = mnist(), mnist_test()[:2000]
    print(f"# MNIST, {len(X):,} images, {seconds:g} s each on one thread; ELBO of 2,000 test images in nats")
    print(f"{'networks':<28}{'parameters':>12}{'epochs':>9}{'ELBO':>10}")
    for name, networks in NETWORKS.items():
        vae = VAETransformer(
            20, likelihood=Bernoulli(binarize="dynamic"), batch_size=128, learning_rate="constant", learning_rate_init=2e-3,
            max_iter=10_000, max_time=seconds, score_method="elbo", random_state=0, device="cpu", **networks,
        )  # fmt: skip
        vae.fit(X)
        size = vae._fitted.model.layout.size
        print(f"{name:<28}{size:>12,}{vae.n_iter_:>9}{vae.score(X_test):>10.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=300, help="of training for each network (default: 300)")
    main(parser.parse_args().seconds)
