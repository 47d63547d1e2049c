r"""Evaluation: how far the bound is from :math:`\log p(x)`, what the latents carry, how alike new rows are to real ones."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skvae._base import BaseVAE
from skvae._batch import Batch
from skvae._devices import one_thread
from skvae._frames import is_frame
from skvae._inference import encode_rows, kl_of_components, map_rows_with_slopes
from skvae._marginal import AnnealedImportance, MarginalLikelihood, PosteriorDensity, estimate_rows, in_double
from skvae._pooling import PooledEstimate, rubin
from skvae._random import generator, normal
from skvae._reading import array_or_frame
from skvae._refined import RefinedImportance
from skvae._rows import resolve_score_method, seed_of
from skvae._settings import check_whole
from skvae._table import TableCodec
from skvae._table_checks import TableComparison, compare_cells, compare_tables
from skvae.objectives import IWAE

__all__ = [
    "AnnealedImportance", "Bracket", "Estimate", "LogLikelihood", "MarginalLikelihood", "MutualInformation", "PooledEstimate",
    "PosteriorDensity", "RefinedImportance", "TableComparison", "active_units", "bracket", "compare_tables",
    "kl_per_component", "log_likelihood", "mutual_information", "posterior_predictive_check", "rubin",
]  # fmt: skip

_N_WEIGHTED = 200  # latents per row that is drawn under conditions
_MAX_CELLS = 4_000_000  # of draws, rows and components that are compared at a time


class Estimate(NamedTuple):
    """A number with its standard error.

    Parameters
    ----------
    value : float
        The number, in nats per row.

    standard_error : float
        How far repetitions with other draws would lie around it.
    """

    value: float
    standard_error: float


class LogLikelihood(NamedTuple):
    """Estimates of log p(x), one per row.

    Parameters
    ----------
    value : ndarray of shape (n_samples,)
        The estimates, in nats, in the units of the data.

    standard_error : ndarray of shape (n_samples,)
        How far repetitions with other draws would lie around them, in nats.

    effective_sample_size : ndarray of shape (n_samples,)
        As how many draws of equal weight those of each row count.
    """

    value: np.ndarray
    standard_error: np.ndarray
    effective_sample_size: np.ndarray


class Bracket(NamedTuple):
    """Estimates of log p(x) of simulated rows, from both sides; `gap` is how far they are apart.

    Parameters
    ----------
    lower : LogLikelihood
        Estimates that err downwards.

    upper : LogLikelihood
        Estimates that err upwards.
    """

    lower: LogLikelihood
    upper: LogLikelihood

    @property
    def gap(self) -> Estimate:
        """How far they are apart in the mean over rows, which bounds the error of either."""
        difference = self.upper.value - self.lower.value
        return Estimate(float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference))))


class MutualInformation(NamedTuple):
    """The mean KL of the bound in two parts.

    Parameters
    ----------
    information : Estimate
        What latents tell about which row they belong to.

    marginal_kl : Estimate
        How far the latents of all rows together are from the prior.
    """

    information: Estimate
    marginal_kl: Estimate


@one_thread()
def log_likelihood(estimator, X, method="refined", random_state=None):
    r"""Estimate :math:`\log p(x)` of every row, and say how sure the estimate is.

    Parameters
    ----------
    estimator : VAETransformer
        A fitted estimator.

    X : array-like of shape (n_samples, n_features)
        The data.

    method : {"refined", "iwae", "hmc", "ais"} or an object, default="refined"
        Importance weighting by the encoder, helped out by the decoder where it is far off (:class:`RefinedImportance`), or
        by the encoder alone (:class:`~skvae.objectives.IWAE`), draws of the true posterior and a density fit to them
        (:class:`PosteriorDensity`), or annealed importance sampling (:class:`AnnealedImportance`). An object sets how many
        draws are taken.

    random_state : int, RandomState instance or None, default=None
        Where the draws come from; None gives the same ones for every call, a function of the model's seed.

    Returns
    -------
    log_likelihood : LogLikelihood
        A named tuple of three ndarrays of shape (n_samples,): `value`, in nats and in the units of the data;
        `standard_error`, which tells of the draws, not of what all of them have missed; and `effective_sample_size`, of the
        number of draws that were weighed. A small one, of ten or so, says that neither can be relied on.

    See Also
    --------
    bracket : An upper bound as well, on rows that the model has made.

    References
    ----------
    Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, 2016. Kingma & Welling, *Auto-Encoding Variational
    Bayes*, 2013, appendix D. Neal, *Annealed Importance Sampling*, 2001.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import log_likelihood
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, random_state=0).fit(X)
    >>> by_weights, by_annealing = log_likelihood(vae, X[:20]), log_likelihood(vae, X[:20], "ais")
    >>> bool(abs(by_weights.value - by_annealing.value).mean() < 0.5)
    True
    """
    method = resolve_score_method(method)
    if not isinstance(method, (IWAE, MarginalLikelihood)):
        raise TypeError(
            f"{method!r} is a bound, not an estimate of log p(x). Pass 'refined', 'iwae', 'hmc', 'ais', or an object such as "
            "RefinedImportance(n_samples=1000); score_samples gives the bound of every row."
        )
    cells, seed = _checked(estimator)._cells(X), _seed(estimator, random_state)

    def estimated(cells):
        fitted, params, rows, _ = estimator._encoded_cells(cells)
        return _in_data_units(fitted.codec, estimate_rows(method, fitted.model, params, rows, seed))

    found = estimator._by_completeness(cells, estimated)
    found[estimator._fitted.empty_rows(cells), :2] = 0.0
    return LogLikelihood(*found.T)


@one_thread()
def bracket(estimator, n_rows=100, method="ais", random_state=None):
    r"""Enclose :math:`\log p(x)` between two estimates, on rows that the model makes.

    Such a row comes with a draw of its true posterior: the latents it was made of. From there annealed importance sampling can
    go the way back, which errs upwards, as the way from its start errs downwards. A small gap shows that the method finds
    :math:`\log p(x)` of this model.

    Parameters
    ----------
    estimator : VAETransformer
        A fitted estimator.

    n_rows : int, default=100
        Number of rows to make, two or more.

    method : {"ais"} or AnnealedImportance, default="ais"
        How to anneal, both ways.

    random_state : int, RandomState instance or None, default=None
        Where rows and chains come from; None gives the same ones for every call, a function of the model's seed.

    Returns
    -------
    bracket : Bracket
        A named tuple of `lower` and `upper`, each a :class:`LogLikelihood`. In the mean over draws
        `lower.value` :math:`\leq \log p(x) \leq` `upper.value`; `gap` is the mean difference and its standard error, which
        tells of the rows. That of a row's `upper` tells of the chains alone, which all begin at the same latents.

    References
    ----------
    Grosse, Ghahramani & Adams, *Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo*, 2015.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import bracket
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, random_state=0).fit(X)
    >>> bool(abs(bracket(vae, n_rows=20).gap.value) < 0.2)
    True
    """
    method = resolve_score_method(method)
    if not isinstance(method, AnnealedImportance):
        raise TypeError(f"A bracket is made by annealing both ways, not by {method!r}. Pass 'ais' or an AnnealedImportance.")
    n_rows = check_whole("n_rows", n_rows, 2)
    fitted, params, device = _checked(estimator)._ready()
    model, params, seed = fitted.model, in_double(params), _seed(estimator, random_state)
    if model.n_given:
        raise ValueError("A bracket needs rows drawn from the model, and a model with condition_on draws none by itself.")
    method.check(model)
    stream = generator(seed, "bracket", device=device)
    z = model.sample_prior(params, (n_rows, model.n_components), stream, torch.float64)
    with torch.no_grad():
        x = model.likelihood.sample(params["likelihood"], model.decode(params, z), stream)

    def both(rows: Batch) -> Tensor:
        x, z = rows.x.split([model.n_columns, model.n_components], -1)
        lower = method.estimate(model, params, Batch(x), seed)
        return torch.cat([lower, method.upper_estimate(model, params, Batch(x), z, seed)], -1)

    rows = Batch(torch.cat([x, z], -1))
    values = map_rows_with_slopes(both, rows, model, method.n_chains, 2 * method.n_slopes)
    return Bracket(*(LogLikelihood(*_in_data_units(fitted.codec, half).T) for half in values.chunk(2, -1)))


@one_thread()
def kl_per_component(estimator, X):
    r"""Return the mean over rows of :math:`\mathrm{KL}(q(z_j \mid x) \,\|\, p(z_j))`, how many nats each component carries.

    Where components depend on each other under the prior or the posterior (mixtures, VampPrior, `"full_normal"`, Dirichlet),
    each value is the KL of a component given those before it, the mean over :math:`q(z \mid x)` of
    :math:`\log q(z_j \mid z_{<j}, x) - \log p(z_j \mid z_{<j})`. The values then still add up to the KL of all components, but
    which of them carries what depends on their order.

    Parameters
    ----------
    estimator : VAETransformer
        A fitted estimator.

    X : array-like of shape (n_samples, n_features)
        The data.

    Returns
    -------
    kl : ndarray of shape (n_components,)
        Nats per row.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import kl_per_component
    >>> X, _ = load_iris(return_X_y=True)
    >>> kl_per_component(VAETransformer(2, random_state=0).fit(X), X).shape
    (2,)
    """
    fitted, params, rows, _ = _checked(estimator)._encoded(X)
    model = fitted.model
    stream = generator(model.seed, "report", device=rows.device)
    return kl_of_components(model, params, rows, stream).double().mean(0).cpu().numpy()


@one_thread()
def active_units(estimator, X, threshold=0.01):
    """Tell which components differ between rows: those whose posterior mean varies by more than a threshold.

    Parameters
    ----------
    estimator : VAETransformer
        A fitted estimator.

    X : array-like of shape (n_samples, n_features)
        The data.

    threshold : float, default=0.01
        Variance over rows, in the units of the latent space. The usual one is meant for a prior of variance one.

    Returns
    -------
    active : ndarray of bool of shape (n_components,)
        Whether each component is active.

    References
    ----------
    Burda, Grosse & Salakhutdinov, *Importance Weighted Autoencoders*, 2016, section 5.2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import active_units
    >>> X, _ = load_iris(return_X_y=True)
    >>> int(active_units(VAETransformer(2, random_state=0).fit(X), X).sum())
    2
    """
    fitted, params, rows, _ = _checked(estimator)._encoded(X)
    mean = fitted.model.posterior.mean(encode_rows(fitted.model, params, rows)).double()
    return (mean.var(0, correction=0) > threshold).cpu().numpy()


def mutual_information(estimator, X, n_samples=10, random_state=None):
    r"""Split the mean KL of the bound into what latents tell about their row and how far from the prior they are together.

    With the aggregated posterior :math:`q(z) = \frac1N \sum_i q(z \mid x_i)` of the rows,

    .. math:: \frac1N \sum_i \mathrm{KL}(q(z \mid x_i) \,\|\, p(z)) = I(x; z) + \mathrm{KL}(q(z) \,\|\, p(z)).

    The information is never above :math:`\log N`: it tells which of the rows a latent belongs to. The other part is what new
    rows drawn from the prior suffer from. Where the prior depends on conditions (:ref:`conditional`), :math:`p(z)` is that of
    each row's, and the other part is less by what the conditions tell about latents, and may be negative. Every draw is
    compared with every row, so the time grows with :math:`N^2`.

    Parameters
    ----------
    estimator : VAETransformer
        A fitted estimator.

    X : array-like of shape (n_samples, n_features)
        The rows.

    n_samples : int, default=10
        Draws of z per row, two or more.

    random_state : int, RandomState instance or None, default=None
        Where the draws come from; None gives the same ones for every call, a function of the model's seed.

    Returns
    -------
    split : MutualInformation
        A named tuple of `information` and `marginal_kl`, each an :class:`Estimate`, a `value` and a `standard_error` in nats
        per row. The errors tell of the draws, given the rows.

    References
    ----------
    Hoffman & Johnson, *ELBO surgery: yet another way to carve up the variational evidence lower bound*, 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import mutual_information
    >>> X, _ = load_iris(return_X_y=True)
    >>> split = mutual_information(VAETransformer(2, random_state=0).fit(X), X)
    >>> split.information.value > split.marginal_kl.value
    True
    """
    n_samples = check_whole("n_samples", n_samples, 2)
    fitted, params, rows, _ = _checked(estimator)._encoded(X)
    model = fitted.model
    with torch.inference_mode():
        q = encode_rows(model, params, rows).double()
        stream = generator(_seed(estimator, random_state), "mutual information", device=q.device)
        z = model.posterior.sample(q, normal((n_samples, len(q), model.n_noise), stream, q.dtype))  # (s, n, k)
        log_q = model.posterior.log_prob(q, z).sum(-1)
        log_aggregated = _log_mixture(model, q, z)
        x = rows.slice(0, len(rows)).x.double() if model.n_given else None
        log_prior = model.log_pz(in_double(params), z, x)
    return MutualInformation(_estimate(log_q - log_aggregated), _estimate(log_aggregated - log_prior))


def _log_mixture(model, q: Tensor, z: Tensor) -> Tensor:
    """Return the log density at z (s, n, k) of the mean of q(z|x) over the rows.  # (s, n)"""
    points = z.flatten(0, 1)[:, None]  # (s * n, 1, k)
    parts = points.split(max(1, _MAX_CELLS // (len(q) * z.shape[-1])))
    density = torch.cat([torch.logsumexp(model.posterior.log_prob(q, part).sum(-1), -1) for part in parts])
    return density.view(z.shape[:-1]) - np.log(len(q))


def _estimate(values: Tensor) -> Estimate:
    """Return the mean over draws and rows of values (s, n), and its standard error given the rows."""
    n_draws, n_rows = values.shape
    error = (values.var(0).sum() / n_draws).sqrt() / n_rows
    return Estimate(float(values.mean()), float(error))


def posterior_predictive_check(estimator, X, random_state=None):
    r"""Draw as many rows from a model as X has, and tell how alike both tables are.

    It is one draw, of the fitted parameters: another `random_state` gives another, and `chance` tells how much of a distance
    the draw alone can make. Where the model has conditions, each row is drawn under those of a row of X; where it says which
    cells of a column are missing (:class:`~skvae.likelihoods.SelfMasking`), the rows drawn have holes of their own there, and
    in other columns those of X.

    Parameters
    ----------
    estimator : VAETransformer
        A fitted estimator.

    X : array-like of shape (n_samples, n_features)
        Rows that the estimator has not been trained on.

    random_state : int, RandomState instance or None, default=None
        Where the draws come from; None gives the same ones for every call, a function of the model's seed.

    Returns
    -------
    comparison : TableComparison
        What :func:`compare_tables` says of X and the rows drawn.

    See Also
    --------
    skvae.displays.TableCheckDisplay : The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import train_test_split
    >>> from skvae import VAETransformer
    >>> from skvae.evaluation import posterior_predictive_check
    >>> X, _ = load_wine(return_X_y=True, as_frame=True)
    >>> train, test = train_test_split(X, test_size=0.5, random_state=0)
    >>> check = posterior_predictive_check(VAETransformer(random_state=0).fit(train), test)
    >>> bool(check.distances.mean() < 0.2), bool(check.auc < 0.9)
    (True, True)
    """
    seed = _seed(_checked_fitted(estimator), random_state)
    X = array_or_frame(X)
    fitted, cells = estimator._fitted, estimator._cells(X.toarray() if issparse(X) else X).astype(np.float64)
    schema = fitted.codec.schema
    is_category = np.array([bool(column.categories) or column.kind in ("categorical", "ordinal") for column in schema])
    names = [column.name for column in schema]
    return compare_cells(names, is_category, np.concatenate([cells, _redrawn(estimator, cells, seed)]), len(cells), seed)


def _redrawn(estimator, cells, seed):
    """Return the cells of as many rows drawn from the model, under the conditions of these if it has any.

    Where the model knows why cells are missing, they have holes: its own, in other columns those of the rows given.
    """
    drawn = _drawn_like(estimator, cells, seed)
    fitted, params, device = estimator._ready()
    if not fitted.model.likelihood.reads_missing:
        return drawn
    order = fitted.codec.order
    rows = fitted.codec.encode(drawn, dtype=fitted.dtype).to(device).x
    like = rows.masked_fill(torch.from_numpy(np.isnan(cells[:, order])).to(device), torch.nan)
    stream = generator(seed, "holes", device=device)
    is_hole = np.zeros(drawn.shape, dtype=bool)
    is_hole[:, order] = fitted.model.likelihood.with_holes(params["likelihood"], rows, like, stream).isnan().cpu()
    return np.where(is_hole, np.nan, drawn)


def _drawn_like(estimator, cells, seed):
    """Return the cells of as many complete rows drawn from the model, under the conditions of these if it has any."""
    conditions = estimator._fitted.conditions
    if not len(conditions):
        drawn = estimator.sample(len(cells), random_state=seed)
        return estimator._cells(drawn) if is_frame(drawn) else drawn
    known = np.full_like(cells, np.nan)
    known[:, conditions] = cells[:, conditions]
    estimator._check_conditions(known, "posterior_predictive_check")
    return estimator._drawn(known, 1, _N_WEIGHTED, seed, noise=True, are_unknown=True)[0][0]


def _checked_fitted(estimator) -> BaseVAE:
    """Return a fitted estimator of this package, or say what to pass."""
    if not isinstance(estimator, BaseVAE):
        raise TypeError(
            f"Expected a fitted VAETransformer, got {type(estimator).__name__}. Of a search, pass best_estimator_; of a "
            "pipeline, the last step, and the data as the steps before it leave them: pipe[-1], pipe[:-1].transform(X)."
        )
    check_is_fitted(estimator)
    return estimator


def _checked(estimator) -> BaseVAE:
    """Return a fitted estimator whose weights are given."""
    if _checked_fitted(estimator)._fitted.model.decoder.is_uncertain:
        raise ValueError(
            "The weights of this decoder are uncertain, and the estimators here hold for given weights. score_samples averages "
            "over the weights, also with score_method='hmc' or 'ais'."
        )
    return estimator


def _seed(estimator: BaseVAE, random_state) -> int:
    return estimator._fitted.model.seed if random_state is None else seed_of(random_state)


def _in_data_units(codec: TableCodec, estimates: Tensor) -> np.ndarray:
    """Return estimates in the model's units in those of the data.  # both (n, 3)"""
    return estimates.double().cpu().numpy() + [codec.log_jacobian, 0.0, 0.0]
