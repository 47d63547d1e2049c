"""Solvers: how one batch changes the parameters. Gradients and updates live here and in the optimizers, nowhere else."""

import math
from functools import partial
from numbers import Integral, Real

import torch
from torch import Tensor

from skvae import _hmc as hmc
from skvae import _kernels as kernels
from skvae._batch import Batch
from skvae._joint import joint_density, log_joint
from skvae._model import Model, Params, nested
from skvae._random import generator, normal, uniform
from skvae._settings import Interval, StrOptions, register
from skvae._solver import Arrangement, GradientSolver, Problem, Solver, SolverState, leaves_of, part_of, within_memory
from skvae.objectives import ELBO, IWAE, Objective
from skvae.posteriors import covers, refuse_discrete

__all__ = ["AEVB", "Arrangement", "GradientSolver", "MonteCarloEM", "Problem", "Solver", "SolverState", "WakeSleep"]

_FIRST_STEP_SIZE = 0.1  # of the chains, in units of the prior
_PART_CELLS = 2**21  # cells of the rows whose chains move in one call


class AEVB(GradientSolver):
    """Auto-encoding variational Bayes: stochastic gradient ascent on the objective through reparameterised samples.

    Parameters
    ----------
    averaging : float, default=0.99
        Decay of the running average of the parameters, per step. The average, not the last iterate, is judged and kept: it
        allows steps as long as they can be, and lets their noise cancel. 0 keeps the last iterate, as the paper does.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, algorithm 1 and equation 8. Polyak & Juditsky, *Acceleration of
    Stochastic Approximation by Averaging*, 1992.
    """

    is_capturable = True

    def __init__(self, *, averaging=0.99):
        self.averaging = averaging

    def structure(self, problem):
        if not kernels.supports(problem.model, problem.objective):
            return None
        return (self.averaging, type(problem.optimizer), *kernels.structure(problem.model, problem.objective))

    def arrange(self, problems):
        if self.structure(problems[0]) is None:
            return super().arrange(problems)
        models = [problem.model for problem in problems]
        wide = kernels.widened(models)
        return Arrangement(wide, kernels.aligned_layout(wide), [kernels.positions(model, wide) for model in models])

    def fresh_slots(self, problem, params):
        if problem.objective.differentiates_draws:
            refuse_discrete(problem.model.posterior, f"AEVB with {problem.objective!r}", "Use solver='wake-sleep'.")
        return super().fresh_slots(problem, params)

    def step(self, state, batch, noise, measured=True):
        m, n, _ = batch.x.shape
        fill = partial(self._gradient_by_autograd, n_rows=n) if state.arrangement.places is None else self._gradient_by_hand
        value = within_memory(state, n, lambda rows: fill(state, *part_of(batch, noise, rows), measured))
        self.update(state, m)
        return value

    def _gradient_by_hand(self, state, batch, noise, measured):
        """Fill the gradient by the closed forms."""
        m, s, n, _ = noise.shape
        key = (m, n, s)
        kernel = state.reuse("kernel", key, lambda: _kernel(state, *key))
        return kernel.gradient(batch.x, noise, batch.weight.unsqueeze(-1), measured)

    def _gradient_by_autograd(self, state, batch, noise, measured, n_rows):
        """Fill the gradient of the only model by reverse-mode differentiation, from all of a batch's `n_rows` or some."""
        (problem,) = state.problems
        leaves, weight = leaves_of(state), batch.weight[0]
        rows = Batch(batch.x[0], None if problem.objective.is_rowwise else problem.repetitions(weight * n_rows))
        state.grad.zero_()
        drawn = problem.model.with_noise(leaves, state.stream)
        value = problem.objective(problem.model, drawn, rows, noise[0], state.annealing[0])
        total = (value * weight).sum()
        kl_of_weights = problem.model.kl_of_weights(leaves) / problem.total_weight
        (weight.sum() * kl_of_weights - total).backward()
        return total.detach()[None]


def _kernel(state: SolverState, m: int, n: int, n_samples: int) -> kernels.Kernel:
    views = state.arrangement.layout.views
    wide = kernels.in_units_of([problem.model for problem in state.problems[:m]], state.arrangement.wide)
    kernel = kernels.Kernel(wide, nested(views(state.params[:m])), n, n_samples)
    kernel.learn(state.problems[0].objective, nested(views(state.grad[:m])), state.kl_weight[:m])
    return kernel


