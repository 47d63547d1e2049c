"""JAX: a whole epoch as one compiled scan over batches, Adam written out."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from _peers._task import seconds_of

PACKAGES = ("jax", "jaxlib")
NOTE = "compilation is not counted"


def layers(widths, key):
    """Return weights and biases of a network."""
    keys = random.split(key, len(widths) - 1)
    sizes = zip(keys, widths[:-1], widths[1:])
    return [(random.normal(k, (i, o)) * jnp.sqrt(1 / i), jnp.zeros(o)) for k, i, o in sizes]


def network(params, x):
    """Apply linear layers with ReLU between them."""
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


def negative_elbo(params, x, key, bernoulli):
    """Return minus the evidence lower bound per row."""
    mean, log_variance = jnp.split(network(params["encoder"], x), 2, axis=1)
    z = mean + jnp.exp(0.5 * log_variance) * random.normal(key, mean.shape)
    output = network(params["decoder"], z)
    reconstruction = jnp.sum(jax.nn.softplus(output) - x * output) if bernoulli else 0.5 * jnp.sum((x - output) ** 2)
    return (reconstruction - 0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance))) / len(x)


def adam(params, gradients, memory, rate):
    """Return parameters and memory after one step of Adam."""
    m, v, t = memory
    t = t + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
    size = rate * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    params = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) + 1e-8), params, m, v)
    return params, (m, v, t)


def epoch_of(task, n_rows):
    """Return a compiled function that trains for one epoch, the short last batch included."""
    full = n_rows // task.batch_size * task.batch_size
    bernoulli = task.likelihood == "bernoulli"

    def step(carry, rows, X):
        params, memory, key = carry
        key, noise = random.split(key)
        gradients = jax.grad(negative_elbo)(params, X[rows], noise, bernoulli)
        return (*adam(params, gradients, memory, task.learning_rate), key)

    def epoch(carry, X):
        params, memory, key = carry
        key, shuffle = random.split(key)
        order = random.permutation(shuffle, n_rows)
        batches = order[:full].reshape(-1, task.batch_size)
        carry, _ = lax.scan(lambda c, rows: (step(c, rows, X), None), (params, memory, key), batches)
        return step(carry, order[full:], X) if full < n_rows else carry

    return jax.jit(epoch, donate_argnums=0)


class Training:
    """The state of training and the compiled epoch."""

    def __init__(self, task, X):
        encoder, decoder = task.widths(X.shape[1])
        keys = random.split(random.key(0), 3)
        params = {"encoder": layers(encoder, keys[0]), "decoder": layers(decoder, keys[1])}
        zeros = jax.tree.map(jnp.zeros_like, params)
        self.carry = (params, (zeros, jax.tree.map(jnp.zeros_like, params), jnp.zeros(())), keys[2])
        self.X, self.epoch = jnp.asarray(np.asarray(X)), epoch_of(task, len(X))

    def epochs(self, n):
        """Train for n epochs; return their seconds."""
        return seconds_of(self._train, n)

    def _train(self, n):
        for _ in range(n):
            self.carry = self.epoch(self.carry, self.X)
        jax.block_until_ready(self.carry)
