"""The closed forms against the formulas of the objectives and their gradients by autograd."""

import pytest
import torch
from conftest import LIKELIHOODS, cells_for
from hypothesis import given, settings
from hypothesis import strategies as st

from skvae import VAETransformer
from skvae import _kernels as kernels
from skvae._batch import Batch
from skvae._model import Model, Pieces, nested
from skvae._random import generator, normal
from skvae.likelihoods import Bernoulli, Categorical, Gaussian, NormalMixture
from skvae.likelihoods._mixed import Given, PerColumn
from skvae.networks import MLP
from skvae.objectives import ELBO, IWAE
from skvae.posteriors import Normal
from skvae.priors import Laplace, MixtureOfNormals, StandardNormal

F64 = torch.float64
OBJECTIVES = [
    ELBO(), ELBO(beta=3.0), ELBO(n_samples=3), ELBO(kl="monte_carlo"), ELBO(beta=0.5, kl="monte_carlo", n_samples=4),
    ELBO(free_bits=0.4), ELBO(beta=2.0, free_bits=0.1, n_samples=2), IWAE(1), IWAE(5),
    IWAE(5, gradient="doubly_reparameterized"),
]  # fmt: skip


def make_model(likelihood, n_columns=5, k=3, hidden=(7,), activation="silu", skip=True, decoder=None, seed=0, prior=None):
    encoder = MLP(hidden, activation=activation, skip=skip)
    pieces = Pieces(encoder, decoder or encoder, Normal(), prior or StandardNormal(), likelihood)
    return Model(pieces, n_columns, k, seed)


def flat_params(model, scale=0.5, seed=1):
    return model.init(F64) + scale * normal((model.layout.size,), generator(seed, "p"), F64)


def by_autograd(model, objective, flat, x, noise, weight, kl_weight):
    flat = flat.clone().requires_grad_()
    params = model.unpack(flat)
    value = objective(model, params, Batch(x), noise, kl_weight)  # (n,)
    total = (value * weight).sum()
    (-total).backward()
    return total.detach(), flat.grad


def by_hand(models, objective, flats, x, noise, weight, kl_weight):
    """Return objective and gradient of every model, computed together in one widened model."""
    wide = kernels.widened(models)
    layout = kernels.aligned_layout(wide)
    places = [kernels.positions(model, wide) for model in models]
    m, n, _ = x.shape
    params, slopes = (torch.zeros((m, layout.size), dtype=F64) for _ in range(2))
    padded = torch.zeros((m, objective.n_samples, n, wide.n_components), dtype=F64)
    for i, (model, place) in enumerate(zip(models, places)):
        params[i, place] = flats[i]
        padded[i, ..., : model.n_components] = noise[i]
    kernel = kernels.Kernel(wide, nested(layout.views(params)), n, objective.n_samples)
    kernel.learn(objective, nested(layout.views(slopes)), kl_weight)
    for _ in range(2):  # twice: nothing may be left over from one batch to the next
        value = kernel.gradient(x, padded, weight[..., None], measured=True)
    inside = torch.zeros_like(slopes, dtype=torch.bool)
    for i, place in enumerate(places):
        inside[i, place] = True
    assert (slopes[~inside] == 0).all(), "units that only fill up must not move"
    return value, [slopes[i, place] for i, place in enumerate(places)]


def relative_error(model, objective, flat, x):
    """Return the error to allow for: a formula that finds the noise again, as (z - mean) / scale, has it off by |z| / scale.

    That is the rounding of z. The closed forms know the noise and have no such error; beside exact arithmetic they are the
    nearer ones by far where scales are small.
    """
    if isinstance(objective, ELBO) and objective.kl != "monte_carlo":
        return 1e-12
    q = model.encode(model.unpack(flat), Batch(x))
    farthest = float((model.posterior.mean(q).abs() / model.posterior.scale(q)).max())
    return max(1e-12, 16 * torch.finfo(F64).eps * farthest)


