"""`python -m aiocheckpoint`, and the script of that name."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line; exits."""
    try:
        _main()
    except KeyboardInterrupt:  # before or after the commands, which have their own
        sys.exit(130)


def _main() -> None:
    try:
        import click  # noqa: F401 - the one package that it needs and the library does not
    except ImportError:
        print(
            "aiocheckpoint: the command line needs click: pip install 'aiocheckpoint[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from .cli import cli

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale
    cli(prog_name="aiocheckpoint")


if __name__ == "__main__":
    main()
