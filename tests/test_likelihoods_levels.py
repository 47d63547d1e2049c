"""Categories and ordered levels: probabilities against plain formulas, samplers, extremes, and what they refuse."""

import numpy as np
import pytest
import torch
from conftest import table_for
from scipy import stats

from skvae import VAETransformer
from skvae._random import generator, normal
from skvae._statistics import column_statistics
from skvae.likelihoods import Categorical, Ordinal
from skvae.likelihoods._levels import places, to_list, to_table
from skvae.networks import MLP

F64 = torch.float64
LEVELS = [(3, 3), (2, 5, 1, 3), (1,), (4,), (1, 1, 2)]
MANY = (40, 3, 33, 33)  # so many that functions run along them


def random_case(likelihood, n_levels, n=6, dtype=F64, scale=2.0):
    """Return parameters and decoder outputs."""
    d = len(n_levels)
    eta = scale * normal((n, likelihood.n_outputs(d)), generator(0, "eta"), dtype)
    params = {k: normal(shape, generator(1, k), dtype) for k, shape in likelihood.shapes(d).items()}
    return params, eta


def log_probs_by_column(likelihood, params, eta, n_levels):
    """Return log p of every level of every column, by asking for one level at a time."""
    for j, n in enumerate(n_levels):
        x = torch.zeros((n, len(eta), len(n_levels)), dtype=eta.dtype)
        x[..., j] = torch.arange(n, dtype=eta.dtype)[:, None]
        yield likelihood.log_prob(params, eta, x)[..., j]  # (levels, n)


def plain_categorical(params, eta, n_levels):
    return [torch.distributions.Categorical(logits=part).logits.mT for part in eta.split(n_levels, -1)]


def plain_ordinal(params, eta, n_levels):
    found = []
    for j, raw in enumerate(params["threshold"][0].split([n - 1 for n in n_levels])):
        steps = torch.nn.functional.softplus(raw[1:]) + 1e-4
        cut = torch.cat([raw[:1], raw[:1] + steps.cumsum(0)])
        cumulative = [torch.zeros(len(eta), dtype=F64), *(torch.sigmoid(c - eta[:, j]) for c in cut)]
        found.append(torch.stack([*cumulative, torch.ones(len(eta), dtype=F64)]).diff(dim=0).log())
    return found


