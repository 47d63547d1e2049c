"""Rubin's rules: what estimates from several imputations of a table say together."""

from typing import NamedTuple

import numpy as np


class PooledEstimate(NamedTuple):
    r"""What estimates from several imputations say together; numbers, or arrays of the shape of one estimate.

    Parameters
    ----------
    estimate : float or ndarray
        Their mean.

    total : float or ndarray
        Its variance, `within` + (1 + 1/m) `between`.

    within : float or ndarray
        The mean of their variances, which there would be without holes.

    between : float or ndarray
        Their variance over the imputations.

    degrees_of_freedom : float or ndarray
        Of the t distribution by which intervals around the estimate are made.

    fraction_missing : float or ndarray
        Which fraction of the information about the estimate the holes have taken, :math:`(r + 2 / (\nu + 3)) / (1 + r)` with
        :math:`r = (1 + 1/m) B / \bar U`, by which the holes have increased the variance, and :math:`\nu` degrees of freedom.
    """

    estimate: float | np.ndarray
    total: float | np.ndarray
    within: float | np.ndarray
    between: float | np.ndarray
    degrees_of_freedom: float | np.ndarray
    fraction_missing: float | np.ndarray


def rubin(estimates, variances, *, complete_degrees_of_freedom=np.inf):
    r"""Pool estimates from several imputations of a table by Rubin's rules.

    With m estimates :math:`Q_i` of variances :math:`U_i`, their mean :math:`\bar Q` has the variance
    :math:`T = \bar U + (1 + 1/m) B`, where B is the variance of the :math:`Q_i`. An interval of 95 % is
    :math:`\bar Q \pm t_{\nu, 0.975} \sqrt T`.

    Parameters
    ----------
    estimates : array-like of shape (n_imputations, ...)
        The estimate from each table, a number or an array of them; two tables or more.

    variances : array-like of shape (n_imputations, ...)
        The square of the standard error of each.

    complete_degrees_of_freedom : float, default=inf
        Those of the analysis if there were no holes, such as n - 1 for a mean. They limit what the pooled estimate has, which
        matters in small tables.

    Returns
    -------
    pooled : PooledEstimate
        A named tuple of `estimate`, `total`, `within`, `between`, `degrees_of_freedom` and `fraction_missing`.

    References
    ----------
    Rubin, *Multiple Imputation for Nonresponse in Surveys*, 1987, section 3.3. Barnard & Rubin, *Small-Sample Degrees of
    Freedom with Multiple Imputation*, 1999.

    Examples
    --------
    >>> from skvae.evaluation import rubin
    >>> pooled = rubin([1.0, 1.2, 1.1], [0.04, 0.05, 0.03])
    >>> print(f"{pooled.estimate:.2f} {pooled.total:.4f} {pooled.degrees_of_freedom:.0f}")
    1.10 0.0533 32
    """
    estimates, variances = np.asarray(estimates, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    _check_imputations(estimates, variances, complete_degrees_of_freedom)
    m = len(estimates)
    within, between = variances.mean(axis=0), estimates.var(axis=0, ddof=1)
    total = within + (1 + 1 / m) * between
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, (1 + 1 / m) * between / total, 0.0)  # of the variance that the holes cause
        degrees = _degrees_of_freedom(share, m, complete_degrees_of_freedom)
    fraction = share + (1 - share) * 2 / (degrees + 3)
    values = (estimates.mean(axis=0), total, within, between, degrees, np.where(share > 0, fraction, 0.0))
    return PooledEstimate(*(float(value) if np.ndim(value) == 0 else value for value in values))


def _degrees_of_freedom(share, m: int, complete: float):
    """Return the degrees of freedom of Barnard and Rubin, which tend to Rubin's as those of the complete data grow."""
    by_draws = np.where(share > 0, (m - 1) / np.square(share), np.inf)
    if complete == np.inf:
        return by_draws
    observed = (complete + 1) / (complete + 3) * complete * (1 - share)
    return 1 / (1 / by_draws + 1 / observed)


def _check_imputations(estimates: np.ndarray, variances: np.ndarray, complete: float) -> None:
    if estimates.shape != variances.shape or estimates.ndim == 0 or len(estimates) < 2:
        raise ValueError(
            "estimates and variances must have the same shape, with one entry for each of two or more imputations, got "
            f"{estimates.shape} and {variances.shape}."
        )
    if not (np.isfinite(estimates).all() and np.isfinite(variances).all() and (variances >= 0).all()):
        raise ValueError("estimates and variances must be finite, and variances, the squares of standard errors, not negative.")
    if not complete > 0:
        raise ValueError(f"complete_degrees_of_freedom must be a positive number or infinity, got {complete!r}.")
