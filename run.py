#!/usr/bin/env python3
"""Set skvae up in a .venv of its own, next to this file, and run it there. It needs Python 3.11 or newer, no more.

    python3 run.py demo [options]    train on bundled data, print what was learnt, draw figures
    python3 run.py test [options]    run the tests; options go to pytest: python3 run.py test -k imputer

The first run installs what is needed; later ones start at once, until pyproject.toml or constraints.txt changes.

torch comes from a wheel that pip finds on this machine; else, where no NVIDIA GPU works, from the index that the
variable TORCH_INDEX_URL names (PyTorch's CPU index saves gigabytes of CUDA libraries); else from pip's usual index.
"""

import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent
VENV = ROOT / (os.environ.get("SKVAE_VENV") or ".venv")  # both can be set, to test other versions side by side
CONSTRAINTS = ROOT / (os.environ.get("SKVAE_CONSTRAINTS") or "constraints.txt")
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# What each command installs, what it runs, and the variables it sets unless they are set.
# Two test processes with one thread each; scipy reads its variable when it is imported.
COMMANDS = {
    "demo": ("plot", ["-m", "skvae", "demo"], {}),
    "test": (
        "test",
        ["-m", "pytest", "-n", "2", "--dist", "worksteal"],
        {"OMP_NUM_THREADS": "1", "SCIPY_ARRAY_API": "1"},
    ),
}


def main(arguments):
    """Run one of the commands and return its exit code."""
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    stop_if(too_old(sys.version_info))
    extra, program, variables = COMMANDS[arguments[0]]
    set_up(extra)
    command = [str(PYTHON)] + program + arguments[1:]
    return subprocess.call(command, cwd=str(ROOT), env=dict(variables, **os.environ))


def set_up(extra):
    """Bring the environment to what `extra` needs; return at once where a stamp says that this was done."""
    stamp = VENV / "skvae-stamp"
    files = [ROOT / "pyproject.toml", CONSTRAINTS]
    if stamp.exists() and stamp.read_text() in (fingerprint(extra, files), fingerprint("test", files)):
        return  # "test" includes what every other extra brings
    stamp.unlink(missing_ok=True)
    make_environment()
    install_torch()
    say(f"Installing skvae[{extra}]")
    run_or_stop(*pip_install("-e", f".[{extra}]"))
    stamp.write_text(fingerprint(extra, files))


def make_environment():
    """Make the virtual environment, unless there is one with pip and this version of Python."""
    version = sys.version_info[:2]
    if succeeds(PYTHON, "-c", f"import pip, sys; sys.exit(sys.version_info[:2] != {version})"):
        return
    stop_if(lacks_venv(importlib.util.find_spec))
    say("Making {} with Python {}.{}".format(VENV.name, *version))
    clear = ["--clear"] if (VENV / "pyvenv.cfg").exists() else []
    run_or_stop(sys.executable, "-m", "venv", *clear, VENV)


def install_torch():
    """Install torch first, alone, so that its source can be chosen; a torch that is there and fits is kept."""
    say("Installing torch")
    if not succeeds(*pip_install("--no-index", "--no-deps", "torch")):
        say("Downloading torch, as there is no wheel of it at hand; this can take minutes")
        index = torch_index(os.environ, lambda: succeeds("nvidia-smi"))
        run_or_stop(*pip_install("--no-deps", *index, "torch"))


def torch_index(environ, gpu_works):
    """Return pip's options for where torch is downloaded from."""
    url = environ.get("TORCH_INDEX_URL")
    return ["--index-url", url] if url and not gpu_works() else []


def too_old(version):
    """Return what to tell a user whose Python is too old, else None."""
    if tuple(version[:2]) >= (3, 11):
        return None
    return "skvae needs Python 3.11 or newer, this is {}.{}; a newer one may be there as python3.13".format(*version)


def lacks_venv(find_spec):
    """Return what to tell a user whose Python came without venv or ensurepip, else None."""
    if find_spec("venv") and find_spec("ensurepip"):
        return None
    return "This Python cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv"


def fingerprint(extra, files):
    """Hash what an installation depends on: the extra, Python, the place and the files that name the versions."""
    parts = [repr((extra, sys.version_info[:2], str(ROOT))).encode()] + [file.read_bytes() for file in files]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def pip_install(*arguments):
    """Return the command that installs into the environment, within the constraints."""
    return [PYTHON, "-m", "pip", "install", "--no-input", "-c", CONSTRAINTS, *arguments]


def run_or_stop(*command):
    """Run a command quietly; if it fails, leave with the end of its output."""
    pipe = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=ROOT, errors="replace", **pipe)
    if done.returncode:
        stop_if("\n".join([*done.stdout.splitlines()[-25:], "This failed: " + " ".join(map(str, command))]))


def succeeds(*command):
    """Tell whether a command exists and exits with 0."""
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def stop_if(message):
    """Leave with exit code 1 if there is a message to print."""
    if message:
        sys.exit(message)


def say(stage):
    """Print one line for a stage, at once."""
    print(f"skvae: {stage}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
