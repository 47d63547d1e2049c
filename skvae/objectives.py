"""Objectives: lower bounds on log p(x), one value per row, that training maximises and scores report."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae._batch import Batch
from skvae._model import Model, Params
from skvae._random import generator, normal
from skvae._settings import Interval, Settings, StrOptions, belongs_with, register
from skvae.posteriors import Posterior

_PRIOR_DRAWS = 512
_KERNEL_WIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def drawn(model: Model, params: Params, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q(z|x), as the family reads it, z drawn from it with `noise` (s, n, k), and log p(x|z) in nats (s, n)."""
    q = model.encode(params, batch)
    z = model.posterior.sample(q, noise)
    return q, z, model.log_px(params, batch, z)


def log_weights(model: Model, params: Params, batch: Batch, noise: Tensor) -> Tensor:
    """Return log p(x, z) - log q(z|x) for z drawn with `noise`, the log importance weights, in nats.  # (s, n)"""
    q, z, log_px = drawn(model, params, batch, noise)
    return log_px + model.log_pz(params, z, batch.x) - model.posterior.log_prob_of_draws(q, noise, z).sum(-1)


def kl_per_component(model: Model, params: Params, batch: Batch, q: Tensor, z: Tensor, how: str) -> Tensor:
    """Return KL(q(z|x) || p(z)) per component, averaged over z where it has no closed form or is not to have one.  # (n, k)"""
    kl = _closed_kl(model, q, how)
    return (model.posterior.log_prob(q, z) - model.log_prior(params, z, batch.x)).mean(0) if kl is None else kl


def kl_of_rows(model: Model, params: Params, batch: Batch, q: Tensor, z: Tensor, how: str) -> Tensor:
    """Return the sum of `kl_per_component`, for those who ask for no component.  # (n,)"""
    kl = _closed_kl(model, q, how)
    return (model.posterior.log_prob(q, z).sum(-1) - model.log_pz(params, z, batch.x)).mean(0) if kl is None else kl.sum(-1)


def _closed_kl(model: Model, q: Tensor, how: str) -> Tensor | None:
    kl = None if how == "monte_carlo" else model.posterior.kl(q, model.prior)
    if kl is None and how == "analytic":
        raise ValueError(
            f"There is no closed form for the KL between {model.posterior!r} and {model.prior!r}. Use ELBO(kl='auto')."
        )
    return kl


class Objective(Settings):
    """Base of the objectives.

    `noise` is standard normal, of shape (s, n or 1, k); every method returns one value per row, in nats, larger is better.
    """

    n_samples: int
    #: whether its gradients pass through the draws, as those of a discrete posterior cannot
    differentiates_draws: bool = True
    #: whether it is a fixed sequence of work on the device, which can be recorded and replayed
    is_capturable: bool = False
    #: whether its bound averages importance weights over the draws, not their logs
    averages_weights: bool = False

    @property
    def is_rowwise(self) -> bool:
        """Whether the value of a row depends on that row alone; otherwise `batch.weight` tells how often each row occurs."""
        return True

    def __call__(self, model: Model, params: Params, batch: Batch, noise: Tensor, annealing: float = 1.0) -> Tensor:
        """Return what training maximises, at full strength unless `annealing` < 1 scales the KL down in warm-up.  # (n,)"""
        return self.bound(model, params, batch, noise)

    def bound(self, model: Model, params: Params, batch: Batch, noise: Tensor) -> Tensor:
        """Return a true lower bound on log p(x), whatever weights training uses; what scores report.  # (n,)

        It is the ELBO, unless a subclass knows another one.
        """
        return ELBO().bound(model, params, batch, noise)

    def check(self, model: Model) -> None:
        """Refuse a model that this cannot train."""

    def annealing(self, epoch: int) -> float:
        """Return the share of the KL that counts in `epoch`."""
        return 1.0

    def can_be_recorded(self) -> bool:
        """Tell whether `is_capturable` was said of what this objective computes."""
        return self.is_capturable and all(belongs_with(self, "is_capturable", name) for name in ("__call__", "bound"))