class _Competitor(GradientSolver):
    """Base of the solvers that raise no objective but follow gradients of their own, one model at a time."""

    def check(self, objective: Objective) -> None:
        if objective != ELBO():
            raise ValueError(
                f"solver={self!r} follows gradients of its own, so it needs objective='elbo'. "
                f"Got objective={objective!r}. Use solver='aevb' to raise another objective."
            )

    def fresh_slots(self, problem, params):
        if problem.model.decoder.is_uncertain:
            raise ValueError(f"solver={self!r} does not learn uncertain weights. Use solver='aevb', or MLP for the decoder.")
        if problem.model.prior.follows_encoder:
            raise ValueError(
                f"solver={self!r} trains the encoder apart from the model, of which it would be a part: the prior "
                f"{problem.model.prior!r} is made of its posteriors. Use prior='mixture', or solver='aevb'."
            )
        self._check_reach(problem.model)
        return super().fresh_slots(problem, params)

    def _check_reach(self, model: Model) -> None:
        """Refuse a posterior with log q(z|x) of minus infinity where p(z) > 0: the encoder cannot learn from such latents."""
        if not covers(model.posterior, model.prior):
            raise ValueError(
                f"solver={self!r} fits the encoder to latents of the model, but the posterior {model.posterior!r} cannot reach "
                f"all of those that the prior {model.prior!r} allows: log q(z|x) is minus infinity there. Choose a posterior "
                "that reaches as far as the prior, or use solver='aevb'."
            )


class WakeSleep(_Competitor):
    r"""Wake-sleep, and reweighted wake-sleep with several samples: two phases with two objectives.

    *Wake*: latents :math:`z_k \sim q(z \mid x)` of the rows are drawn and held fixed, and the decoder, the prior and the noise
    raise :math:`\sum_k w_k \log p(x, z_k)`, with weights :math:`w_k \propto p(x, z_k) / q(z_k \mid x)` that add up to one.
    *Sleep*: the model dreams, :math:`z' \sim p(z)` and :math:`x' \sim p(x \mid z')`, and the encoder raises
    :math:`\log q(z' \mid x')`. No gradient passes through a sample, so none has to be differentiable; but there is no one
    function that both phases raise, and the bound, by which training is judged, may fall. A dream has the holes of a row of the
    batch, drawn by the weights, or, where the likelihood itself says what is missing, its own.

    Parameters
    ----------
    n_samples : int, default=1
        The number K of latents per row. One is wake-sleep; with more, the wake phase climbs the importance-weighted bound.

    encoder_phase : {"sleep", "wake", "both"}, default="sleep"
        What the encoder learns from: dreams; the rows, by :math:`\sum_k w_k \log q(z_k \mid x)`, which takes at least two
        samples, as the weight of a single one tells nothing; or the mean of both.

    averaging : float, default=0.0
        Decay of the running average of the parameters, per step. 0 keeps the last iterate, as the paper does.

    See Also
    --------
    AEVB : Raises the bound, through samples that are differentiable.

    References
    ----------
    Hinton, Dayan, Frey & Neal, *The Wake-Sleep Algorithm for Unsupervised Neural Networks*, 1995. Bornschein & Bengio,
    *Reweighted Wake-Sleep*, 2015. Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, section 5.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.solvers import WakeSleep
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, solver=WakeSleep(n_samples=5), learning_rate="cosine", max_iter=20, random_state=0)
    >>> vae.fit_transform(X).shape
    (150, 2)
    """

    is_capturable = True
    _parameter_constraints = {
        **GradientSolver._parameter_constraints,
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "encoder_phase": [StrOptions({"sleep", "wake", "both"})],
    }

    def __init__(self, n_samples=1, *, encoder_phase="sleep", averaging=0.0):
        self.n_samples = n_samples
        self.encoder_phase = encoder_phase
        self.averaging = averaging

    def validate(self):
        super().validate()
        if self.n_samples == 1 and self.encoder_phase != "sleep":
            raise ValueError(
                f"encoder_phase={self.encoder_phase!r} needs n_samples=2 or more, as the weight of a single sample tells the "
                "encoder nothing. Raise n_samples, or use encoder_phase='sleep'."
            )
        return self

    def n_draws(self, objective):
        return self.n_samples

    def fresh_slots(self, problem, params):
        if problem.model.n_given and self.encoder_phase != "wake":
            raise ValueError(
                f"solver={self!r} dreams whole rows, without conditions. With condition_on use encoder_phase='wake', which has "
                "no dreams, or solver='aevb'."
            )
        return super().fresh_slots(problem, params)

    def _check_reach(self, model):
        if self.encoder_phase != "wake":
            super()._check_reach(model)
        elif not model.posterior.fills_support:
            raise ValueError(
                f"solver={self!r} fits the encoder to draws of its own, which log q(z|x) of the posterior {model.posterior!r} "
                "cannot do: it grows as the interval closes on them. Choose a posterior without edges, or use solver='aevb'."
            )

    def step(self, state, batch, noise, measured=True):
        n = batch.x.shape[1]
        dreams = None if self.encoder_phase == "wake" else self._dreams(state, patterns(batch.x[0], batch.weight[0], noise))
        value = within_memory(state, n, lambda rows: self._gradient(state, *part_of(batch, noise, rows), dreams, rows))
        self.update(state, 1)
        return value

    def _dreams(self, state, rows):
        """Return as many dreams as there are rows, with holes like theirs, which the encoder has to learn to read."""
        model = state.problems[0].model
        params = model.unpack(state.params[0])
        z, x = dream(model, params, len(rows), state.stream)
        with torch.no_grad():
            return z, model.likelihood.with_holes(params["likelihood"], x, rows, state.stream)

    def _gradient(self, state, batch, noise, dreams, rows):
        """Fill the gradient from some rows and as many dreams; return the bound."""
        model, params = state.problems[0].model, leaves_of(state)
        awake = {"sleep": 0.0, "both": 0.5, "wake": 1.0}[self.encoder_phase]
        raised, bound = wake(model, params, Batch(batch.x[0]), noise[0], awake)
        total = (raised * batch.weight[0]).sum()
        if dreams is not None:
            z, x = dreams if rows is None else (dreamt[rows] for dreamt in dreams)
            total = total + (1 - awake) * sleep(model, params, z, x).sum() / len(dreams[0])
        state.grad.zero_()
        (-total).backward()
        return (bound * batch.weight[0]).sum()[None]


