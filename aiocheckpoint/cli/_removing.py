"""`rm` and `gc`: commands that remove, and ask before."""

from __future__ import annotations

from collections.abc import AsyncIterator

import click

from .._calls import bounded
from .._deleting import delete_with_spool
from .._errors import ConflictError
from .._keys import check_key
from .._looking import see_head
from ..abc import Store
from ._group import FAILED, FINE, Context, command, confirm, opened
from ._text import counted, printable

_TRIES = 10


@command("rm")
@click.argument("store", metavar="STORE")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--prefix", is_flag=True, help="Each KEY is a prefix: remove all that start so.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
async def rm(context: Context, store: str, keys: tuple[str, ...], prefix: bool, yes: bool) -> int:
    """Remove keys, with their states, files and generations.

    A program that has one open is fenced: it cannot write to it any more.
    """
    if not prefix:
        for key in keys:
            check_key(key)
    code = FINE
    async with opened(store) as opening:
        chosen: list[str] = []
        running = 0
        async for key in _chosen(opening, keys, prefix):
            seen = await see_head(opening, key)
            if seen is None:
                context.warn(f"aiocheckpoint: there is no key {printable(repr(key))}")
                context.item("key", key=key, outcome="absent")
                code = FAILED
                continue
            chosen.append(key)
            running += seen.record is not None and seen.record.status == "running"
        if not chosen:
            if prefix:
                context.note("no key starts so")
            return code
        if running and not yes:
            context.warn(f"{counted(running, 'key')} of them may be at work (status: running)")
        what = printable(repr(chosen[0])) if len(chosen) == 1 else counted(len(chosen), "key")
        if not confirm(f"Remove {what} from {printable(opening.identity)}?", yes):
            context.note("nothing was removed")
            return FAILED
        removed = 0
        for key in chosen:
            outcome = await _remove(opening, key)
            context.item("key", key=key, outcome=outcome)
            if outcome == "removed":
                removed += 1
            elif outcome == "changing":
                code = FAILED
                context.warn(
                    f"aiocheckpoint: {printable(repr(key))} changes too fast to be removed: stop"
                    " the program that writes to it"
                )
        if not context.quiet:
            context.line(f"removed {counted(removed, 'key')}")
    return code


async def _chosen(store: Store, keys: tuple[str, ...], prefix: bool) -> AsyncIterator[str]:
    told = set[str]()
    for key in keys:
        if not prefix:
            if key not in told:
                told.add(key)
                yield key
            continue
        async for one in store.keys(key):
            if one not in told:
                told.add(one)
                yield one


async def _remove(store: Store, key: str) -> str:
    """Remove a key as it is now; what came of it."""
    for _ in range(_TRIES):
        head = await bounded(store.load(key), "load", key)
        if head is None:
            return "absent"
        try:
            await delete_with_spool(store, key, head.version, store.spool_dir)
        except ConflictError:
            continue
        return "removed"
    return "changing"


COMMANDS: list[click.Command] = [rm]