class ELBO(Objective):
    r"""The evidence lower bound, :math:`E_{q(z|x)}[\log p(x \mid z)] - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))`.

    Parameters
    ----------
    beta : float, default=1.0
        Weight of the KL in training. Scores, `lower_bound_` and the history of bounds always use 1.

    kl : {"auto", "analytic", "monte_carlo"}, default="auto"
        "analytic" integrates the KL (estimator B of the paper, usually of lower variance) and refuses pairs of posterior and
        prior without a closed form; "monte_carlo" averages :math:`\log q - \log p` over the samples (estimator A); "auto"
        integrates where there is a closed form, and averages elsewhere.

    n_samples : int, default=1
        Draws of z per row and step, the paper's L.

    warmup : int, default=0
        Number of epochs during which the weight of the KL grows linearly to `beta`.

    free_bits : float, default=0.0
        Nats that each component may carry about a row without cost in training: its KL counts as this number where it is
        smaller, so that components are not given up early. Scores and bounds are not affected. Where the KL is averaged over
        draws, which scatter, it is that of a component on average over the batch.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, equations 3, 6 and 7. Higgins et al., *beta-VAE*, 2017. Kingma et
    al., *Improved Variational Inference with Inverse Autoregressive Flow*, 2016, equation 15, there on average over a batch.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import ELBO
    >>> VAETransformer(objective=ELBO(beta=4.0)).set_params(objective__n_samples=5)
    VAETransformer(objective=ELBO(beta=4.0, n_samples=5))
    """

    is_capturable = True
    _parameter_constraints = {
        "beta": [Interval(Real, 0, None, closed="left")],
        "kl": [StrOptions({"auto", "analytic", "monte_carlo"})],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "warmup": [Interval(Integral, 0, None, closed="left")],
        "free_bits": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, beta=1.0, *, kl="auto", n_samples=1, warmup=0, free_bits=0.0):
        self.beta = beta
        self.kl = kl
        self.n_samples = n_samples
        self.warmup = warmup
        self.free_bits = free_bits

    def __call__(self, model, params, batch, noise, annealing=1.0):
        return self._weighted(model, params, batch, noise, self.beta * annealing, self.free_bits)

    def bound(self, model, params, batch, noise):
        return self._weighted(model, params, batch, noise, 1.0, 0.0)

    def annealing(self, epoch):
        return min(1.0, (epoch + 1) / (self.warmup + 1))

    @property
    def is_rowwise(self):
        return not self.free_bits or self.kl == "analytic"

    @property
    def is_bound(self) -> bool:
        """Whether training at full strength raises the bound itself."""
        return self.beta == 1 and not self.free_bits

    def _weighted(self, model, params, batch, noise, kl_weight, free_bits):
        q, z, log_px = drawn(model, params, batch, noise)
        if free_bits:
            kl = _with_free_bits(model, params, batch, q, z, self.kl, free_bits)
        else:
            kl = kl_of_rows(model, params, batch, q, z, self.kl)
        return log_px.mean(0) - kl_weight * kl


def _with_free_bits(model: Model, params: Params, batch: Batch, q: Tensor, z: Tensor, how: str, free_bits: float) -> Tensor:
    """Return the KL of rows, in which components count with at least so many nats.  # (n,)

    Estimates from few draws scatter about the KL of a row, so they are compared on average over the rows.
    """
    kl = kl_per_component(model, params, batch, q, z, how)
    if _closed_kl(model, q, how) is None:
        share = kl.new_full((len(kl),), 1 / len(kl)) if batch.weight is None else batch.weight / batch.weight.sum()
        costs = share @ kl > free_bits
    else:
        costs = kl > free_bits
    return torch.where(costs, kl, free_bits).sum(-1)


