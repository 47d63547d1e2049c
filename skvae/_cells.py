"""CellsMixin: what known cells of a row say about the others: filled holes, conditional rows, scores and intervals of cells."""

import math
from numbers import Integral, Real

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from skvae import _conditional as conditional
from skvae._conditional import Proposal
from skvae._devices import one_thread
from skvae._filling import filled, with_numbers_of
from skvae._form import unseen_among
from skvae._frames import is_frame, labelled, raw_cells
from skvae._random import generator
from skvae._reading import array_or_frame, without_cells
from skvae._rows import EncodedRows, seed_of
from skvae._settings import check_whole
from skvae._warnings import warn
from skvae.likelihoods import Bernoulli, Categorical

_MOST_ROWS = 10**8  # that a call draws for several rows of given
_FEW = 10  # draws of equal weight, below which a sample tells little about p(x'|x)
_ROWS_PER_DRAW = 0.1  # that are resampled from one pool of latents
_SIMULATED = 1000  # rows that tell how wide columns of numbers are


class CellsMixin:
    """Methods that need p(x'|x), the distribution of some cells of a row given others."""

    @one_thread()
    def sample(self, n_samples=1, random_state=None, *, noise=True, given=None, n_draws=1000, return_ess=False):
        r"""Draw new rows from the model, on condition of some of their cells if `given` says so.

        With given cells :math:`x_g`, rows come from :math:`p(x \mid x_g) = \int p(x \mid z)\, p(z \mid x_g)\, dz`: latents are
        drawn, weighted by :math:`p(x_g, z) / r(z)`, where r is what they were drawn from, and one of them is chosen by its
        weight for every row. That is exact in the limit of many draws.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows; with `given`, for each of its rows, one after the other.

        random_state : int, RandomState instance or None, default=None
            Where the draws come from; None gives other rows each time.

        noise : bool, default=True
            Whether to draw the cells from p(x|z); False gives their means, smoother than real rows.

        given : dict, DataFrame or array-like of shape (n_rows, n_features), default=None
            What is known. A dict has values by column, by name or, where the training data were an array, by number:
            `{"sex": "female", "age": 40}`. A frame or an array has one row for each that is to be completed; its missing cells,
            and columns that a frame leaves out, are drawn. Given cells come back as they are, so what a column cannot hold is
            refused: a fraction in a column of whole numbers, or a category that no training row had.

        n_draws : int, default=1000
            Number of weighted latents, for every `n_draws / 10` rows that they give. Only used for rows of which cells are
            given that are no conditions.

        return_ess : bool, default=False
            Whether to return the effective sample sizes as well. Only with `given`.

        Returns
        -------
        X : ndarray or DataFrame of shape (n_samples, n_features) or (n_rows * n_samples, n_features)
            The rows, in the units of the data. Those for the first row of `given` come first; for a frame of pandas they have
            its labels in the index, each `n_samples` times. After a fit on a frame they are one, with its types and categories,
            none of them unseen in training. Of frames, and of arrays whose columns :class:`~skvae.likelihoods.Mixed` tells
            apart, numbers outside the range that their column had in training are moved to its edge, and those of a
            :class:`~skvae.likelihoods.NormalMixture` next to one that occurs again and again become it.

        ess : ndarray of shape (n_rows,)
            As how many draws of :math:`p(z \mid x_g)` the `n_draws` latents count; all of them where nothing is weighed. Only
            returned if `return_ess` is True.

        Warns
        -----
        UserWarning
            Fewer than ten draws count for a row: what is given is rare under the model.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> iris = load_iris(as_frame=True)
        >>> X = iris.data.assign(species=iris.target_names[iris.target])
        >>> vae = VAETransformer(2, random_state=0).fit(X)
        >>> virginica = vae.sample(100, random_state=0, given={"species": "virginica"})
        >>> virginica["species"].unique().tolist(), bool(5 < virginica["petal length (cm)"].mean() < 6)
        (['virginica'], True)
        """
        check_is_fitted(self)
        n_samples = check_whole("n_samples", n_samples)
        if given is not None:
            return self._sample_given(given, n_samples, random_state, noise, n_draws, return_ess)
        if return_ess:
            raise ValueError("return_ess=True needs given cells: rows that are drawn without any are as many as they are.")
        fitted, params, device = self._ready()
        self._check_conditions(np.full((1, self.n_features_in_), np.nan), "sample")
        stream = generator(seed_of(random_state), "sample", device=device)
        with torch.inference_mode():
            x = fitted.model.sample(params, n_samples, stream, noise, fitted.dtype)
        cells = fitted.codec.decode(x, np.float64)
        return fitted.codec.drawn_table(cells) if noise else fitted.codec.table(cells)

    def _sample_given(self, given, n_samples, random_state, noise, n_draws, return_ess):
        given = self._given_table(given)
        known = self._known_cells(given)
        if not len(known):
            raise ValueError("given has no rows. Leave it out to draw rows of any kind.")
        if min(n_samples, len(known)) > 1 and n_samples * len(known) > _MOST_ROWS:
            raise ValueError(
                f"n_samples={n_samples} is for every row of given, of which there are {len(known)}: that makes "
                f"{n_samples * len(known):,} rows, more than {_MOST_ROWS:,}. For one row each use n_samples=1."
            )
        self._check_conditions(known, "sample")
        cells, ess = self._drawn(known, n_samples, n_draws, seed_of(random_state), noise, are_unknown=True)
        _warn_of_few(ess, n_draws)
        ess = np.minimum(ess, n_draws)
        codec = self._fitted.codec
        table = codec.table(cells.swapaxes(0, 1).reshape(-1, known.shape[1]))
        table = with_numbers_of(table, given, known, ~np.isnan(known), codec.form, n_samples, by_name=True)
        if isinstance(table, pd.DataFrame) and isinstance(given, pd.DataFrame):
            table = table.set_axis(given.index.repeat(n_samples), axis=0)
        return (table, ess) if return_ess else table

    @one_thread()
    def impute(self, X, *, method="mean", n_draws=200, random_state=None):
        r"""Fill the holes of a table by what the other cells of each row say.

        A missing number becomes the conditional mean :math:`E[x_m \mid x_o]`, a missing category the most probable one,
        of ordered levels the median one, all of them averages over :math:`p(z \mid x_o)` by weighted latents. The mean is exact
        in the limit of many draws.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with holes.

        method : {"mean", "draw"}, default="mean"
            What fills a hole: "mean" the above, or "draw" a draw from :math:`p(x_m \mid x_o)`, the holes of a row together,
            which keeps the spread of columns and what they have to do with each other.

        n_draws : int, default=200
            Number of weighted latents per row. More make means smoother, above all in rows with more holes than those of the
            training data. Rows of which few count are done twice (:ref:`imputation`).

        random_state : int, RandomState instance or None, default=None
            Where the draws come from if `method="draw"`; None gives others each time. The mean needs none: a row's depends on
            that row alone, up to rounding in double precision.

        Returns
        -------
        X_imputed : ndarray or DataFrame of shape (n_samples, n_features)
            A table of the kind of X, in which the other cells are untouched. Numbers are rounded in columns of whole numbers.
            New categories that are read as missing (:class:`~skvae.likelihoods.Mixed`) are filled. A column that was wholly
            missing in training stays as it is, and so do conditions.

        Warns
        -----
        UserWarning
            Fewer than ten draws count for a row: what is known of it is rare under the model. Or a condition is missing.

        See Also
        --------
        multiple_impute : Several draws, to tell how sure an analysis of the filled table is.
        predictive_interval : Between which numbers a missing cell lies.

        References
        ----------
        Mattei & Frellsen, *MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets*, 2019, section 3.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> X, _ = load_iris(return_X_y=True, as_frame=True)
        >>> holes = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)
        >>> vae = VAETransformer(2, random_state=0).fit(holes)
        >>> filled = vae.impute(holes)
        >>> int(filled.isna().sum().sum()), bool((filled - X).abs().max().max() < 1.5)
        (0, True)
        """
        check_is_fitted(self)
        if method not in ("mean", "draw"):
            raise ValueError(f"method must be 'mean' or 'draw', got {method!r}.")
        if method == "draw":
            return self._imputations(X, 1, n_draws, random_state)[0]
        n_draws = check_whole("n_draws", n_draws)

        def means(known):
            fitted, params, rows = self._tolerant(known)
            expected, sizes = conditional.expectations(fitted.model, params, rows, Proposal(n_draws, fitted.model.seed))
            cells = fitted.codec.within_limits(fitted.codec.decode(fitted.model.likelihood.point(expected), np.float64))
            whole = fitted.codec.order[fitted.codec.is_whole]
            cells[:, whole] = np.rint(cells[:, whole])
            _warn_of_few(sizes.cpu().numpy(), n_draws)
            return cells[None]

        return self._completed(X, 1, means)[0]

    @one_thread()
    def multiple_impute(self, X, n_imputations=5, *, n_draws=200, random_state=None):
        r"""Fill the holes of a table several times by draws from :math:`p(x_m \mid x_o)`.

        An analysis of each of the tables, pooled by :func:`skvae.evaluation.rubin`, tells what the holes cost in certainty,
        which a table that was filled once does not. The draws are those of the fitted model, as if its parameters were known:
        with few rows, the variance between imputations is somewhat too small.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with holes.

        n_imputations : int, default=5
            Number of tables.

        n_draws : int, default=200
            Number of weighted latents per row, for every twenty tables at this default.

        random_state : int, RandomState instance or None, default=None
            Where the draws come from; None gives others each time.

        Returns
        -------
        tables : list of ndarray or DataFrame of shape (n_samples, n_features)
            Tables of the kind of X, which differ where X has holes.

        Warns
        -----
        UserWarning
            Fewer than ten draws count for a row: its imputations differ too little.

        References
        ----------
        Rubin, *Multiple Imputation for Nonresponse in Surveys*, 1987.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> from skvae.evaluation import rubin
        >>> X, _ = load_iris(return_X_y=True)
        >>> X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
        >>> tables = VAETransformer(2, random_state=0).fit(X).multiple_impute(X, 10, random_state=0)
        >>> pooled = rubin([table[:, 0].mean() for table in tables], [table[:, 0].var(ddof=1) / 150 for table in tables])
        >>> bool(5.6 < pooled.estimate < 6.1), bool(pooled.total > pooled.within)
        (True, True)
        """
        check_is_fitted(self)
        return self._imputations(X, check_whole("n_imputations", n_imputations), n_draws, random_state)

    def _imputations(self, X, n_imputations, n_draws, random_state):
        """Return tables like X whose holes are filled by draws."""

        def drawn(known):
            cells, sizes = self._drawn(known, n_imputations, n_draws, seed_of(random_state), noise=True)
            _warn_of_few(sizes, n_draws)
            return cells

        return self._completed(X, n_imputations, drawn)

    @one_thread()
    def score_cells(self, X, *, n_draws=300):
        r"""Return the share of every cell in the score of its row: which cells make a row odd.

        How well a cell fits the others of its row is :math:`\log p(x_j \mid x_{-j})`. To be compared between columns, it is
        taken relative to a blind guess :math:`u_j`, spread evenly over the levels of column j or, of numbers, over as much of
        the line as the middle nine tenths of drawn rows cover, divided by .9: if one cell of the row is wrong and could be
        anything, the posterior probability that it is this one is proportional to :math:`u_j(x_j) / p(x_j \mid x_{-j})`. What
        these ratios lack to the score of the row is divided equally between its d cells, those that are there and that the
        model describes:

        .. math:: s_j = \log \frac{p(x_j \mid x_{-j})}{u_j(x_j)} + \frac1d \left[\log p(x)
                        - \sum_i \log \frac{p(x_i \mid x_{-i})}{u_i(x_i)}\right].

        So the lowest cell of a row is the first to be looked at, and the cells of a row sum to what :meth:`score_samples`
        gives, to rounding.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The data.

        n_draws : int, default=300
            Number of weighted latents per row. They come from q(z|x), the prior, and the modes of p(z|x) without each cell
            in turn, which a wrong cell does not lead astray; the estimate of :math:`\log p(x_j \mid x_{-j})` is exact in the
            limit.

        Returns
        -------
        cells : ndarray or DataFrame of shape (n_samples, n_features)
            Nats; a row's values depend on that row alone. NaN for cells that are missing, for columns that never varied in
            training, and for conditions, all of which count nothing; so for all cells of a row without any.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> X, _ = load_iris(return_X_y=True, as_frame=True)
        >>> vae = VAETransformer(2, random_state=0).fit(X)
        >>> row = X.iloc[[0]].assign(**{"petal width (cm)": 2.5}) # the petals of setosa are not as wide
        >>> vae.score_cells(row).idxmin(axis=1).tolist()
        ['petal width (cm)']
        """
        check_is_fitted(self)
        X = array_or_frame(X)
        scores, cells = self._scores(X), self._cells(X)
        fitted, params, rows = self._tolerant(cells)
        proposal = Proposal(check_whole("n_draws", n_draws), fitted.model.seed, judged=range(fitted.model.n_columns))
        fit, _ = conditional.leave_one_out(fitted.model, params, rows, proposal)
        fit = fit.cpu().numpy() + self._log_widths(fitted)
        fit[:, np.isin(fitted.codec.order, fitted.conditions)] = np.nan
        n_known = np.maximum((~np.isnan(fit)).sum(axis=1), 1)
        shares = np.full(cells.shape, np.nan)
        shares[:, fitted.codec.order] = fit + ((scores - np.nansum(fit, axis=1)) / n_known)[:, None]
        return labelled(shares, X)

    def _log_widths(self, fitted):
        """Return minus the log of the blind guess of every column that the model sees, per unit of the data or per level."""
        codec = fitted.codec
        has_levels = ~codec.is_density & np.isfinite(codec.high)
        stream = generator(fitted.model.seed, "widths", device="cpu")
        params = fitted.model.unpack(torch.tensor(fitted.params, device="cpu"))
        with torch.inference_mode():
            x = fitted.model.sample(params, _SIMULATED, stream, True, fitted.dtype).double().numpy()
        low, high = np.quantile(x, [0.05, 0.95], axis=0)  # of what the column would be without outliers
        covered = (high - low) / 0.9 * np.where(codec.is_density, codec.scale[codec.order], 1.0)
        with np.errstate(invalid="ignore"):
            width = np.where(has_levels, codec.high - codec.low + 1, np.where(codec.is_density, covered, covered + 1))
        return np.log(width)

    @one_thread()
    def predictive_interval(self, X, coverage=0.9, *, n_draws=1000, random_state=None):
        r"""Return between which numbers every cell is expected, given the others of its row.

        The ends are quantiles of :math:`p(x_j \mid x_{-j})`, the central interval: as likely to be exceeded on either side. For
        a missing cell it says how sure an imputation is; a cell that is there and lies outside of a wide interval is odd.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The data; cells may be missing.

        coverage : float, default=0.9
            Probability that the cell lies within, in the model's view.

        n_draws : int, default=1000
            Number of weighted draws per cell. The ends are exact in the limit; at the default, the probability that lies
            between them is mostly within .03 of `coverage`.

        random_state : int, RandomState instance or None, default=None
            Where the draws come from. None gives the same ones for every call, a function of the model's seed; either way
            all rows share them, so a row's intervals depend on that row alone.

        Returns
        -------
        low, high : ndarray or DataFrame of shape (n_samples, n_features)
            Tables in the form of the training data, with the index of X. Of ordered levels, the ends are levels; unordered
            categories and flags have no interval, so their cells are missing. After a fit on a frame, or an array whose columns
            :class:`~skvae.likelihoods.Mixed` tells apart, ends outside the range that a column had in training are moved to
            its edge.

        Warns
        -----
        UserWarning
            Fewer than ten draws count for a row: the interval of one of its cells, at least, is unsure.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from skvae import VAETransformer
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = VAETransformer(2, random_state=0).fit(X)
        >>> holes = X.copy()
        >>> holes[:, 3] = np.nan
        >>> low, high = vae.predictive_interval(holes)
        >>> bool(0.8 < ((low <= X) & (X <= high))[:, 3].mean() < 1)
        True
        """
        check_is_fitted(self)
        if not isinstance(coverage, Real) or not 0 < coverage < 1:
            raise ValueError(f"coverage must be a number between 0 and 1, got {coverage!r}.")
        X = array_or_frame(X)
        fitted, params, rows = self._tolerant(self._cells(X))
        seed = fitted.model.seed if random_state is None else seed_of(random_state)
        judged = _ordered(fitted)
        proposal = Proposal(check_whole("n_draws", n_draws), seed, judged=judged)
        levels = ((1 - coverage) / 2, (1 + coverage) / 2)
        ends = torch.full((len(rows), 2, fitted.model.n_columns), torch.nan, dtype=torch.float64, device=rows.device)
        if judged:
            found, sizes = conditional.quantiles(fitted.model, params, rows, proposal, levels)
            ends[..., judged] = found
            _warn_of_few(sizes.amin(-1).cpu().numpy(), n_draws)
        cells = fitted.codec.within_limits(fitted.codec.decode(ends, np.float64))
        return tuple(fitted.codec.table(cells[:, side], X) for side in (0, 1))

    # --- cells in, cells out ---------------------------------------------------------------------------------------------

    def _tolerant(self, cells, are_unknown=False):
        """Return a state that reads rows with holes, its parameters, and rows as encoder and likelihood see them.

        Holes are missing cells, unless they are said to be unknown ones, which tell nothing.
        """
        fitted, params, device = self._ready(has_holes=True)
        fitted = fitted.passing_over_holes() if are_unknown else fitted
        model = fitted.model
        if model.decoder.is_uncertain:
            raise ValueError(
                f"The weights of this decoder, {model.pieces.decoder!r}, are uncertain, and what a row's cells say about each "
                "other is computed for given weights. Use MLP for the decoder."
            )
        return (
            fitted,
            params,
            EncodedRows(fitted.codec, cells, fitted.dtype, device, lambda rows: model.presented(rows, "score", shared=True)),
        )

    def _completed(self, X, n_tables, function):
        """Return tables like X, with holes filled from the rows (n_tables, n, d) that `function` makes of those with holes."""
        X = array_or_frame(X)
        X = X.toarray() if sparse.issparse(X) else X
        known, codec = self._cells(X), self._fitted.codec
        cells = np.where(np.isnan(known), codec.loc, known)  # which is all that there is for a column that never varied
        holes = codec.incomplete_rows(known)
        unfilled = [codec.schema[j].name for j in self._fitted.conditions if np.isnan(known[:, j]).any()]
        if unfilled:
            warn(
                f"The holes of {unfilled[:5]} stay: they are columns of condition_on, which the model does not describe.",
            )
        found = function(known[holes]) if holes.any() else np.empty((n_tables, 0, known.shape[1]))
        tables = []
        for some in found:
            cells[holes] = some
            tables.append(filled(X, cells, np.isnan(known) & ~np.isnan(cells), codec.form))
        return tables

    def _drawn(self, known, n_samples, n_draws, seed, noise, are_unknown=False):
        """Return rows, n_samples of each, whose missing cells are drawn, and effective sample sizes.  # (m, n, d), (n,)

        Where nothing but conditions is known and holes tell nothing, latents come from the prior, and the size is infinite.
        """
        n_draws = check_whole("n_draws", n_draws)
        described = np.setdiff1d(self._fitted.codec.order, self._fitted.conditions)
        is_free = np.isnan(known[:, described]).all(axis=1) & are_unknown
        cells, ess = np.empty((n_samples, *known.shape)), np.empty(len(known))
        for chosen, weighs in ((is_free, False), (~is_free, True)):
            if chosen.any():
                part = known[chosen], n_samples, n_draws, seed, noise, are_unknown
                cells[:, chosen], ess[chosen] = self._drawn_rows(*part, weighs)
        return cells, ess

    def _drawn_rows(self, known, n_samples, n_draws, seed, noise, are_unknown, weighs):
        per_pool = min(n_samples, max(1, int(_ROWS_PER_DRAW * n_draws)))
        n_pools = math.ceil(n_samples / per_pool)
        fitted, params, rows = self._tolerant(np.repeat(known, n_pools, axis=0), are_unknown)
        if weighs:
            proposal = Proposal(n_draws, seed, is_common=False)
            x, ess = conditional.draws(fitted.model, params, rows, proposal, per_pool, noise)
            ess = ess.double().cpu().numpy().reshape(len(known), n_pools).mean(axis=1)
        else:
            x, ess = conditional.draws_without_cells(fitted.model, params, rows, seed, per_pool, noise), np.inf
        cells = fitted.codec.decode(x, np.float64).reshape(len(known), n_pools * per_pool, -1)[:, :n_samples]
        cells = fitted.codec.settled(cells) if noise else cells
        return np.where(np.isnan(known)[:, None], cells, known[:, None]).swapaxes(0, 1), ess

    def _given_table(self, given):
        """Return what is given as a dict, a frame, or an array of the width of the data."""
        if isinstance(given, dict):
            return given
        if isinstance(given, pd.Series):
            return self._row_of_series(given)
        given = array_or_frame(given)
        given = given.toarray() if sparse.issparse(given) else given
        return given if is_frame(given) or self._fitted.codec.form.is_of_numbers else self._checked_table(given, reset=False)

    def _row_of_series(self, given):
        """Return a row of a frame as a dict, without its empty cells."""
        if not given.index.is_unique or not given.index.isin(self._fitted.codec.form.names).any():
            raise ValueError(
                f"given is a Series, which is read as one row, so its labels must be names of columns, got "
                f"{given.index[:5].tolist()}. Pass several rows as a frame, such as X[['name']]."
            )
        return given.dropna().to_dict()

    def _known_cells(self, given):
        """Return the cells of rows of which some are given, after a check that the model can heed them."""
        codec = self._fitted.codec
        self._refuse_without_cells(given)
        known = np.asarray(self._given_cells(given, codec.form), dtype=np.float64)
        for j in np.setdiff1d(np.arange(known.shape[1]), codec.order):
            other = known[~np.isnan(known[:, j]) & (known[:, j] != codec.loc[j]), j]
            if len(other):
                never = "was missing in every row" if np.isnan(codec.loc[j]) else f"was {codec.loc[j]:g} in every row"
                raise ValueError(_never_met(codec.schema[j].name, never, f"{other[0]:g}"))
        return known

    def _refuse_without_cells(self, given):
        """Refuse cells of a table with categories in columns that were missing in all of the training data."""
        codec = self._fitted.codec
        for j in () if codec.form.is_of_numbers else without_cells(codec):
            name = codec.form.names[j]
            cells = pd.Series(raw_cells(given, j, name), dtype=object).dropna()
            if len(cells):
                raise ValueError(_never_met(name, "was missing in every row", repr(cells.iloc[0])))

    def _given_cells(self, given, form):
        """Return the cells that a dict, a frame or an array gives."""
        if form.is_of_numbers:
            return _row_of(given, self.n_features_in_) if isinstance(given, dict) else self._cells(given)
        rows = _frame_of(given) if isinstance(given, dict) else given
        self._refuse_unknown_conditions(rows, form)
        known = form.cells_of_some(rows) if is_frame(rows) else form.cells(rows)
        known = _possible(known, form)
        if isinstance(given, dict):
            described = {f.name: known[0, j] for j, f in enumerate(form.formats) if j not in self._fitted.conditions}
            unread = {name: value for name, value in given.items() if np.isnan(described.get(name, 0.0))}
            if unread:
                raise ValueError(f"given has values that are missing or unknown to their columns: {unread}. Leave them out.")
        return known

    def _refuse_unknown_conditions(self, rows, form):
        """Refuse categories of conditions of which the model knows nothing, and which cannot be left out either."""
        for j in self._fitted.conditions:
            format = form.formats[j]
            new = unseen_among(pd.Series(raw_cells(rows, j, format.name), dtype=object), format)
            if new:
                raise ValueError(
                    f"given has {new[0]!r} for {format.name!r}, a column of condition_on, and no row of the training data has "
                    f"that. Known are {format.occurring[:10]}: choose one of them."
                )


