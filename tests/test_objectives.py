"""Objectives: weights of the KL, warm-up, and the order of the bounds."""

import math

import numpy as np
import pytest
import torch

from skvae import VAETransformer
from skvae._batch import Batch
from skvae._linear import start_linearly
from skvae._model import Model, Pieces, nested
from skvae._random import generator, normal
from skvae._solver import SolverState
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.likelihoods._mixed import Given, PerColumn
from skvae.networks import MLP, VariationalMLP
from skvae.objectives import (
    ELBO,
    IWAE,
    BetaTCVAE,
    InfoVAE,
    _kernel,
    discrepancy,
    kl_of_rows,
    kl_per_component,
    log_weights,
    total_correlation,
)
from skvae.posteriors import Dirichlet, FullNormal, Normal
from skvae.priors import Dirichlet as DirichletPrior
from skvae.priors import MixtureOfNormals, StandardNormal, VampPrior


@pytest.fixture
def problem():
    """A model with random parameters, a batch and the noise of 64 draws per row."""
    network = MLP((8,), activation="tanh")
    model = Model(Pieces(network, network, Normal(), StandardNormal(), Gaussian()), 4, 2, 0)
    flat = 0.3 * normal((model.layout.size,), generator(0, "parameters"), torch.float64)
    batch = Batch(normal((9, 4), generator(0, "rows"), torch.float64))
    return model, model.unpack(flat), batch, normal((64, 9, 2), generator(0, "noise"), torch.float64)


def test_beta_weighs_the_kl_in_training_but_not_in_the_bound(problem):
    model, params, batch, noise = problem
    kl = model.posterior.kl(model.encode(params, batch), model.prior).sum(-1)
    one, four = (ELBO(beta=b)(model, params, batch, noise) for b in (1.0, 4.0))
    torch.testing.assert_close(one - four, 3 * kl)
    torch.testing.assert_close(ELBO(beta=4.0).bound(model, params, batch, noise), one)


@pytest.mark.parametrize("how", ["auto", "monte_carlo"])
@pytest.mark.parametrize("prior", [StandardNormal(), MixtureOfNormals(3)], ids=repr)
def test_the_kl_of_a_row_is_the_sum_over_its_components(prior, how):
    network = MLP((8,))
    model = Model(Pieces(network, network, Normal(), prior, Gaussian()), 4, 2, 0)
    params = model.unpack(model.init(torch.float64))
    batch = Batch(normal((9, 4), generator(0, "rows"), torch.float64))
    q = model.encode(params, batch)
    z = model.posterior.sample(q, normal((5, 9, 2), generator(0, "noise"), torch.float64))
    torch.testing.assert_close(
        kl_of_rows(model, params, batch, q, z, how),
        kl_per_component(model, params, batch, q, z, how).sum(-1),
        rtol=1e-10,
        atol=1e-10,
    )


def test_warmup_grows_linearly_to_full_strength():
    weights = [ELBO(warmup=4).annealing(epoch) for epoch in range(6)]
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert ELBO().annealing(0) == 1.0


def test_annealing_scales_the_kl(problem):
    model, params, batch, noise = problem
    kl = model.posterior.kl(model.encode(params, batch), model.prior).sum(-1)
    full, half = (ELBO()(model, params, batch, noise, a) for a in (1.0, 0.5))
    torch.testing.assert_close(half - full, 0.5 * kl)


def test_estimator_a_averages_the_log_weights(problem):
    model, params, batch, noise = problem
    torch.testing.assert_close(
        ELBO(kl="monte_carlo").bound(model, params, batch, noise), log_weights(model, params, batch, noise).mean(0)
    )


def test_importance_weighted_bound_with_one_draw_is_estimator_a(problem):
    model, params, batch, noise = problem
    torch.testing.assert_close(
        IWAE(1).bound(model, params, batch, noise[:1]), ELBO(kl="monte_carlo").bound(model, params, batch, noise[:1])
    )


