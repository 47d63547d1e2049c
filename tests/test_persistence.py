"""Save and load, pickle and its relatives: what comes back is what was there, and what cannot come back is refused."""

import copy
import json
import os
import pickle
import pickletools
import stat
import time

import joblib
import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.numpy
import skops.io
import torch
from conftest import (
    DECODERS,
    ENCODERS,
    LIKELIHOODS,
    OBJECTIVES,
    OPTIMIZERS,
    PAIRS,
    SCORE_METHODS,
    SOLVERS,
    table_for,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import skvae
from skvae import SkvaeFileError, VAETransformer, persistence
from skvae._settings import from_spec, to_spec
from skvae.likelihoods import Bernoulli, Gaussian, Mixed
from skvae.networks import MLP, Module
from skvae.objectives import ELBO, IWAE
from skvae.optimizers import Adam


def table(n_rows=80, n_columns=4, seed=0):
    stream = np.random.default_rng(seed)
    return stream.normal(size=(n_rows, 2)) @ stream.normal(size=(2, n_columns)) + 0.3 * stream.normal(size=(n_rows, n_columns))


X = table()
BINARY = (X > 0).astype(float)
FRAME = pd.DataFrame(X, columns=["a", "b b", "größe", "d"])
CONSTANT = np.column_stack([X, np.full(len(X), 7.0)])


def small_vae(**params):
    defaults = {"hidden_layer_sizes": (6,), "max_iter": 6, "learning_rate": "cosine", "random_state": 0}
    return VAETransformer(**{"n_components": 2, **defaults, **params})


VARIANTS = {
    "plain": ({}, X),
    "frame": ({}, FRAME),
    "float64": ({"dtype": "float64", "n_components": None}, X),
    "float32 data": ({}, X.astype(np.float32)),
    "constant column": ({}, CONSTANT),
    "only constant columns": ({}, np.ones((20, 3))),
    "list of sizes": ({"hidden_layer_sizes": [6, 5]}, X),
    "array of sizes": ({"hidden_layer_sizes": np.array([6, 5])}, X),
    "one size": ({"hidden_layer_sizes": 6}, X),
    "linear": ({"hidden_layer_sizes": ()}, X),
    "training kept": ({"warm_start": True}, X),
    "without a seed": ({"random_state": None}, X),
    "bernoulli": ({"likelihood": Bernoulli(limits=(0, 1))}, BINARY),
    "observed limits": ({"likelihood": Bernoulli(limits="observed")}, X),
    "infinite support": ({"likelihood": Gaussian(noise="network", standardize=False)}, X),
    "settings": ({"objective": ELBO(beta=2.0), "optimizer": Adam(betas=(0.8, 0.99)), "score_method": IWAE(3)}, X),
    "networks": ({"encoder": MLP((3,), activation="tanh", skip=False), "decoder": MLP(())}, X),
}


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request, tmp_path_factory):
    """A fitted estimator, its data, and what comes back from its file."""
    params, data = VARIANTS[request.param]
    vae = small_vae(**params).fit(data)
    path = tmp_path_factory.mktemp("saved") / "model.skvae"
    vae.save(path)
    return vae, data, skvae.load(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skvae"


PIECES = [
    (role, piece)
    for role, pieces in {
        "likelihood": LIKELIHOODS, "encoder": ENCODERS, "decoder": DECODERS, "objective": OBJECTIVES, "optimizer": OPTIMIZERS,
        "solver": SOLVERS, "score_method": SCORE_METHODS,
    }.items()
    for piece in pieces
]  # fmt: skip


def assert_equal_values(one, other):
    """Compare values and their types, down to arrays and containers."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_values(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_equal_values(a, b)
    else:
        assert one == other or (one != one and other != other)


def assert_same_training(one, other):
    for name in ("history_", "lower_bound_", "n_iter_", "n_steps_", "converged_", "kl_per_component_"):
        assert_equal_values(getattr(one, name), getattr(other, name))
    assert_equal_values(one._fitted.pack(), other._fitted.pack())


def refused(path, *, match):
    with pytest.raises(SkvaeFileError, match=match) as caught:
        skvae.load(path)
    assert str(path) in str(caught.value)


# --- what comes back -------------------------------------------------------------------------------------------------


def test_loaded_estimator_computes_the_same_to_the_last_bit(saved):
    before, data, after = saved
    Z = before.transform(data)
    np.testing.assert_array_equal(Z, after.transform(data))
    np.testing.assert_array_equal(before.inverse_transform(Z), after.inverse_transform(Z))
    np.testing.assert_array_equal(before.reconstruct(data), after.reconstruct(data))
    np.testing.assert_array_equal(before.score_samples(data), after.score_samples(data))
    np.testing.assert_array_equal(before.sample(5, random_state=3), after.sample(5, random_state=3))
    np.testing.assert_array_equal(before.sample_posterior(data, 2, 3), after.sample_posterior(data, 2, 3))
    np.testing.assert_array_equal(before.posterior_moments(data), after.posterior_moments(data))


def test_loaded_estimator_has_the_same_attributes(saved):
    before, _, after = saved
    assert vars(before).keys() == vars(after).keys()
    for name in vars(before).keys() - before.get_params().keys() - {"_fitted"}:
        assert_equal_values(getattr(before, name), getattr(after, name))
    assert_equal_values(before._fitted.pack(), after._fitted.pack())


def test_loaded_estimator_has_the_same_parameters(saved):
    before, _, after = saved
    assert repr(before) == repr(after)
    given, back = before.get_params(deep=False), after.get_params(deep=False)
    for name in given:
        np.testing.assert_equal(back[name], given[name])
        assert type(back[name]) is type(given[name])


def test_loaded_estimator_has_the_same_feature_names(saved):
    before, data, after = saved
    np.testing.assert_array_equal(before.get_feature_names_out(), after.get_feature_names_out())
    if isinstance(data, pd.DataFrame):
        with pytest.raises(ValueError, match="feature names should match"):
            after.transform(data[data.columns[::-1]])


def test_loaded_estimator_can_be_cloned_and_fitted(saved):
    before, data, after = saved
    if before.random_state is not None:
        assert_same_training(clone(after).fit(data), before)


@pytest.mark.parametrize("posterior, prior", PAIRS, ids=repr)
def test_every_posterior_and_prior_comes_back_and_goes_on(path, posterior, prior):
    data = table_for(None)
    vae = small_vae(warm_start=True, posterior=posterior, prior=prior).fit(data)
    vae.save(path)
    after = skvae.load(path)
    np.testing.assert_array_equal(after.transform(data), vae.transform(data))
    assert_same_training(after.set_params(max_iter=9).fit(data), vae.set_params(max_iter=9).fit(data))


@pytest.mark.parametrize("role, piece", PIECES, ids=str)
def test_every_piece_comes_back_and_goes_on(path, role, piece):
    data = table_for(piece)
    vae = small_vae(warm_start=True, **{role: piece}).fit(data)
    if isinstance(piece, Module):
        with pytest.raises(TypeError, match="needs code|without code"):
            vae.save(path)
        after = pickle.loads(pickle.dumps(vae))
    else:
        vae.save(path)
        after = skvae.load(path)
    assert after.get_params() == vae.get_params()
    np.testing.assert_array_equal(after.score_samples(data), vae.score_samples(data))
    assert_same_training(after.fit(data), vae.fit(data))


def test_numpy_scalars_come_back_as_plain_values(path):
    vae = small_vae(n_components=np.int64(2), alpha=np.float32(0.25), warm_start=np.bool_(True)).fit(X)
    vae.save(path)
    after = skvae.load(path)
    for name, value in {"n_components": 2, "alpha": 0.25, "warm_start": True}.items():
        assert_equal_values(getattr(after, name), value)
    assert_same_training(after, vae)


@pytest.mark.parametrize("name", [name for name in skvae.__all__ if hasattr(getattr(skvae, name), "save")])
def test_every_estimator_comes_back(path, name):
    estimator = getattr(skvae, name)().set_params(max_iter=3, learning_rate="cosine", random_state=0).fit(X)
    estimator.save(path)
    after = skvae.load(path)
    assert repr(after) == repr(estimator)
    assert vars(after).keys() == vars(estimator).keys()
    for name in vars(estimator).keys() - estimator.get_params().keys() - {"_fitted"}:
        assert_equal_values(getattr(estimator, name), getattr(after, name))


@pytest.mark.parametrize("sizes", [np.array([8, 5]), [8, 5], (np.int32(8), 5)], ids=repr)
@pytest.mark.parametrize("given", [lambda s: {"hidden_layer_sizes": s}, lambda s: {"encoder": MLP(s), "decoder": MLP(s)}])
def test_sizes_are_the_same_in_whatever_they_come(path, sizes, given):
    small_vae(**given(sizes)).fit(X).save(path)
    after, straight = skvae.load(path).partial_fit(X), small_vae(**given((8, 5))).fit(X).partial_fit(X)
    np.testing.assert_array_equal(after.transform(X), straight.transform(X))
    after.set_params(**given((8, 5)), warm_start=True).partial_fit(X)
    after.set_params(**given(np.array([8, 5]))).fit(X)
    clone(after).set_params(**given(sizes)).fit(X).partial_fit(X)
    with pytest.raises(ValueError, match="encoder and decoder differ"):
        after.set_params(**given(np.array([8, 6]))).fit(X)


def test_partial_fit_goes_on_as_if_there_had_been_no_file(path):
    vae = small_vae().partial_fit(X[:40])
    vae.save(path)
    after = skvae.load(path).partial_fit(X[40:])
    assert_same_training(after, vae.partial_fit(X[40:]))


def test_warm_start_goes_on_as_if_there_had_been_no_file(path):
    vae = small_vae(warm_start=True).fit(X)
    vae.save(path)
    after = skvae.load(path).set_params(max_iter=12).fit(X)
    assert_same_training(after, vae.set_params(max_iter=12).fit(X))
    assert after.n_iter_ == 12


def test_memory_of_the_optimizer_is_stored_only_where_it_may_be_needed(path):
    sizes = []
    for warm_start in (False, True):
        small_vae(warm_start=warm_start).fit(X).save(path)
        with safetensors.safe_open(path, "np") as file:
            sizes.append(sum(name.startswith("training.") for name in file.keys()))  # noqa: SIM118
    assert sizes[0] == 0 < sizes[1]


def test_device_is_stored_as_a_name(path):
    small_vae(device=torch.device("cpu")).fit(X).save(path)
    assert skvae.load(path).device == "cpu"


def test_device_can_be_chosen_when_loading(path):
    vae = small_vae().fit(X)
    vae.save(path)
    after = skvae.load(path, device="cpu")
    assert after.device == "cpu"
    np.testing.assert_array_equal(after.transform(X), vae.transform(X))


def test_file_from_a_machine_with_other_devices_loads(path):
    vae = small_vae().fit(X).set_params(device="cuda:7")
    vae.save(path)
    assert skvae.load(path).device == "cuda:7"
    np.testing.assert_array_equal(
        skvae.load(path, device="cpu").sample(3, random_state=0), vae.set_params(device="cpu").sample(3, 0)
    )


def test_output_container_is_kept(path):
    small_vae().set_output(transform="pandas").fit(X).save(path)
    assert isinstance(skvae.load(path).transform(X), pd.DataFrame)


def test_metadata_requests_are_left_out(path):
    with config_context(enable_metadata_routing=True):
        small_vae().set_fit_request(sample_weight=True).fit(X).save(path)
        assert skvae.load(path).get_metadata_routing().fit.requests == {"sample_weight": None}


# --- the file --------------------------------------------------------------------------------------------------------


def test_file_is_a_safetensors_file_with_a_manifest(path):
    vae = small_vae().fit(FRAME)
    vae.save(path)
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["params"], vae._fitted.params)
    np.testing.assert_array_equal(tensors["codec.loc"], [column.loc for column in vae.schema_])
    with safetensors.safe_open(path, "np") as file:
        manifest = json.loads(file.metadata()["skvae"])
    assert manifest["class"] == "VAETransformer"
    assert manifest["params"]["max_iter"] == 6
    assert manifest["versions"]["skvae"] == skvae.__version__


def test_same_fit_gives_the_same_digest(path):
    digests = set()
    for _ in range(2):
        small_vae(warm_start=True).fit(X).save(str(path))
        with safetensors.safe_open(path, "np") as file:
            digests.add(file.metadata()["sha256"])
    assert len(digests) == 1


def test_other_readers_may_open_the_file_as_the_umask_says(path):
    if os.name != "posix":
        pytest.skip("needs POSIX permissions")
    small_vae().fit(X).save(path)
    path.with_suffix(".txt").write_text("")
    assert path.stat().st_mode == path.with_suffix(".txt").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_file_that_is_replaced_keeps_its_mode(path, mode):
    path.write_bytes(b"old")
    path.chmod(mode)
    small_vae().fit(X).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="names are at most 255 bytes long")
@pytest.mark.parametrize("letter", ["m", "ö"])
def test_names_may_be_as_long_as_the_system_allows(tmp_path, letter):
    path = tmp_path / (letter * (255 // len(letter.encode())))
    small_vae().fit(X).save(path)
    assert isinstance(skvae.load(path), VAETransformer)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be opened elsewhere")
def test_file_that_is_there_is_no_failure_where_a_folder_cannot_be_synchronized(path, monkeypatch):
    path.write_bytes(b"old")
    synchronized = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("this is no file")
        synchronized(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    small_vae().fit(X).save(path)
    assert isinstance(skvae.load(path), VAETransformer)


def test_link_to_a_file_stays_a_link(tmp_path, path):
    link = tmp_path / "link.skvae"
    path.write_bytes(b"old")
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("needs symbolic links")
    small_vae().fit(X).save(link)
    assert link.is_symlink()
    assert isinstance(skvae.load(path), VAETransformer)


def test_only_old_leftovers_of_the_same_file_are_swept(tmp_path, path):
    mark, other = persistence._mark("model.skvae"), persistence._mark("other.skvae")
    names = {
        "stale": f".{mark}.01234567.skvae-tmp", "fresh": f".{mark}.89abcdef.skvae-tmp",
        "other file": f".{other}.01234567.skvae-tmp", "not ours": f".{mark}.backup",
    }  # fmt: skip
    for name in names.values():
        (tmp_path / name).write_bytes(b"")
        if name != names["fresh"]:
            os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    small_vae().fit(X).save(path)
    assert {p.name for p in tmp_path.iterdir()} == {*names.values(), path.name} - {names["stale"]}


def test_save_into_a_missing_folder_fails(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder for the file.*missing'"):
        small_vae().fit(X).save(tmp_path / "missing" / "model.skvae")


def test_save_does_not_replace_what_is_no_file(tmp_path):
    with pytest.raises(OSError, match="Only a regular file"):
        small_vae().fit(X).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failed_replacement_leaves_no_temporary_file(tmp_path, path, monkeypatch):
    path.write_bytes(b"old")

    def fail(*args):
        raise PermissionError("the file is open elsewhere")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError, match="open elsewhere"):
        small_vae().fit(X).save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


# --- what cannot be saved --------------------------------------------------------------------------------------------


class MyGaussian(Gaussian):
    """A likelihood that a user has written."""


class MyVAE(VAETransformer):
    """An estimator that a user has derived."""


def make_module(n_in, n_out):
    return torch.nn.Linear(n_in, n_out)


def test_unfitted_estimator_is_refused(path):
    with pytest.raises(NotFittedError, match="VAETransformer"):
        small_vae().save(path)


@pytest.mark.parametrize(
    "name, value, described",
    [
        ("random_state", np.random.RandomState(0), "RandomState"),
        ("encoder", make_module, "function"),
        ("likelihood", MyGaussian(), "MyGaussian"),
    ],
)
def test_parameter_that_needs_code_is_refused_by_name(tmp_path, path, name, value, described):
    vae = small_vae(**{name: value}).fit(X)
    with pytest.raises(TypeError, match=rf"'{name}'.* {described}.*joblib\.dump"):
        vae.save(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, value, later, match",
    [
        ("encoder", make_module, None, r"'pieces\.encoder\.params\.factory'"),
        ("likelihood", MyGaussian(), "gaussian", "MyGaussian"),
    ],
)
def test_fitted_model_that_needs_code_is_refused_whatever_the_parameters_say_now(path, name, value, later, match):
    vae = small_vae(**{name: value}).fit(X).set_params(**{name: later})
    with pytest.raises(TypeError, match=match):
        vae.save(path)


def test_class_of_the_users_own_is_refused(path):
    vae = MyVAE(2, hidden_layer_sizes=(6,), max_iter=3, learning_rate="cosine").fit(X)
    with pytest.raises(TypeError, match=r"A MyVAE cannot be saved.*joblib\.dump"):
        vae.save(path)


def test_impostor_under_a_known_name_is_refused(path):
    impostor = type("VAETransformer", (MyVAE,), {"__init__": MyVAE.__init__})
    vae = impostor(2, hidden_layer_sizes=(6,), max_iter=3, learning_rate="cosine").fit(X)
    with pytest.raises(TypeError, match="only the estimators that skvae itself defines"):
        vae.save(path)


# --- what cannot be loaded -------------------------------------------------------------------------------------------


def test_missing_file_is_said_to_be_missing(path):
    with pytest.raises(FileNotFoundError):
        skvae.load(path)


def test_directory_is_refused(tmp_path):
    refused(tmp_path, match="it is a directory")


@pytest.mark.parametrize("content", [b"", b"{", b"a,b,c\n1,2,3\n", b"\x00" * 100, b"\x02" + bytes(7) + b"{}"])
def test_file_of_another_kind_is_refused(path, content):
    path.write_bytes(content)
    refused(path, match="it is no safetensors file|skvae did not write it")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickle_is_refused_with_a_hint(path, protocol):
    path.write_bytes(pickle.dumps(small_vae().fit(X), protocol=protocol))
    refused(path, match=r"no safetensors file\. If it is a pickle that you trust, use joblib\.load")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"skvae": "{}"}])
def test_safetensors_file_of_another_program_is_refused(path, metadata):
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path, metadata)
    refused(path, match="skvae did not write it")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000])
def test_manifest_that_is_none_is_refused(path, text):
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path, {"skvae": text, "sha256": ""})
    refused(path, match="manifest is damaged")


def test_newer_format_is_refused_with_the_advice_to_upgrade(path):
    text = json.dumps({"format": "skvae", "format_version": persistence.FORMAT_VERSION + 1, "new": "things"})
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path, {"skvae": text, "sha256": "another way to compute it"})
    refused(path, match="version 2 of the format, and this skvae reads versions up to 1.*Upgrade")


@pytest.mark.parametrize("form, version", [("skvae", 0), ("skvae", "1"), ("keras", 1)])
def test_format_that_never_was_is_refused(path, form, version):
    text = json.dumps({"format": form, "format_version": version})
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path, {"skvae": text, "sha256": ""})
    refused(path, match="format .*, is unknown")


# --- values ----------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
ARRAYS = hnp.arrays(
    hnp.boolean_dtypes() | hnp.integer_dtypes(endianness="<") | hnp.floating_dtypes(endianness="<"),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
NUMBERS = st.lists(st.floats(), min_size=40, max_size=50) | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=40, max_size=50)


@settings(deadline=None, max_examples=150)
@given(PLAIN | ARRAYS | NUMBERS | st.dictionaries(st.integers() | st.text(max_size=3), ARRAYS, max_size=3))
def test_values_come_back_through_json_and_tensors(value):
    tensors = {}
    text = json.dumps(persistence._encode(value, "value", tensors), allow_nan=False)
    data = safetensors.deserialize(safetensors.numpy.save(tensors))
    arrays = {name: persistence._to_array(entry) for name, entry in data}
    assert_equal_values(persistence._decode(json.loads(text), arrays), value)
    assert arrays == {}


def test_columns_of_any_name_come_back(path):
    """A dict of theirs may look like the description of a settings object."""
    data = pd.DataFrame({"class": [0.0, 3.0, 1.0, 2.0] * 10, "params": X[:40, 0]})
    likelihood = Mixed({"class": "poisson", "params": Gaussian("shared")})
    vae = small_vae(likelihood=likelihood).fit(data)
    vae.save(path)
    for after in (skvae.load(path), pickle.loads(pickle.dumps(vae))):
        assert after._fitted.asked == after.likelihood == likelihood
        np.testing.assert_array_equal(after.score_samples(data), vae.score_samples(data))


@pytest.mark.parametrize(
    "columns",
    [
        {"class": "poisson", "params": "gaussian"},
        {"class": "dict", "params": Gaussian("shared")},
        {"class": Gaussian(), "params": Gaussian("shared")},
        {"params": "gaussian"},
        {0: "poisson", ("a", "b"): Gaussian()},
        [(Gaussian(), ["class", "params"])],
    ],
    ids=str,
)
def test_settings_come_back_from_their_description(columns):
    assert from_spec(to_spec(Mixed(columns))) == Mixed(columns)


def test_dicts_of_older_descriptions_are_read():
    """They stood there as they were."""
    spec = to_spec(Mixed({"a": "poisson", "b": Gaussian("shared")}))
    spec["params"]["columns"] = spec["params"]["columns"]["params"]
    assert from_spec(spec) == Mixed({"a": "poisson", "b": Gaussian("shared")})


def test_names_come_back_as_an_array_of_objects():
    names = np.array(["a", "größe", ""], dtype=object)
    assert_equal_values(persistence._decode(persistence._encode(names, "names", {}), {}), names)


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "UTC+05:30"])
def test_moments_come_back_in_their_time_zone(zone):
    moment = pd.Timestamp("2026-02-03 04:05:06.789", tz=zone)
    after = persistence._decode(persistence._encode(moment, "moment", {}), {})
    assert (after, str(after.tz)) == (moment, str(moment.tz))


@pytest.mark.parametrize("zone", ["dateutil//etc/hostname", "/etc/hostname", "../../etc/hostname", ""])
def test_time_zone_of_a_file_is_no_path(zone):
    with pytest.raises(SkvaeFileError, match="time zone"):
        persistence._decode({"~timestamp": ["2026-02-03", zone]}, {})


def test_time_zone_that_a_path_tells_is_refused_when_saving():
    with pytest.raises(TypeError, match="holds"):
        persistence._encode(pd.Timestamp("2026-02-03", tz="dateutil/Europe/Berlin"), "moment", {})


@pytest.mark.parametrize(
    "value", [object(), print, np.array([object()]), np.zeros(2, dtype=complex), {1, 2}, MyGaussian(), Gaussian]
)
def test_other_values_are_refused_by_name(value):
    with pytest.raises(TypeError, match=r"'piece\.option' holds"):
        persistence._encode({"option": value}, "piece", {})


# --- pickle and its relatives ----------------------------------------------------------------------------------------


def by_joblib(estimator, tmp_path):
    joblib.dump(estimator, tmp_path / "model.joblib")
    return joblib.load(tmp_path / "model.joblib")


def by_memory_map(estimator, tmp_path):
    joblib.dump(estimator, tmp_path / "model.joblib")
    return joblib.load(tmp_path / "model.joblib", mmap_mode="r")


def by_skops(estimator, tmp_path):
    data = skops.io.dumps(estimator)
    return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))


COPIES = {
    "copy": lambda estimator, _: copy.copy(estimator),
    "deepcopy": lambda estimator, _: copy.deepcopy(estimator),
    "pickle": lambda estimator, _: pickle.loads(pickle.dumps(estimator)),
    "cloudpickle": lambda estimator, _: pickle.loads(pytest.importorskip("cloudpickle").dumps(estimator)),
    "joblib": by_joblib,
    "memory map": by_memory_map,
    "skops": by_skops,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("warm_start", [False, True])
def test_copy_of_a_fitted_estimator_is_its_equal(tmp_path, way, warm_start):
    vae = small_vae(warm_start=warm_start).fit(FRAME)
    after = COPIES[way](vae, tmp_path)
    assert repr(after) == repr(vae)
    assert vars(after).keys() == vars(vae).keys()
    np.testing.assert_array_equal(after.transform(FRAME), vae.transform(FRAME))
    np.testing.assert_array_equal(after.score_samples(FRAME), vae.score_samples(FRAME))
    assert repr(after.schema_) == repr(vae.schema_)
    assert_same_training(after.fit(FRAME), vae.fit(FRAME))


@pytest.mark.parametrize("way", COPIES)
def test_copy_of_an_unfitted_estimator_is_its_equal(tmp_path, way):
    vae = small_vae(likelihood=Gaussian(noise="shared"))
    after = COPIES[way](vae, tmp_path)
    assert repr(after) == repr(vae)
    assert vars(after).keys() == vars(vae).keys()


def test_copies_share_no_memory_that_could_change():
    vae = small_vae(warm_start=True).fit(X)
    other = copy.copy(vae)
    before = vae.transform(X)
    other.fit(X)
    other._fitted.params[:] = 0
    np.testing.assert_array_equal(vae.transform(X), before)


def test_pickle_holds_no_object_of_torch_and_none_of_our_own_but_the_estimator():
    strings = [str(arg) for _, arg, _ in pickletools.genops(pickle.dumps(small_vae(warm_start=True).fit(X), protocol=2)) if arg]
    assert {s for s in strings if s.startswith(("torch", "skvae"))} == {"skvae._transformer VAETransformer"}


def test_skops_needs_to_trust_the_estimator_alone():
    data = skops.io.dumps(small_vae(warm_start=True).fit(FRAME))
    assert skops.io.get_untrusted_types(data=data) == ["skvae._transformer.VAETransformer"]


def test_skops_needs_to_trust_settings_that_the_user_has_passed():
    data = skops.io.dumps(small_vae(likelihood=Gaussian(noise="shared")).fit(X))
    assert set(skops.io.get_untrusted_types(data=data)) == {
        "skvae._transformer.VAETransformer",
        "skvae.likelihoods._gaussian.Gaussian",
    }


def test_estimator_of_the_users_own_module_can_be_pickled():
    vae = small_vae(encoder=make_module).fit(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(vae)).transform(X), vae.transform(X))


@pytest.mark.parametrize("warm_start", [False, True])
def test_hash_is_that_of_the_pickled_copy_and_of_an_identical_fit(warm_start):
    vae = small_vae(warm_start=warm_start).fit(FRAME)
    assert joblib.hash(pickle.loads(pickle.dumps(vae))) == joblib.hash(vae)
    assert joblib.hash(clone(vae).fit(FRAME)) == joblib.hash(vae)
    assert joblib.hash(clone(vae).set_params(random_state=1).fit(FRAME)) != joblib.hash(vae)


@pytest.mark.parametrize("fitted", [False, True])
def test_pickle_of_another_version_warns(monkeypatch, fitted):
    vae = small_vae().fit(X) if fitted else small_vae()
    monkeypatch.setattr(skvae, "__version__", "99.0")
    data = pickle.dumps(vae)
    monkeypatch.undo()
    with pytest.warns(persistence.SkvaeVersionWarning, match=r"VAETransformer was pickled by skvae 99\.0 and is read by"):
        after = pickle.loads(data)
    assert vars(after).keys() == vars(vae).keys()


def test_state_has_plain_values_only():
    def kinds(value):
        if isinstance(value, dict):
            return set().union(*map(kinds, value.values()))
        return set().union(*map(kinds, value)) if isinstance(value, (list, tuple)) else {type(value)}

    state = small_vae(warm_start=True).fit(FRAME).__getstate__()
    assert kinds(state) <= {bool, int, float, str, type(None), np.ndarray}
