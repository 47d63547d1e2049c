"""BaseVAE: the contract with scikit-learn around a model: parameters, fit, and the fitted state."""

import multiprocessing
import threading
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real

import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from skvae import callbacks, persistence
from skvae._course import Progress
from skvae._devices import gradients, one_thread, resolve_device
from skvae._engine import flops_of_step
from skvae._marginal import MarginalLikelihood
from skvae._model import Model, Pieces
from skvae._reading import TableReader, array_or_frame, checked_weight
from skvae._rows import RowsMixin, resolve_score_method, seed_of
from skvae._schema import group_columns
from skvae._settings import REGISTRY, Interval, StrOptions, resolve
from skvae._sklearn import CallbackSupportMixin, _fit_context, runs_inside_another_fit
from skvae._sparse import SparseRows
from skvae._state import ROLES, Fitted
from skvae._stream import StreamedTable
from skvae._table import Table, TableCodec
from skvae._training import (
    Recipe,
    Run,
    batch_size_for,
    default_hidden_layer_sizes,
    default_n_components,
    look_before_training,
    progress_of,
    report,
    split_table,
)
from skvae._warnings import warn
from skvae.data import as_source
from skvae.likelihoods import Likelihood
from skvae.likelihoods._mixed import Given, Mixed
from skvae.networks import MLP, Module, Network
from skvae.objectives import ELBO, IWAE, Objective
from skvae.optimizers import Optimizer
from skvae.posteriors import Normal, Posterior
from skvae.priors import MixtureOfNormals, Prior, StandardNormal
from skvae.solvers import AEVB, Solver

_MODES = 50  # of the prior of tables with categories
_NETWORKS = ("encoder", "decoder")


