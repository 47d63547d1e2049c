"""The run around the loop: defaults that depend on the data, the split, schedules, stopping, going on."""

import warnings

import numpy as np
import pytest
import sklearn
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning

import skvae
from skvae import VAETransformer, _training, callbacks
from skvae._batch import Batch, batch_sizes
from skvae._linear import covariance, shrunk
from skvae._model import Model
from skvae._random import generator, normal
from skvae._training import default_batch_size, default_max_iter, default_n_components
from skvae.data import ArraySource
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP, VariationalMLP
from skvae.objectives import ELBO, IWAE, drawn, kl_of_rows

X_IRIS, X_WINE = load_iris().data, load_wine().data
ignore_convergence = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def small(**params):
    return VAETransformer(**{"n_components": 2, "hidden_layer_sizes": (8,), "random_state": 0, "max_iter": 12, **params})


@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 2), (4, 4), (13, 8), (30, 12), (784, 56)])
def test_default_number_of_components(d, k):
    assert default_n_components(d) == k


def networks_of(vae):
    model = vae._fitted.model
    return model.encoder.widths(), model.decoder.widths()


@ignore_convergence
def test_default_layers_depend_on_the_distinct_rows_of_the_first_fit():
    X = np.random.default_rng(0).normal(size=(2_100, 3))
    few, many = (VAETransformer(2, max_iter=1, random_state=0).fit(rows) for rows in (X[:1_999], X[:2_000]))
    assert networks_of(few) == ((128,), (128,)) and networks_of(many) == ((128, 128), (128, 128))
    copies = VAETransformer(2, max_iter=1, random_state=0).fit(X[:1_050].repeat(2, axis=0))
    weighted = VAETransformer(2, max_iter=1, random_state=0).fit(X[:1_050], sample_weight=np.full(1_050, 2))
    assert networks_of(copies) == networks_of(weighted) == ((128,), (128,))
    unweighted = np.arange(2_100) < 1_000
    assert networks_of(VAETransformer(2, max_iter=1, random_state=0).fit(X, sample_weight=unweighted)) == ((128,), (128,))
    streamed = VAETransformer(2, max_iter=1, random_state=0)
    assert networks_of(streamed.fit(ArraySource(X))) == ((128, 128), (128, 128))
    assert networks_of(streamed.fit(ArraySource(X[:1_050].repeat(2, axis=0)))) == ((128,), (128,))
    half = VAETransformer(2, max_iter=1, random_state=0, decoder=MLP((5,))).fit(X)
    assert networks_of(half) == ((128, 128), (5,))


@ignore_convergence
def test_default_layers_stay_while_training_goes_on(tmp_path):
    X = np.random.default_rng(0).normal(size=(2_100, 3))
    few = VAETransformer(2, random_state=0).partial_fit(X[:100])
    assert networks_of(few.partial_fit(X)) == ((128,), (128,))
    many = VAETransformer(2, max_iter=1, random_state=0, warm_start=True).fit(X)
    many.save(tmp_path / "model.skvae")
    again = skvae.load(tmp_path / "model.skvae")
    assert networks_of(again.set_params(max_iter=2).fit(X[:100])) == ((128, 128), (128, 128))
    with pytest.raises(ValueError, match="its encoder and decoder differ"):
        again.set_params(hidden_layer_sizes=(128,)).fit(X)
    others = VAETransformer(2, max_iter=1, random_state=0, warm_start=True, encoder=lambda n, m: torch.nn.Linear(n, m)).fit(X)
    with pytest.raises(ValueError, match="its encoder differ"):
        others.set_params(encoder=None).fit(X)


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (20, 20), (47, 47), (48, 32), (150, 32), (2000, 64), (10**6, 512)])
def test_default_batch_size(n, batch):
    assert default_batch_size(n) == batch


@pytest.mark.parametrize("n", [1, 50, 500, 10**4, 10**6, 10**8])
def test_default_budget_is_bounded_in_epochs_and_steps(n):
    epochs, batches = default_max_iter(n, default_batch_size(n)), np.ceil(n / default_batch_size(n))
    assert epochs >= 1 and (epochs <= 1000 or epochs * batches < 5_000 + batches)
    assert epochs * batches >= 5_000
    assert epochs == 1 or epochs * batches <= 20_000 + batches


