"""Posterior families against torch's distributions and against Monte Carlo."""

import torch
from torch import distributions

from skvae.posteriors import Normal
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


def test_there_is_no_closed_form_for_a_foreign_prior():
    class Other(Prior):
        """A prior that nobody knows."""

    assert Normal().kl(random_q(), Other()) is None


def test_standard_normal_is_that_of_torch():
    z = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(StandardNormal().log_prob({}, z), distributions.Normal(0.0, 1.0).log_prob(z))
