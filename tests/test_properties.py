"""Properties that hold for any table: hypothesis looks for one that breaks them."""

import copy
import math
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import DECODERS, ENCODERS, LIKELIHOODS, OBJECTIVES, OPTIMIZERS, SCORE_METHODS, SOLVERS, table_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sklearn.base import clone

from skvae import VAETransformer, load
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import Conv, ConvTranspose
from skvae.objectives import ELBO, IWAE

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

quick = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
EXTREMES = {
    np.float32: [0.0, -0.0, 1.0, 12345.0, 1e30, -1e37, 1e-30, 1e-40],
    np.float64: [0.0, -0.0, 1.0, 12345.0, 1e30, 1e160, -1e300, 1e-30, 1e-300, 5e-324],
}
WAYS = [
    {}, {"dtype": "float64"}, {"early_stopping": True}, {"init": "random"}, {"hidden_layer_sizes": ()},
    {"objective": "iwae"}, {"objective": ELBO(kl="monte_carlo", n_samples=2, warmup=3)},
    {"likelihood": Gaussian("network")}, {"likelihood": Gaussian("shared"), "alpha": 1.0},
    {"likelihood": Bernoulli("observed")},
]  # fmt: skip


@st.composite
def tables(draw):
    """Draw a table of ordinary and extreme numbers, with or without runs of equal rows."""
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 12)))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    cells = st.one_of(st.floats(-10, 10, width=32), st.sampled_from(EXTREMES[dtype]))
    X = draw(hnp.arrays(np.float64, shape, elements=cells)).astype(dtype)
    return X[np.arange(len(X)) // draw(st.sampled_from([1, 1, 3]))]


def vae(**params):
    return VAETransformer(**{"n_components": 2, "max_iter": 2, "hidden_layer_sizes": (4,), "random_state": 0, **params})


@quick
@given(X=tables(), k=st.integers(1, 8), batch=st.sampled_from(["auto", 3]), way=st.sampled_from(WAYS))
def test_every_table_gives_finite_outputs_of_the_right_shape_and_dtype(X, k, batch, way):
    before = X.copy()
    model = vae(n_components=k, batch_size=batch, **way).fit(X)
    latents = model.transform(X)
    assert latents.shape == (len(X), k)
    assert latents.dtype == X.dtype
    assert model.reconstruct(X).dtype == X.dtype
    for found in (latents, model.score_samples(X), model.reconstruct(X), model.sample(3, random_state=0)):
        assert np.isfinite(found).all()
    np.testing.assert_array_equal(X, before)


@quick
@given(X=tables(), seed=st.integers(0, 2**31 - 1), way=st.sampled_from(WAYS))
def test_the_order_of_rows_does_not_matter(X, seed, way):
    order = np.random.default_rng(seed).permutation(len(X))
    one, other = vae(batch_size=4, **way).fit(X), vae(batch_size=4, **way).fit(X[order])
    np.testing.assert_array_equal(other.transform(X[order]), one.transform(X)[order])
    np.testing.assert_array_equal(one.score_samples(X[order]), one.score_samples(X)[order])


@quick
@given(data=st.data(), way=st.sampled_from(WAYS))
def test_weights_are_repetitions(data, way):
    X = data.draw(tables())
    times = data.draw(hnp.arrays(np.int64, len(X), elements=st.integers(0, 3)))
    if not times.any():
        times[0] = 1
    weighted = vae(batch_size=4, **way).fit(X, sample_weight=times)
    repeated = vae(batch_size=4, **way).fit(np.repeat(X, times, axis=0))
    np.testing.assert_array_equal(weighted.transform(X), repeated.transform(X))


@quick
@given(data=st.data(), factor=st.sampled_from([2.0**-1000, 2.0**-40, 2.0**900]))
def test_the_scale_of_weights_does_not_matter(data, factor):
    X = data.draw(tables())
    weight = data.draw(hnp.arrays(np.float64, len(X), elements=st.sampled_from([0.5, 1.0, 1.1, 3.0])))
    one, other = (vae(batch_size=4).fit(X, sample_weight=w) for w in (weight, weight * factor))
    np.testing.assert_array_equal(one.transform(X), other.transform(X))
    np.testing.assert_array_equal(one.lower_bound_, other.lower_bound_)


@quick
@given(X=tables(), k=st.integers(1, 8))
def test_a_row_stands_for_itself(X, k):
    model = vae(n_components=k).fit(X)
    for method in (model.transform, model.score_samples, model.reconstruct, lambda x: model.posterior_moments(x).std):
        np.testing.assert_array_equal(np.concatenate([method(X[i : i + 1]) for i in range(len(X))]), method(X))


@quick
@given(X=tables())
def test_fitting_again_gives_the_same_model_and_leaves_the_parameters(X):
    model = vae()
    before = model.get_params()
    first = model.fit(X).transform(X)
    np.testing.assert_array_equal(model.fit(X).transform(X), first)
    assert model.get_params() == before


@quick
@given(X=tables())
def test_copies_are_equal(X):
    model = vae().fit(X)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(twin.transform(X), model.transform(X))
        np.testing.assert_array_equal(twin.sample(4, random_state=3), model.sample(4, random_state=3))


@quick
@given(X=tables(), how=st.sampled_from(["fortran", "strided", "reversed", "read-only", "big-endian", "object"]))
def test_the_layout_in_memory_does_not_matter(X, how):
    wide = np.repeat(np.repeat(X, 2, axis=0), 2, axis=1)
    other = {
        "fortran": np.asfortranarray(X), "strided": wide[::2, ::2], "reversed": X[::-1].copy()[::-1],
        "read-only": X.copy(), "big-endian": X.astype(X.dtype.newbyteorder(">")), "object": X.astype(object),
    }[how]  # fmt: skip
    if how == "read-only":
        other.flags.writeable = False
    np.testing.assert_array_equal(vae().fit(other).transform(other), vae().fit(X).transform(X).astype(float))


KINDS = {
    "bool": lambda X: X.astype(bool),
    "int8": lambda X: X.astype(np.int8),
    "uint64": lambda X: X.astype(np.uint64),
    "float16": lambda X: X.astype(np.float16),
    "longdouble": lambda X: X.astype(np.longdouble),
    "list": lambda X: X.tolist(),
    "objects": lambda X: np.array(X.tolist(), dtype=object),
    "pandas": pd.DataFrame,
    "pandas with holes in mind": lambda X: pd.DataFrame(X).astype("Int64"),
    "polars": pl.DataFrame,
}


@pytest.mark.parametrize("kind", KINDS)
@settings(quick, max_examples=5)
@given(X=hnp.arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=st.integers(0, 1)))
def test_the_kind_of_table_does_not_matter(kind, X):
    table = KINDS[kind](X)
    if hasattr(table, "columns"):
        table.columns = [f"c{j}" for j in range(X.shape[1])]
    numbers = vae(likelihood="gaussian")  # two numbers in a frame would be a flag
    model, expected = clone(numbers).fit(table), numbers.fit(X.astype(float))
    for name in ("transform", "score_samples"):
        np.testing.assert_allclose(getattr(model, name)(table), getattr(expected, name)(X.astype(float)), rtol=1e-6, atol=1e-6)
    whole = np.rint if hasattr(table, "columns") else np.asarray  # as the cells of the frames are
    found = np.asarray(model.reconstruct(table), dtype=float)
    np.testing.assert_allclose(found, whole(expected.reconstruct(X.astype(float))), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS[:3], LIKELIHOODS[-1]], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_keeps_its_bits_in_any_place_whatever_the_widths(likelihood, dtype):
    for k, d, hidden in ((1, 3, (7,)), (3, 1, ()), (3, 5, (8,)), (5, 7, (33, 5)), (7, 13, (16,))):
        X = table_for(likelihood, n_rows=70, n_columns=d)
        order = np.random.default_rng(k).permutation(len(X))
        model = vae(n_components=k, hidden_layer_sizes=hidden, likelihood=likelihood, dtype=dtype).fit(X)
        methods = [model.transform, model.reconstruct, lambda x, m=model: m.posterior_moments(x).std]
        for how in ("iwae", IWAE(7), ELBO(n_samples=3, kl="monte_carlo"), SCORE_METHODS[-1]):
            methods.append(copy.copy(model).set_params(score_method=how).score_samples)
        for method in methods:
            whole = method(X)
            np.testing.assert_array_equal(method(X[order]), whole[order])
            np.testing.assert_array_equal(method(X[-1:]), whole[-1:])


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 3), (8, 8)])
@pytest.mark.parametrize(("channels", "kernel_size"), [((5, 7), 3), ((16,), 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_image_keeps_its_bits_in_any_place(shape, channels, kernel_size, dtype):
    X = table_for(LIKELIHOODS[0], n_rows=150, n_columns=math.prod(shape))
    order = np.random.default_rng(0).permutation(len(X))
    encoder, decoder = (kind(shape, channels=channels, kernel_size=kernel_size) for kind in (Conv, ConvTranspose))
    model = vae(encoder=encoder, decoder=decoder, dtype=dtype, max_iter=1).fit(X)
    methods = [model.transform, model.reconstruct, lambda x: model.posterior_moments(x).std]
    for how in (IWAE(7), ELBO(n_samples=3, kl="monte_carlo"), SCORE_METHODS[-1]):
        methods.append(copy.copy(model).set_params(score_method=how).score_samples)
    for method in methods:
        whole = method(X)
        np.testing.assert_array_equal(method(X[order]), whole[order])
        np.testing.assert_array_equal(method(X[5:17]), whole[5:17])


CONFIGURATIONS = (
    [{"likelihood": piece} for piece in LIKELIHOODS]
    + [{"encoder": encoder, "decoder": decoder} for encoder, decoder in zip(ENCODERS, DECODERS, strict=True)]
    + [{"objective": piece} for piece in OBJECTIVES]
    + [{"optimizer": piece} for piece in OPTIMIZERS]
    + [{"solver": piece} for piece in SOLVERS]
    + [{"score_method": piece} for piece in SCORE_METHODS]
)


@pytest.mark.parametrize("params", CONFIGURATIONS, ids=lambda p: "-".join(map(repr, p.values()))[:60])
def test_every_piece_trains_and_keeps_the_promises(params):
    X = table_for(params.get("likelihood"), n_rows=40)
    model = vae(max_iter=20, batch_size=16, **params).fit(X)
    twin = clone(model).fit(X[::-1])
    np.testing.assert_array_equal(twin.transform(X), model.transform(X))
    assert np.isfinite(model.score_samples(X)).all()
    assert model.score(X) > vae(max_iter=1, init="random", **params).fit(X).score(X) - 1.0
    np.testing.assert_array_equal(model.transform(X[7:8]), model.transform(X)[7:8])


class Life(RuleBasedStateMachine):
    """An estimator that is fitted, changed, copied, stored and made to fail in any order stays usable."""

    def __init__(self):
        super().__init__()
        warnings.simplefilter("ignore")
        self.vae = vae(warm_start=False)
        self.X = np.random.default_rng(0).normal(size=(30, 3))
        self.fitted = False

    @rule()
    def fit(self):
        self.vae.fit(self.X)
        self.fitted = True

    @rule()
    def partial_fit(self):
        k = self.vae.n_components
        if self.fitted and k != self.vae.n_components_:
            with pytest.raises(ValueError, match="Set it back"):
                self.vae.partial_fit(self.X)
        else:
            self.vae.partial_fit(self.X)
            self.fitted = True

    @rule(k=st.integers(1, 4))
    def set_params(self, k):
        self.vae.set_params(n_components=k)

    @rule()
    def clone(self):
        self.vae = clone(self.vae)
        self.fitted = False

    @rule()
    def pickle(self):
        self.vae = pickle.loads(pickle.dumps(self.vae))

    @rule()
    def copy(self):
        self.vae = copy.copy(self.vae)

    @precondition(lambda self: self.fitted)
    @rule()
    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            self.vae.save(Path(folder) / "life.skvae")
            self.vae = load(Path(folder) / "life.skvae")

    @rule()
    def fail(self):
        before = self.vae.transform(self.X) if self.fitted else None
        with pytest.raises(ValueError, match="NaN"):
            self.vae.fit(np.full((5, 7), np.nan))
        if self.fitted:
            np.testing.assert_array_equal(self.vae.transform(self.X), before)

    @rule()
    def diverge(self):
        if self.fitted and self.vae.n_components != self.vae.n_components_:
            return
        before = self.vae.transform(self.X) if self.fitted else None
        with pytest.raises(ValueError, match="non-finite"):
            self.vae.set_params(learning_rate_init=1e30).partial_fit(self.X)
        self.vae.set_params(learning_rate_init=0.01)
        if self.fitted:
            np.testing.assert_array_equal(self.vae.transform(self.X), before)

    @invariant()
    def usable(self):
        if self.fitted:
            assert self.vae.transform(self.X).shape == (30, self.vae.n_components_)
            assert np.isfinite(self.vae.score(self.X))
        else:
            assert not hasattr(self.vae, "n_features_in_")


Life.TestCase.settings = settings(max_examples=12, stateful_step_count=12, deadline=None, derandomize=True)
TestLife = Life.TestCase