class BaseVAE(RowsMixin, TableReader, CallbackSupportMixin, BaseEstimator):
    """Base of the estimators: a variational auto-encoder under scikit-learn's contract."""

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "likelihood": [StrOptions(set(REGISTRY["likelihood"])), Likelihood],
        "condition_on": ["array-like", str, Integral, callable, None],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "activation": [StrOptions({"silu", "relu", "gelu", "tanh", "identity"})],
        "encoder": [StrOptions(set(REGISTRY["encoder"])), Network, callable, None],
        "decoder": [StrOptions(set(REGISTRY["decoder"])), Network, callable, None],
        "posterior": [StrOptions(set(REGISTRY["posterior"])), Posterior],
        "prior": [StrOptions({"auto", *REGISTRY["prior"]}), Prior],
        "init": [StrOptions({"auto", "linear", "random"})],
        "objective": [StrOptions(set(REGISTRY["objective"])), Objective],
        "solver": [StrOptions(set(REGISTRY["solver"])), Solver],
        "optimizer": [StrOptions(set(REGISTRY["optimizer"])), Optimizer],
        "learning_rate": [StrOptions({"adaptive", "constant", "cosine"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": [StrOptions({"auto"}), "boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "warm_start": ["boolean"],
        "score_method": [StrOptions(set(REGISTRY["score_method"])), Objective, MarginalLikelihood],
        "dtype": [StrOptions({"float32", "float64"})],
        "matmul_precision": [StrOptions({"highest", "high", "medium"})],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components=None,
        *,
        likelihood="auto",
        condition_on=None,
        hidden_layer_sizes="auto",
        activation="silu",
        encoder=None,
        decoder=None,
        posterior="normal",
        prior="auto",
        init="auto",
        objective="elbo",
        solver="aevb",
        optimizer="adam",
        learning_rate="adaptive",
        learning_rate_init=0.01,
        alpha=0.0,
        batch_size="auto",
        max_iter=None,
        max_time=None,
        tol=0.0001,
        n_iter_no_change=5,
        early_stopping="auto",
        validation_fraction=0.1,
        warm_start=False,
        score_method="refined",
        dtype="float32",
        matmul_precision="highest",
        device="auto",
        random_state=None,
        verbose=False,
    ):
        self.n_components = n_components
        self.likelihood = likelihood
        self.condition_on = condition_on
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = posterior
        self.prior = prior
        self.init = init
        self.objective = objective
        self.solver = solver
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.max_time = max_time
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.score_method = score_method
        self.dtype = dtype
        self.matmul_precision = matmul_precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params):
        """Set the parameters of the estimator or of its settings objects.

        A nested name reaches through a piece that is still given by its name: `set_params(objective__beta=4)` works when
        `objective="elbo"`.

        Parameters
        ----------
        **params : dict
            Names and values; `piece__parameter` for the parameters of a settings object.

        Returns
        -------
        self : estimator
            The estimator itself.
        """
        for name in [name for name in params if "__" in name]:
            role = name.partition("__")[0]
            piece = params.get(role, getattr(self, role, None))
            if role == "prior" and isinstance(piece, str) and piece == "auto":
                raise ValueError(
                    "prior='auto' is chosen in fit and has no parameters before. Name a prior as well, such as prior='mixture'."
                )
            if isinstance(piece, str) and piece in _names_of(role):
                piece = params[role] = resolve(role, piece)
            if role in self.get_params(deep=False) and (isinstance(piece, type) or not hasattr(piece, "set_params")):
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self}: {role}={piece!r} has no parameters. {_advice(role)}"
                )
        return super().set_params(**params)

    # --- the contract ------------------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_fitted")

    def __getstate__(self):
        state = dict(super().__getstate__())
        for name in ("_callback_fit_ctx", "_skl_callbacks_to_teardown"):  # of a fit that is running
            state.pop(name, None)
        if "_fitted" in state:
            fitted = state["_fitted"]
            state = {k: v for k, v in state.items() if k not in fitted.attributes()}
            state["_fitted"] = fitted.pack()
        return {**state, "_skvae_version": persistence.version()}

    def __setstate__(self, state):
        state = dict(state)
        persistence.warn_of_other_version(type(self).__name__, state.pop("_skvae_version", "unknown"))
        if "_fitted" in state:
            state.update(Fitted.unpack(state["_fitted"]).attributes())
        super().__setstate__(state)

    def save(self, path):
        """Write the fitted estimator to a file that `skvae.load` can read without running code from it.

        The file is in the safetensors format and holds the parameters, the fitted attributes and the model; after a fit with
        `warm_start=True`, a `partial_fit` or an interruption also what training needs to go on to the last bit. It does not
        hold callbacks and metadata requests. An existing file is replaced as a whole, or not at all.

        Parameters
        ----------
        path : str or path-like
            The file, for example "model.skvae".

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        TypeError
            A parameter cannot be stored without code, such as a function or a class of your own; joblib.dump can.
        OSError
            The file cannot be written; an existing one is then as it was.
        """
        persistence.write(path, self)

    @contextmanager
    def _all_or_nothing(self):
        """Take back what validation has set on the estimator if the fit fails later."""
        names = ("n_features_in_", "feature_names_in_")
        before = {name: vars(self)[name] for name in names if name in vars(self)}
        try:
            yield
        except BaseException:
            for name in names:
                vars(self).pop(name, None)
            vars(self).update(before)
            raise

    # --- fitting -----------------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Learn the model of X by stochastic variational inference.

        Parameters
        ----------
        X : array-like, frame or sparse matrix of shape (n_samples, n_features), or Source
            The training data. Cells may be missing (NaN, None, NA), and columns of frames of pandas or polars may be of any
            kind (:ref:`User Guide <tables>`). Rows of a sparse matrix become dense a few at a time. A
            :class:`skvae.data.Source`, or a `numpy.memmap` above 256 MB, is read while training and need not fit in memory.

        y : Ignored
            Not used, present for API consistency by convention.

        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts: a weight of 3 gives exactly the model that three copies of the row give.

        Returns
        -------
        self : estimator
            The fitted estimator.

        Raises
        ------
        ValueError
            Cells that cannot be read or that the likelihood of their column does not accept (the message names column and
            cell), no rows, or parameters that do not go together. The estimator is left as it was, by this and any other error.

        DivergenceError
            A `ValueError`: training gave non-finite numbers even with smaller steps.

        Warns
        -----
        ConvergenceWarning
            `max_iter` or Ctrl-C ended the training before it had converged.

        UserWarning
            A few numbers far off make the scale of a column. With `warm_start=True`, columns that did not vary before and that
            the model leaves out do now.
        """
        with one_thread(), self._all_or_nothing(), gradients():
            goes_on = self.warm_start and hasattr(self, "_fitted")
            table = self._table(X, sample_weight, reset=not goes_on)
            fitted = self._fitted_for_more(table) if goes_on else self._new_fitted(table)
            self._train(table, y, sample_weight, fitted)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, sample_weight=None):
        """Take one epoch over the given rows, without early stopping and with a constant learning rate.

        The units of the columns are learnt from the rows of the first call, which should be typical ones. After `fit`, training
        goes on from the fitted model.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features) or Source
            A batch of training data.

        y : Ignored
            Not used, present for API consistency by convention.

        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts.

        Returns
        -------
        self : estimator
            The fitted estimator.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C: the epoch is lost, and the estimator is as it was.

        Warns
        -----
        UserWarning
            Columns have no cell in the rows of the first call, so the model leaves them out; or they are left out, did not vary
            before and do now; or a few numbers far off make their scale.
        """
        with one_thread(), self._all_or_nothing(), gradients():
            goes_on = hasattr(self, "_fitted")
            table = self._table(X, sample_weight, reset=not goes_on)
            fitted = self._fitted_for_more(table) if goes_on else self._new_fitted(table, drop_constant=False)
            self._train(table, y, sample_weight, fitted, one_epoch=True)
        return self

    def _table(self, X, sample_weight, reset):
        """Return the rows of X to train on: the distinct ones of an array, or those of a source that reads them in blocks."""
        source = as_source(X)
        if source is not None:
            self._check_columns(source, reset=reset)
            if not reset:
                self._check_source_for_more(source)
            likelihoods = self._likelihoods_of_source(source) if reset else None
            weight = None if sample_weight is None else checked_weight(sample_weight, X)
            return StreamedTable(source, weight, likelihoods)
        X = array_or_frame(X)
        weight = None if sample_weight is None else checked_weight(sample_weight, X)
        cells, *form = self._learnt_cells(X, weight) if reset else (self._cells_for_more(X, weight),)
        table = Table.of(cells, weight, *form)
        if table.is_empty:
            raise ValueError("Input X contains NaN alone: all cells are missing, so there is nothing to learn from.")
        return table

    def _new_fitted(self, table, drop_constant=True):
        """Return an untrained state for a table: its units, and a model with initial parameters."""
        widths = dict.fromkeys(_NETWORKS, default_hidden_layer_sizes(table.n_rows))
        pieces, d = self._pieces(self._prior_for(table.form), widths), table.n_features
        names = table.form.names if table.form.is_of_frame else getattr(self, "feature_names_in_", [f"x{j}" for j in range(d)])
        asked, statistics = pieces.likelihood, table.statistics
        groups = group_columns(table.likelihoods, statistics, not drop_constant)
        codec = TableCodec.learn(statistics, groups, names, table.form)
        pieces = replace(pieces, likelihood=codec.likelihood_of(groups, statistics))
        _check_places(pieces, codec)
        n_conditions = sum(isinstance(likelihood, Given) for likelihood in table.likelihoods)
        n_components = int(self.n_components or default_n_components(d - n_conditions))
        model = Model(pieces, codec.n_columns, n_components, seed_of(self.random_state))
        method = resolve_score_method(self.score_method)
        if isinstance(method, MarginalLikelihood):
            method.check(model)
        return Fitted(model, codec, model.init(getattr(torch, self.dtype)).numpy(), asked, is_new=True)

    def _pieces(self, prior, widths):
        """Return the pieces of the model that the parameters describe, with this prior and widths if they leave them open."""
        return Pieces(
            *(self._network(role, widths[role]) for role in _NETWORKS), resolve("posterior", self.posterior),
            prior if self.prior == "auto" else resolve("prior", self.prior), resolve("likelihood", self.likelihood),
        )  # fmt: skip

    def _prior_for(self, form):
        """Return the prior that suits a table of this form."""
        chosen = {role: resolve(role, getattr(self, role)) for role in ("likelihood", "posterior", "objective", "solver")}
        has_groups = isinstance(chosen["likelihood"], Mixed) and form.has_varying_categories
        objective = chosen["objective"]
        averages_kl = isinstance(objective, IWAE) or (isinstance(objective, ELBO) and objective.kl != "analytic")
        has_closed_forms = (
            type(chosen["posterior"]) is Normal and type(chosen["solver"]) is AEVB
            and averages_kl and not getattr(objective, "free_bits", 0)
        )  # fmt: skip
        return MixtureOfNormals(_MODES) if has_groups and has_closed_forms else StandardNormal()

    def _network(self, role, widths):
        network = getattr(self, role)
        if network is None:
            sizes = self.hidden_layer_sizes
            network = MLP(widths if isinstance(sizes, str) else sizes, activation=self.activation).validate()
            return network.set_params(hidden_layer_sizes=tuple(map(int, network.widths())))  # which no later change reaches
        return resolve(role, network if isinstance(network, (str, Network)) else Module(network))

    def _fitted_for_more(self, table):
        """Return the present state, after a check that the parameters still describe it."""
        fitted = self._fitted
        networks = {role: getattr(fitted.model, role) for role in _NETWORKS}
        widths = {role: network.widths() if isinstance(network, MLP) else () for role, network in networks.items()}
        pieces = self._pieces(fitted.model.prior, widths)
        before = replace(fitted.model.pieces, likelihood=fitted.asked)
        changed = [role for role in ROLES if getattr(pieces, role) != getattr(before, role)]
        if self.n_components not in (None, fitted.model.n_components):
            changed.append("n_components")
        if getattr(torch, self.dtype) != fitted.dtype:
            changed.append("dtype")
        if changed:
            raise ValueError(
                f"The fitted model cannot go on training: its {' and '.join(changed)} differ from what the parameters now say. "
                "Set it back, or train anew with warm_start=False (instead of partial_fit: on a clone)."
            )
        fitted = fitted.having_seen(table)
        return fitted.tolerating_holes() if table.has_holes(fitted.codec) else fitted

    def _recipe(self):
        chosen = {role: resolve(role, getattr(self, role)) for role in ("objective", "solver", "optimizer")}
        plain = (
            "learning_rate", "learning_rate_init", "alpha", "batch_size", "max_iter", "max_time", "tol", "n_iter_no_change",
            "early_stopping", "validation_fraction", "init", "matmul_precision",
        )  # fmt: skip
        return Recipe(**chosen, **{name: getattr(self, name) for name in plain})

    def _run(self, table, fitted, one_epoch):
        """Return the training of a state on the rows of a table, which has not begun."""
        recipe = self._recipe()
        n_draws, batch_size = recipe.solver.n_draws(recipe.objective), batch_size_for(recipe, table.n_rows)
        device = resolve_device(self.device, flops_of_step(fitted.model, n_draws, batch_size))
        split = split_table(fitted, table, recipe, device, one_epoch)
        look_before_training(fitted, table, split, recipe, one_epoch)
        so_far = Progress() if fitted.is_new else progress_of(vars(self), fitted.codec)
        return Run(fitted, split, recipe, so_far, one_epoch)

    def _train(self, table, y, sample_weight, fitted, one_epoch=False):
        """Train the state on the rows of a table and commit what comes out, in one assignment."""
        run = self._run(table, fitted, one_epoch)

        def outcome(keep_training=True):
            state = run.fitted_state(keep_training)
            return {**state.attributes(), **report(state, run.progress, run.split)}

        task = self._init_callback_context(max_subtasks=max(run.plan.max_iter - run.progress.epoch, 0))
        X = table.X.matrix if isinstance(table.X, SparseRows) else table.X
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        told = {"estimator": self, "X": X, "y": y, "metadata": metadata}
        task.call_on_fit_task_begin(**told)
        watchers = [callbacks.tell_tasks(task, told, outcome)]
        if self.verbose:
            watchers.append(callbacks.Printer(fitted.codec.log_jacobian))
        interrupted = self._go(run, watchers)
        attributes = outcome(keep_training=one_epoch or self.warm_start or interrupted)
        # Callbacks, and warnings that are errors, may raise: only then is the new model committed.
        task.call_on_fit_task_end(**told, reconstruction_attributes=attributes)
        self._warn_if_unconverged(run, interrupted)
        others = {name: value for name, value in vars(self).items() if name != "noise_variance_"}
        self.__dict__ = {**others, **attributes}  # at once: Ctrl-C finds the old model or the new one

    def _go(self, run, watchers):
        """Train; tell whether Ctrl-C ended it, after which the run stands where it was measured last.

        A single epoch that was interrupted is lost, and whoever gives the rows must know.
        """
        try:
            run.go(watchers)
        except KeyboardInterrupt:
            if run.one_epoch or not run.has_begun or _must_pass_on_interrupts(self):
                raise
            run.rewind()
            return True
        return False

    def _warn_if_unconverged(self, run, interrupted):
        progress, plan = run.progress, run.plan
        if interrupted:
            warn(
                f"Training was interrupted; the model is the best one of its first {progress.epoch} epochs. "
                "To go on, set warm_start=True and fit the same data again.",
                ConvergenceWarning,
            )
        elif not (run.one_epoch or progress.converged or progress.stopped or plan.learning_rate == "cosine"):
            warn(
                f"The bound was still rising after {progress.epoch - progress.first} epochs (max_iter). Raise max_iter; with "
                "warm_start=True training goes on from here.",
                ConvergenceWarning,
            )


def _names_of(role):
    """Return the names that stand for a piece."""
    return sorted(REGISTRY.get(role, ()))


def _advice(role):
    """Return what to do instead of a nested name that reaches nothing."""
    if role in ("encoder", "decoder"):
        return f"Pass a network as well, such as {role}=MLP((64,)); None has the layers of hidden_layer_sizes and activation."
    if _names_of(role):
        return f"Pass an object as well, or one of the names {_names_of(role)}."
    return f"Set {role} itself."


def _check_places(pieces, codec):
    """Refuse to leave out columns where a network reads their places."""
    readers = [type(network).__name__ for network in (pieces.encoder, pieces.decoder) if network.reads_places]
    if readers and codec.n_columns < len(codec.schema):
        constant = [column.name for column in codec.schema if column.constant]
        raise ValueError(
            f"{len(constant)} column(s) never vary: {constant[:5]}. {pieces.likelihood!r} leaves them out, but {readers[0]} "
            "reads images and needs every pixel. Use Bernoulli, Gaussian(standardize=False), or crop the images."
        )


def _must_pass_on_interrupts(estimator):
    """Tell whether somebody else drives this fit, who must see Ctrl-C to stop as well."""
    in_worker = multiprocessing.parent_process() is not None or threading.current_thread() is not threading.main_thread()
    return in_worker or runs_inside_another_fit(estimator)