def patterns(rows: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
    """Return as many rows, each as often as its weight says, whose holes the dreams are to have.  # (n, d)

    They are taken at equal steps of the weights, from a start that is random, as a row of little weight is not in every step.
    Rows of equal weight come once each, in their order, wherever that is.
    """
    reached = weight.double().cumsum(0)
    start = torch.special.ndtr(noise.flatten()[0].double())
    places = torch.arange(len(rows), device=rows.device, dtype=reached.dtype) + start
    return rows[torch.searchsorted(reached, places * (reached[-1] / len(rows))).clamp(max=len(rows) - 1)]


def dream(model: Model, params: Params, n: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw latents from the prior and a row from each.  # (n, k), (n, d)"""
    with torch.no_grad():
        dtype = next(iter(params["decoder"].values())).dtype
        z = model.sample_prior(params, (n, model.n_components), stream, dtype)
        return z, model.likelihood.sample(params["likelihood"], model.decode(params, z), stream)


def sleep(model: Model, params: Params, z: Tensor, x: Tensor) -> Tensor:
    """Return log q(z|x), in nats per row.  # (n,)"""
    return model.posterior.log_prob(model.encode(params, Batch(x)), z).sum(-1)


def wake(model: Model, params: Params, batch: Batch, noise: Tensor, awake: float) -> tuple[Tensor, Tensor]:
    """Return what the wake phase raises and the importance-weighted bound, in nats per row, for draws that are held fixed.

    `awake` is the weight of log q, by which the encoder learns from the draws.  # (n,), (n,)
    """
    q = model.encode(params, batch)
    with torch.no_grad():
        z = model.posterior.sample(q, noise)  # (s, n, k)
    log_p, log_q = log_joint(model, params, batch, z), model.posterior.log_prob(q, z).sum(-1)
    log_w = (log_p - log_q).detach()
    return (log_w.softmax(0) * (log_p + awake * log_q)).sum(0), log_w.logsumexp(0) - math.log(len(log_w))


class MonteCarloEM(_Competitor):
    r"""Monte Carlo EM: every training row has a chain of latents that follows its true posterior.

    *E*: Hamiltonian Monte Carlo moves each chain once, by a path of `n_leapfrog` steps in the potential
    :math:`-\log p(x, z)`. The length of the steps is common to all chains and tuned until the wanted share is accepted.
    *M*: the decoder, the prior and the noise make `n_updates` updates that raise :math:`\log p(x, z)`, each on `batch_size`
    rows with the states of their chains. In the same updates the encoder, which has no part in any of this, raises
    :math:`\log q(z \mid x)` at those states, so that new rows can be transformed and scored.

    An epoch is one such sweep over all rows, which stay in memory: `partial_fit` and data sources are refused.

    Parameters
    ----------
    n_leapfrog : int, default=10
        Steps of a path. The cost of a sweep grows with it, and so does the distance that a chain moves.

    acceptance : float, default=0.9
        Share of the moves that are to be accepted.

    n_updates : int, default=5
        Updates of the parameters per sweep.

    averaging : float, default=0.0
        Decay of the running average of the parameters, per update. 0 keeps the last iterate, as the paper does; near 1, the
        noise of the chains cancels.

    See Also
    --------
    AEVB : Needs no chains, and takes a batch of rows at a time.

    References
    ----------
    Kingma & Welling, *Auto-Encoding Variational Bayes*, 2013, section 5 and appendix E. Wei & Tanner, *A Monte Carlo
    Implementation of the EM Algorithm*, 1990. Neal, *MCMC using Hamiltonian Dynamics*, 2011.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAETransformer
    >>> from skvae.solvers import MonteCarloEM
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = VAETransformer(2, solver=MonteCarloEM(averaging=0.99), learning_rate="cosine", max_iter=20, random_state=0)
    >>> vae.fit_transform(X).shape
    (150, 2)
    """

    takes_all_rows = True
    lasting = ("chains", "step_size", "n_sweeps")
    _parameter_constraints = {
        **GradientSolver._parameter_constraints,
        "n_leapfrog": [Interval(Integral, 1, None, closed="left")],
        "acceptance": [Interval(Real, 0, 1, closed="neither")],
        "n_updates": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, *, n_leapfrog=10, acceptance=0.9, n_updates=5, averaging=0.0):
        self.n_leapfrog = n_leapfrog
        self.acceptance = acceptance
        self.n_updates = n_updates
        self.averaging = averaging

    def judge(self, objective: Objective) -> Objective:
        """Return the importance-weighted bound, close to log p(x) also where the encoder was not made for the ELBO."""
        return IWAE()

    def n_draws(self, objective):
        return 1

    def fresh_slots(self, problem, params):
        hmc.refuse_simplex(problem.model.support, "Monte Carlo EM", "Use solver='aevb' or 'wake-sleep'.")
        refuse_discrete(problem.model.posterior, "Monte Carlo EM", "Use solver='wake-sleep'.")
        return {
            **super().fresh_slots(problem, params),
            "chains": params.new_zeros((problem.n_rows, problem.model.n_components)),
            "step_size": params.new_full((), _FIRST_STEP_SIZE),
            "n_sweeps": torch.zeros((), dtype=torch.float64, device="cpu"),
        }

    def step(self, state, batch, noise, measured=True):
        (problem,) = state.problems
        rows, chains = Batch(batch.x[0], batch.weight[0]), state.slots["chains"][0]
        sweep = int(state.slots["n_sweeps"][0].add_(1))
        stream = generator(problem.model.seed, "sweep", sweep, device=chains.device)
        if sweep == 1:
            q = problem.model.encode(problem.model.unpack(state.params[0]), rows)
            chains.copy_(problem.model.posterior.sample(q, noise[0])[0])
        self._move_chains(state, rows, stream)
        values = []
        for _ in range(self.n_updates):
            picked, z = _some_of(rows, chains, problem.batch_size, stream)
            values.append(within_memory(state, len(picked), partial(self._gradient, state, picked, z)))
            self.update(state, 1)
        return sum(values) / self.n_updates

    def _move_chains(self, state, rows, stream):
        """Move every chain once, and the length of the steps towards the wanted acceptance."""
        model, n = state.problems[0].model, len(rows)
        params, chains, step_size = model.unpack(state.params[0]), state.slots["chains"][0], state.slots["step_size"][0]
        momentum = normal(tuple(chains.shape), stream, chains.dtype)
        drawn = uniform((n,), stream, chains.dtype)
        probability = torch.empty_like(drawn)
        size = max(1, _PART_CELLS // max(rows.n_columns, 1))
        for part in (slice(start, start + size) for start in range(0, n, size)):
            chains[part], probability[part] = hmc.transition(
                joint_density(model, params, rows.slice(part.start, part.stop)),
                chains[part], step_size, self.n_leapfrog, momentum[part], drawn[part],
            )  # fmt: skip
        factor = min(1.25, 1.02 ** min(100, n))
        accepted = (probability * rows.weight).sum() / rows.weight.sum()
        step_size.mul_(torch.where(accepted > self.acceptance, factor, 1 / factor))

    def _gradient(self, state, batch, z, part):
        """Fill the gradient from some rows and the states of their chains; return log p(x, z)."""
        model, params = state.problems[0].model, leaves_of(state)
        if part is not None:
            batch, z = batch.slice(part.start, part.stop), z[part]
        log_p = log_joint(model, params, batch, z)
        log_q = model.posterior.log_prob(model.encode(params, batch), z).sum(-1)
        state.grad.zero_()
        (-((log_p + log_q) * batch.weight).sum()).backward()
        return (log_p.detach() * batch.weight).sum()[None]


def _some_of(rows: Batch, chains: Tensor, size: int, stream: torch.Generator) -> tuple[Batch, Tensor]:
    """Return some rows and the states of their chains, all of them where `size` is their number; weights keep their sum."""
    if size >= len(rows):
        return rows, chains
    picked = torch.randperm(len(rows), generator=stream, device=chains.device)[:size]
    batch = rows.take(picked)
    assert batch.weight is not None
    return Batch(batch.x, batch.weight * (len(rows) / size)), chains[picked]


register("solver", **{"aevb": AEVB, "wake-sleep": WakeSleep, "mcem": MonteCarloEM})