@pytest.mark.parametrize(
    "X", [X_WINE[:10], X_WINE[:47], np.arange(4_000)[:, None] // [1, 2, 4] % 2 == 0], ids=["10", "47", "flags"]
)
def test_default_budget_lets_few_rows_converge(X):
    assert VAETransformer(random_state=0).fit(X).converged_


@pytest.mark.parametrize("window", [1, 2, 100])
@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 10), (7, 100), (161, 32)])
def test_an_epoch_has_every_row_once_in_batches_of_nearly_equal_size(n, size, window):
    data = Batch(torch.arange(n, dtype=torch.float32)[:, None])
    windows = list(data.epoch(size, generator(0, "order"), window))
    assert sorted(torch.cat([rows.x for rows, _ in windows])[:, 0].tolist()) == list(range(n))
    assert [len(rows) for rows, _ in windows] == [sum(sizes) for _, sizes in windows]
    sizes = [size for _, sizes in windows for size in sizes]
    assert sizes == batch_sizes(n, size)
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= size


def test_shrinkage_is_that_of_ledoit_and_wolf():
    x = torch.tensor(X_WINE - X_WINE.mean(0)) / torch.tensor(X_WINE.std(0))
    data = Batch(x[:40])
    mean, S = covariance(data)
    expected = ledoit_wolf(x[:40].numpy())[0]
    np.testing.assert_allclose(shrunk(S, mean, data).numpy(), expected, rtol=1e-10)


@ignore_convergence
def test_history_shows_the_bound_in_the_units_of_the_data():
    vae = small(max_iter=30, early_stopping=False).fit(X_WINE)
    assert set(vae.history_) == {"epoch", "objective", "lower_bound", "learning_rate"}
    assert vae.history_["epoch"][0] == 0
    assert vae.history_["epoch"][-1] == vae.n_iter_ == 30
    assert vae.history_["lower_bound"].max() == pytest.approx(vae.lower_bound_, abs=0.2)


@ignore_convergence
def test_the_best_parameters_are_kept_not_the_last():
    vae = small(max_iter=60, learning_rate="constant", learning_rate_init=0.3, early_stopping=False).fit(X_IRIS)
    history = vae.history_["lower_bound"]
    assert history.argmax() < len(history) - 1, "the example must have its best measurement before the last"
    assert vae.lower_bound_ == pytest.approx(history.max(), abs=0.1)


def test_training_that_converges_says_so_and_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        vae = small(max_iter=None).fit(X_WINE)
    assert vae.converged_
    assert vae.n_iter_ < 1000


def test_a_budget_that_ends_too_early_is_told():
    with pytest.warns(ConvergenceWarning, match="still rising after 3 epochs"):
        vae = small(max_iter=3).fit(X_IRIS)
    assert not vae.converged_


def test_cosine_ends_with_its_budget_without_a_complaint():
    vae = small(max_iter=20, learning_rate="cosine").fit(X_IRIS)
    assert vae.n_iter_ == 20
    rates = vae.history_["learning_rate"]
    assert rates[-1] < 0.1 * rates[0]


def test_adaptive_steps_get_shorter():
    vae = small(max_iter=None).fit(X_IRIS)
    rates = vae.history_["learning_rate"]
    assert (np.diff(rates) <= 0).all()
    assert rates[-1] == pytest.approx(rates[0] / 64)


@ignore_convergence
def test_the_default_budget_leaves_time_for_short_steps(monkeypatch):
    monkeypatch.setattr(_training, "default_max_iter", lambda *args: 400)
    rates = small(max_iter=None, n_iter_no_change=10**6).fit(X_IRIS).history_["learning_rate"]
    assert rates[-1] == pytest.approx(rates[0] / 64)
    assert len(set(small(max_iter=400, n_iter_no_change=10**6).fit(X_IRIS).history_["learning_rate"])) == 1


@ignore_convergence
def test_max_time_ends_training():
    vae = small(max_iter=1_000_000, max_time=0.2, learning_rate="constant", tol=0.0, n_iter_no_change=10**6).fit(X_IRIS)
    assert 1 <= vae.n_iter_ < 1_000_000


