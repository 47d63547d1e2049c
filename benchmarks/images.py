"""Convolutions against the MLP at equal time: bounds on test images of MNIST, pixels drawn anew in every epoch.

    python benchmarks/images.py [seconds] [name ...]

Each network trains for about the same time of one processor (300 s unless told otherwise), whatever else the machine does, one
after the other or those that are named, with 20 components, batches of 128 and a constant learning rate. The folder that
SKVAE_DATA names must hold MNIST.
"""

import sys
import time
import warnings

import torch
from _workloads import mnist, mnist_test
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer
from skvae.likelihoods import Bernoulli
from skvae.networks import Conv, ConvTranspose

NETWORKS = {
    "MLP (128,)": {},
    "MLP (500,)": {"hidden_layer_sizes": (500,)},
    "Conv (32, 64)": {"encoder": "conv", "decoder": "conv"},
    "Conv (16, 32)": {"encoder": Conv(channels=(16, 32)), "decoder": ConvTranspose(channels=(32, 16))},
    "Conv (32, 64), MLP (500,)": {"encoder": "conv", "hidden_layer_sizes": (500,)},
}


def trained(X, seconds: float, networks: dict) -> tuple[VAETransformer, float]:
    """Return a model after some seconds of processor time, and how many they were."""
    vae = VAETransformer(
        20, likelihood=Bernoulli(binarize="dynamic"), batch_size=128, learning_rate="constant", learning_rate_init=2e-3,
        max_iter=1, warm_start=True, score_method="elbo", random_state=0, device="cpu", **networks,
    )  # fmt: skip
    start = time.process_time()
    vae.fit(X)
    taken = time.process_time() - start
    while taken < 0.8 * seconds:  # the first epoch is slower than the others
        more = max(1, round((seconds - taken) / taken * vae.n_iter_))
        vae.set_params(max_iter=vae.n_iter_ + more).fit(X)
        taken = time.process_time() - start
    return vae, taken


def main(seconds: float, names: list[str]):
    """Print a line per network."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, X_test = mnist(), mnist_test()[:2000]
    print(f"# MNIST, {len(X):,} images, about {seconds:g} s of processor time each; ELBO of 2,000 test images in nats")
    print(f"{'networks':<28}{'parameters':>12}{'epochs':>9}{'s':>9}{'ELBO':>10}")
    for name in names or NETWORKS:
        vae, taken = trained(X, seconds, NETWORKS[name])
        size = vae._fitted.model.layout.size
        print(f"{name:<28}{size:>12,}{vae.n_iter_:>9}{taken:>9.1f}{vae.score(X_test):>10.2f}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 300, sys.argv[2:])