def _never_met(name, never: str, cell: str) -> str:
    return (
        f"Column {name!r} {never} of the training data, so the model cannot tell what goes with {cell} in it. Leave it out of "
        "given."
    )


def _frame_of(given):
    """Return a frame with one row, that of a dict."""
    several = [name for name, value in given.items() if not pd.api.types.is_scalar(value)]
    if several:
        raise ValueError(
            f"given must have one value for each of its columns, got {given[several[0]]!r} for {several[0]!r}. Pass a "
            "frame to complete several rows."
        )
    return pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in given.items()}, index=[0])


def _possible(known, form):
    """Return given cells, those of categories that no training row had as missing ones; refuse what columns cannot hold."""
    known = known.copy()
    for cells, format in zip(known.T, form.formats, strict=True):
        is_broken = ~np.isnan(cells) & (np.rint(cells) != cells)
        if format.categories is None and format.is_whole and is_broken.any():
            raise ValueError(
                f"given has {cells[is_broken][0]:g} for {format.name!r}, a column of whole numbers. Round it, or leave it out."
            )
        if format.seen is not None:
            is_new = ~np.isnan(cells) & ~np.isin(cells, format.seen)
            if is_new.any() and form.handle_unknown == "error":
                raise ValueError(
                    f"given has {format.categories[int(cells[is_new][0])]!r} for {format.name!r}, a category that no row of "
                    "the training data has, so the model cannot tell what goes with it. Leave it out of given."
                )
            cells[is_new] = np.nan
    return known


def _row_of(given, n_columns):
    """Return a row of an array of numbers with the cells that a dict gives by their columns' numbers."""
    row = np.full((1, n_columns), np.nan)
    for j, value in given.items():
        if not isinstance(j, Integral) or isinstance(j, bool) or not 0 <= j < n_columns:
            raise ValueError(f"given names columns of an array by numbers from 0 to {n_columns - 1}, got {j!r}.")
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"given must have a finite number for column {j}, got {value!r}.")
        row[0, j] = value
    return row


def _warn_of_few(sizes, n_draws):
    """Warn of rows of which few draws count."""
    n_few = int((sizes < _FEW).sum())
    if n_few:
        warn(
            f"For {n_few} of {len(sizes)} row(s) fewer than {_FEW} of the {n_draws} draws count (at least {sizes.min():.1f}): "
            "what is given in them is rare under the model. Raise n_draws, give less, or train on rows with holes like these.",
        )


def _ordered(fitted):
    """Return which of the columns that the model sees hold neither categories nor flags, which have no order."""
    return [j for j, one in enumerate(fitted.likelihoods) if not isinstance(one, (Categorical, Bernoulli))]
