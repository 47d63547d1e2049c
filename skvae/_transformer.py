"""VAETransformer: the variational auto-encoder as a scikit-learn transformer."""

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from skvae._base import BaseVAE
from skvae._cells import CellsMixin
from skvae._devices import one_thread
from skvae._filling import with_numbers_of
from skvae._frames import is_frame
from skvae._reading import array_or_frame
from skvae._rows import FARTHEST
from skvae._settings import check_whole
from skvae.likelihoods import Categorical, Ordinal


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, CellsMixin, BaseVAE):
    r"""Variational auto-encoder: a latent representation of rows, a density of the table, and new rows.

    Every row :math:`x` is taken to come from a latent row :math:`z \sim N(0, I)` with few components: a network, the decoder,
    gives :math:`p(x \mid z)`; a second one, the encoder, gives the approximate posterior :math:`q(z \mid x)`. Both are trained
    together to raise a lower bound on the log-likelihood of the data,

    .. math:: \log p(x) \geq E_{q(z \mid x)}[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z)),

    by stochastic gradients through :math:`z = \mu(x) + \sigma(x) \epsilon` with standard normal :math:`\epsilon`. With linear
    networks it is probabilistic PCA or factor analysis; the hidden layers add what bends.

    Read more in the :ref:`User Guide <model>`.

    Parameters
    ----------
    n_components : int, default=None
        Number of latent components. None takes a number that grows with the root of the number of columns. The components that
        are not needed switch themselves off (`active_units_`), so a number that is too large costs time more than quality. Use
        2 to draw the data, fewer for a coarser summary, more when the bound still rises.

    likelihood : str or Likelihood, default="auto"
        What the columns are. "auto" decides by the types of a frame's columns, as the :ref:`User Guide <tables>` lists; an
        array holds numbers. A name stands for all columns, such as "gaussian" for numbers, "bernoulli" for zeros and ones,
        "poisson" for counts. An object sets more, such as `Gaussian(noise="shared")`, `Bernoulli(limits=(0, 255))`, or
        `Mixed({"visits": "poisson"})` for single columns; see :mod:`skvae.likelihoods`.

    condition_on : column, list of columns, mask or callable, default=None
        Columns that are conditions, by name, by number in an array, by a mask with a flag for each column, or by a selector:
        encoder, decoder and a prior that is a mixture read them, and the model is one of the other columns given them, a
        conditional VAE. Scores are :math:`\log p(x \mid c)`, and `sample` and `inverse_transform` need their values by `given`;
        what reads rows takes a missing condition as one that tells nothing. They are part of X, so nothing changes in pipelines
        and searches.

    hidden_layer_sizes : int, sequence of int or "auto", default="auto"
        Units of the hidden layers of the encoder, in order from the input on, and of the decoder, in the same order from the
        latents on. `()` makes both linear, which is factor analysis. "auto" is one layer of 128 units, and two of them from
        2,000 distinct rows on (those of the first call with `partial_fit`).

    activation : {"silu", "relu", "gelu", "tanh", "identity"}, default="silu"
        Function applied after every hidden layer. It rarely matters; "tanh" is the paper's.

    encoder : {"conv"}, Network or callable, default=None
        The network that reads rows. None makes the one that `hidden_layer_sizes` and `activation` describe. "conv" takes rows
        as square images; :class:`skvae.networks.Conv` sets other shapes. A callable `factory(n_in, n_out)` that returns a
        `torch.nn.Module` brings one of your own; see :mod:`skvae.networks`.

    decoder : {"conv"}, Network or callable, default=None
        The network that reads latents; as `encoder`, with :class:`skvae.networks.ConvTranspose` for images.

    posterior : str or Posterior, default="normal"
        Family of :math:`q(z \mid x)`: "normal" has a diagonal covariance, "full_normal" any covariance; "laplace", "gamma",
        "beta", "dirichlet" and others are listed in :ref:`posteriors_and_priors`. It must not reach beyond the prior.

    prior : str or Prior, default="auto"
        Family of :math:`p(z)`: "normal" is :math:`N(0, I)`; "mixture" and "vamp" are mixtures that are learnt; the others have
        the names of the posteriors. "auto" is a mixture of 50 normals for tables with categories or flags, whose rows fall
        into groups, and "normal" where all columns are numbers. It is "normal" as well for arrays of flags, with one likelihood
        for all columns, another posterior or solver than the default, an objective other than ELBO and IWAE, free bits or
        `ELBO(kl="analytic")`. `prior_` tells which.

    init : {"auto", "linear", "random"}, default="auto"
        Where training starts: "linear" at the closed-form solution of the linear model, "random" at random weights, "auto" at
        the linear solution where there is one: a Gaussian likelihood with `link="identity"`, MLP networks with a linear path,
        a normal posterior and a normal prior, at most 1,000 columns.

    objective : {"elbo", "iwae", "info_vae", "beta_tc_vae"} or Objective, default="elbo"
        What training raises: the bound above, the tighter importance-weighted one, or one of two that ask more of the latents.
        "iwae" takes 100 samples per row and step, many times the work of the ELBO; `IWAE(n_samples=5)` takes five. An object
        sets more, such as `ELBO(beta=4)`; see :mod:`skvae.objectives`. How scores are measured does not depend on it.

    solver : {"aevb", "wake-sleep", "mcem"} or Solver, default="aevb"
        The algorithm: "aevb" is stochastic gradient ascent through reparameterised samples, with a running average of the
        parameters. The other two are its competitors in the paper, wake-sleep and Monte Carlo EM, for comparisons and for
        latents through which no gradient passes; they need `objective="elbo"`. See :mod:`skvae.solvers`.

    optimizer : {"adam", "adagrad", "sgd"} or Optimizer, default="adam"
        How a gradient becomes a change of the parameters; see :mod:`skvae.optimizers`.

    learning_rate : {"adaptive", "constant", "cosine"}, default="adaptive"
        Schedule of the step size. "adaptive" divides it by four whenever the objective has stood still for `n_iter_no_change`
        measurements, three times at most; with the default of `max_iter`, after a half, three quarters and seven eighths of it
        at the latest. "constant" keeps it. "cosine" lets it fall to a thousandth over the whole of `max_iter`, which is then
        always used up.

    learning_rate_init : float, default=0.01
        Step size at the start. Lower it if training is unsteady.

    alpha : float, default=0.0
        Precision of a normal prior on the weight matrices of the networks, counted once for the whole data. 1 is the paper's
        setting; a larger one shrinks the weights, which can help with few rows. Training is judged with it. `partial_fit` takes
        the rows of every call for the whole data: with 20 calls for one pass, divide it by 20.

    batch_size : int or "auto", default="auto"
        Rows per step. "auto" takes about a twentieth of the distinct training rows, a power of two between 32 and 512; all of
        them if there are fewer than 48.

    max_iter : int, default=None
        Number of epochs at most. None takes a number that leaves room to converge: 1,000; more where an epoch has fewer than
        five steps, and fewer with many rows. Training that ends here before it has converged gives a `ConvergenceWarning`.

    max_time : float, default=None
        Seconds after which training ends with the epoch in progress. With it, results depend on the machine.

    tol : float, default=0.0001
        How many nats per row the objective must rise to count as progress.

    n_iter_no_change : int, default=5
        Number of measurements without progress after which the step size is lowered or training ends. There is a measurement
        about every 50 steps; on training rows (see `early_stopping`) fewer, if they took more than a tenth of the work.

    early_stopping : bool or "auto", default="auto"
        Whether training is judged on rows set aside, so that it ends before it overfits. False judges it on the training rows,
        and so does "auto" where all columns are discrete and fewer than 1,000 distinct rows occur three times or more each on
        average: a combination that is set aside would be missed.

    validation_fraction : float, default=0.1
        Share of the rows set aside. Which ones depends on their content and on `random_state`, not on their order.

    warm_start : bool, default=False
        Whether `fit` goes on from the fitted model, with the units it has learnt, instead of starting anew. On the same data
        `max_iter` counts all epochs: raise it to train longer; a training that was interrupted is finished as if it had not
        been, and one that has converged has nothing left to do. On other data it counts from there.

    score_method : {"refined", "iwae", "elbo", "hmc", "ais"} or an object, default="refined"
        How `score` and `score_samples` measure: by importance weighting with 100 draws per row, and as many more from a mode
        of p(z|x) for rows that the encoder places wrongly (:class:`skvae.evaluation.RefinedImportance`); without these
        ("iwae"), which is several times faster where most rows need them, as those of images do; by the ELBO with 32 draws;
        or by an estimate of log p(x) that is far slower, :class:`skvae.evaluation.PosteriorDensity` ("hmc") or
        :class:`skvae.evaluation.AnnealedImportance` ("ais"). An object sets the numbers, such as
        `RefinedImportance(max_gap=0)`, which is tighter and slower.

    dtype : {"float32", "float64"}, default="float32"
        Precision of the computation. "float64" is slower, and for checks against exact answers.

    matmul_precision : {"highest", "high", "medium"}, default="highest"
        How exactly products of matrices of float32 are computed in training, in the words of
        `torch.set_float32_matmul_precision`. "medium" lets processors with tiles of bfloat16 (Intel's AMX) and GPUs multiply
        with 8 bits of precision, "high" lets GPUs multiply with 11: faster for wide networks, slower for small ones. Training
        usually does not notice. torch has one setting for the process: while the fit lasts, other threads compute with it.

    device : str or torch.device, default="auto"
        Where to compute; "auto" takes a CUDA device if there is one and the model is large enough to gain by it, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial weights, the rows set aside, the order of the rows and the noise. An int gives the same model each
        time, on the same kind of machine. No global random state is read or changed.

    verbose : bool or int, default=False
        Whether to print a line for every measurement of the bound.

    Attributes
    ----------
    n_components_ : int
        Number of latent components.

    n_features_in_ : int
        Number of columns seen in `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, where X was a frame whose names are all strings.

    prior_ : Prior
        The prior of the model, which `prior="auto"` chose.

    schema_ : Schema of length `n_features_in_`
        One `Column` per column: its name, its likelihood, its location and scale, whether it is left out because it never
        varied, and its categories. Prints as a table.

    lower_bound_ : float
        The ELBO on the training rows (10,000 at most), in nats per row, in the units of the data; of a decoder with uncertain
        weights, less their KL to the prior per row: the bound on the evidence.

    history_ : dict of str to ndarray of shape (n_measurements,)
        The course of training: "epoch" (0 is before the first step); "objective", the mean over training batches of the epoch
        before the measurement, less what priors of weights take off; "lower_bound", the ELBO on the rows by which training is
        judged; both in nats per row, in the units of the data; and "learning_rate".

    n_iter_ : int
        Number of epochs.

    n_steps_ : int
        Number of steps, one per batch.

    converged_ : bool
        Whether the objective stopped rising before the budget was spent.

    kl_per_component_ : ndarray of shape (`n_components_`,)
        Mean over the training rows of the KL between posterior and prior: how many nats each component carries about a row, of
        components that depend on each other given those before it.

    active_units_ : int
        Number of components whose posterior mean varies over the rows, with a variance above 0.01.

    noise_variance_ : ndarray of shape (`n_features_in_`,)
        Variance of :math:`p(x \mid z)` per column, in squared units of the data, under the likelihoods whose noise does not
        depend on z (Gaussian but for `noise="network"`, Laplace, Student's t); 0 for a constant column, NaN for columns of
        other likelihoods beside them. Absent where no column has one, as in the default model of a table with categories.

    See Also
    --------
    sklearn.decomposition.FactorAnalysis : The model with linear networks, fitted exactly.
    sklearn.decomposition.PCA : The linear model with the same noise in every column.
    sklearn.mixture.GaussianMixture : A density without a latent representation.

    References
    ----------
    .. [1] Kingma, D. P. and Welling, M., "Auto-Encoding Variational Bayes", 2013, arXiv:1312.6114.
    .. [2] Burda, Y., Grosse, R. and Salakhutdinov, R., "Importance Weighted Autoencoders", 2016, arXiv:1509.00519.
    .. [3] Lucas, J., Tucker, G., Grosse, R. and Norouzi, M., "Don't Blame the ELBO! A Linear VAE Perspective on Posterior
       Collapse", 2019, arXiv:1911.02469.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> X, _ = load_iris(return_X_y=True, as_frame=True)
    >>> vae = VAETransformer(n_components=2, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (150, 2)
    >>> vae.get_feature_names_out()
    array(['vaetransformer0', 'vaetransformer1'], dtype=object)
    >>> vae.inverse_transform([[0.0, 0.0]]).shape
    (1, 4)
    >>> vae.sample(5, random_state=0).shape
    (5, 4)
    >>> vae.score(X) >= vae.lower_bound_ # nats per row
    True
    >>> vae.schema_
    column             kind               loc       scale
    sepal length (cm)  gaussian         5.843      0.8253
    sepal width (cm)   gaussian         3.057      0.4344
    petal length (cm)  gaussian         3.758       1.759
    petal width (cm)   gaussian         1.199      0.7597
    """

    @one_thread()
    def transform(self, X):
        """Return the latent representation of every row, the mean of q(z|x).

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or Source
            The data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            The posterior means; a row's value depends on that row alone, to the last bit.
        """
        return self._latents(X)

    @one_thread()
    def inverse_transform(self, X, *, given=None):
        """Return the mean of p(x|z) for every latent row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Latent rows, as `transform` returns them.

        given : dict, DataFrame or array-like of shape (1 or n_samples, n_features), default=None
            The conditions of a model with `condition_on`: one row of them, or one for each latent row, as in `sample`.

        Returns
        -------
        X_original : ndarray or DataFrame of shape (n_samples, n_features)
            Rows in the units of the data; after a fit on a frame, in its types, with the most probable of categories and the
            index of X, if that is a frame too.
        """
        check_is_fitted(self)
        known = np.full((1, self.n_features_in_), np.nan) if given is None else self._known_cells(self._given_table(given))
        self._check_conditions(known, "inverse_transform")
        if given is not None and not len(self._fitted.conditions):
            raise ValueError("given is for the conditions of a model, and this one was fitted without condition_on.")
        return self._decoded(X, None if given is None else known)

    @one_thread()
    def interpolate(self, X_start, X_end, n_steps=10):
        """Decode the straight ways in the latent space from rows to others.

        Parameters
        ----------
        X_start : array-like of shape (n_samples, n_features)
            Rows where the ways begin.

        X_end : array-like of shape (n_samples, n_features)
            Rows where they end, as many. They must have the conditions of those where they begin, if the model has any.

        n_steps : int, default=10
            Number of places on each way, its ends among them.

        Returns
        -------
        X_between : ndarray of shape (n_samples, n_steps, n_features) or DataFrame of shape (n_samples * n_steps, n_features)
            The means of p(x|z) on the way, in the units of the data; the first and the last are what `reconstruct` gives for
            the rows themselves. After a fit on a frame they are one, in its types, with the most probable of categories: first
            the `n_steps` places of the first way, then those of the second, and so on.
        """
        check_is_fitted(self)
        n_steps = check_whole("n_steps", n_steps, 2)
        start, dtype = self._posterior_mean(X_start)
        end, other_dtype = self._posterior_mean(X_end)
        if len(start) != len(end):
            raise ValueError(f"X_start and X_end must have as many rows, got {len(start)} and {len(end)}.")
        share = torch.linspace(0, 1, n_steps, dtype=start.dtype, device=start.device)[:, None]
        z = torch.lerp(start[:, None], end[:, None], share)  # (n, n_steps, k)
        known = self._conditions_of(X_start)
        if known is not None:
            self._check_equal_conditions(known, self._conditions_of(X_end))
            known = known.repeat(n_steps, axis=0)
        table = self._fitted_table(self._means(z.flatten(0, 1), np.result_type(dtype, other_dtype), known))
        return table if is_frame(table) else table.reshape(len(start), n_steps, -1)

    def _check_equal_conditions(self, start, end):
        """Refuse ways between rows of other conditions: there is nothing between, say, two categories."""
        schema = self._fitted.codec.schema
        is_equal = np.isclose(start, end, rtol=1e-6, atol=0, equal_nan=True).all(axis=0)  # also of tables of two precisions
        differ = [j for j in self._fitted.conditions if not is_equal[j]]
        if differ:
            names = [schema[j].name for j in differ]
            raise ValueError(
                f"X_start and X_end differ in columns of condition_on: {names[:5]}. A way has one condition from end to end: "
                "give the rows of X_end the conditions of X_start."
            )

    @one_thread()
    def attribute_direction(self, X, y):
        """Return the direction of an attribute in the latent space: the way from the rows without it to those with it.

        It is the difference of the two classes' mean latents, so that a step of length 1 along it, which :meth:`edit` takes,
        leads from the middle of one class to the middle of the other.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or Source
            Rows with and without the attribute. Ten to a hundred of each are enough for an attribute that shows; what else
            differs between the two classes becomes part of the direction.

        y : array-like of shape (n_samples,)
            Two labels; the direction leads from the first to the second in sorted order, such as from False to True.

        Returns
        -------
        direction : ndarray of shape (n_components,)
            The difference of the means.
        """
        check_is_fitted(self)
        y = column_or_1d(y)
        assert_all_finite(y, input_name="y")
        if pd.isna(y).any():
            raise ValueError("y contains missing labels. Leave out the rows of X and y that have none.")
        labels = np.unique(y)
        if len(labels) != 2:
            raise ValueError(
                f"y must have two labels, for rows without and with the attribute, got {len(labels)}: {labels[:5].tolist()}. "
                "Compare one class with the others by y == label."
            )
        latents = self._latents(X)
        check_consistent_length(latents, y)
        without, has = (latents[y == label].mean(axis=0, dtype=np.float64) for label in labels)
        return (has - without).astype(latents.dtype)

    @one_thread()
    def edit(self, X, direction, strength=1.0, *, keep_residual=False):
        """Move rows along a direction in the latent space, and return what they become.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows.

        direction : array-like of shape (n_components,)
            Where to go, such as :meth:`attribute_direction` gives it.

        strength : float or array-like of shape (n_samples,), default=1.0
            How far, in lengths of the direction; one number for all rows or one for each. Negative ones go the other way.

        keep_residual : bool, default=False
            Whether to add to each row the change of its reconstruction, so that details which the latent space has lost stay;
            cells are kept within the limits of the likelihood, not within the range of the training data. Categories, flags and
            ordered levels, with which there is no arithmetic, stay unless their reconstruction changes, and then are the new
            one. False returns the new reconstruction alone.

        Returns
        -------
        X_edited : ndarray or DataFrame of shape (n_samples, n_features)
            The rows after the change, in the units of the data; after a fit on a frame, in its types. With a strength of 0,
            they are what `reconstruct` gives, or the rows themselves where the residual is kept.
        """
        z, dtype = self._posterior_mean(X)
        step = torch.tensor(self._step(direction, strength, len(z)), dtype=z.dtype, device=z.device)
        known = self._conditions_of(X)
        edited = self._means(z + step, dtype, known)
        if not keep_residual:
            return self._fitted_table(edited, X)
        cells = np.asarray(self._cells(X))
        edited = self._with_residual(cells, self._means(z, dtype, known), edited)
        table = self._fitted_table(edited, X)
        return with_numbers_of(table, array_or_frame(X), cells, edited == cells, self._fitted.codec.form)

    def _with_residual(self, cells, before, after):
        """Return cells changed as their reconstructions do: by the difference, or levels to the new one if it is another."""
        codec = self._fitted.codec
        has_levels = np.zeros(cells.shape[1], bool)
        has_levels[codec.order] = [isinstance(likelihood, (Categorical, Ordinal)) for likelihood in self._fitted.likelihoods]
        has_levels |= [format.categories is not None for format in codec.form.formats]
        moved = np.where(has_levels, after, codec.within_support(cells + (after - before), after.dtype))
        stays = np.where(has_levels, np.rint(after) == np.rint(before), after == before)
        return np.where(stays, cells, moved).astype(after.dtype)

    def _step(self, direction, strength, n_rows):
        """Return how far each row moves in the latent space, after a check of the shapes."""
        direction = check_array(direction, ensure_2d=False, dtype=np.float64, input_name="direction")
        if direction.shape != (self.n_components_,):
            raise ValueError(
                f"direction must have one number for each of the {self.n_components_} components, got an array of shape "
                f"{direction.shape}."
            )
        strength = np.asarray(strength, dtype=np.float64)
        if strength.shape not in ((), (n_rows,)) or not np.isfinite(strength).all():
            raise ValueError(f"strength must be a finite number, or one for each of the {n_rows} rows, got {strength!r}.")
        return (strength[..., None] * direction).clip(-FARTHEST, FARTHEST)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = self._reads_any_cells()
        tags.input_tags.sparse = not tags.input_tags.string
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
