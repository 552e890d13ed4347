"""`ls`, `show`, `history`: commands that read and change nothing."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from typing import Any

import click

from .._files import read_manifest
from .._heads import Found, read_head
from .._keys import check_key
from .._looking import Generation, Seen, look_at, see_head
from .._records import Record
from .._trees import Entry
from ..abc import Store
from ._group import FAILED, FINE, Context, command, opened
from ._payload import decoded, shown
from ._text import age_text, printable, size_text, table, when

_PAGE = 64
_SHOWN = 2000


def _facts(key: str, seen: Seen) -> dict[str, object]:
    """What every command says of a record in JSON."""
    record = seen.record
    if record is None:
        status = "later" if seen.later else "damaged"
        return {"key": key, "status": status, "fault": seen.fault}
    return {
        "key": key,
        "status": record.status,
        "seq": record.seq,
        "epoch": record.epoch,
        "attempt": record.attempt,
        "codec": record.codec,
        "size": seen.size,
        "files": 0 if record.files is None else record.files.count,
        "files_size": 0 if record.files is None else record.files.size,
        "created": when(record.created),
        "claim": record.claim.hex(),
    }


def _status(seen: Seen) -> str:
    if seen.record is not None:
        return seen.record.status
    return "later" if seen.later else "damaged"


def _columns(seen: Seen) -> list[str]:
    record = seen.record
    if record is None:
        return [_status(seen), "", "", "", "", "", ""]
    files = "-" if record.files is None else size_text(record.files.size)
    numbers = [str(record.seq), str(record.epoch), str(record.attempt)]
    return [record.status, *numbers, size_text(seen.size), files, age_text(record.created)]


_HEADS = ["status", "seq", "epoch", "attempt", "size", "files", "age"]
_SIDES = "<>>>>>>"


@command("ls")
@click.argument("store", metavar="STORE")
@click.argument("prefix", default="")
@click.option(
    "--status",
    type=click.Choice(["running", "done", "failed", "damaged", "later"]),
    help="Only these. `later`: written by a later version.",
)
@click.option("-l", "--long", is_flag=True, help="Status, numbers, sizes and age too.")
async def ls(context: Context, store: str, prefix: str, status: str | None, long: bool) -> int:
    """List the keys that start with PREFIX, sorted.

    With --long or --status every record is read. One that is damaged is listed as such. The
    sizes are the state's and that of its files.
    """
    code, told = FINE, False
    async with opened(store, context.keys) as opening:
        if not long and status is None:
            async for key in opening.keys(prefix):
                context.line(printable(key))
                context.item("key", key=key)
            return FINE
        async for page in _pages(opening.keys(prefix)):
            rows = []
            for key, seen in zip(
                page, await asyncio.gather(*(see_head(opening, key) for key in page)), strict=True
            ):
                if seen is None or (status is not None and _status(seen) != status):
                    continue
                if seen.record is None:
                    code = FAILED
                    context.warn(f"aiocheckpoint: {printable(seen.fault or '')}")
                context.item("key", **_facts(key, seen))
                rows.append([*_columns(seen), printable(key)] if long else [printable(key)])
            if rows and long:
                head = [] if told else [[*_HEADS, "key"]]
                told = True
                rows = [[cell.rjust(9) for cell in row[:-1]] + row[-1:] for row in head + rows]
            for line in table(rows, _SIDES + "<" if long else "<") if rows else []:
                context.line(line)
    return code


async def _pages(keys: AsyncIterator[str]) -> AsyncIterator[list[str]]:
    page: list[str] = []
    async for key in keys:
        page.append(key)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


@command("show")
@click.argument("store", metavar="STORE")
@click.argument("key")
@click.option("--payload", is_flag=True, help="All of the state, not only its beginning.")
@click.option("--raw", is_flag=True, help="Only the state's bytes, as they are stored.")
@click.option("--files", is_flag=True, help="Also the list of its files.")
async def show(
    context: Context, store: str, key: str, payload: bool, raw: bool, files: bool
) -> int:
    """Show what is known of a KEY, and its state.

    It is the newest good record: if the newest is damaged, the one before it that was kept. A
    state of bytes is shown as text or in hexadecimal, one of MessagePack as JSON; any other (a
    pickle runs code when it is read) with --raw only.
    """
    check_key(key)
    if raw and (context.as_json or payload or files):
        raise click.UsageError("--raw gives the bytes alone: leave the other options out")
    if raw and sys.stdout.isatty():
        raise click.UsageError("--raw gives bytes that a terminal may obey: redirect them")
    async with opened(store, context.keys) as opening:
        look = await look_at(opening, key)
        if look is None:
            context.warn(f"aiocheckpoint: there is no key {printable(repr(key))}")
            return FAILED
        found = await read_head(opening, key, files=False)
        if found is None:
            context.warn(f"aiocheckpoint: {printable(repr(key))} was just deleted")
            return FAILED
        stands_in = found.version == look.version and found.record != look.head.record
        if stands_in:
            context.warn(
                f"aiocheckpoint: the newest record of {printable(repr(key))} is damaged; this is"
                f" seq {found.record.seq}, which was kept"
            )
        if raw:
            sys.stdout.flush()
            sys.stdout.buffer.write(found.data)
            sys.stdout.buffer.flush()
            return FINE
        entries = await _entries(opening, key, found.record) if files else None
        kept = len(look.generations)
        _show_json(context, found, stands_in, kept, payload, entries)
        _show_text(context, found, stands_in, kept, payload, entries)
    return FAILED if stands_in else FINE


async def _entries(store: Store, key: str, record: Record) -> tuple[Entry, ...]:
    if record.files is None:
        return ()
    return (await read_manifest(store, key, record.files)).entries


def _show_json(
    context: Context,
    found: Found,
    stands_in: bool,
    kept: int,
    payload: bool,
    entries: tuple[Entry, ...] | None,
) -> None:
    record = found.record
    facts = _facts(record.key, Seen(record, len(found.data), None))
    facts |= {
        "commit": record.commit,
        "burnt": record.burnt,
        "run": record.run.hex(),
        "stands_in": stands_in,
        "generations": kept,
        "result": None,
    }
    if record.result is not None:
        facts["result"] = decoded(record.result, record.result_codec)[1]
    if payload:
        facts["payload"] = decoded(found.data, record.codec)[1] if record.codec else None
        facts["payload_base64"] = base64.b64encode(found.data).decode()
    if entries is not None:
        facts["entries"] = [_entry_json(entry) for entry in entries]
    context.item("checkpoint", **facts)


def _show_text(
    context: Context,
    found: Found,
    stands_in: bool,
    kept: int,
    payload: bool,
    entries: tuple[Entry, ...] | None,
) -> None:
    if context.as_json:
        return
    record = found.record
    rows = [
        ("key", printable(record.key)),
        ("status", record.status + (" (an earlier record stands in)" if stands_in else "")),
        ("seq", str(record.seq)),
        ("epoch", f"{record.epoch} (commit {record.commit} of claim {record.claim.hex()})"),
        ("attempt", str(record.attempt)),
        ("burnt", str(record.burnt)),
        ("created", f"{when(record.created)} ({age_text(record.created)} ago)"),
        ("codec", printable(record.codec) or "-"),
        ("size", size_text(len(found.data))),
        ("generations", str(kept)),
    ]
    if record.files is not None:
        rows.append(("files", f"{record.files.count:,} ({size_text(record.files.size)})"))
    if record.result is not None:
        rows.append(("result", _limited(record.result, record.result_codec, whole=payload)))
    if record.codec:
        rows.append(("state", _limited(found.data, record.codec, whole=payload)))
    for name, text in rows:
        context.line(f"{name + ':':<13}{text}")
    for entry in entries or ():
        context.line(_entry_text(entry))


def _limited(data: bytes, codec: str, *, whole: bool) -> str:
    text = shown(data, codec, None if whole else _SHOWN)
    if text is None:
        return f"{size_text(len(data))} of codec {printable(codec)!r} (--raw gives the bytes)"
    return text


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "path": _name(entry.path) or ".",
        "kind": entry.kind,
        "mode": f"{entry.mode:o}",
        "size": entry.size,
        "target": _name(entry.target),
    }


def _entry_text(entry: Entry) -> str:
    letter = {"file": "-", "directory": "d", "link": "l"}[entry.kind]
    path = printable(_name(entry.path) or ".")
    leads = f" -> {printable(_name(entry.target))}" if entry.kind == "link" else ""
    return f"{letter}{entry.mode:03o}  {entry.size:>14,}  {path}{leads}"


@command("history")
@click.argument("store", metavar="STORE")
@click.argument("key")
async def history(context: Context, store: str, key: str) -> int:
    """List the records of a KEY that are kept: the newest, and its generations (keep=2 or more)."""
    check_key(key)
    async with opened(store, context.keys) as opening:
        look = await look_at(opening, key)
    if look is None:
        context.warn(f"aiocheckpoint: there is no key {printable(repr(key))}")
        return FAILED
    rows: list[tuple[bool, Seen]] = [(True, look.head)]
    newest = look.head.record
    rows += [(False, one.seen) for one in reversed(look.generations) if not _is(one, newest)]
    lines = [[*_HEADS, "created"]]
    code = FINE
    for is_newest, seen in rows:
        context.item("generation", **_facts(key, seen), newest=is_newest)
        created = "" if seen.record is None else when(seen.record.created)
        lines.append([*_columns(seen), created + (" (newest)" if is_newest else "")])
        if seen.fault is not None:
            code = FAILED
            context.warn(f"aiocheckpoint: {printable(seen.fault)}")
    for line in table(lines, _SIDES + "<"):
        context.line(line)
    return code


def _is(generation: Generation, newest: Record | None) -> bool:
    """Whether it is the head's own copy."""
    record = generation.seen.record
    if record is None or newest is None:
        return False
    return (record.claim, record.commit) == (newest.claim, newest.commit)


COMMANDS: list[click.Command] = [ls, show, history]
