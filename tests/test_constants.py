"""Numbers of settings as tensors, and that the steps of training need nothing else that a device cannot record."""

import gc

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LIKELIHOODS, cells_for
from test_engine import Tape
from test_kernels import flat_params, make_model
from test_mixed import TABLE
from test_mixed import rows as table_rows

from skvae import VAETransformer, _constants
from skvae import _kernels as kernels
from skvae._constants import constant
from skvae._model import nested
from skvae._random import generator, normal
from skvae.likelihoods import Mixed
from skvae.objectives import IWAE
from skvae.priors import MixtureOfNormals, StandardNormal

F64 = torch.float64


def test_numbers_are_made_once_and_may_be_differentiated_later():
    like = torch.ones(2, dtype=F64)
    with torch.inference_mode():
        found = constant((1.0, 2.0), like)
    assert found is constant((1.0, 2.0), like) and found.dtype == F64
    assert constant((1.0, 2.0), like.float()).dtype == torch.float32
    x = like.clone().requires_grad_()
    (x * found).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(4)], ids=repr)
@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, TABLE], ids=repr)
def test_a_gradient_is_a_fixed_sequence_of_work_on_the_device(likelihood, prior):
    """So that a graphics card can record and repeat it, on other rows."""
    d = 6 if likelihood is TABLE else 5
    objective, model = IWAE(2), make_model(likelihood, n_columns=d, k=16, hidden=(16,), prior=prior)
    layout = kernels.aligned_layout(kernels.widened([model]))
    flat = torch.zeros((1, layout.size), dtype=F64)
    flat[0, kernels.positions(model, kernels.widened([model]))] = flat_params(model)

    def given(seed):
        x = table_rows(TABLE, (1, 12), seed) if likelihood is TABLE else cells_for(likelihood, (1, 12, d), seed)
        return x, normal((1, 2, 12, 16), generator(seed, "noise"), F64), torch.full((1, 12, 1), 1 / 12, dtype=F64)

    def worker():
        slopes = torch.zeros_like(flat)
        kernel = kernels.Kernel(kernels.widened([model]), nested(layout.views(flat)), 12, 2)
        kernel.learn(objective, nested(layout.views(slopes)), torch.ones((1, 1, 1), dtype=F64))
        return kernel, slopes

    def gradient(kernel, inputs):
        return kernel.gradient(*inputs, measured=True)

    with torch.inference_mode():
        (kernel, slopes), inputs = worker(), given(0)
        gradient(kernel, inputs)
        with Tape() as tape:
            value = gradient(kernel, inputs)
        for mine, other in zip(inputs, given(1)):
            mine.copy_(other)
        slopes.zero_()
        tape.replay()
        fresh, expected = worker()
        torch.testing.assert_close(value, gradient(fresh, given(1)))
        torch.testing.assert_close(slopes, expected)


def test_numbers_that_were_learnt_go_with_their_owner():
    before, like = _constants._constant.cache_info().currsize, torch.ones(2)
    owner = Mixed()
    found = constant((0.125, 7.5), like, owner=owner)
    assert found is constant((0.125, 7.5), like, owner=owner) and found.tolist() == [0.125, 7.5]
    assert found is not constant((0.125, 7.5), like, owner=TABLE)
    assert _constants._constant.cache_info().currsize == before
    key = id(owner)
    assert key in _constants._KEPT
    del owner
    gc.collect()
    assert key not in _constants._KEPT


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fits_of_new_tables_leave_nothing_behind():
    def fit(seed):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame(rng.normal(size=(40, 3)), columns=list("abc")).assign(kind=["u", "v"] * 20)
        return VAETransformer(2, max_iter=1).fit(frame)

    fit(0).score(pd.DataFrame(np.zeros((2, 3)), columns=list("abc")).assign(kind=["u", "v"]))
    before = _constants._constant.cache_info().currsize, len(_constants._KEPT)
    for seed in range(1, 4):
        fit(seed)
    gc.collect()
    assert (_constants._constant.cache_info().currsize, len(_constants._KEPT)) == before