@pytest.mark.parametrize("n_levels", LEVELS)
@pytest.mark.parametrize("kind, plain", [(Categorical, plain_categorical), (Ordinal, plain_ordinal)])
def test_probabilities_are_those_of_the_plain_formula_and_sum_to_one(kind, plain, n_levels):
    likelihood = kind(n_levels)
    params, eta = random_case(likelihood, n_levels)
    found = list(log_probs_by_column(likelihood, params, eta, n_levels))
    for mine, theirs in zip(found, plain(params, eta, n_levels), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mine.exp().sum(0), torch.ones(len(eta), dtype=F64), rtol=0, atol=1e-12)
    expected = torch.cat([part.exp() for part in found]).mT
    torch.testing.assert_close(likelihood.expectation(params, eta), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
def test_gradients_are_right(kind):
    n_levels = (2, 5, 1, 3)
    likelihood = kind(n_levels)
    params, eta = random_case(likelihood, n_levels)
    x = torch.tensor([[0, 4, 0, 2], [1, 0, 0, 0], [1, 2, 0, 1]] * 2, dtype=F64)
    values = [v.requires_grad_() for v in params.values()]
    assert torch.autograd.gradcheck(
        lambda eta, *values: likelihood.log_prob(dict(zip(params, values)), eta, x), (eta.requires_grad_(), *values)
    )


def test_probabilities_of_many_categories_are_those_of_the_plain_formula():
    params, eta = random_case(Categorical(MANY), MANY)
    found = log_probs_by_column(Categorical(MANY), params, eta, MANY)
    for mine, theirs in zip(found, plain_categorical(params, eta, MANY), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("n_levels", [*LEVELS, MANY])
def test_slopes_of_categories_are_those_of_autograd(n_levels, n):
    likelihood, d = Categorical(n_levels), len(n_levels)
    _, eta = random_case(likelihood, n_levels, n)
    x = torch.stack([torch.arange(n, dtype=F64) % levels for levels in n_levels], -1)
    weight = normal((n, d), generator(2, "weight"), F64)
    eta.requires_grad_()
    (likelihood.log_prob({}, eta, x) * weight).sum().backward()
    found, _ = likelihood.derivative({}, eta.detach().clone(), x, weight)
    torch.testing.assert_close(found, eta.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_levels", [(5, 5), (40,), (3, 70)])
def test_what_a_row_gives_does_not_depend_on_how_many_are_beside_it(n_levels):
    likelihood = Categorical(n_levels)
    _, eta = random_case(likelihood, n_levels, 40, torch.float32)
    x = torch.arange(40.0)[:, None] % torch.tensor(n_levels)
    x[3] = torch.nan
    weight, few = torch.full((40, 1), 0.1), 14
    log_probs = [likelihood.log_prob({}, eta[:n], x[:n].nan_to_num()) for n in (few, 40)]
    slopes = [likelihood.derivative({}, eta[:n].clone(), x[:n], weight[:n])[0] for n in (few, 40)]
    assert torch.equal(log_probs[0], log_probs[1][:few]) and torch.equal(slopes[0], slopes[1][:few])


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
@pytest.mark.parametrize("far", [50.0, 1e4])
def test_outputs_far_away_give_finite_probabilities_and_slopes(kind, far):
    n_levels = (2, 5, 1, 3)
    likelihood = kind(n_levels)
    params, eta = random_case(likelihood, n_levels, dtype=torch.float32)
    eta = (far * eta.sign()).requires_grad_()
    params = {name: value.requires_grad_() for name, value in params.items()}
    x = torch.tensor([[0, 4, 0, 2], [1, 0, 0, 0], [1, 2, 0, 1]] * 2, dtype=torch.float32)
    log_prob = likelihood.log_prob(params, eta, x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and (log_prob <= 0).all() and log_prob.min() < -far / 2
    assert eta.grad.isfinite().all() and eta.grad.abs().max() <= 1
    assert all(value.grad.isfinite().all() for value in params.values())
    with torch.no_grad():
        by_eta, by_params = likelihood.derivative(params, eta.detach().clone(), x, torch.ones((6, 1)))
    assert by_eta.isfinite().all() and all(slope.isfinite().all() for slope in by_params.values())


def test_neighbouring_levels_far_from_the_output_do_not_cancel():
    """sigmoid(40) - sigmoid(39) is zero in single precision; its logarithm is about -39.46."""
    likelihood = Ordinal(3)
    params = {"threshold": torch.tensor([[39.0, np.log(np.expm1(1 - 1e-4))]])}
    found = likelihood.log_prob(params, torch.zeros((1, 1)), torch.tensor([[1.0]]))
    exact = -39 + np.log(-np.expm1(-1.0)) - np.log1p(np.exp(-40.0))
    np.testing.assert_allclose(found.item(), exact, rtol=1e-6)


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
def test_sampler_draws_levels_with_their_probabilities(kind):
    n_levels = (2, 5, 1, 3)
    likelihood = kind(n_levels)
    params, eta = random_case(likelihood, n_levels, n=1, scale=1.0)
    sample = likelihood.sample(params, eta.expand(50_000, -1), generator(0, "sample"))
    assert sample.dtype == F64
    for j, probs in enumerate(likelihood.expectation(params, eta)[0].split(n_levels)):
        counts = torch.bincount(sample[:, j].long(), minlength=n_levels[j])
        assert len(counts) == n_levels[j]
        if n_levels[j] > 1:
            assert stats.chisquare(counts.numpy(), 50_000 * probs.numpy() / probs.sum().item()).pvalue > 1e-4


def test_point_of_categories_is_the_most_probable_and_of_levels_the_median():
    probs = torch.tensor([[0.3, 0.3, 0.4, 0.45, 0.55]])
    assert Categorical((3, 2)).point(probs).tolist() == [[2.0, 1.0]]
    assert Ordinal((3, 2)).point(probs).tolist() == [[1.0, 1.0]]


def test_mean_is_the_point_of_the_probabilities():
    for likelihood in (Categorical((2, 5)), Ordinal((2, 5))):
        params, eta = random_case(likelihood, (2, 5))
        assert torch.equal(likelihood.mean(params, eta), likelihood.point(likelihood.expectation(params, eta)))


def test_encoder_reads_one_number_per_category_and_none_of_a_missing_cell():
    inputs = Categorical((3, 2)).inputs({}, torch.tensor([[2.0, 0.0], [torch.nan, 1.0]]))
    assert inputs.tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert Categorical((3, 2)).n_inputs(2) == 5


def test_encoder_reads_ordered_levels_from_minus_one_to_one_and_zero_for_a_missing_cell():
    inputs = Ordinal((3, 5, 1)).inputs({}, torch.tensor([[2.0, 0.0, 0.0], [torch.nan, 3.0, torch.nan]]))
    assert inputs.tolist() == [[1.0, -1.0, -1.0], [0.0, 0.5, 0.0]]


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
def test_training_starts_from_the_shares_of_the_levels(kind):
    rng = np.random.default_rng(0)
    x = torch.tensor(np.column_stack([rng.choice(4, 500, p=[0.7, 0.1, 0.15, 0.05]), rng.integers(2, size=500)]), dtype=F64)
    x[0, 0] = torch.nan
    likelihood = kind((4, 2))
    params = {k: v.double() for k, v in likelihood.init(2).items()}
    outputs = likelihood.start(params, x)
    eta = torch.zeros((1, likelihood.n_outputs(2)), dtype=F64) if outputs is None else outputs[None]
    shares = torch.cat([torch.bincount(x[1:, 0].long()) / 499, torch.bincount(x[:, 1].long()) / 500]).double()
    torch.testing.assert_close(likelihood.expectation(params, eta)[0], shares, rtol=0, atol=2e-3)


@pytest.mark.parametrize("n_levels", LEVELS)
def test_arranging_levels_as_a_table_can_be_undone(n_levels):
    values = torch.arange(2.0 * sum(n_levels)).view(2, -1)
    table = to_table(values, n_levels, -1.0)
    assert table.shape == (2, len(n_levels), max(n_levels))
    assert torch.equal(to_list(table, n_levels), values)
    where = places(n_levels, values.device)
    assert torch.equal(table[:, where.column, where.level], values)


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit(likelihood, X, **params):
    defaults = {"max_iter": 30, "hidden_layer_sizes": (8,), "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(2, likelihood=likelihood, **{**defaults, **params}).fit(X)


def mixed_levels(n=300, seed=0):
    """Return columns of 2, 3 and 6 levels that hang together."""
    rng = np.random.default_rng(seed)
    group = rng.integers(3, size=n)
    noise = rng.random((n, 2)) < 0.1
    return np.column_stack([group > 1, np.where(noise[:, 0], rng.integers(3, size=n), group), group * 2 + noise[:, 1]]).astype(
        float
    )


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
def test_columns_learn_their_number_of_levels_and_what_they_share(kind):
    X = mixed_levels()
    vae = fit(kind(), X, max_iter=400)
    (likelihood,) = vae._fitted.model.likelihood.likelihoods
    assert likelihood.n_levels == (2, 3, 6)
    counts = [np.unique(column, return_counts=True)[1] / len(X) for column in X.T]
    apart = sum((share * np.log(share)).sum() for share in counts)
    assert vae.score(X) > apart + 0.5, "columns that are independent"
    assert set(np.unique(vae.reconstruct(X)[:, 2])) <= set(range(6))
    assert (vae.reconstruct(X)[:, 0] == X[:, 0]).mean() > 0.9
    sample = vae.sample(500, random_state=0)
    assert (sample == np.rint(sample)).all() and (sample.min(0) >= 0).all() and (sample.max(0) <= [1, 2, 5]).all()


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
def test_closed_forms_and_autograd_learn_the_same(kind):
    class Plain(MLP):
        pass

    by_hand, by_autograd = (
        fit(kind(), mixed_levels(), encoder=encoder, dtype="float64") for encoder in (MLP((8,)), Plain((8,)))
    )
    np.testing.assert_allclose(by_autograd._fitted.params, by_hand._fitted.params, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", [Categorical, Ordinal])
@pytest.mark.parametrize("bad", [0.5, -1.0, 3.0])
def test_codes_that_are_none_are_refused_with_column_and_value(kind, bad):
    vae = fit(kind((2, 3, 6)), mixed_levels())
    X = mixed_levels(5)
    X[2, 1] = bad
    with pytest.raises(ValueError, match=rf"1 column.*\[0, 2\] or no whole numbers.*\['x1'\]; for example {bad:g} in 'x1'"):
        vae.score_samples(X)


@pytest.mark.parametrize("bad", [-1.0, 0.5, 1e6])
def test_columns_that_hold_no_codes_are_refused(bad):
    X = mixed_levels()
    X[:, 1] = bad
    with pytest.raises(ValueError, match=r"column\(s\) number \[1\] have others.*OrdinalEncoder"):
        Categorical().bind(column_statistics(X, np.arange(len(X)), np.ones(len(X))))


@pytest.mark.parametrize("bad", [(2, 0), (2, 1.5), 0])
def test_impossible_numbers_of_levels_are_refused(bad):
    with pytest.raises(ValueError, match="'n_levels'"):
        Categorical(bad).validate()


def test_numbers_of_levels_must_be_one_per_column():
    with pytest.raises(ValueError, match="3 entries, one per column, but there are 2 columns"):
        Ordinal((2, 3, 4)).shapes(2)


def test_a_saved_model_knows_its_levels(tmp_path):
    import skvae

    X = table_for(Categorical(4))
    vae = fit(Categorical(), X)
    vae.save(tmp_path / "model.skvae")
    np.testing.assert_array_equal(skvae.load(tmp_path / "model.skvae").score_samples(X), vae.score_samples(X))
