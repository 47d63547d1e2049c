"""The command line: `python -m skvae demo`."""

import argparse
import sys

from skvae import __version__


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m skvae", description="Variational auto-encoders for scikit-learn.")
    top.add_argument("--version", action="version", version=f"skvae {__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="")
    demo = commands.add_parser("demo", help="train on bundled data, print what was learnt, draw figures")
    demo.add_argument("--output", default="skvae-demo", metavar="DIR", help="folder for the files (default: %(default)s)")
    demo.add_argument(
        "--max-iter", type=_positive, metavar="N", help="train for N epochs at most: a quick look, with worse numbers"
    )
    return top


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    given = parser().parse_args(arguments)
    if given.command is None:
        parser().print_help()
        return 0
    from skvae import _demo

    return _demo.run(given.output, given.max_iter)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
