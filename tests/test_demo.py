"""Tests of the command line and of the demo, cut short; the slow one runs it in full."""

import struct
import subprocess
import sys

import numpy as np
import pytest

import skvae
from skvae.__main__ import main
from skvae._demo import independent_score, table

pytest.importorskip("matplotlib")

FIGURES = ["latent_space.png", "reconstructions.png", "samples.png", "training_curve.png"]


def call(*arguments):
    """Run `python -m skvae` with the arguments."""
    return subprocess.run([sys.executable, "-m", "skvae", *arguments], capture_output=True, text=True, check=False)


def check_folder(folder):
    """Check that the demo's files are there and can be read."""
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FIGURES, "digits.skvae"])
    for name in FIGURES:
        head = (folder / name).read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", head[16:24])) > 200
    assert skvae.load(folder / "digits.skvae").n_features_in_ == 64


def test_short_demo_prints_tables_writes_files_and_nothing_to_stderr(tmp_path):
    done = call("demo", "--max-iter", "2", "--output", str(tmp_path / "out put"))
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("FactorAnalysis", "GaussianMixture", "LogisticRegression", "independent pixels", "bit for bit", str(tmp_path)):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 140
    check_folder(tmp_path / "out put")


@pytest.mark.slow
def test_full_demo_learns_more_than_the_linear_models(tmp_path):
    done = call("demo", "--output", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    scores = {row[0]: float(row[2]) for row in rows if len(row) == 5 and row[4] == "s"}
    assert len(scores) == 4
    assert scores["VAETransformer"] > max(scores["FactorAnalysis"], scores["PCA"])
    check_folder(tmp_path)


def test_without_arguments_help_is_printed(capsys):
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_version_is_the_package_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"skvae {skvae.__version__}\n"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["fly"], "argument COMMAND: invalid choice: 'fly'"),
        (["demo", "--max-iter", "0"], "--max-iter: must be a whole number of at least 1, got '0'"),
        (["demo", "--max-iter", "many"], "--max-iter: must be a whole number of at least 1, got 'many'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "usage: python -m skvae" in err and said in err


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_folder_that_cannot_be_made_is_told_in_one_line(inside, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--output", str(tmp_path / "file" / inside)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "cannot write to the folder" in err and "--output" in err


def test_help_does_not_wait_for_the_demo_to_be_imported():
    program = "import sys; from skvae.__main__ import main; main([]); assert 'skvae._demo' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_table_is_aligned(capsys):
    table(("model", "score"), [("a", "-1.00"), ("longer", "10.00")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  model    score", "  ------   -----", "  a        -1.00", "  longer   10.00"]


def test_independent_pixels_score_is_the_entropy_of_fair_pixels():
    images = np.array([[0.0, 16.0], [16.0, 0.0]])
    assert independent_score(images, images) == pytest.approx(2 * np.log(0.5))
