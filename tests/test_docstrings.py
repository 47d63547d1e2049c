"""Tests of what is written: docstrings agree with signatures, and examples in the README and the documentation run."""

import ast
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
from skvae import VAETransformer, displays
from skvae._settings import REGISTRY

validate = pytest.importorskip("numpydoc.validate")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "doc/developer.rst", *sorted((ROOT / "doc/user_guide").glob("*.rst"))]

# What is checked: there is a docstring (GL08) with sections in order (GL07) and known (GL06), a summary (SS01) in one line
# (SS06) that ends in a full stop (SS03); parameters are those of the signature (PR01, PR02) in its order (PR03), with type
# (PR04), description (PR07) and a space around the colon (PR10); what is returned is described (RT01, RT03).
CHECKS = {
    "GL06", "GL07", "GL08", "SS01", "SS03", "SS06", "PR01", "PR02", "PR03", "PR04", "PR07", "PR10", "RT01", "RT03",
}  # fmt: skip


def public():
    """Return the import paths of what the API pages list, and of the methods that users call."""
    paths, module, listed = [], "", False
    for line in "\n".join(page.read_text() for page in sorted((ROOT / "doc/api").glob("*.rst"))).splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        listed = line.startswith(".. autosummary::") or listed and (not line or line.startswith(" "))
        if listed and (match := re.match(r"    ([\w.]+)$", line)):
            paths.append(f"{module}.{match[1]}")
    return paths + [f"{path}.{name}" for path in paths for name in methods(path)]


def methods(path):
    """Return the names of the methods of a class that users call and this package has written."""
    cls = get(path)
    if not (cls is VAETransformer or path.startswith("skvae.displays.")):
        return []
    members = inspect.getmembers(cls, inspect.isroutine)
    return [n for n, m in members if not n.startswith("_") and getattr(m, "__module__", "").startswith("skvae")]


def get(path):
    """Return the object at an import path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(get(module), name)


PUBLIC = public()
CLASSES = [path for path in PUBLIC if inspect.isclass(get(path)) and not issubclass(get(path), Exception)]


def test_api_pages_list_all_that_is_public():
    listed = {get(path) for path in PUBLIC}
    pieces = [piece for role, named in REGISTRY.items() if role != "columns" for piece in named.values()]  # which fit makes
    registered = {piece if inspect.isclass(piece) else type(piece) for piece in pieces}
    exported = {getattr(skvae, name) for name in skvae.__all__ if not name.startswith("_")}
    displayed = {getattr(displays, name) for name in displays.__all__ if name.endswith("Display")}
    assert (registered | exported | displayed) - listed == set()


@pytest.mark.parametrize("path", PUBLIC)
def test_docstring_is_numpydoc_and_agrees_with_the_signature(path):
    assert [(code, text) for code, text in validate.validate(path)["errors"] if code in CHECKS] == []


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(skvae.__path__, "skvae.")])
def test_public_functions_and_methods_of_every_module_have_a_docstring(name):
    module = importlib.import_module(name)
    members = [m for n, m in vars(module).items() if not n.startswith("_") and getattr(m, "__module__", "") == module.__name__]
    classes = [m for m in members if inspect.isclass(m)]
    inner = [m for cls in classes for n, m in vars(cls).items() if not n.startswith("_") and inspect.isfunction(m)]
    without = [m.__qualname__ for m in [*members, *inner] if callable(m) and not inspect.getdoc(m)]
    # A method that overrides one of a base class in this package has its docstring there.
    assert without == []


@pytest.mark.parametrize("path", CLASSES)
def test_defaults_in_the_docstring_are_those_of_the_constructor(path):
    signature = inspect.signature(get(path)).parameters
    stated = re.findall(r"^(\w+) : .*default=(.+)$", inspect.getdoc(get(path)), re.M)
    assert {name: ast.literal_eval(text) for name, text in stated} == {
        name: p.default for name, p in signature.items() if p.default is not inspect.Parameter.empty
    }


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
    objects = {path.rpartition(".")[2] for path in PUBLIC} | set(dir(VAETransformer))
    parameters = {name for path in [*CLASSES, "skvae.VAETransformer.fit"] for name in inspect.signature(get(path)).parameters}
    foreign = {"PCA", "FactorAnalysis", "GaussianMixture"}
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", table)}
    assert named - objects - parameters - foreign == set()


def test_figure_of_the_readme_is_small():
    figure = ROOT / "doc/images/overview.png"
    assert "doc/images/overview.png" in (ROOT / "README.md").read_text()
    assert figure.stat().st_size < 150_000
