"""`copy` and `verify`: commands that read whole stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing

import click

from .._copying import Copied, Existing, copy
from .._keys import check_key
from .._verifying import Report, verify
from ._group import FAILED, FINE, KEYS, Context, command, opened
from ._text import counted, printable, size_text


@command("verify")
@click.argument("store", metavar="STORE")
@click.argument("prefix", default="")
async def verify_(context: Context, store: str, prefix: str) -> int:
    """Read all that lies under the keys that start with PREFIX, and report what is damaged.

    Every record, generation, state, list of files and pack of files is compared with its
    checksums. Programs may go on writing meanwhile. Blobs that nothing names are counted: they are
    left over, or about to be named (see gc).
    """
    total = Counter[str]()
    async with opened(store, context.keys) as opening:
        progress = context.progress("verifying")
        async with aclosing(verify(opening, prefix, progress.bytes)) as reports:
            async for report in reports:
                progress.key()
                _tell(context, report)
                total.update(_counts(report))
    counts = {name: total[name] for name in _COUNTS}
    context.item("summary", **counts)
    if not context.quiet:
        context.line(
            f"{counted(counts['keys'], 'key')}: {counted(counts['records'], 'record')} and"
            f" {counted(counts['blobs'], 'blob')} good ({size_text(counts['bytes'])})"
        )
        if counts["unnamed"]:
            context.line(f"{counted(counts['unnamed'], 'blob')} that nothing names (see gc)")
    if counts["damaged"]:
        context.line(f"DAMAGE in {counted(counts['damaged'], 'key')}")
    return FAILED if counts["damaged"] else FINE


_COUNTS = ("keys", "damaged", "records", "blobs", "bytes", "unnamed")


def _counts(report: Report) -> dict[str, int]:
    return {
        "keys": 1,
        "damaged": bool(report.damage),
        "records": report.records,
        "blobs": report.blobs,
        "bytes": report.size,
        "unnamed": len(report.unnamed),
    }


def _tell(context: Context, report: Report) -> None:
    context.item(
        "key",
        key=report.key,
        good=not report.damage,
        damage=[{"where": one.where, "what": one.what} for one in report.damage],
        records=report.records,
        blobs=report.blobs,
        bytes=report.size,
        unnamed=report.unnamed,
    )
    for one in report.damage:
        context.line(f"{printable(report.key)}: {printable(one.where)}: {printable(one.what)}")


@command("copy")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--prefix", help="Only the keys that start so.")
@click.option("--key", "keys", multiple=True, help="Only this key; may be given several times.")
@click.option("--overwrite", is_flag=True, help="Replace keys that DST has and that differ.")
@click.option("--skip-existing", is_flag=True, help="Pass over them, and do not count them failed.")
@click.option("--target-keys", **KEYS, help="Encrypt DST with this keyring; --keys is that of SRC.")
@click.option("--decrypt", is_flag=True, help="Have DST in clear, though SRC is encrypted.")
async def copy_(
    context: Context,
    source: str,
    target: str,
    prefix: str | None,
    keys: tuple[str, ...],
    overwrite: bool,
    skip_existing: bool,
    target_keys: str | None,
    decrypt: bool,
) -> int:
    """Copy keys from SRC to DST, with their states, files, results and generations.

    What is copied is checked on the way. A key that DST has and that differs is refused; one that
    is the same is passed over, so after an interruption run it again. Programs may go on writing
    to SRC: a key is copied as it was at one moment. What is staged and not stored yet (the spool)
    is not copied.

    To encrypt a store copy it with --target-keys FILE, to change its keys with --keys FILE as well.
    A line of such a file is an id, = and a key in base64; the first one encrypts.
    """
    if overwrite and skip_existing:
        raise click.UsageError("--overwrite or --skip-existing, not both")
    if keys and prefix is not None:
        raise click.UsageError("--key or --prefix, not both")
    if context.keys is not None and (target_keys is None) != decrypt:
        raise click.UsageError(
            "SRC is encrypted: encrypt DST as well (--target-keys FILE; it may be the same file),"
            " or have it in clear (--decrypt)"
        )
    for key in keys:
        check_key(key)
    existing: Existing = "overwrite" if overwrite else "skip" if skip_existing else "refuse"
    total = Counter[str]()
    size = 0
    async with opened(source, context.keys) as src, opened(target, target_keys, make=True) as dst:
        if src.identity == dst.identity:
            raise click.UsageError("SRC and DST are the same store")
        progress = context.progress("copying")
        chosen = _named(keys) if keys else src.keys(prefix or "")
        async with aclosing(copy(src, dst, chosen, existing, progress.bytes)) as outcomes:
            async for copied in outcomes:
                progress.key()
                _report(context, copied, named=bool(keys))
                total[copied.outcome] += 1
                total["spooled"] += copied.spooled
                total["incomplete"] += bool(copied.outcome == "copied" and copied.why)
                size += copied.size
    context.item("summary", **{name: total[name] for name in _OUTCOMES}, bytes=size)
    if total["spooled"]:
        context.note(
            f"of {counted(total['spooled'], 'key')} the spool may have newer states than SRC:"
            " they are open, or were killed (then open them once, and copy again)"
        )
    if not context.quiet:
        context.line(f"copied {counted(total['copied'], 'key')} ({size_text(size)} of blobs)")
        for outcome, text in _OUTCOMES.items():
            if text and total[outcome]:
                context.line(f"{total[outcome]:,} {text}")
    bad = total["failed"] + total["refused"] + total["incomplete"]
    return FAILED if bad or (keys and total["gone"]) else FINE


_OUTCOMES = {
    "copied": "",
    "same": "the same there already",
    "skipped": "skipped: another there already",
    "refused": "REFUSED: another there already (--overwrite, --skip-existing)",
    "gone": "not there (any more)",
    "failed": "FAILED",
}


def _report(context: Context, copied: Copied, *, named: bool) -> None:
    key, outcome, why, size, spooled = copied
    context.item("key", key=key, outcome=outcome, why=why, bytes=size, spooled=spooled)
    if why:
        context.warn(f"aiocheckpoint: {printable(repr(key))}: {outcome}: {printable(why)}")
    elif outcome == "gone" and named:
        context.warn(f"aiocheckpoint: there is no key {printable(repr(key))}")


async def _named(keys: tuple[str, ...]) -> AsyncIterator[str]:
    for key in dict.fromkeys(keys):
        yield key


COMMANDS: list[click.Command] = [copy_, verify_]
