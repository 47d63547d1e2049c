"""The rooms of the package: imports only go down, and what only some rooms may do."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "skvae"


def name_of(path):
    """Return the name of a module inside the package; a folder has that of its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}

# From the ground up: a module may import those that stand before it.
ORDER = [
    "_numbers", "_devices", "_sklearn", "_warnings", "_random", "_settings", "_batch", "_constants", "_gamma_quantile",
    "_families",
    "priors._base", "priors._independent", "priors._dirichlet", "priors._mixture", "priors", "posteriors",
    "likelihoods._base", "likelihoods._numerics", "likelihoods._standardized", "likelihoods._gaussian", "likelihoods._limits",
    "likelihoods._bernoulli", "likelihoods._levels", "likelihoods._counts", "likelihoods._heavy", "likelihoods._mixture",
    "likelihoods._positive", "likelihoods._truncated", "likelihoods._unit_interval", "likelihoods._self_masking",
    "likelihoods._mixed", "likelihoods",
    "networks._base", "networks._mlp", "networks._variational", "networks._conv", "networks._module", "networks", "_model",
    "_linear", "objectives", "_hmc", "optimizers", "_kernels", "_joint", "_windows", "_supply", "_solver", "solvers",
    "_inference", "_modes", "_proposals", "_marginal", "_refined", "_conditional", "_course",
    "_judging", "_engine", "_shares", "_population", "_trial",
    "data", "_formats", "_frames", "_form", "_filling", "_selection", "_sparse", "_statistics", "_schema", "_hashing", "_table",
    "_stream", "_state", "_training",
    "persistence", "callbacks", "_reading", "_rows", "_base", "_cells", "_transformer", "__init__",
    "_table_checks", "_pooling", "evaluation", "displays._drawing", "displays._training_curve", "displays._latent_space",
    "displays._reconstruction", "displays._images", "displays._table_check", "displays", "_demo", "__main__",
]  # fmt: skip
TABLES = set(ORDER[ORDER.index("data") : ORDER.index("persistence")])
ESTIMATORS = {"_reading", "_rows", "_base", "_cells", "_transformer", "__init__"}
DISPLAYS = {name for name in ORDER if name.partition(".")[0] == "displays"}
AROUND = {"persistence", "callbacks", "_table_checks", "_pooling", "evaluation", *DISPLAYS, "_demo", "__main__"}


def imports(tree, top_level_only=False):
    """Return the names of the modules that a module imports."""
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def names_called(tree):
    """Return the dotted ends of all calls, such as 'manual_seed' or 'backward'."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(SOURCES)


@pytest.mark.parametrize("module", ORDER)
def test_imports_only_go_down(module):
    mine = {name.removeprefix("skvae.") for name in imports(SOURCES[module], True) if name.startswith("skvae.")}
    above = set(ORDER[ORDER.index(module) :])
    assert not {name for name in mine if name in above}


@pytest.mark.parametrize("module", sorted(set(ORDER) - ESTIMATORS - AROUND - TABLES))
def test_numpy_stays_with_tables_and_estimators(module):
    assert not {name for name in imports(SOURCES[module]) if name.split(".")[0] in ("numpy", "pandas")}


@pytest.mark.parametrize("module", sorted(set(ORDER) - ESTIMATORS - AROUND - {"_settings", "_sklearn"}))
def test_only_estimators_and_settings_know_scikit_learn(module):
    assert not {name for name in imports(SOURCES[module]) if name.split(".")[0] == "sklearn"}


@pytest.mark.parametrize("module", sorted(set(ORDER) - {"_sklearn"}))
def test_private_names_of_scikit_learn_stand_in_one_place(module):
    theirs = {name for name in imports(SOURCES[module]) if name.startswith("sklearn.")}
    assert not {name for name in theirs if any(part.startswith("_") for part in name.split("."))}


@pytest.mark.parametrize("module", sorted(set(ORDER) - {"solvers", "optimizers", "_kernels", "_hmc"}))
def test_gradients_are_taken_by_solvers_alone(module):
    assert not names_called(SOURCES[module]) & {"backward", "grad", "_fused_adam_"}


@pytest.mark.parametrize("module", sorted(set(ORDER) - {"_random", "networks._module"}))
def test_generators_are_made_in_one_place(module):
    assert not names_called(SOURCES[module]) & {"Generator", "manual_seed", "seed", "default_rng", "RandomState"}


def torch_calls(tree, names):
    """Return the calls of torch's functions of these names, each with the names of its keywords."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        (node.lineno, node.func.attr, frozenset(keyword.arg for keyword in node.keywords))
        for node in calls
        if isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "torch" and node.func.attr in names
    }


@pytest.mark.parametrize("module", ORDER)
def test_every_tensor_is_made_on_a_named_device(module):
    makers = {"zeros", "ones", "empty", "full", "eye", "arange", "linspace", "tensor", "rand", "randn", "randint", "randperm"}
    assert not [call for call in torch_calls(SOURCES[module], makers) if "device" not in call[2]]


@pytest.mark.parametrize("module", ORDER)
def test_no_tensor_depends_on_the_default_type_of_numbers(module):
    makers = {"zeros", "ones", "empty", "full", "eye", "linspace", "rand", "randn"}
    assert not [call for call in torch_calls(SOURCES[module], makers) if "dtype" not in call[2]]


@pytest.mark.parametrize("module", ORDER)
def test_every_random_number_comes_from_a_named_generator(module):
    draws = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
    assert not [call for call in torch_calls(SOURCES[module], draws) if "generator" not in call[2]]
    in_place = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_"}
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in in_place:
            assert "generator" in {keyword.arg for keyword in node.keywords}
    assert "nn.init" not in ast.unparse(SOURCES[module])


@pytest.mark.parametrize("module", sorted(set(ORDER) - {"_devices"}))
def test_devices_are_looked_up_in_one_place(module):
    assert not {"torch.cuda", "torch.backends", "torch.accelerator"} & {
        ast.unparse(node) for node in ast.walk(SOURCES[module]) if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("module", ORDER)
def test_nothing_global_is_set(module):
    scoped = {"set_float32_matmul_precision"} if module == "_devices" else set()  # which sets it back
    forbidden = {
        "set_num_threads", "set_default_dtype", "set_default_device", "set_float32_matmul_precision", "set_flush_denormal",
        "use_deterministic_algorithms", "set_grad_enabled", "set_default_tensor_type", "set_config",
    }  # fmt: skip
    assert not names_called(SOURCES[module]) & (forbidden - scoped)


@pytest.mark.parametrize("module", sorted(set(ORDER) - {"persistence", *DISPLAYS, "_demo", "__main__"}))
def test_the_disk_is_touched_by_persistence_alone(module):
    assert not names_called(SOURCES[module]) & {"open", "write_bytes", "write_text", "savez", "savefig"}


@pytest.mark.parametrize("module", ORDER)
def test_nobody_asks_torch_for_common_shapes(module):
    """Because `torch.broadcast_shapes` imports sympy, which takes as long as a fit; `broadcast_tensors` does not."""
    assert "broadcast_shapes" not in names_called(SOURCES[module])


def test_test_files_mirror_modules():
    ours = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    tested_by_topic = {"_sklearn", "_settings", "_batch", "_model", "_linear", "_solver", "_state", "_marginal", "_base",
                       "_transformer", "__init__", "__main__", "_schema", "_filling", "_rows"}  # fmt: skip
    missing = {name.partition(".")[0].lstrip("_") for name in set(ORDER) - tested_by_topic} - ours
    assert not missing
