"""Tests of what is written: docstrings agree with signatures, and examples in the README and the documentation run."""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
from pathlib import Path

import pytest

import skvae
from skvae import VAETransformer

validate = pytest.importorskip("numpydoc.validate")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "doc/developer.rst", *sorted((ROOT / "doc/user_guide").glob("*.rst"))]

# What is checked: there is a docstring (GL08) with sections in order (GL07) and known (GL06), a summary (SS01) in one line (SS06) that
# ends in a full stop (SS03); parameters are those of the signature (PR01, PR02) in its order (PR03), with type (PR04) and
# description (PR07), without surprise in the type (PR10); what is returned is described (RT01, RT03).
CHECKS = {
    "GL06", "GL07", "GL08", "SS01", "SS03", "SS06", "PR01", "PR02", "PR03", "PR04", "PR07", "PR10", "RT01", "RT03",
}  # fmt: skip
# A property or a short method may do with its summary.
BRIEF = {"PR01", "RT01"}


def modules():
    """Return the public modules of the package."""
    names = [m.name for m in pkgutil.iter_modules(skvae.__path__) if not m.name.startswith("_")]
    return [skvae, *(importlib.import_module(f"skvae.{name}") for name in names)]


def public_names(module):
    """Return the names that a module offers: those in `__all__`, else those that it defines."""
    if hasattr(module, "__all__"):
        return [n for n in module.__all__ if not n.startswith("_")]
    return [n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__]


def documented():
    """Yield the import path of every public class, function and method that the package defines."""
    for module in modules():
        for name in public_names(module):
            member = getattr(module, name)
            if inspect.isclass(member) or inspect.isfunction(member):
                yield f"{module.__name__}.{name}"
            if inspect.isclass(member):
                yield from (f"{module.__name__}.{name}.{method}" for method in public_methods(member))


def public_methods(cls):
    """Return the names of the methods that users of a class call, written in this package."""
    if not (cls is VAETransformer or cls.__module__ == "skvae.displays"):
        return []
    return [
        name
        for name, member in inspect.getmembers(cls, inspect.isroutine)
        if not name.startswith("_") and getattr(member, "__module__", "").startswith("skvae")
    ]


DOCUMENTED = sorted(set(documented()))


def test_all_rooms_are_covered():
    assert {"skvae.VAETransformer", "skvae.VAETransformer.score", "skvae.load", "skvae.likelihoods.Gaussian"} <= set(DOCUMENTED)


@pytest.mark.parametrize("path", DOCUMENTED)
def test_docstring_is_numpydoc_and_agrees_with_the_signature(path):
    found = validate.validate(path)
    brief = "\nParameters\n" not in found["docstring"] and is_small(path)
    errors = [(code, text) for code, text in found["errors"] if code in CHECKS - (BRIEF if brief else set())]
    assert errors == []


def is_small(path):
    """Tell whether the object is a piece of the inside with typed arguments, whose summary may say it all."""
    return path.count(".") == 2 and not inspect.isclass(_get(path)) or not _parameters(path)


def _get(path):
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(_get(module), name)


def _parameters(path):
    member = _get(path)
    member = member.__init__ if inspect.isclass(member) else member
    return [p for p in inspect.signature(member).parameters if p not in ("self", "args", "kwargs")]


def class_docs():
    """Return the classes whose docstrings state defaults."""
    return [path for path in DOCUMENTED if inspect.isclass(_get(path)) and _parameters(path)]


@pytest.mark.parametrize("path", class_docs())
def test_defaults_in_the_docstring_are_those_of_the_constructor(path):
    cls = _get(path)
    signature = inspect.signature(cls.__init__).parameters
    stated = dict(re.findall(r"^    (\w+) : .*default=(.+)$", inspect.getdoc(cls).replace("\n", "\n    "), re.M))
    for name, text in stated.items():
        assert text == repr(signature[name].default).replace("'", '"'), name
    with_default = {n for n, p in signature.items() if p.default is not inspect.Parameter.empty}
    assert set(stated) == with_default


# --- examples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_the_page_run(page):
    plt = pytest.importorskip("matplotlib.pyplot")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    plt.close("all")
    assert result.failed == 0


def test_example_of_the_readme_prints_what_it_says():
    text = (ROOT / "README.md").read_text()
    program, output = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", text, re.S).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {})
    number = re.compile(r"-?\d+\.?\d*")
    assert number.sub("#", printed.getvalue()) == number.sub("#", output)
    got, said = (list(map(float, number.findall(part))) for part in (printed.getvalue(), output))
    assert got == pytest.approx(said, rel=0.1)  # rounding differs between machines, and training is long


def test_readme_names_what_exists():
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## What is there") : text.index("The documentation is in")]
    offered = {name for module in modules() for name in dir(module)} | set(dir(VAETransformer))
    parameters = {name for path in class_docs() for name in _parameters(path)}
    foreign = {"PCA", "FactorAnalysis", "GaussianMixture"}
    named = {re.split(r"[.(]", name)[-1] for name in re.findall(r"`([\w.]+)`", table)} - {"Module"}
    assert named - offered - parameters - foreign == set()


def test_figure_of_the_readme_is_small():
    figure = ROOT / "doc/images/overview.png"
    assert "doc/images/overview.png" in (ROOT / "README.md").read_text()
    assert figure.stat().st_size < 150_000
