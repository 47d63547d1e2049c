"""
Wake-sleep and Monte Carlo EM
=============================

Before gradients could pass through samples, there were two ways to train such a model: wake-sleep, whose encoder learns
from dreams, and Monte Carlo EM, which needs no encoder. Both are solvers of the same estimator. How far do they come
with the same number of rows?
"""

# %%
# Data and contestants
# --------------------
# Images of eight by eight pixels, networks of the paper, everything from random weights. Only the solver differs.

import time
import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skvae import VAETransformer
from skvae.likelihoods import Bernoulli
from skvae.networks import MLP
from skvae.solvers import AEVB, MonteCarloEM, WakeSleep

X, _ = load_digits(return_X_y=True)
X_train, X_test = train_test_split(X, random_state=0)
network = MLP((64,), activation="tanh", skip=False)
solvers = {
    "AEVB": AEVB(averaging=0.95),
    "wake-sleep": WakeSleep(averaging=0.95),
    "reweighted, 5 samples": WakeSleep(5, encoder_phase="both", averaging=0.95),
    "Monte Carlo EM": MonteCarloEM(averaging=0.95),
}


def fit(solver):
    """Return a model trained for eighty epochs, and its seconds."""
    start = time.perf_counter()
    vae = VAETransformer(
        5, likelihood=Bernoulli((0, 16)), encoder=network, decoder=network, solver=solver,
        learning_rate="constant", learning_rate_init=0.005, batch_size=64, max_iter=80,
        early_stopping=False, tol=0, n_iter_no_change=1000, score_method="iwae", random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        # all get the same budget, enough or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        return vae.fit(X_train), time.perf_counter() - start


fitted = {name: fit(solver) for name, solver in solvers.items()}

# %%
# What they reach
# ---------------
# The bound is what AEVB raises. The importance-weighted score of new rows comes close to :math:`\log p(x)` itself, and
# depends less on the encoder.

print(f"{'':24s}{'bound':>8s}{'score':>9s}{'seconds':>9s}")
for name, (vae, seconds) in fitted.items():
    print(f"{name:24s}{vae.lower_bound_:8.2f}{vae.score(X_test):9.2f}{seconds:9.1f}")

colors = ["#4477AA", "#EE6677", "#228833", "#CCBB44"]
fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for color, (name, (vae, _)) in zip(colors, fitted.items()):
    rows_seen = vae.history_["epoch"] * len(X_train)
    ax.plot(rows_seen[1:], vae.history_["lower_bound"][1:], color=color, label=name)
ax.set(xscale="log", xlabel="training rows seen", ylabel="bound (nats per row)")
ax.legend(frameon=False)
plt.show()

# %%
# What we see
# -----------
# Wake-sleep keeps up at first and then stays behind AEVB: its two phases raise two different functions. With five
# weighted samples it ends below AEVB in the bound and above it in the score of new rows: the better decoder hides behind
# an encoder that covers the posterior instead of tightening the bound. Monte Carlo EM gets five updates out of a pass
# over all rows, where the others get twenty-two, so it needs many more passes, and it needs all rows at once for each of
# them.