class InfoVAE(Objective):
    r"""The bound with its KL split: less for the latents of each row, more for their distribution over the data.

    .. math:: E_q[\log p(x|z)] - (1 - \alpha)\,\mathrm{KL}(q(z|x) \,\|\, p(z)) - (\alpha + \lambda - 1)\,
              \mathrm{MMD}^2(q(z), p(z))

    The maximum mean discrepancy compares the latents of a batch with draws from the prior, new ones in every step, by sums of
    inverse multiquadratic kernels of seven widths. Rows can keep as many nats as they like, as long as together they look like
    the prior. A single row tells nothing of that, so batches need several.

    Parameters
    ----------
    alpha : float, default=1.0
        Share of the KL that is given up. 1 gives the MMD-VAE.

    weight : float, default=10.0
        The :math:`\lambda` of the formula, at least :math:`1 - \alpha`, so that the discrepancy is not rewarded.

    n_samples : int, default=1
        Draws of z per row and step.

    References
    ----------
    Zhao, Song & Ermon, *InfoVAE*, 2019. Tolstikhin et al., *Wasserstein Auto-Encoders*, 2018, for the kernels.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import InfoVAE
    >>> VAETransformer(objective=InfoVAE(weight=100.0))
    VAETransformer(objective=InfoVAE(weight=100.0))
    """

    _parameter_constraints = {
        "alpha": [Interval(Real, None, 1, closed="right")],
        "weight": [Interval(Real, 0, None, closed="left")],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
    }
    is_rowwise = False

    def __init__(self, alpha=1.0, *, weight=10.0, n_samples=1):
        self.alpha = alpha
        self.weight = weight
        self.n_samples = n_samples

    def validate(self):
        super().validate()
        if round(self.alpha + self.weight, 12) < 1:
            raise ValueError(
                f"alpha + weight must be at least 1, got {self.alpha!r} + {self.weight!r}: latents would be rewarded for "
                f"differing from the prior. Set weight to {1 - self.alpha:g} or more, or raise alpha."
            )
        return self

    def __call__(self, model, params, batch, noise, annealing=1.0):
        q, z, log_px = drawn(model, params, batch, noise)
        kl = kl_of_rows(model, params, batch, q, z, "auto")
        stream = generator(model.seed, "prior draws", repr(noise[0, 0].tolist()), device=z.device)  # of this step alone
        from_prior, shares = _prior_draws(model, params, batch, stream, z.dtype)
        again = model.posterior.sample(q, normal(noise.shape, stream, noise.dtype))  # another draw for every row
        mmd = discrepancy(z, from_prior, batch.weight, again, shares).mean(0)
        return log_px.mean(0) - (1 - self.alpha) * kl - (self.alpha + self.weight - 1) * mmd