def assert_same(models, objective, n=6, weights=None, betas=None, seed=0, x=None):
    m, d = len(models), models[0].n_columns
    x = cells_for(models[0].likelihood, (m, n, d), seed) if x is None else x
    noise = [
        normal((objective.n_samples, n, model.n_components), generator(seed, "e", i), F64) for i, model in enumerate(models)
    ]
    weight = torch.full((m, n), 1 / n, dtype=F64) if weights is None else weights
    betas = [getattr(objective, "beta", 1.0)] * m if betas is None else betas
    flats = [flat_params(model, seed=seed + i) for i, model in enumerate(models)]
    values, slopes = by_hand(models, objective, flats, x, noise, weight, torch.tensor(betas, dtype=F64).view(m, 1, 1))
    for i, model in enumerate(models):
        annealing = betas[i] / objective.beta if isinstance(objective, ELBO) and objective.beta else 1.0
        value, slope = by_autograd(model, objective, flats[i], x[i], noise[i], weight[i], annealing)
        error = relative_error(model, objective, flats[i], x[i])
        torch.testing.assert_close(values[i], value, rtol=error, atol=error)
        torch.testing.assert_close(slopes[i], slope, rtol=error, atol=error * max(1.0, float(slope.abs().max())))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_value_and_gradient_are_those_of_the_objective(likelihood, objective):
    assert_same([make_model(likelihood)], objective)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_scales_beyond_their_limits_are_led_back(objective):
    """Also where a narrow posterior stands at its limit, whose slope would be zero, training moves it."""
    model = make_model(Gaussian())
    flat = model.init(F64)
    biases = model.unpack(flat)["encoder"]
    (name,) = [name for name, value in biases.items() if value.shape[-1] == 2 * model.n_components and value.numel() < 20]
    log_scales = biases[name][..., model.n_components :]
    log_scales.copy_(torch.linspace(-14, 9, log_scales.numel(), dtype=F64).view_as(log_scales))
    x = cells_for(Gaussian(), (1, 6, model.n_columns))
    noise = normal((1, objective.n_samples, 6, model.n_components), generator(0, "noise"), F64)
    weight = torch.full((1, 6), 1 / 6, dtype=F64)
    kl_weight = torch.full((1, 1, 1), getattr(objective, "beta", 1.0), dtype=F64)
    value, slope = by_autograd(model, objective, flat, x[0], noise[0], weight[0], 1.0)
    values, slopes = by_hand([model], objective, [flat], x, noise, weight, kl_weight)
    torch.testing.assert_close(values[0], value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slopes[0], slope, rtol=1e-10, atol=1e-10 * float(slope.abs().max()))
    if not getattr(objective, "free_bits", 0):
        assert (model.unpack(slopes[0])["encoder"][name][..., model.n_components :] != 0).all()


@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(5)], ids=repr)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("missing", [(), (1, 3)], ids=str)
def test_conditions(objective, missing, prior):
    if type(prior) is MixtureOfNormals and getattr(objective, "free_bits", 0):
        pytest.skip("no closed form")
    parts = Gaussian(), Given(Categorical(4), 1), Bernoulli(), Given(Gaussian(), 2)
    likelihood = PerColumn(parts, (2, 1, 1, 2), (0.0,) * 6, missing)
    widths = (3, 7), (17, 40), (1, 16)
    models = [make_model(likelihood, n_columns=6, k=k, hidden=(h,), seed=k, prior=prior) for k, h in widths]
    assert models[0].n_given and kernels.supports(models[0], objective)
    cells = [
        cells_for(kind, (3, 6, d)) for kind, d in ((Gaussian(), 2), (Categorical(4), 1), (Bernoulli(), 1), (Gaussian(), 2))
    ]
    x = torch.cat(cells, -1)
    x[:, 2, list(missing)] = torch.nan
    assert_same(models[:1], objective, x=x[:1])
    assert_same(models, objective, x=x)
    assert_same([make_model(likelihood, n_columns=6, hidden=(), prior=prior)], objective, x=x[:1])


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if not getattr(o, "free_bits", 0)], ids=repr)
def test_mixture_as_prior(objective):
    models = [make_model(Gaussian(), k=k, seed=k, prior=MixtureOfNormals(5)) for k in (3, 17, 1)]
    assert kernels.supports(models[0], objective)
    assert_same(models[:1], objective)
    assert_same(models, objective)


def test_normals_of_a_mixture_have_limited_scales():
    model = make_model(Gaussian(), prior=MixtureOfNormals(3))
    flat = flat_params(model)
    model.unpack(flat)["prior"]["log_scale"][0] = torch.tensor([0.0, 2.0, 6.0])
    x, noise, one = (
        cells_for(Gaussian(), (1, 6, 5), 0),
        normal((1, 6, 3), generator(0, "e"), F64),
        torch.ones((1, 6), dtype=F64),
    )
    _, (by_hand_slope,) = by_hand([model], ELBO(), [flat], x, noise[None], one, one.new_ones((1, 1, 1)))
    _, slope = by_autograd(model, ELBO(), flat, x[0], noise, one[0], 1.0)
    torch.testing.assert_close(by_hand_slope, slope, rtol=1e-9, atol=1e-9)
    of_scales = model.unpack(slope)["prior"]["log_scale"][0]
    assert of_scales[2] == 0 and (of_scales[:2] != 0).all()