@ignore_convergence
def test_warm_start_goes_on_where_fit_ended():
    vae = small(warm_start=True, max_iter=10, learning_rate="constant").fit(X_IRIS)
    params, seed = vae._fitted.params, vae._fitted.model.seed
    first = vae.lower_bound_
    vae.set_params(max_iter=20).fit(X_IRIS)
    assert vae.n_iter_ == 20
    assert vae._fitted.model.seed == seed
    assert vae.lower_bound_ >= first - 0.01
    assert not np.array_equal(vae._fitted.params, params)


@ignore_convergence
def test_two_warm_starts_are_one_long_fit():
    params = {"warm_start": True, "early_stopping": True, "learning_rate": "constant"}
    twice = small(max_iter=24, **params).fit(X_IRIS).set_params(max_iter=48).fit(X_IRIS)
    once = small(max_iter=48, **params).fit(X_IRIS)
    np.testing.assert_array_equal(twice.transform(X_IRIS), once.transform(X_IRIS))
    assert twice.history_["lower_bound"].tolist() == once.history_["lower_bound"].tolist()


@ignore_convergence
def test_warm_start_has_nothing_left_to_do_when_the_budget_is_spent():
    vae = small(warm_start=True).fit(X_IRIS)
    before = vae.transform(X_IRIS)
    np.testing.assert_array_equal(vae.fit(X_IRIS).transform(X_IRIS), before)


@ignore_convergence
def test_warm_start_on_other_rows_has_the_whole_budget():
    vae = small(warm_start=True, max_iter=10, learning_rate="constant").fit(X_IRIS[:100])
    assert vae.fit(X_IRIS).n_iter_ == 20


@ignore_convergence
def test_a_schedule_starts_again_on_other_rows():
    vae = small(warm_start=True, max_iter=20, learning_rate="cosine").fit(X_IRIS[:100])
    vae.fit(X_IRIS)
    is_second = vae.history_["epoch"] > 20
    epochs = vae.history_["epoch"][is_second] - 21  # before each, of this fit
    cosine = 0.001 + 0.999 * (1 + np.cos(np.pi * epochs / 20)) / 2
    np.testing.assert_allclose(vae.history_["learning_rate"][is_second], 0.01 * cosine)
    assert vae.n_iter_ == 40 and cosine[0] > 0.9


@ignore_convergence
@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupted_training_on_other_rows_is_finished_as_if_it_had_not_been(tmp_path, saved):
    def begun():
        return small(warm_start=True, max_iter=20, learning_rate="cosine", n_iter_no_change=100).fit(X_IRIS[:100])

    at_once, in_parts = begun().fit(X_IRIS), begun()
    interrupt_at(in_parts, 33)
    assert 20 < in_parts.n_iter_ < 40
    if saved:
        in_parts.save(tmp_path / "model.skvae")
        in_parts = skvae.load(tmp_path / "model.skvae")
    in_parts.fit(X_IRIS)
    assert in_parts.n_iter_ == 40
    np.testing.assert_array_equal(in_parts._fitted.params, at_once._fitted.params)
    for name, values in at_once.history_.items():
        np.testing.assert_array_equal(in_parts.history_[name], values)


@ignore_convergence
def test_a_training_that_was_stored_without_its_first_epoch_goes_on(tmp_path):
    vae = small(warm_start=True, learning_rate="cosine").fit(X_IRIS)
    del vae._fitted.training.progress["first"]  # as in files of before
    vae.save(tmp_path / "model.skvae")
    again = skvae.load(tmp_path / "model.skvae").set_params(max_iter=20).fit(X_IRIS)
    assert again.n_iter_ == 20 and again._fitted.training.progress["first"] == 0


def interrupt_at(vae, epoch):
    """Fit all rows, and press Ctrl-C at the end of an epoch."""

    def press(progress, state):
        if progress.epoch == epoch:
            raise KeyboardInterrupt
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "tell_tasks", lambda *args: press)
        vae.fit(X_IRIS)


@ignore_convergence
def test_warm_start_refuses_another_architecture():
    vae = small(warm_start=True).fit(X_IRIS)
    for change in ({"n_components": 3}, {"hidden_layer_sizes": (9,)}, {"likelihood": Gaussian("shared")}, {"dtype": "float64"}):
        before = vae.get_params()
        with pytest.raises(ValueError, match="Set it back"):
            vae.set_params(**change).fit(X_IRIS)
        vae.set_params(**before)


