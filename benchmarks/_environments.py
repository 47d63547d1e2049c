"""The interpreters of the competitors: skvae has the one that is running, the peers an environment made on first use."""

import subprocess
import sys
import venv
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


def interpreter(environment: str) -> str:
    """Return the path of the interpreter of an environment, "own" or "peers", which is made if it is not there."""
    if environment == "own":
        return sys.executable
    python = _FOLDER / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = _FOLDER / "complete.txt"
    wanted = "\n".join((TORCH, *PEERS))
    if not complete.is_file() or complete.read_text(encoding="utf-8") != wanted:
        _make(python)
        complete.write_text(wanted, encoding="utf-8")
    return str(python)


def _make(python: Path) -> None:
    """Create the environment of the peers: torch first, so that no other version of it is ever considered."""
    print(f"making the environment of the peers in {_FOLDER.name} (once, some minutes)", file=sys.stderr)
    venv.create(_FOLDER, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([*install, TORCH], check=True)
        subprocess.run([*install, TORCH, *PEERS], check=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"the environment of the peers could not be made (pip ended with {error.returncode})") from error