def test_priors_without_derivatives_and_kl_without_closed_form_go_the_way_of_autograd():
    class Other(MixtureOfNormals):
        def log_prob(self, params, z):
            return 2 * super().log_prob(params, z)

    assert not kernels.supports(make_model(Gaussian(), prior=Other()), ELBO())

    class Tied(MixtureOfNormals):
        def given(self, model, params):
            return {**params["prior"], "mean": 2 * params["prior"]["mean"]}

    assert not kernels.supports(make_model(Gaussian(), prior=Tied()), ELBO())
    assert not kernels.supports(make_model(Gaussian(), prior=Laplace()), ELBO())
    assert not kernels.supports(make_model(Gaussian(), prior=MixtureOfNormals()), ELBO(free_bits=0.1))
    assert not kernels.supports(make_model(Gaussian(), prior=MixtureOfNormals()), ELBO(kl="analytic"))


@pytest.mark.parametrize("activation", ["identity", "relu", "silu", "gelu", "tanh"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 20, 3)])
def test_every_network(activation, skip, hidden):
    assert_same([make_model(Gaussian(), hidden=hidden, activation=activation, skip=skip)], ELBO())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 9), st.lists(st.integers(1, 40), max_size=2),
    st.sampled_from(LIKELIHOODS), st.sampled_from(OBJECTIVES), st.integers(0, 10**6), st.data(),
)  # fmt: skip
def test_any_shape_in_any_company(m, n, d, hidden, likelihood, objective, seed, data):
    models = [
        make_model(
            likelihood, d, data.draw(st.integers(1, 20)), tuple(data.draw(st.integers(1, h)) for h in hidden),
            data.draw(st.sampled_from(["silu"])), seed=seed + i,
        )
        for i in range(m)
    ]  # fmt: skip
    weights = torch.rand((m, n), generator=generator(seed, "w"), dtype=F64, device="cpu") * 2
    weights[:, 0] *= data.draw(st.sampled_from([0.0, 1.0]))
    assert_same(models, objective, n, weights, seed=seed)


def test_every_model_has_its_own_weight_of_the_kl():
    assert_same([make_model(Gaussian(), seed=i) for i in range(3)], ELBO(), betas=[0.1, 1.0, 4.0])


def test_components_that_fill_up_have_no_free_bits():
    assert_same([make_model(Gaussian(), k=k, seed=k) for k in (1, 4, 20)], ELBO(free_bits=0.4))


def test_rows_of_weight_zero_count_for_nothing():
    model = make_model(Gaussian())
    weight = torch.tensor([[0.5, 0.0, 0.5, 0.0]], dtype=F64)
    assert_same([model], ELBO(), n=4, weights=weight)