def test_partial_fit_is_one_epoch_and_converges_over_calls():
    vae = small()
    bounds = [vae.partial_fit(X_WINE).lower_bound_ for _ in range(100)]
    assert vae.n_iter_ == 100
    assert bounds[-1] > bounds[0]


@ignore_convergence
def test_partial_fit_goes_on_after_fit():
    vae = small().fit(X_IRIS)
    n_iter = vae.n_iter_
    assert vae.partial_fit(X_IRIS[:50]).n_iter_ == n_iter + 1


def test_partial_fit_keeps_columns_that_are_constant_at_first():
    vae = small().partial_fit(X_IRIS[:1])
    assert vae._fitted.model.n_columns == 4
    assert np.isfinite(vae.partial_fit(X_IRIS).score(X_IRIS))


@ignore_convergence
def test_beta_above_one_compresses_more():
    kl = [small(objective=ELBO(beta=b), max_iter=100).fit(X_WINE).kl_per_component_.sum() for b in (1.0, 10.0)]
    assert kl[1] < 0.7 * kl[0]


@ignore_convergence
def test_importance_weighted_objective_trains():
    vae = small(objective=IWAE(5), max_iter=100).fit(X_WINE)
    assert vae.score(X_WINE) > small(max_iter=1, init="random").fit(X_WINE).score(X_WINE)


@ignore_convergence
def test_a_linear_start_that_is_impossible_is_refused():
    for impossible in ({"likelihood": Bernoulli("observed")}, {"encoder": MLP((4,), skip=False)}):
        with pytest.raises(ValueError, match="init='linear' needs the linear solution"):
            small(init="linear", **impossible).fit(X_IRIS)


@ignore_convergence
def test_the_linear_start_begins_where_a_linear_model_ends():
    linear = small(init="auto", max_iter=1).fit(X_WINE).history_["lower_bound"][0]
    random = small(init="random", max_iter=1).fit(X_WINE).history_["lower_bound"][0]
    assert linear > random + 1


