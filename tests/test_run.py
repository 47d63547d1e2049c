"""Tests of run.py, the script that sets skvae up: offline, without installing anything."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]


def load_run():
    """Import run.py by its path; it reads its own environment variables when it is imported."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run():
    return load_run()


@pytest.fixture
def run_in(tmp_path, monkeypatch):
    """run.py with an environment folder of its own that only seems to hold an environment, ready for the tests."""
    monkeypatch.setenv("SKVAE_VENV", str(tmp_path))
    run = load_run()
    stamp = run.fingerprint("test", [ROOT / "pyproject.toml", run.CONSTRAINTS])
    (tmp_path / "skvae-stamp").write_text(stamp)
    return run


@pytest.fixture
def versions(tmp_path):
    """Two files like those that name the versions."""
    files = [tmp_path / "pyproject.toml", tmp_path / "constraints.txt"]
    for file in files:
        file.write_text(f"first {file.name}")
    return files


def test_fingerprint_stays_while_nothing_changes(run, versions):
    assert run.fingerprint("test", versions) == run.fingerprint("test", versions)


@pytest.mark.parametrize("which", [0, 1])
def test_fingerprint_changes_with_each_file(run, versions, which):
    before = run.fingerprint("test", versions)
    versions[which].write_text("second")
    assert run.fingerprint("test", versions) != before


def test_fingerprint_tells_extras_apart(run, versions):
    assert run.fingerprint("test", versions) != run.fingerprint("plot", versions)


@pytest.mark.parametrize("extra", ["test", "plot"])
def test_environment_ready_for_tests_is_left_alone(run_in, tmp_path, capfd, extra):
    run_in.set_up(extra)
    assert capfd.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["skvae-stamp"]


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 2), (4, 0, 0)])
def test_recent_python_is_accepted(run, version):
    assert run.too_old(version) is None


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 6, 0), (2, 7, 18)])
def test_old_python_gets_one_line_that_names_both_versions(run, version):
    message = run.too_old(version)
    assert "3.11 or newer" in message
    assert "this is {}.{}".format(*version) in message
    assert "\n" not in message


@pytest.mark.parametrize("absent", ["venv", "ensurepip"])
def test_python_without_venv_gets_one_line_that_says_what_to_install(run, absent):
    message = run.lacks_venv(lambda name: None if name == absent else "found")
    assert "apt install python3-venv" in message
    assert "\n" not in message


def test_complete_python_lacks_nothing(run):
    assert run.lacks_venv(lambda name: "found") is None


def test_torch_comes_from_the_named_index_without_a_gpu(run):
    assert run.torch_index({"TORCH_INDEX_URL": "file:///cpu"}, lambda: False) == ["--index-url", "file:///cpu"]


def test_torch_comes_from_the_usual_index_with_a_gpu(run):
    assert run.torch_index({"TORCH_INDEX_URL": "file:///cpu"}, lambda: True) == []


@pytest.mark.parametrize("environ", [{}, {"TORCH_INDEX_URL": ""}])
def test_torch_comes_from_the_usual_index_when_none_is_named(run, environ):
    assert run.torch_index(environ, lambda: False) == []


def test_absent_command_does_not_succeed(run):
    assert not run.succeeds("no-command-has-this-name")


@pytest.mark.parametrize("code", [0, 3])
def test_success_is_exit_code_zero(run, code):
    assert run.succeeds(sys.executable, "-c", f"raise SystemExit({code})") is (code == 0)


def test_failure_shows_the_end_of_the_output(run):
    program = "print(*range(100), sep='\\n'); raise SystemExit(1)"
    with pytest.raises(SystemExit) as stop:
        run.run_or_stop(sys.executable, "-c", program)
    lines = stop.value.code.splitlines()
    assert lines[24] == "99"
    assert lines[25].startswith("This failed: ")


def test_success_is_quiet(run, capfd):
    run.run_or_stop(sys.executable, "-c", "print('much')")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")
@pytest.mark.parametrize(
    "arguments, given",
    [
        (["test", "-k", "a b"], "-m,pytest,-n,2,--dist,worksteal,-k,a b,threads=1"),
        (["demo", "--rows", "9"], "-m,skvae,demo,--rows,9,threads="),
    ],
)
def test_arguments_variables_and_exit_code_pass_through(run_in, tmp_path, monkeypatch, capfd, arguments, given):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s," "$@"\necho "threads=$OMP_NUM_THREADS"\nexit 7\n')
    python.chmod(0o755)
    assert run_in.main(arguments) == 7
    assert capfd.readouterr().out == given + "\n"


@pytest.mark.parametrize("arguments, code", [([], 2), (["fly"], 2), (["--help"], 0)])
def test_usage_is_shown_without_a_known_command(arguments, code):
    done = subprocess.run([sys.executable, ROOT / "run.py", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "python3 run.py demo" in done.stdout


def declared_floors():
    """Pairs of name and lowest version that pyproject.toml declares, less torch's, which is not tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["plot"]]
    return [(r.name, next(iter(r.specifier)).version) for r in requirements if r.name != "torch"]


@pytest.mark.parametrize("name, floor", declared_floors())
def test_ci_tests_the_lowest_declared_version(name, floor):
    lines = (ROOT / ".ci/lowest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    (pin,) = [pin for pin in pins if pin.name == name]
    assert pin.specifier.contains(floor)
