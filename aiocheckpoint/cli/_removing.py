"""`rm` and `gc`: commands that remove, and ask before."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import click

from .._collecting import Plan, carry_out, plan
from .._deleting import delete_now
from .._errors import ConflictError, SealedError
from .._keys import check_key
from .._looking import see_head
from ..abc import Store
from ._group import FAILED, FINE, Context, command, confirm, opened, seconds
from ._text import age_text, counted, printable, when


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
    async with opened(store, context.keys) as opening:
        chosen: list[str] = []
        running = 0
        async for key in _chosen(opening, keys, prefix):
            try:
                seen = await see_head(opening, key)
            except SealedError:
                chosen.append(key)  # it may be at work; removing it needs no keys
                running += 1
                continue
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
        removed, spool = 0, opening.spool_dir
        for key in chosen:
            try:
                outcome = "removed" if await delete_now(opening, key, spool) else "absent"
            except ConflictError:
                outcome, code = "changing", FAILED
                context.warn(
                    f"aiocheckpoint: {printable(repr(key))} changes too fast to be removed: stop"
                    " the program that writes to it"
                )
            context.item("key", key=key, outcome=outcome)
            removed += outcome == "removed"
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


@command("gc")
@click.argument("store", metavar="STORE")
@click.option("--prefix", default="", help="Only the keys that start so.")
@click.option(
    "--older-than",
    metavar="DURATION",
    callback=seconds,
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
    callback=seconds,
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
    async with opened(store, context.keys) as opening:
        planned = await plan(
            opening,
            prefix,
            statuses,
            old=None if older_than is None else now - older_than,
            at_rest=now - grace,
            tick=context.progress("looking").key,
        )
        for fault in planned.damaged:
            context.warn(f"aiocheckpoint: {printable(fault)}; it is left alone")
        code = FAILED if planned.damaged else FINE
        _list(context, planned, dry_run)
        counts = {"blobs": planned.blob_count, "left": planned.doubtful}
        if dry_run or not (planned.keys or planned.blobs):
            context.item("summary", keys=len(planned.keys), **counts, removed=False)
            if dry_run:
                context.line(f"would remove {_what(len(planned.keys), planned)}")
            else:
                context.note("nothing to remove")
            return code
        what = _what(len(planned.keys), planned)
        if not confirm(f"Remove {what} from {printable(opening.identity)}?", yes):
            context.note("nothing was removed")
            return FAILED
        stay = await carry_out(opening, planned, context.progress("removing").key)
        for key in stay:
            context.note(f"{printable(repr(key))} was written to meanwhile: it stays")
        removed = len(planned.keys) - len(stay)
        context.item("summary", keys=removed, **counts, removed=True)
        if not context.quiet:
            context.line(f"removed {_what(removed, planned)}")
    return code


def _what(keys: int, planned: Plan) -> str:
    return f"{counted(keys, 'finished key')} and {counted(planned.blob_count, 'left-over blob')}"


def _list(context: Context, planned: Plan, for_people: bool) -> None:
    for old in planned.keys:
        context.item("key", key=old.key, status=old.status, created=when(old.created))
        if for_people:
            context.line(f"{old.status}  {age_text(old.created)}  {printable(old.key)}")
    for left in planned.blobs:
        context.item("blobs", key=left.key, names=left.removable)
        for name in left.removable if for_people else ():
            context.line(f"blob  {printable(left.key)}: {printable(name)}")
    if planned.doubtful:
        blobs = counted(planned.doubtful, "blob")
        context.note(f"{blobs} that nothing names may yet be needed: left")


COMMANDS: list[click.Command] = [rm, gc]
