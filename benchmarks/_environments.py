"""The interpreters of the competitors: that of skvae, also for what needs only torch, and one made for the packages."""

import subprocess
import sys
import venv
from functools import cache
from pathlib import Path

TORCH = "torch==2.13.0"  # installed first and pinned ever after: a peer's own wish would bring another build
PEERS = (
    "pythae==0.1.2",
    "pyod==3.6.7",
    "tqdm",  # which pyod imports and does not ask for
    "ctgan==0.12.1",
    "skorch==1.4.0",
    "jax==0.10.2",
    "jaxlib==0.10.2",
)
_FOLDER = Path(__file__).with_name(".venv-peers")


class Unavailable(RuntimeError):
    """A competitor cannot run here; the message says why."""


@cache
def problem(python: Path, complete: Path, wanted: str) -> str:
    """Make the environment of the peers unless it is complete; return why that failed, "" if it did not. Tried once."""
    if complete.is_file() and complete.read_text(encoding="utf-8") == wanted:
        return ""
    print(f"making the environment of the peers in {_FOLDER.name} (once, some minutes)", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        venv.create(_FOLDER, with_pip=True)
        subprocess.run([*install, TORCH], check=True)  # first, so that no other version of it is ever considered
        subprocess.run([*install, TORCH, *PEERS], check=True)
    except subprocess.CalledProcessError as error:
        return f"the environment of the peers could not be made: pip ended with {error.returncode}"
    except OSError as error:
        return f"the environment of the peers could not be made: {error.strerror}"
    complete.write_text(wanted, encoding="utf-8")
    return ""


def interpreter(environment: str) -> str:
    """Return the path of the interpreter of an environment, "own" or "peers", which is made if it is not there."""
    if environment == "own":
        return sys.executable
    python = _FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if reason := problem(python, _FOLDER / "complete.txt", "\n".join((TORCH, *PEERS))):
        raise Unavailable(reason)
    return str(python)