def test_importance_weighted_bound_rises_with_the_draws(problem):
    """Averaged over disjoint subsets of the same draws the bound cannot fall as they grow (Burda et al., theorem 1)."""
    model, params, batch, noise = problem
    log_w = log_weights(model, params, batch, noise)
    values = [(torch.logsumexp(log_w.unflatten(0, (64 // k, k)), 1) - math.log(k)).mean(0) for k in (1, 2, 4, 8, 16, 32, 64)]
    for smaller, larger in zip(values[:-1], values[1:], strict=True):
        assert (smaller <= larger + 1e-12).all()


def test_bounds_have_one_value_per_row_that_does_not_depend_on_the_others(problem):
    model, params, batch, _ = problem
    noise = normal((8, 1, 2), generator(0, "common"), torch.float64)
    for objective in (ELBO(), ELBO(kl="monte_carlo"), IWAE(8)):
        whole = objective.bound(model, params, batch, noise)
        assert whole.shape == (9,)
        torch.testing.assert_close(objective.bound(model, params, batch.slice(3, 5), noise), whole[3:5])


def test_a_missing_closed_form_is_told_with_the_remedy(problem):
    model, params, batch, noise = problem

    class Plain(Normal):
        """A normal posterior that has forgotten its closed form."""

        def kl(self, q, prior):
            return None

    model.posterior = Plain()
    with pytest.raises(ValueError, match=r"Use ELBO\(kl='auto'\)"):
        ELBO(kl="analytic")(model, params, batch, noise)
    torch.testing.assert_close(ELBO()(model, params, batch, noise), ELBO(kl="monte_carlo")(model, params, batch, noise))


def test_free_bits_cost_nothing_in_training_and_are_not_in_the_bound(problem):
    model, params, batch, noise = problem
    kl = model.posterior.kl(model.encode(params, batch), model.prior)  # (n, k)
    free = float(kl.median())
    plain, trained = ELBO()(model, params, batch, noise), ELBO(beta=2.0, free_bits=free)(model, params, batch, noise)
    expected = plain + kl.sum(-1) - 2 * torch.where(kl < free, free, kl).sum(-1)
    torch.testing.assert_close(trained, expected)
    torch.testing.assert_close(ELBO(free_bits=free).bound(model, params, batch, noise), plain)
    assert not ELBO(free_bits=free).is_bound and ELBO().is_bound


def slopes(objective, model, flat, batch, noise, piece):
    """Return the gradient of the sum of an objective by the parameters of one piece."""
    flat = flat.clone().requires_grad_()
    objective(model, model.unpack(flat), batch, noise).sum().backward()
    return torch.cat([view.flatten() for (p, _), view in model.layout.views(flat.grad).items() if p == piece])


def linear_model(exact):
    """Return a linear model, its parameters, rows and noise (s, n, k); the encoder is exact, or random."""
    network = MLP(())
    model = Model(Pieces(network, network, Normal(), StandardNormal(), Gaussian("shared")), 4, 2, 0)
    stream = generator(0, "linear")
    batch = Batch(normal((30, 4), stream, torch.float64) @ normal((4, 4), stream, torch.float64))
    flat = model.init(torch.float64)
    start_linearly(model, flat, batch)
    if not exact:
        flat += 0.3 * normal(flat.shape, generator(1, "away"), torch.float64)
    return model, flat, batch, normal((8, 30, 2), generator(0, "noise"), torch.float64)


def test_doubly_reparameterised_gradient_of_an_exact_encoder_has_no_noise():
    model, flat, batch, noise = linear_model(exact=True)
    standard, doubly = (
        slopes(IWAE(8, gradient=how), model, flat, batch, noise, "encoder") for how in ("standard", "doubly_reparameterized")
    )
    assert doubly.abs().max() < 1e-9 < 0.1 < standard.abs().max()


def test_doubly_reparameterised_gradient_is_the_standard_one_on_average():
    model, flat, batch, _ = linear_model(exact=False)
    draws = [
        [slopes(IWAE(4, gradient=how), model, flat, batch, noise, "encoder") for noise in noises]
        for how in ("standard", "doubly_reparameterized")
        for noises in [[normal((4, 30, 2), generator(0, how, i), torch.float64) for i in range(1500)]]
    ]
    (mean, error), (other_mean, other_error) = (
        (torch.stack(d).mean(0), torch.stack(d).std(0) / math.sqrt(len(d))) for d in draws
    )
    assert ((mean - other_mean).abs() < 5 * (error**2 + other_error**2).sqrt()).all()
    assert (mean.abs() > 5 * error).any(), "a gradient of zero would prove nothing"


@pytest.mark.parametrize(("params", "message"), [
    ({"posterior": "uniform", "objective": IWAE(4, gradient="doubly_reparameterized")}, "jumps at ends.*gradient='standard'"),
    ({"decoder": VariationalMLP((8,)), "objective": IWAE(4)}, "no bound on log p.*Train by the ELBO"),
])  # fmt: skip
def test_importance_weighting_refuses_models_of_which_it_is_no_bound_or_has_no_slope(params, message):
    X = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(ValueError, match=message):
        VAETransformer(2, max_iter=2, **params).fit(X)
    VAETransformer(2, max_iter=2, learning_rate="cosine", **{**params, "objective": IWAE(1)}).fit(X)


def test_doubly_reparameterised_gradient_leaves_value_and_decoder_alone():
    model, flat, batch, noise = linear_model(exact=False)
    standard, doubly = IWAE(8), IWAE(8, gradient="doubly_reparameterized")
    for piece in ("decoder", "likelihood"):
        one, other = (slopes(objective, model, flat, batch, noise, piece) for objective in (standard, doubly))
        torch.testing.assert_close(one, other)
    params = model.unpack(flat)
    torch.testing.assert_close(doubly(model, params, batch, noise), standard(model, params, batch, noise))


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"kl": "closed"}, {"n_samples": 0}, {"warmup": -1}, {"free_bits": -0.1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter of ELBO"):
        ELBO(**bad).validate()


def test_beta_tc_vae_with_weight_one_is_the_bound(problem):
    model, params, batch, noise = problem
    torch.testing.assert_close(
        BetaTCVAE(beta=1.0)(model, params, batch, noise), ELBO(kl="monte_carlo").bound(model, params, batch, noise)
    )


def test_total_correlation_is_that_of_a_normal_distribution():
    """Narrow posteriors around points that were drawn with correlation r: it is -log(1 - r ** 2) / 2."""
    r, n = 0.8, 3000
    mean = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean[:, 1] = r * mean[:, 0] + (1 - r**2) ** 0.5 * mean[:, 1]
    q = torch.cat([mean, torch.full_like(mean, math.log(0.1))], 1)
    z = Normal().sample(q, torch.randn(1, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        value = float(total_correlation(Normal(), q, z).mean())
    variance = 1 + 0.1**2
    assert value == pytest.approx(-0.5 * math.log(1 - (r / variance) ** 2), abs=0.05)


@pytest.mark.parametrize("n_rows", [1, 8])
def test_total_correlation_counts_what_depends_within_a_row(n_rows):
    """Rows of the same normal posterior of correlation r: every draw has the value of the exact densities."""
    r = 0.9
    q = torch.tensor([[0.5, -1.0, math.log(2), 0.5 * math.log(1 - r**2), r]], dtype=torch.float64).expand(n_rows, -1)
    z = FullNormal().sample(q, normal((10_000, n_rows, 2), generator(0, "draws"), torch.float64))
    values = total_correlation(FullNormal(), q, z)
    x, y = (z[..., 0] - 0.5) / 2, z[..., 1] + 1  # of variance 1
    torch.testing.assert_close(values, -0.5 * math.log(1 - r**2) - 0.5 * ((x - r * y) ** 2 / (1 - r**2) - x**2))
    assert float(values.mean()) == pytest.approx(-0.5 * math.log(1 - r**2), abs=0.03)


def test_total_correlation_of_shares_is_refused(problem):
    _, _, batch, noise = problem
    network = MLP((8,))
    model = Model(Pieces(network, network, Dirichlet(), DirichletPrior(), Gaussian()), 4, 2, 0)
    with pytest.raises(ValueError, match=r"those of Dirichlet\(\) do.*infinite. Choose another posterior"):
        BetaTCVAE()(model, model.unpack(model.init(torch.float64)), batch, noise)


def test_discrepancy_vanishes_for_equal_distributions_and_has_no_bias():
    z, others, far = (torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in range(3))
    parts = discrepancy(z[None], others)
    assert parts.shape == (1, 400)
    assert abs(float(parts.mean())) < 0.02
    assert float(discrepancy(far[None] + 1, others).mean()) > 0.2
    values = [
        float(discrepancy(torch.randn(1, 20, 2, generator=torch.Generator().manual_seed(s)), others.float()).mean())
        for s in range(400)
    ]
    assert abs(sum(values) / 400) < 4 * torch.tensor(values).std() / 20 + 0.005


def test_a_row_that_occurs_again_counts_as_its_copies():
    draw = torch.Generator().manual_seed(0)
    z, again, others = (torch.randn(3000, n, 2, dtype=torch.float64, generator=draw) for n in (6, 6, 50))
    z[:, 3:], again[:, 3:] = z[:, 3:] + 1, again[:, 3:] + 1  # rows of two kinds, and many draws of each
    repetitions = torch.tensor([3.0, 1, 1, 1, 2, 2], dtype=torch.float64)
    copies = torch.repeat_interleave(torch.arange(6), repetitions.long())
    merged = (discrepancy(z, others[0], repetitions, again) * repetitions).sum(-1) / repetitions.sum()
    fresh = torch.randn(3000, len(copies), 2, dtype=torch.float64, generator=draw) + (copies >= 3)[:, None]
    apart = discrepancy(fresh, others[0]).mean(-1)
    tolerance = 4 * (merged.var() / 3000 + apart.var() / 3000).sqrt()
    assert float(merged.mean()) == pytest.approx(float(apart.mean()), abs=float(tolerance))
    ones = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(discrepancy(z, others[0], ones, again), discrepancy(z, others[0]))


def test_total_correlation_of_repeated_rows_is_that_of_their_copies(problem):
    model, params, batch, noise = problem
    q = model.encode(params, batch)
    z = model.posterior.sample(q, noise)
    repetitions = torch.arange(len(q)) % 3 + 1
    copies = torch.repeat_interleave(torch.arange(len(q)), repetitions)
    merged = total_correlation(model.posterior, q, z, repetitions.to(z.dtype))
    torch.testing.assert_close(merged[:, copies], total_correlation(model.posterior, q[copies], z[:, copies]))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("objective", [InfoVAE(), BetaTCVAE()], ids=repr)
def test_objectives_that_compare_rows_learn_tables_in_which_rows_repeat(objective):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(600, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(600, 6)) > 1).astype(float)
    vae = VAETransformer(2, likelihood="bernoulli", objective=objective, max_iter=150, random_state=0).fit(X)
    z = vae.sample_posterior(X, random_state=0).reshape(-1, 2)
    assert np.all(np.abs(z.std(axis=0) - 1) < 0.3)


def test_free_bits_cost_components_far_above_them_nothing(problem):
    """Draws of a KL scatter, and where each of them is compared with the limit, those below it are raised."""
    model, params, batch, _ = problem
    noise = torch.randn(1, len(batch), model.n_noise, dtype=batch.dtype, generator=torch.Generator().manual_seed(0))
    q = model.encode(params, batch)
    drawn = kl_per_component(model, params, batch, q, model.posterior.sample(q, noise), "monte_carlo")
    limit = 0.9 * float(drawn.mean(0).min())
    assert limit > 0 and bool((drawn < limit).any())
    free, plain = (ELBO(kl="monte_carlo", free_bits=bits)(model, params, batch, noise) for bits in (limit, 0.0))
    torch.testing.assert_close(free, plain)


def test_info_vae_gives_up_the_kl_of_rows(problem):
    model, params, batch, noise = problem
    plain = ELBO().bound(model, params, batch, noise)
    torch.testing.assert_close(InfoVAE(alpha=0.0, weight=1.0)(model, params, batch, noise), plain)
    assert (InfoVAE(alpha=1.0, weight=0.0)(model, params, batch, noise) >= plain - 1e-9).all()


@pytest.mark.parametrize("bad", [{"alpha": 0.5, "weight": 0.25}, {"alpha": -2.0, "weight": 2.5}], ids=repr)
def test_info_vae_refuses_to_reward_the_discrepancy(bad):
    with pytest.raises(ValueError, match=rf"alpha \+ weight must be at least 1.*Set weight to {1 - bad['alpha']:g} or more"):
        InfoVAE(**bad).validate()
    InfoVAE(alpha=-1.86, weight=2.86).validate()  # 1 but for rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_row_that_meets_no_other_has_no_discrepancy(dtype):
    z = torch.full((3, 1, 2), 1.7, dtype=dtype, requires_grad=True)
    parts = discrepancy(z, normal((64, 2), generator(0, "others"), dtype))
    (slope,) = torch.autograd.grad(parts.sum(), z)
    assert not parts.any() and not slope.any()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_info_vae_learns_from_batches_of_one_row():
    X = np.random.default_rng(0).normal(size=(20, 3))
    vae = VAETransformer(1, objective=InfoVAE(), batch_size=1, max_iter=5, learning_rate="cosine", random_state=0)
    assert np.isfinite(vae.fit(X).score(X))


def test_a_single_row_that_repeats_meets_itself_in_other_draws(problem):
    """Where q(z|x) of the row is the prior, the discrepancy vanishes on average."""
    model, params, batch, _ = problem
    row = Batch(batch.x[:1], torch.tensor([3.0], dtype=torch.float64))
    standard = model.layout.views(torch.zeros(model.layout.size, dtype=torch.float64))  # q(z|x) = p(z) = N(0, I)
    params = nested(standard)
    noises = normal((400, 64, 1, 2), generator(0, "noises"), torch.float64)
    log_px = [ELBO().bound(model, params, row, noise) for noise in noises]  # the KL is zero
    mmd = torch.cat(
        [plain - InfoVAE(weight=1.0)(model, params, row, noise) for plain, noise in zip(log_px, noises, strict=True)]
    )
    assert abs(float(mmd.mean())) < 5 * float(mmd.std()) / 20


def test_every_step_compares_latents_with_draws_of_its_own(problem):
    model, params, batch, noise = problem
    seen = []

    class Watched(Model):
        def sample_prior(self, *args):
            seen.append(super().sample_prior(*args))
            return seen[-1]

    model = Watched(model.pieces, model.n_columns, model.n_components, model.seed)
    values = [InfoVAE()(model, params, batch, of_step) for of_step in (noise[:1], noise[1:2], noise[:1])]
    assert torch.equal(values[0], values[2]) and torch.equal(seen[0], seen[2])
    assert not torch.isclose(seen[0], seen[1]).any()


@pytest.mark.parametrize("prior", [MixtureOfNormals(3), VampPrior(3)], ids=repr)
def test_info_vae_moves_the_weights_of_a_prior_as_it_moves_the_share_of_each_mode(prior, problem):
    _, _, batch, _ = problem
    network = MLP((8,), activation="tanh")
    model = Model(Pieces(network, network, Normal(), prior, Gaussian()), 4, 2, 0)
    params = model.unpack(0.7 * normal((model.layout.size,), generator(0, "parameters"), torch.float64))
    logit = params["prior"]["logit"].requires_grad_()
    noises = normal((600, 1, len(batch), 2), generator(0, "noises"), torch.float64)
    of_steps = torch.stack(
        [torch.autograd.grad(-InfoVAE(weight=1.0)(model, params, batch, noise).mean(), logit)[0][:, 0] for noise in noises]
    )
    own, n = model.of_prior(params, None), 2000
    modes = [
        prior.sample({**own, "logit": 1e3 * torch.eye(3, dtype=logit.dtype)[:, [i]]}, (n, 2), generator(i), logit.dtype)
        for i in range(3)
    ]
    z = model.posterior.sample(model.encode(params, batch), noises[:100, 0]).flatten(0, 1)
    weights = logit[:, 0].softmax(0)
    to_rows = torch.stack([_kernel(z, mode[:n]).mean() for mode in modes])
    to_each_other = torch.stack([torch.stack([_kernel(a[: n // 2], b[n // 2 :]).mean() for a in modes]) for b in modes])
    (expected,) = torch.autograd.grad(weights @ to_each_other @ weights - 2 * weights @ to_rows, logit)
    error = of_steps.std(0) / math.sqrt(len(of_steps))
    assert ((of_steps.mean(0) - expected[:, 0]).abs() < 5 * error + 2e-3).all()
    assert (expected[:, 0].abs() > 10 * error).any(), "a slope of zero would prove nothing"


def test_info_vae_moves_the_odds_that_conditions_give_to_modes():
    likelihood = PerColumn((Given(Bernoulli(), 1), Gaussian()), (1, 2), (0.0,) * 3, ())
    network = MLP((4,))
    model = Model(Pieces(network, network, Normal(), MixtureOfNormals(3), likelihood), 3, 2, 0)
    x = normal((30, 3), generator(0, "rows"), torch.float64)
    x[:, 0] = torch.arange(30) % 2
    noise = normal((1, 30, 2), generator(0, "noise"), torch.float64)
    flat = normal((model.layout.size,), generator(0, "parameters"), torch.float64)
    assert slopes(InfoVAE(), model, flat, Batch(x), noise, "conditions").all()


@pytest.mark.parametrize("objective", [InfoVAE(), BetaTCVAE()], ids=repr)
def test_scores_do_not_depend_on_penalties(objective, problem):
    model, params, batch, noise = problem
    torch.testing.assert_close(objective.bound(model, params, batch, noise), ELBO().bound(model, params, batch, noise))


@pytest.mark.parametrize("weights", [[3.0] * 6, [1.0, 3, 1, 3, 1, 2]], ids=["even", "uneven"])
@pytest.mark.parametrize("n_parts", [1, 2])
def test_steps_and_judgements_know_how_often_rows_occur(weights, n_parts, monkeypatch):
    seen = []

    class Watching(InfoVAE):
        def __call__(self, model, params, batch, noise, annealing=1.0):
            seen.append(batch.weight.tolist())
            return super().__call__(model, params, batch, noise, annealing)

    start = SolverState.__post_init__
    monkeypatch.setattr(SolverState, "__post_init__", lambda state: (start(state), setattr(state, "n_parts", n_parts)))
    X = np.random.default_rng(0).normal(size=(6, 3))
    vae = VAETransformer(1, objective=Watching(), max_iter=1, early_stopping=False, learning_rate="cosine", random_state=0)
    vae.fit(X, sample_weight=weights)
    judged, trained = [w for w in seen if len(w) == 6], [w for w in seen if len(w) < 6] or seen
    assert all(sorted(w) == pytest.approx(sorted(weights), rel=1e-5) for w in judged)
    assert sorted(sum(trained[:n_parts], [])) == pytest.approx(sorted(weights), rel=1e-5)
