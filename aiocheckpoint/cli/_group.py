"""What all commands have in common: options, a loop, a store, exit codes."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import click

from .._errors import CheckpointError, SealedError, StoreError
from .._keyring import Keyring
from .._sealed import SealedStore
from ..abc import Store
from ..stores import local_path, open_store
from ._progress import Progress
from ._text import duration, printable

FINE, FAILED, USAGE, STORE = 0, 1, 2, 3
INTERRUPTED, PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE
_CLOSING = 5.0  # seconds for a store to close

EPILOG = """\b
Exit codes:
  0    fine
  1    damage was found, a key is missing, or some keys failed
  2    wrong usage, or nobody was there to be asked (--yes)
  3    the store is not there, does not answer, refuses, or is encrypted (--keys)
  130  interrupted (Ctrl-C)
  141  whoever read the output went away

A STORE is a URL (sqlite:jobs.db, file:checkpoints, ...) or a path."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.version_option(package_name="aiocheckpoint", prog_name="aiocheckpoint")
def cli() -> None:
    """Look at checkpoints in a store, check, copy and remove them."""


KEYS: dict[str, Any] = {"metavar": "FILE", "type": click.Path(exists=True, dir_okay=False)}
"""An option that names a file of keys."""


class Context:
    """How a command was asked to speak."""

    def __init__(self, *, as_json: bool, quiet: bool, keys: str | None) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.keys = keys
        """The file of the keyring that the store is encrypted with, if it is."""
        self._progress: Progress | None = None

    def progress(self, what: str) -> Progress:
        """Tell of it what is done, and others make way for their lines."""
        self._progress = Progress(what, quiet=self.quiet)
        return self._progress

    def clear(self) -> None:
        """Take the line of the progress away."""
        if self._progress is not None:
            self._progress.clear()

    def line(self, text: str = "") -> None:
        """For people: a line of the answer. Escaped already, where it must be."""
        if not self.as_json:
            self.clear()
            sys.stdout.write(text + "\n")

    def item(self, kind: str, **values: object) -> None:
        """For machines: one line of JSON. All non-ASCII is escaped."""
        if self.as_json:
            self.clear()
            sys.stdout.write(json.dumps({"type": kind, **values}, allow_nan=False) + "\n")

    def note(self, text: str) -> None:
        """On stderr, for people, unless they want quiet."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """On stderr, in any case."""
        self.clear()
        click.echo(text, err=True)


def seconds(_: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """The callback of an option that is a duration."""
    try:
        return None if value is None else duration(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param=param) from exc


Body = Callable[..., Coroutine[Any, Any, int]]


def command(name: str) -> Callable[[Body], click.Command]:
    """Make a command of a coroutine function that returns its exit code."""

    def make(body: Body) -> click.Command:
        @click.command(name, epilog=EPILOG)
        @functools.wraps(body)
        def run(*args: Any, as_json: bool, quiet: bool, debug: bool, **kwargs: Any) -> None:
            logging.getLogger("aiocheckpoint").addHandler(logging.NullHandler())
            context = Context(as_json=as_json, quiet=quiet, keys=kwargs.pop("keyring"))
            raise click.exceptions.Exit(
                _code(context, lambda: asyncio.run(body(context, *args, **kwargs)), debug)
            )

        run.params += [
            click.Option(["--keys", "keyring"], **KEYS, help="The keyring of an encrypted STORE."),
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON object a line."),
            click.Option(["-q", "--quiet"], is_flag=True, help="Only results and errors."),
            click.Option(["--debug"], is_flag=True, help="Show a traceback with an error."),
        ]
        return run

    return make


def _code(context: Context, work: Callable[[], int], debug: bool) -> int:
    """Do the work; its exit code, with an error told in a line."""
    try:
        try:
            code = work()
        finally:
            context.clear()
            sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.ClickException:
        raise
    except Exception as exc:
        if isinstance(exc, OSError):
            _drop_output()
        if isinstance(exc, BrokenPipeError):
            return PIPE
        if debug:
            traceback.print_exc()
        code, text = _told(exc)
        click.echo(f"aiocheckpoint: {printable(text)}", err=True)
    return code


def _drop_output() -> None:
    """Nobody takes it: the interpreter must not try, and complain, at its end."""
    with suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def _told(exc: Exception) -> tuple[int, str]:
    """Exit code and line of an error. What a driver says may hold a secret: it is not told."""
    if isinstance(exc, SealedError):
        return STORE, "the store is encrypted: give the file of its keyring (--keys FILE)"
    if isinstance(exc, (StoreError, _MissingError)):
        return STORE, str(exc)
    if isinstance(exc, CheckpointError):
        return FAILED, str(exc)
    if isinstance(exc, (ValueError, ImportError)):
        return USAGE, str(exc)
    if isinstance(exc, PermissionError) and exc.errno is None:  # of a keyring's file
        return USAGE, str(exc)
    if isinstance(exc, OSError):
        where = f": {exc.filename}" if exc.filename else ""
        return FAILED, f"{exc.strerror or type(exc).__name__}{where}"
    return (
        FAILED,
        f"unexpected {type(exc).__name__} (--debug shows it; mind that it may hold a password)",
    )


class _MissingError(Exception):
    """There is no such store, and none is to be made."""


@asynccontextmanager
async def opened(location: str, keys: str | None, *, make: bool = False) -> AsyncIterator[Store]:
    """The one place where a command gets its store. `make` says that a new one may be made; `keys`
    is the file of the keyring that it is encrypted with.

    Raises:
        ValueError: there is no such kind of store, or the file is none of keys.
        StoreError: it cannot be there.
    """
    keyring = None if keys is None else Keyring.load(keys)
    store = _store(location, make)
    if keyring is not None:
        store = SealedStore(store, keyring)
    try:
        yield store
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await store.aclose()


def named(location: str) -> str | Path:
    """What a STORE on the command line names: a URL, or a path."""
    return location if ":" in location else Path(location)


def _store(location: str, make: bool) -> Store:
    url = named(location)
    path = local_path(url)
    if path is not None and not make and not path.exists():
        raise _MissingError(f"there is no store: {path}")
    return open_store(url)


def confirm(question: str, yes: bool) -> bool:
    """Whether to go on: `yes`, or what the person says.

    Raises:
        click.UsageError: there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to be asked: pass --yes")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the loop's would wait
    try:
        return click.confirm(question, err=True)
    finally:
        signal.signal(signal.SIGINT, before)
