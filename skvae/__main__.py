"""The command line: `python -m skvae demo`."""

import argparse
import sys

from skvae import __version__


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m skvae", description="Variational auto-encoders for scikit-learn.")
    top.add_argument("--version", action="version", version=f"skvae {__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    demo = commands.add_parser("demo", help="train on bundled data, print what was learnt, draw figures")
    demo.add_argument("--output", default="skvae-demo", metavar="DIR", help="folder for the files (default: %(default)s)")
    demo.add_argument(
        "--max-iter", type=_positive, metavar="N", help="train for N epochs at most: a quick look, with worse numbers"
    )
    return top


def _positive(text: str) -> int:
    """Return the positive whole number that a text says."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    given = parser().parse_args(arguments)
    if given.command is None:
        parser().print_help()
        return 0
    from skvae import _demo

    try:
        _demo.check_folder(given.output)
    except OSError as error:
        cause = f"cannot write to the folder {given.output!r} ({error.strerror})"
        print(f"python -m skvae demo: error: {cause}; choose another with --output", file=sys.stderr)
        return 1
    return _demo.run(given.output, given.max_iter)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