@ignore_convergence
def test_verbose_prints_honest_units(capsys):
    vae = small(verbose=True, max_iter=20, early_stopping=False).fit(X_WINE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(vae.history_["epoch"])
    assert lines[-1].startswith("epoch    20  lower bound")
    assert float(lines[-1].split()[4]) == pytest.approx(vae.history_["lower_bound"][-1], abs=1e-4)


def squared_weights(vae):
    model = vae._fitted.model
    views = model.layout.views(torch.tensor(vae._fitted.params)).items()
    return sum(float(value.square().sum()) for name, value in views if model.is_weight_matrix(*name))


@ignore_convergence
def test_a_larger_alpha_gives_smaller_weights():
    found = [squared_weights(small(alpha=alpha, max_iter=600).fit(X_IRIS)) for alpha in (0.0, 1.0, 100.0, 1e4)]
    assert all(after < 0.7 * before for before, after in zip(found, found[1:]))
    assert found[-1] < 1e-3


@ignore_convergence
def test_training_does_not_converge_before_the_warm_up_has_ended():
    vae = small(objective=ELBO(warmup=200), learning_rate="constant", n_iter_no_change=2, tol=10.0, max_iter=400).fit(X_IRIS)
    assert vae.converged_ and vae.n_iter_ > 200


class HeldKL(ELBO):
    """Keeps the KL near half a nat, at the expense of the bound."""

    def __call__(self, model, params, batch, noise, annealing=1.0):
        q, z, log_px = drawn(model, params, batch, noise)
        return log_px.mean(0) - 20 * (kl_of_rows(model, params, batch, q, z, self.kl) - 0.5).abs()


@ignore_convergence
def test_an_objective_that_changes_the_elbo_is_judged_by_itself():
    vae = small(objective=HeldKL(), max_iter=60, learning_rate="cosine").fit(X_IRIS)
    assert vae.kl_per_component_.sum() == pytest.approx(0.5, abs=0.1)


@ignore_convergence
def test_going_on_by_another_criterion_is_judged_by_that_one():
    vae = small(warm_start=True, max_iter=200).fit(X_IRIS)
    before = squared_weights(vae)
    vae.set_params(alpha=1000.0, max_iter=1200).fit(X_IRIS)
    assert squared_weights(vae) < 1e-2 * before
    assert list(vae.history_["epoch"]) == sorted(set(vae.history_["epoch"]))


@ignore_convergence
@pytest.mark.parametrize("objective", [ELBO(beta=0.5), ELBO(beta=np.float64(0.5))], ids=["float", "numpy"])
def test_a_converged_model_has_nothing_left_to_do_whatever_scikit_learn_prints(tmp_path, objective):
    small(warm_start=True, max_iter=2_000, tol=0.1, objective=objective).fit(X_WINE).save(tmp_path / "model.skvae")
    vae = skvae.load(tmp_path / "model.skvae")
    n_iter = vae.n_iter_
    assert vae.converged_
    with sklearn.config_context(print_changed_only=False):
        assert vae.fit(X_WINE).n_iter_ == n_iter


@ignore_convergence
@pytest.mark.parametrize("changes", [{"alpha": 100.0}, {"decoder": VariationalMLP((8,))}], ids=str)
def test_the_history_of_the_objective_is_of_one_quantity(changes):
    vae = small(learning_rate="constant", learning_rate_init=1e-6, max_iter=20, early_stopping=False, **changes).fit(X_IRIS)
    first, *others = vae.history_["objective"]
    assert others == pytest.approx([first] * len(others), abs=1.0)


@ignore_convergence
def test_free_bits_of_an_averaged_kl_are_judged_on_the_rows_alone():
    objective = ELBO(kl="monte_carlo", free_bits=1.2)
    still = {"learning_rate": "constant", "learning_rate_init": 1e-9, "max_iter": 1, "early_stopping": False}
    vae = small(objective=objective, **still).fit(X_IRIS[::7])
    model, params = vae._fitted.model, vae._fitted.model.unpack(torch.tensor(vae._fitted.params))
    x = vae._fitted.codec.encode(X_IRIS[::7])
    noise = normal((400, 22, 2), generator(0, "test"), torch.float32)
    expected = float(objective(model, params, x, noise).mean())
    assert not objective.is_rowwise and ELBO(free_bits=0.1, kl="analytic").is_rowwise
    judged = vae.history_["objective"][0] - vae._fitted.codec.log_jacobian  # before the first step
    assert judged == pytest.approx(expected, abs=0.15)


def test_a_report_takes_as_many_draws_as_make_moments_exact_unless_they_are_much_work(monkeypatch):
    X = np.random.default_rng(0).normal(size=(60, 40))
    drawn = []

    def spy(model, n, *args):
        drawn.append(n)
        return noise(model, n, *args)

    noise = Model.noise
    monkeypatch.setattr(Model, "noise", spy)
    for limit, expected in ((1e11, 60), (1e6, 16)):
        monkeypatch.setattr(_training, "_REPORTED_FLOPS", limit)
        drawn.clear()
        VAETransformer(30, max_iter=1, tol=0, learning_rate="cosine", random_state=0).fit(X)
        assert drawn[-1] == expected


@ignore_convergence
@pytest.mark.parametrize(
    ("n_rows", "n_components", "n_epochs"),
    [(40, 8, 50), (40, 60, 125), (178, 4, 15), (178, 60, 25), (2000, 8, 15), (12_000, 8, 4)],
)
def test_judging_by_training_rows_takes_a_tenth_of_the_work(monkeypatch, n_rows, n_components, n_epochs):
    trainees = []
    train = _training.train_in_company
    monkeypatch.setattr(_training, "train_in_company", lambda trainee: (trainees.append(trainee), train(trainee)))
    X = np.random.default_rng(0).normal(size=(n_rows, 13))
    small(n_components=n_components, max_iter=1, early_stopping=False).fit(X)
    (trainee,) = trainees
    assert trainee.plan.evaluate_every == n_epochs
    assert len(trainee.watched) == min(n_rows, 10_000)
    trained = 6 * n_rows * n_epochs  # a step goes forward and twice back, through encoder and decoder
    measured = len(trainee.watched) * (1 + len(trainee.noise))
    assert measured < 0.15 * trained or n_components == 60, "a table so small that it would hardly ever be measured"