def _prior_draws(
    model: Model, params: Params, batch: Batch, stream: torch.Generator, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return draws from the prior (m, k), under conditions of the rows, and their shares (m,) if they differ in slope."""
    in_random_order = torch.randperm(_PRIOR_DRAWS, generator=stream, device=stream.device)
    x = batch.repeated(_PRIOR_DRAWS)[in_random_order] if model.n_given else None
    z = model.sample_prior(params, (_PRIOR_DRAWS, model.n_components), stream, dtype, x)
    return z, _shares(model, params, z.detach(), x) if model.prior.n_weights else None


def _shares(model: Model, params: Params, z: Tensor, x: Tensor | None) -> Tensor:
    """Return equal shares of draws z from a mixture, with slopes by its weights: those of how often it draws them.  # (m,)

    Draws have slopes by the mode they come from, but none by the choice of the mode. The slope of log p(z) by the weights is
    that of the log of the chosen weight, on average over the modes that z may come from.
    """
    weights = (*model.prior.weighed_by, "log_odds")
    read = {
        name: value.detach() if isinstance(value, Tensor) and name not in weights else value
        for name, value in model.of_prior(params, x).items()
    }
    log_p = model.prior.log_prob(read, z).sum(-1)
    return (log_p - log_p.detach()).softmax(0)


def discrepancy(
    z: Tensor, others: Tensor, repetitions: Tensor | None = None, again: Tensor | None = None, shares: Tensor | None = None
) -> Tensor:
    """Return the part of every latent z (s, n, k) in the squared MMD between them and `others` (m, k), without bias.  # (s, n)

    The mean over rows, which occur as often as `repetitions` (n,) says, is the estimate. A row that occurs more than once meets
    itself as well: in `again` (s, n, k), other draws of the latents. One that meets none tells nothing: its part is zero.
    `others` count by their `shares` (m,), or all alike.
    """
    r = z.new_ones(z.shape[-2]) if repetitions is None else repetitions
    with_itself = (r - 1).clamp(min=0)
    is_itself = torch.eye(len(r), dtype=torch.bool, device=z.device)
    among = _kernel(z, z).masked_fill(is_itself, 0) @ r
    if again is not None and repetitions is not None:
        among = among + with_itself * _kernel_of_pairs((z - again).square().sum(-1), z.shape[-1])
    n_met = r.sum() - r + with_itself
    shares = others.new_full((len(others),), 1 / len(others)) if shares is None else shares
    alike = among / n_met.clamp(min=torch.finfo(z.dtype).tiny)
    return (alike - 2 * _kernel(z, others) @ shares + _between_halves(others, shares)) * (n_met > 0)


def _between_halves(z: Tensor, shares: Tensor) -> Tensor:
    """Return the mean kernel between two halves of points, which are independent, and a quarter of the work of all pairs."""
    (a, b), (of_a, of_b) = z.tensor_split(2), shares.tensor_split(2)
    return of_a @ _kernel(a, b) @ of_b / (of_a.sum() * of_b.sum())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of inverse multiquadratic kernels between rows.  # (..., n, k), (..., m, k) -> (..., n, m)"""
    norms = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return _kernel_of_pairs((norms - 2 * a @ b.mT).clamp(min=0), a.shape[-1])


def _kernel_of_pairs(distance: Tensor, k: int) -> Tensor:
    """Return the sum of inverse multiquadratic kernels of squared distances between points of k dimensions."""
    return sum((2 * k * width / (2 * k * width + distance) for width in _KERNEL_WIDTHS), torch.zeros_like(distance))


class BetaTCVAE(Objective):
    r"""The bound with more weight on the total correlation of the latents, which pulls components apart.

    The KL to the prior, averaged over the data, is the mutual information of row and latents, plus the total correlation
    :math:`\mathrm{KL}(q(z) \,\|\, \prod_j q(z_j))`, plus the KLs of the components to their priors; the second counts
    :math:`\beta` times. The aggregated posterior q(z) is that of the batch. Latents that sum to one are refused: their total
    correlation is infinite.

    Parameters
    ----------
    beta : float, default=6.0
        Weight of the total correlation; 1 gives the ELBO.

    n_samples : int, default=1
        Draws of z per row and step.

    References
    ----------
    Chen, Li, Grosse & Duvenaud, *Isolating Sources of Disentanglement in Variational Autoencoders*, 2018.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import BetaTCVAE
    >>> VAETransformer(objective=BetaTCVAE(beta=4.0))
    VAETransformer(objective=BetaTCVAE(beta=4.0))
    """

    is_capturable = True
    _parameter_constraints = {
        "beta": [Interval(Real, 0, None, closed="left")],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
    }
    is_rowwise = False

    def __init__(self, beta=6.0, *, n_samples=1):
        self.beta = beta
        self.n_samples = n_samples

    def __call__(self, model, params, batch, noise, annealing=1.0):
        q, z, log_px = drawn(model, params, batch, noise)
        kl = model.posterior.log_prob(q, z).sum(-1) - model.log_pz(params, z, batch.x)
        return (log_px - kl - (self.beta - 1) * total_correlation(model.posterior, q, z, batch.weight)).mean(0)


def total_correlation(posterior: Posterior, q: Tensor, z: Tensor, repetitions: Tensor | None = None) -> Tensor:
    """Return log q(z) less the sum of log q(z_j) for draws z (s, n, k), where q(z) averages over the rows of q.  # (s, n)

    Rows occur as often as `repetitions` (n,) says.
    """
    if posterior.support.sums_to_one:
        raise ValueError(
            f"Latents that sum to one, as those of {posterior!r} do, tell each other: their total correlation is infinite. "
            "Choose another posterior, or ELBO in the place of BetaTCVAE."
        )
    joint, marginals = posterior.joint_and_marginals(q, z[..., :, None, :])  # of the draws of each row, under each row
    r = joint.new_ones(len(q)) if repetitions is None else repetitions
    log_share = (r / r.sum()).log()
    return torch.logsumexp(joint + log_share, -1) - torch.logsumexp(marginals + log_share[:, None], -2).sum(-1)


class IWAE(Objective):
    r"""The importance-weighted bound, :math:`E[\log \frac1K \sum_k p(x, z_k) / q(z_k \mid x)]`.

    Tighter than the ELBO, to which it is equal at K = 1; it tends to :math:`\log p(x)` as K grows.

    Parameters
    ----------
    n_samples : int, default=100
        The number K of draws of z per row.

    gradient : {"standard", "doubly_reparameterized"}, default="standard"
        How the encoder learns. The more draws, the more noise there is in its standard gradient relative to what it says;
        "doubly_reparameterized" has the same expectation and no such noise, and none at all where :math:`q(z \mid x)` is exact.
        Decoder, scores and bounds are not affected. A uniform posterior is refused: its density jumps at ends that move, of
        which this gradient knows nothing.

    Notes
    -----
    As an objective it is for weights that are given. A decoder with uncertain weights
    (:class:`~skvae.networks.VariationalMLP`) has others in every draw, over which the logarithm must be averaged, not the
    weights of importance: it is refused with more than one draw.

    References
    ----------
    Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, 2016, equation 8. Tucker, Lawson, Gu & Maddison, *Doubly
    Reparameterized Gradient Estimators for Monte Carlo Objectives*, 2019, equation 8.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.objectives import IWAE
    >>> VAETransformer(score_method=IWAE(n_samples=1000))
    VAETransformer(score_method=IWAE(n_samples=1000))
    """

    is_capturable = True
    averages_weights = True
    _parameter_constraints = {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "gradient": [StrOptions({"standard", "doubly_reparameterized"})],
    }

    def __init__(self, n_samples=100, *, gradient="standard"):
        self.n_samples = n_samples
        self.gradient = gradient

    def check(self, model):
        if model.decoder.is_uncertain and self.n_samples > 1:
            raise ValueError(
                f"{self!r} averages importance weights over draws, each of which has other weights of the uncertain decoder: "
                "that is no bound on log p(x). Train by the ELBO; scores may use importance weighting all the same."
            )
        if self.gradient == "doubly_reparameterized" and model.posterior.jumps_at_ends:
            raise ValueError(
                f"The doubly reparameterised gradient is wrong for the posterior {model.posterior!r}, whose density jumps at "
                "ends that depend on the row. Use gradient='standard'."
            )

    def __call__(self, model, params, batch, noise, annealing=1.0):
        if self.gradient == "standard":
            return self.bound(model, params, batch, noise)
        q, z, log_px = drawn(model, params, batch, noise)
        log_q = model.posterior.log_prob(q.detach(), z).sum(-1)  # by z alone: by q, its slope is zero on average
        log_w = log_px + model.log_pz(params, z, batch.x) - log_q  # (s, n)
        if z.requires_grad:
            share = torch.softmax(log_w.detach(), 0)[..., None]
            z.register_hook(lambda slope: slope * share)  # the bound has given it one factor of the share, this is the second
        return torch.logsumexp(log_w, 0) - math.log(len(log_w))

    def bound(self, model, params, batch, noise):
        log_w = log_weights(model, params, batch, noise)
        return torch.logsumexp(log_w, 0) - math.log(len(log_w))


register("objective", elbo=ELBO, iwae=IWAE, info_vae=InfoVAE, beta_tc_vae=BetaTCVAE)
register("score_method", elbo=ELBO(n_samples=32), iwae=IWAE(n_samples=100))
