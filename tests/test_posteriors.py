"""Posterior families against torch's distributions and against Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from conftest import PAIRS, table_for
from torch import distributions

from skvae import VAETransformer, posteriors, priors
from skvae._random import generator, normal
from skvae.likelihoods import Gaussian
from skvae.posteriors import Dirichlet, FullNormal, Normal, check_pair, covers
from skvae.priors import Prior, StandardNormal


def random_q(n=6, k=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2 * k, generator=g, dtype=torch.float64)


def as_torch(q):
    mean, log_scale = q.chunk(2, -1)
    return distributions.Normal(mean, log_scale.exp())


def test_normal_density_and_moments_are_those_of_torch():
    q = random_q()
    z = torch.randn(5, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Normal().log_prob(q, z), as_torch(q).log_prob(z))
    torch.testing.assert_close(Normal().mean(q), as_torch(q).mean)
    torch.testing.assert_close(Normal().scale(q), as_torch(q).stddev)


def test_kl_is_that_of_torch_also_for_extreme_moments():
    q = torch.cat([random_q(), torch.tensor([[300.0, 0.0, -1.0, -9.0, 4.0, 0.0]], dtype=torch.float64)])
    oracle = distributions.kl_divergence(as_torch(q), distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(Normal().kl(q, StandardNormal()), oracle)


def test_kl_matches_monte_carlo():
    q = random_q()
    noise = torch.randn(200_000, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = Normal().sample(q, noise)
    draws = Normal().log_prob(q, z) - StandardNormal().log_prob({}, z)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - Normal().kl(q, StandardNormal())).abs() < 4.5 * error).all()


def test_sampler_is_the_reparameterisation_of_the_paper():
    q, noise = random_q(), torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(Normal().sample(q, noise), as_torch(q).mean + as_torch(q).stddev * noise)


def test_gradient_of_a_second_moment_matches_its_closed_form():
    """d E[z**2] / d(mean, log scale) = (2 mean, 2 scale**2)."""
    q = random_q(n=2).requires_grad_()
    noise = torch.randn(400_000, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    Normal().sample(q, noise).square().mean(0).sum().backward()
    mean, log_scale = q.detach().chunk(2, -1)
    torch.testing.assert_close(q.grad, torch.cat([2 * mean, 2 * (2 * log_scale).exp()], -1), rtol=0.03, atol=0.03)


def test_gradients_are_right():
    q, noise = random_q().requires_grad_(), torch.randn(2, 6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q: Normal().sample(q, noise), q)
    assert torch.autograd.gradcheck(lambda q: Normal().kl(q, StandardNormal()), q)


def test_scales_stay_finite_whatever_the_encoder_gives():
    q = torch.tensor([[0.0, 1e6], [0.0, -1e6]])
    assert torch.isfinite(Normal().scale(q)).all()
    assert torch.isfinite(Normal().kl(q, StandardNormal())).all()


@pytest.mark.parametrize("posterior", [Normal(), FullNormal(), posteriors.Laplace()], ids=repr)
@pytest.mark.parametrize("far", [-30.0, 30.0])
def test_slopes_lead_back_what_is_beyond_its_limits(posterior, far):
    q = torch.zeros(1, posterior.n_outputs(1), dtype=torch.float64)
    q[:, 1] = far
    q.requires_grad_()
    posterior.scale(q).log().sum().backward()
    assert q.grad[0, 1] == pytest.approx(1.0)
    assert torch.equal(posterior.scale(q.detach()), posterior.scale(q)), "the limits themselves do not move"


def test_there_is_no_closed_form_for_a_foreign_prior():
    class Other(Prior):
        """A prior that nobody knows."""

    assert Normal().kl(random_q(), Other()) is None


def test_standard_normal_is_that_of_torch():
    z = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(StandardNormal().log_prob({}, z), distributions.Normal(0.0, 1.0).log_prob(z))


# --- all families ----------------------------------------------------------------------------------------------------

F64 = torch.float64
CLOSED = [pair for pair in PAIRS if pair[0].kl(torch.zeros(1, pair[0].n_outputs(3), dtype=F64), pair[1]) is not None]


def outputs_of(family, n=3, k=3, seed=0):
    return 0.5 * normal((n, family.n_outputs(k)), generator(seed, repr(family)), F64)


def draws_of(family, q, n_draws, k=3):
    return family.sample(q, normal((n_draws, len(q), family.n_noise(k)), generator(1, repr(family)), F64))


@pytest.mark.parametrize("family", [pair[0] for pair in PAIRS], ids=repr)
def test_draws_have_the_moments_that_are_promised(family):
    q = outputs_of(family)
    z = draws_of(family, q, 200_000)
    assert z.shape == (200_000, 3, 3)
    if isinstance(family, posteriors.Cauchy | posteriors.Pareto):
        assert ((z.median(0).values - family.mean(q)).abs() < 0.02).all() or isinstance(family, posteriors.Pareto)
        return
    scale = family.scale(q)
    assert ((z.mean(0) - family.mean(q)).abs() < 0.02 * scale).all()
    torch.testing.assert_close(z.std(0), scale, rtol=0.25 if isinstance(family, posteriors.LogNormal) else 0.1, atol=0)


@pytest.mark.parametrize("family, prior", CLOSED, ids=repr)
def test_closed_kl_matches_monte_carlo(family, prior):
    q = outputs_of(family)
    z = draws_of(family, q, 100_000)
    draws = (family.log_prob(q, z) - prior.log_prob({}, z)).sum(-1)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - family.kl(q, prior).sum(-1)).abs() < 4.5 * error + 1e-9).all()


class ShiftedNormal(StandardNormal):
    """N(3, 0.5**2), said by the two methods that must be given."""

    def log_prob(self, params, z):
        return distributions.Normal(3.0, 0.5).log_prob(z)

    def sample(self, params, shape, stream, dtype):
        return 3 + 0.5 * normal(shape, stream, dtype)


class ShiftedLaplace(priors.Laplace):
    """A density of its own under the name of a family."""

    def log_prob(self, params, z):
        return distributions.Laplace(3.0, 0.5).log_prob(z)


class FlatDirichlet(priors.Dirichlet):
    """Uniform on the simplex, whatever the parameter."""

    def log_prob(self, params, z):
        return super().log_prob(params, z) * 0


class NoisyNormal(Normal):
    """Normal by name, with Laplace noise."""

    def sample(self, q, noise):
        mean, scale = q.chunk(2, -1)
        return posteriors.Laplace().sample(torch.cat([mean, scale], -1), noise)

    def log_prob(self, q, z):
        return posteriors.Laplace().log_prob(q, z)


class NoisyGamma(posteriors.Gamma):
    """A gamma by name, with other draws."""

    def sample(self, q, noise):
        return super().sample(q, noise) * 2

    def log_prob(self, q, z):
        return super().log_prob(q, z / 2) - math.log(2)


class KnowingNormal(NoisyNormal):
    """Its own closed form belongs to its own density."""

    def kl(self, q, prior):
        return posteriors.Laplace().kl(q, prior)


class WideGamma(posteriors.Gamma):
    """Its parameters differ, and the formula reads them."""

    def member(self, q):
        concentration, rate = super().member(q)
        return concentration, rate / 2


@pytest.mark.parametrize(
    "family, prior",
    [
        (Normal(), ShiftedNormal()), (FullNormal(), ShiftedNormal()), (posteriors.Laplace(), ShiftedNormal()),
        (posteriors.Laplace(), ShiftedLaplace()), (Dirichlet(), FlatDirichlet()), (NoisyNormal(), StandardNormal()),
        (NoisyGamma(), priors.Gamma()), (NoisyGamma(), StandardNormal()),
    ],
    ids=repr,
)  # fmt: skip
def test_a_subclass_with_a_density_of_its_own_has_not_the_closed_kl_of_its_parent(family, prior):
    assert family.kl(outputs_of(family), prior) is None


@pytest.mark.parametrize("family, prior", [(KnowingNormal(), StandardNormal()), (WideGamma(), priors.Gamma(2.0))], ids=repr)
def test_a_subclass_keeps_a_closed_kl_that_belongs_to_it(family, prior):
    q = outputs_of(family)
    z = draws_of(family, q, 100_000)
    draws = (family.log_prob(q, z) - prior.log_prob({}, z)).sum(-1)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - family.kl(q, prior).sum(-1)).abs() < 4.5 * error + 1e-9).all()


def test_a_prior_of_ones_own_trains_as_the_same_prior_from_scratch():
    class Scratch(Prior):
        """The same as `ShiftedNormal`, of no family."""

        log_prob, sample = ShiftedNormal.log_prob, ShiftedNormal.sample

    X = table_for(Gaussian())
    one, other = (
        VAETransformer(2, prior=prior, learning_rate="cosine", max_iter=20, random_state=0).fit(X)
        for prior in (ShiftedNormal(), Scratch())
    )
    np.testing.assert_array_equal(one.transform(X), other.transform(X))
    assert one.score(X) == other.score(X)


def test_most_pairs_of_the_same_name_have_a_closed_kl():
    names = {type(posterior).__name__ for posterior, _ in CLOSED}
    assert names == {
        "Normal", "FullNormal", "Laplace", "Uniform", "Triangular", "Cauchy", "Gumbel", "Exponential", "Rayleigh", "Weibull",
        "Pareto", "LogNormal", "Gamma", "ChiSquared", "Beta", "Dirichlet",
    }  # fmt: skip


@pytest.mark.parametrize("family", [pair[0] for pair in PAIRS], ids=repr)
def test_everything_is_finite_whatever_the_encoder_gives(family):
    for value in (-1e6, -30.0, 0.0, 30.0, 1e6):
        q = torch.full((2, family.n_outputs(3)), value)
        if value != 0 and isinstance(family, posteriors.FullNormal):
            continue  # its elements below the diagonal are real numbers, as its means are
        z = draws_of(family, q.double(), 10).float()
        assert not z.isnan().any()
        assert not family.log_prob(q, z).isnan().any()


def test_log_normal_stays_within_float32_whatever_the_encoder_gives():
    """Draws and their squares, densities under posterior and prior, moments, the KL to a normal prior, and all slopes."""
    family = posteriors.LogNormal()
    far = torch.tensor([-1e6, -20.0, 0.0, 20.0, 1e6])
    q = torch.cartesian_prod(far, far).requires_grad_()
    noise = torch.linspace(-8.0, 8.0, 17)[:, None, None]
    z = family.sample(q, noise)
    values = [
        z, 1 / z, z.square(), family.log_prob(q, z), priors.LogNormal().log_prob({}, z), family.mean(q), family.scale(q),
        family.kl(q, StandardNormal()), family.kl(q, priors.LogNormal()),
    ]  # fmt: skip
    for value in values:
        (slope,) = torch.autograd.grad(value.sum(), q, retain_graph=True)
        assert value.isfinite().all() and slope.isfinite().all()


def test_full_normal_is_that_of_torch():
    family, q = FullNormal(), outputs_of(FullNormal())
    mean, _, factor = family._split(q)
    oracle = distributions.MultivariateNormal(mean, scale_tril=factor)
    z = draws_of(family, q, 5)
    torch.testing.assert_close(family.log_prob(q, z).sum(-1), oracle.log_prob(z))
    torch.testing.assert_close(family.scale(q), oracle.stddev)
    standard = distributions.MultivariateNormal(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64))
    torch.testing.assert_close(family.kl(q, StandardNormal()).sum(-1), distributions.kl_divergence(oracle, standard))


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (5, 1), (6,)], ids=repr)
def test_full_normal_density_broadcasts_over_draws_and_rows(shape):
    family, q = FullNormal(), outputs_of(FullNormal(), n=6)
    z = normal((*shape, 3), generator(2), F64)
    mean, _, factor = family._split(q)
    torch.testing.assert_close(
        family.log_prob(q, z).sum(-1), distributions.MultivariateNormal(mean, scale_tril=factor).log_prob(z)
    )


def test_full_normal_solves_for_all_draws_of_a_row_with_one_factor(monkeypatch):
    """Copies of the factors for every pair of a draw and a row would be k times as large as the density."""
    solve, n_factors = torch.linalg.solve_triangular, []

    def watched(factor, columns, **options):
        n_factors.append(math.prod(torch.broadcast_shapes(factor.shape[:-2], columns.shape[:-2])))
        return solve(factor, columns, **options)

    monkeypatch.setattr(torch.linalg, "solve_triangular", watched)
    q = outputs_of(FullNormal(), n=6)
    FullNormal().log_prob(q, normal((2, 50, 1, 3), generator(2), F64))
    assert n_factors == [6]


@pytest.mark.parametrize("family", [FullNormal(), Normal(), posteriors.Gamma()], ids=repr)
def test_joint_and_marginal_densities_integrate_each_other(family):
    """Integrated over the other component, the density is the marginal."""
    q = outputs_of(family, n=1, k=2)
    grid = torch.linspace(-8.0, 8.0, 4001, dtype=F64) if family.support.low < 0 else torch.linspace(1e-6, 25.0, 8001, dtype=F64)
    for j, at in enumerate(family.mean(q)[0]):
        z = torch.stack([grid, grid], -1)
        z[:, j] = at
        joint, marginals = family.joint_and_marginals(q, z[:, None])
        assert float(torch.trapezoid(joint[:, 0].exp(), grid)) == pytest.approx(float(marginals[0, 0, j].exp()), rel=2e-3)


def test_full_normal_without_correlations_is_the_normal():
    q = random_q()
    full = torch.cat([q, q.new_zeros(len(q), 3)], -1)
    z = torch.randn(5, 6, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(FullNormal().log_prob(full, z), Normal().log_prob(q, z))
    torch.testing.assert_close(FullNormal().kl(full, StandardNormal()), Normal().kl(q, StandardNormal()))


def test_dirichlet_is_that_of_torch():
    family, q = Dirichlet(), outputs_of(Dirichlet())
    oracle = distributions.Dirichlet(q.exp())
    z = draws_of(family, q, 5)
    torch.testing.assert_close(z.sum(-1), torch.ones(5, 3, dtype=F64))
    torch.testing.assert_close(family.log_prob(q, z).sum(-1), oracle.log_prob(z))
    joint, marginals = family.joint_and_marginals(q, z)
    torch.testing.assert_close(joint, oracle.log_prob(z))
    shares = distributions.Beta(q.exp(), q.exp().sum(-1, keepdim=True) - q.exp())
    torch.testing.assert_close(marginals, shares.log_prob(z))
    torch.testing.assert_close(family.mean(q), oracle.mean)
    torch.testing.assert_close(family.scale(q), oracle.stddev)
    kl = distributions.kl_divergence(oracle, distributions.Dirichlet(torch.full((3,), 1.5, dtype=F64)))
    torch.testing.assert_close(family.kl(q, priors.Dirichlet(1.5)).sum(-1), kl)


def test_dirichlet_draws_follow_the_distribution():
    family, q = Dirichlet(), torch.tensor([[0.3, -0.4, 1.0]], dtype=F64)
    z = draws_of(family, q, 50_000)[:, 0]
    more = distributions.Dirichlet(q.exp()[0]).sample((200_000,))
    torch.testing.assert_close(z.mT @ z / len(z), more.mT @ more / len(more), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    "family", [FullNormal(), Dirichlet(), posteriors.Gamma(), posteriors.Beta(), posteriors.StudentT()], ids=repr
)
def test_gradients_of_draws_are_right(family):
    q, noise = outputs_of(family).requires_grad_(), normal((2, 3, family.n_noise(3)), generator(5), F64)
    assert torch.autograd.gradcheck(lambda q: family.sample(q, noise), q, rtol=1e-3)
    z = family.sample(q, noise).detach()
    assert torch.autograd.gradcheck(lambda q: family.log_prob(q, z), q)


@pytest.mark.parametrize(
    "posterior, prior",
    [
        (posteriors.Normal(), priors.Gamma()), (posteriors.Gamma(), priors.Beta()), (posteriors.Gamma(), priors.Pareto()),
        (posteriors.Uniform(), priors.Uniform()), (posteriors.Beta(), priors.Dirichlet()),
        (posteriors.Dirichlet(), priors.Beta()), (posteriors.Dirichlet(), priors.StandardNormal()),
        (posteriors.Beta(), priors.Uniform(1.0, 0.5)),
    ],
    ids=repr,
)  # fmt: skip
def test_impossible_pairs_are_refused_with_the_reason(posterior, prior):
    with pytest.raises(ValueError, match="their KL is infinite"):
        check_pair(posterior, prior, 3)


@pytest.mark.parametrize("posterior", [posteriors.Uniform(), posteriors.Triangular()], ids=repr)
@pytest.mark.parametrize("prior", [priors.Uniform(), priors.Triangular(), priors.VampPrior()], ids=repr)
def test_intervals_that_move_are_refused_under_priors_within_bounds_with_a_way_out(posterior, prior):
    with pytest.raises(ValueError, match="an interval of its own for every row.*such as prior='normal'"):
        check_pair(posterior, prior, 3)


def tail_integral(posterior, q, prior, end):
    """Return minus the integral of q log p over z from the median to one far end, by quantiles that crowd there."""
    log_tail = torch.linspace(math.log(0.5), end, 400_001, dtype=F64)
    noise = torch.special.ndtri(log_tail.exp())[:, None]  # of the lower tail; the upper one is its mirror
    both = []
    for z in (posterior.sample(q, noise), posterior.sample(q, -noise)):
        both.append(-torch.trapezoid(prior.log_prob({}, z)[:, 0] * log_tail.exp(), log_tail))
    return max(float(side.abs()) for side in both)


NO_MOMENTS = [
    (posteriors.Cauchy(), priors.StandardNormal(), 0.0), (posteriors.Cauchy(), priors.MixtureOfNormals(3), 0.0),
    (posteriors.Cauchy(), priors.Laplace(), 0.0), (posteriors.Cauchy(), priors.Logistic(), 0.0),
    (posteriors.Cauchy(), priors.Gumbel(), 0.0), (posteriors.Laplace(), priors.Gumbel(), 0.5),
    (posteriors.Logistic(), priors.Gumbel(), 0.5), (posteriors.Pareto(), priors.StandardNormal(), -0.5),
    (posteriors.Pareto(), priors.Rayleigh(), -0.5), (posteriors.Pareto(), priors.Weibull(1.0, 1.5), -1.0),
]  # fmt: skip


@pytest.mark.parametrize(
    "posterior, prior",
    [
        *(pair[:2] for pair in NO_MOMENTS), (posteriors.StudentT(2.0), priors.StandardNormal()),
        (posteriors.StudentT(1.0), priors.Laplace()), (posteriors.StudentT(30.0), priors.Gumbel()),
    ],
    ids=repr,
)  # fmt: skip
def test_tails_too_heavy_for_the_prior_are_refused(posterior, prior):
    with pytest.raises(ValueError, match="has no mean of that.*their KL is infinite"):
        check_pair(posterior, prior, 3)


@pytest.mark.parametrize("posterior, prior, output", [case for case in NO_MOMENTS if not case[1].shapes(1, 1)], ids=repr)
def test_what_is_refused_for_its_tails_has_an_infinite_kl(posterior, prior, output):
    """The integral over quantiles down to 1e-30 and to 1e-60 of the tails goes on growing."""
    q = torch.full((1, posterior.n_outputs(1)), output, dtype=F64)
    q[:, 0] = output if posterior.n_outputs(1) == 1 else 0.0
    near, far = (tail_integral(posterior, q, prior, end) for end in (-69, -138))
    assert far == math.inf or far > 1.5 * near


@pytest.mark.parametrize(
    "posterior, prior",
    [
        (posteriors.StudentT(2.1), priors.StandardNormal()), (posteriors.StudentT(1.1), priors.Laplace()),
        (posteriors.StudentT(0.5), priors.Cauchy()), (posteriors.Cauchy(), priors.StudentT(30.0)),
        (posteriors.Pareto(), priors.Exponential()), (posteriors.Pareto(), priors.Weibull(1.0, 1.2)),
        (posteriors.Pareto(), priors.LogNormal()), (posteriors.Gumbel(), priors.Gumbel()),
        (posteriors.Gamma(), priors.Gumbel()), (posteriors.Normal(), priors.Gumbel()),
        (posteriors.LogNormal(), priors.Rayleigh()), (posteriors.Weibull(), priors.Weibull(1.0, 5.0)),
        (posteriors.Cauchy(), priors.VampPrior()), (posteriors.Cauchy(), ShiftedNormal()),
        (posteriors.Pareto(), priors.Gumbel()),
    ],
    ids=repr,
)  # fmt: skip
def test_tails_that_the_prior_can_bear_pass(posterior, prior):
    check_pair(posterior, prior, 3)


def test_who_covers_whom():
    assert covers(Normal(), StandardNormal())
    assert covers(Normal(), priors.Gamma())
    assert covers(posteriors.Gamma(), priors.VampPrior())
    assert covers(posteriors.Beta(), priors.Uniform())
    assert not covers(posteriors.Uniform(), priors.Uniform())
    assert not covers(posteriors.Gamma(), StandardNormal())
    assert not covers(posteriors.Beta(), priors.Gamma())


def test_one_share_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        check_pair(posteriors.Dirichlet(), priors.Dirichlet(), 1)


@pytest.mark.parametrize("posterior, prior", PAIRS, ids=repr)
def test_possible_pairs_pass(posterior, prior):
    check_pair(posterior, prior, 3)


def test_density_of_draws_is_known_where_the_factor_is_nearly_singular():
    q = torch.tensor([[0.0, 0.0, 0.0, -8.0, -8.0, -8.0, 30.0, -40.0, 25.0]])  # far more below the diagonal than on it
    noise = normal((50, 1, 3), generator(0), torch.float32)
    exact = FullNormal().log_prob_of_draws(q, noise, FullNormal().sample(q, noise))
    torch.testing.assert_close(exact, -0.5 * noise.square() + 8.0 - 0.5 * math.log(2 * math.pi))
    q[0, 6:] = 0.0
    torch.testing.assert_close(
        FullNormal().log_prob_of_draws(q, noise, FullNormal().sample(q, noise)),
        FullNormal().log_prob(q, FullNormal().sample(q, noise)), rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_density_of_draws_is_that_of_a_family_of_ones_own():
    class Wider(FullNormal):
        def log_prob(self, q, z):
            return super().log_prob(q, z / 2) - math.log(2)

    q, noise = torch.zeros(1, 5), normal((4, 1, 2), generator(0), torch.float32)
    z = Wider().sample(q, noise)
    torch.testing.assert_close(Wider().log_prob_of_draws(q, noise, z), Wider().log_prob(q, z))
