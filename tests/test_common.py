"""The contract of scikit-learn: its whole suite over the ways to configure an estimator, without an expected failure.

CI runs this file with the lowest supported versions as well.
"""

import pytest
from conftest import SmallNet
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAETransformer
from skvae.evaluation import AnnealedImportance, PosteriorDensity
from skvae.likelihoods import Bernoulli, Gaussian, Mixed, SelfMasking
from skvae.objectives import ELBO, IWAE

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    # Some checks fit a frame and transform an array, or the other way round.
    pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names:UserWarning"),
]


def quick(**params):
    return VAETransformer(**{"max_iter": 5, "hidden_layer_sizes": (8,), **params})


def one_line(estimator):
    return " ".join(repr(estimator).split())


ESTIMATORS = [
    VAETransformer(),
    quick(batch_size=8),
    quick(batch_size=8, alpha=1.0, n_components=1),
    quick(dtype="float64"),
    quick(likelihood=Bernoulli(limits="observed")),
    quick(likelihood=Bernoulli(limits="observed", binarize="dynamic")),
    quick(likelihood=Gaussian(noise="shared")),
    quick(likelihood=Gaussian(noise="network")),
    quick(likelihood=Gaussian(link="logit")),
    quick(likelihood=Gaussian(noise=0.5)),
    quick(likelihood=Gaussian(standardize=False)),
    quick(early_stopping=True, validation_fraction=0.2, batch_size=8),
    quick(early_stopping=False),
    quick(warm_start=True),
    quick(score_method="elbo"),
    quick(score_method=IWAE(7)),
    quick(score_method=PosteriorDensity(n_moves=4)),
    quick(score_method=AnnealedImportance(3, n_chains=2, n_leapfrog=2)),
    quick(encoder=SmallNet, decoder=SmallNet),
    quick(init="random", hidden_layer_sizes=(8, 4), activation="tanh"),
    quick(hidden_layer_sizes=(), likelihood=Gaussian(noise="shared")),
    quick(optimizer="adagrad", learning_rate="constant"),
    quick(optimizer="sgd", learning_rate="cosine", batch_size=8),
    quick(objective=ELBO(beta=4, kl="monte_carlo", n_samples=3, warmup=3), batch_size=8),
    quick(objective=IWAE(5)),
    quick(objective=IWAE(5, gradient="doubly_reparameterized")),
    quick(objective=ELBO(free_bits=0.1)),
    quick(likelihood=SelfMasking()),
    quick(likelihood=Mixed({0: "student_t", 1: SelfMasking(missing="high")})),
    quick(likelihood=Mixed(numbers="normal_mixture"), objective=IWAE(3)),
    quick(prior="mixture"),
]


SUITE = parametrize_with_checks(ESTIMATORS)


@pytest.mark.parametrize(SUITE.args[0], list(SUITE.args[1]), **SUITE.kwargs)  # scikit-learn < 1.8 gives a generator
def test_estimator_keeps_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


# Checks of scikit-learn that its own list leaves out for a transformer of a third party.
MORE_CHECKS = [
    "check_dataframe_column_names_consistency",
    "check_estimators_partial_fit_n_features",
    "check_get_feature_names_out_error",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_inplace_ensure_writeable",
    "check_non_transformer_estimators_n_iter",
    "check_param_validation",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
]


@pytest.mark.parametrize("name", MORE_CHECKS)
@pytest.mark.parametrize("estimator", [quick(), *ESTIMATORS[1::4]], ids=one_line)
def test_estimator_passes_the_checks_that_the_suite_leaves_out(estimator, name):
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip(f"this scikit-learn has no {name}")
    check(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=one_line)
def test_nothing_is_hidden_from_the_suite(estimator):
    tags = estimator.__sklearn_tags__()
    assert not tags.non_deterministic and not tags._skip_test and not tags.no_validation
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