def test_the_log_scale_is_limited_as_in_the_posterior():
    model = make_model(Gaussian())
    flat = flat_params(model)
    bias = model.layout.views(flat)["encoder", "bias1"]
    bias[0, 3:] = torch.tensor([-30.0, 30.0, 0.0], dtype=F64)
    x, noise = cells_for(model.likelihood, (1, 4, 5)), normal((1, 4, 3), generator(0, "e"), F64)
    weight, one = torch.full((1, 4), 0.25, dtype=F64), torch.ones((1, 1, 1), dtype=F64)
    value, (slope,) = by_hand([model], ELBO(), [flat], x, [noise], weight, one)
    expected_value, expected = by_autograd(model, ELBO(), flat, x[0], noise, weight[0], 1.0)
    torch.testing.assert_close(value[0], expected_value, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("likelihood", [Categorical(3), NormalMixture(4)], ids=repr)
def test_slopes_that_have_faded_are_zero(likelihood):
    """Products with denormal numbers take up to ten times as long, and a few in a thousand are enough."""
    model = make_model(likelihood, n_columns=2)
    wide = kernels.widened([model])
    layout = kernels.aligned_layout(wide)
    params, slopes = (torch.zeros((1, layout.size)) for _ in range(2))
    params[0, kernels.positions(model, wide)] = flat_params(model, scale=0.1).float()
    named = nested(layout.views(params))
    named["decoder"]["bias1"][..., 0:6:2] += 92.0  # nats between two levels of a column, or two modes
    kernel = kernels.Kernel(wide, named, 64, 1)
    kernel.learn(ELBO(), nested(layout.views(slopes)), torch.ones((1, 1, 1)))
    x = torch.arange(128.0).view(1, 64, 2) % 3
    kernel.gradient(x, torch.zeros(1, 1, 64, wide.n_components), torch.full((1, 64, 1), 1 / 64), measured=False)
    sizes = kernel.eta.abs()
    assert sizes.min() < 1e-20 and sizes.max() > 1e-3, "some have, some have not"
    assert sizes[sizes > 0].min() > torch.finfo(torch.float32).tiny


class InDouble(Bernoulli):
    """A likelihood whose derivative comes in another precision, and in a tensor of its own."""

    def log_prob(self, params, eta, x):
        return super().log_prob(params, eta, x)

    def derivative(self, params, eta, x, weight):
        return weight * (x - eta.double().sigmoid()), {}


def test_a_derivative_may_come_in_any_precision():
    X = (normal((60, 4), generator(0, "X"), F64) > 0).double().numpy()
    vae = VAETransformer(1, likelihood=InDouble(), max_iter=4, learning_rate="cosine", random_state=0).fit(X)
    assert kernels.supports(vae._fitted.model, ELBO())
    expected = VAETransformer(1, likelihood=Bernoulli(), max_iter=4, learning_rate="cosine", random_state=0).fit(X)
    assert vae.score(X) == pytest.approx(expected.score(X), abs=1e-3)


@pytest.mark.parametrize("mask", [[1.0], [1.0, 0.0, 1.0, 0.0]], ids=["rows", "cells"])
@pytest.mark.parametrize("likelihood", [piece for piece in LIKELIHOODS if piece.offers("derivative")], ids=repr)
def test_derivatives_of_likelihoods_are_those_of_autograd(likelihood, mask):
    x = cells_for(likelihood, (2, 6, 4))
    eta = normal((2, 6, likelihood.n_outputs(4)), generator(0, "eta"), F64).requires_grad_()
    params = {
        name: normal((2, *shape), generator(0, name), F64).requires_grad_() for name, shape in likelihood.shapes(4).items()
    }
    weight = torch.rand((2, 6, 1), generator=generator(0, "w"), dtype=F64, device="cpu")
    weight = weight * torch.tensor(mask, dtype=F64)  # (2, 6, 1 or 4)
    (weight * likelihood.log_prob(params, eta, x)).sum().backward()
    with torch.no_grad():
        by_eta, by_params = likelihood.derivative(params, eta.detach().clone(), x, weight)
    torch.testing.assert_close(by_eta, eta.grad, rtol=1e-12, atol=1e-12)
    assert by_params.keys() == {name for name, value in params.items() if value.grad is not None}
    for name, slope in by_params.items():
        torch.testing.assert_close(slope.to(F64), params[name].grad, rtol=1e-12, atol=1e-12)


class Heavier(Gaussian):
    """A subclass that changes the density alone."""

    def log_prob(self, params, eta, x):
        return 2 * super().log_prob(params, eta, x)


class HeavierWithDerivative(Heavier):
    def derivative(self, params, eta, x, weight):
        return super().derivative(params, eta, x, 2 * weight)


class MyMLP(MLP):
    pass


def test_a_subclass_that_changes_a_formula_goes_the_way_of_autograd():
    assert kernels.supports(make_model(Gaussian()), ELBO())
    assert not kernels.supports(make_model(Heavier()), ELBO())
    assert not kernels.supports(make_model(Gaussian(), decoder=MyMLP((7,))), ELBO())
    assert kernels.supports(make_model(HeavierWithDerivative()), ELBO())
    assert_same([make_model(HeavierWithDerivative())], ELBO())


def test_a_subclass_that_changes_the_density_is_scored_by_it():
    x = cells_for(Gaussian(), (6, 5))
    z = normal((6, 3), generator(0, "z"), F64)
    values = []
    for likelihood in (Gaussian(), Heavier()):
        model = make_model(likelihood)
        with torch.inference_mode():
            values.append(model.log_px(model.unpack(flat_params(model)), Batch(x), z))
    torch.testing.assert_close(values[1], 2 * values[0])


def test_likelihoods_of_other_parameters_do_not_share_a_batch():
    structures = [kernels.structure(make_model(likelihood), ELBO()) for likelihood in (*LIKELIHOODS, Heavier(), Gaussian())]
    assert len(set(structures)) == len(LIKELIHOODS) + 1
