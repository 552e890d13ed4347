"""`rm` and `gc`: commands that remove, and ask before."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import click

from .._abreast import abreast, patiently
from .._calls import bounded
from .._collecting import Finished, Leftovers, finished, leftovers
from .._deleting import delete_with_spool
from .._errors import ConflictError
from .._keys import check_key
from .._looking import Look, look_at, see_head
from ..abc import Store
from ._group import FAILED, FINE, Context, command, confirm, opened
from ._text import age_text, counted, duration, printable, when

_TRIES = 10
_AT_ONCE = 8


def _seconds(_: click.Context, param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else duration(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param=param) from exc


def _statuses(_: click.Context, param: click.Parameter, value: str) -> frozenset[str]:
    chosen = frozenset(value.split(","))
    if not chosen <= {"done", "failed"}:
        raise click.BadParameter("it is done, failed, or done,failed", param=param)
    return chosen


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
            context.warn(f"{running:,} of {counted(len(chosen), 'key')} may be at work (running)")
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


@command("gc")
@click.argument("store", metavar="STORE")
@click.option("--prefix", default="", help="Only the keys that start so.")
@click.option(
    "--older-than",
    metavar="DURATION",
    callback=_seconds,
    help="Also remove finished keys not written to for so long (30d, 12h, 90m). Else none is.",
)
@click.option(
    "--status",
    "statuses",
    default="done",
    show_default=True,
    callback=_statuses,
    help="Which finished keys: done, failed, or done,failed.",
)
@click.option(
    "--grace",
    metavar="DURATION",
    callback=_seconds,
    default="1d",
    show_default=True,
    help="Left-over files of a finished key go once it was not written to for so long.",
)
@click.option("-n", "--dry-run", is_flag=True, help="List what would go, and remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
async def gc(
    context: Context,
    store: str,
    prefix: str,
    older_than: float | None,
    statuses: frozenset[str],
    grace: float,
    dry_run: bool,
    yes: bool,
) -> int:
    """Remove finished keys that are old, and blobs that nothing can name any more.

    Programs may go on writing. What a running key may yet need stays; what remains of it goes when
    it is opened next. A blob of which we cannot tell stays, too.
    """
    now = time.time()
    keys: list[Finished] = []
    blobs: list[Leftovers] = []
    doubtful = 0
    code = FINE
    async with opened(store) as opening:
        progress = context.progress("looking")
        looks = abreast(opening.keys(prefix), partial(_look, opening), _AT_ONCE)
        async with aclosing(looks):
            async for look in looks:
                progress.key()
                if look is None:
                    continue
                if look.head.fault is not None:
                    code = FAILED
                    context.warn(f"aiocheckpoint: {printable(look.head.fault)}; it is left alone")
                old = None if older_than is None else finished(look, statuses, now - older_than)
                if old is not None:
                    keys.append(old)
                    continue
                left = leftovers(look, now - grace)
                doubtful += len(left.doubtful)
                if left.removable:
                    blobs.append(left)
        keys.sort()
        blobs.sort()
        _list(context, keys, blobs, dry_run)
        count = sum(len(left.removable) for left in blobs)
        what = f"{counted(len(keys), 'finished key')} and {counted(count, 'left-over blob')}"
        if doubtful:
            context.note(f"{counted(doubtful, 'blob')} that nothing names may yet be needed: left")
        if dry_run or not (keys or blobs):
            context.item("summary", keys=len(keys), blobs=count, left=doubtful, removed=False)
            context.line(f"would remove {what}" if dry_run else "nothing to remove")
            return code
        if not confirm(f"Remove {what} from {printable(opening.identity)}?", yes):
            context.note("nothing was removed")
            return FAILED
        progress = context.progress("removing")
        removed = 0
        for old in keys:
            progress.key()
            removed += await _collect(context, opening, old)
        for left in blobs:
            progress.key()
            delete = opening.delete_blobs(left.key, left.removable)
            await bounded(delete, "delete_blobs", left.key)
        context.item("summary", keys=removed, blobs=count, left=doubtful, removed=True)
        if not context.quiet:
            what = f"{counted(removed, 'finished key')} and {counted(count, 'left-over blob')}"
            context.line(f"removed {what}")
    return code


async def _look(store: Store, key: str) -> Look | None:
    return await patiently(lambda: look_at(store, key))


async def _collect(context: Context, store: Store, old: Finished) -> bool:
    """Remove a finished key, if it is still as it was."""
    try:
        await delete_with_spool(store, old.key, old.version, store.spool_dir)
    except ConflictError:
        context.note(f"{printable(repr(old.key))} was written to meanwhile: left")
        return False
    return True


def _list(context: Context, keys: list[Finished], blobs: list[Leftovers], for_people: bool) -> None:
    for old in keys:
        context.item("key", key=old.key, status=old.status, created=when(old.created))
        if for_people:
            context.line(f"{old.status}  {age_text(old.created)}  {printable(old.key)}")
    for left in blobs:
        context.item("blobs", key=left.key, names=left.removable)
        if for_people:
            for name in left.removable:
                context.line(f"blob  {printable(left.key)}: {printable(name)}")


COMMANDS: list[click.Command] = [rm, gc]
