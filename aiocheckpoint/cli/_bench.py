"""`bench`: a store's costs, and how often to store because of them."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Sequence

import click

from .._errors import CheckpointError
from .._estimate import PUT_PRICES, Estimate, estimate, recommended
from .._keyring import Keyring
from .._options import SpoolOption
from .._runtime import Runtime
from ._group import FINE, Context, command, named, opened
from ._group import seconds as seconds_of
from ._measuring import Claims, Cost, Measuring, clear_away
from ._text import counted, printable, size_text, table

PREFIX = "aiocheckpoint-bench/"
_HOURS = 730  # in a month
_CLEARING = 60.0  # seconds


def _sizes(_: click.Context, param: click.Parameter, value: str) -> list[int]:
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    found = []
    for text in value.split(","):
        number = text.strip().rstrip("BKMG")
        unit = text.strip()[len(number) :] or "B"
        if not number.isdigit() or unit not in units or int(number) == 0:
            raise click.BadParameter(f"{text!r} is no size: write 100B,1MB,100MB", param=param)
        found.append(int(number) * units[unit])
    if max(found) > 1 << 30:
        raise click.BadParameter("1GB at most", param=param)
    return found


def _time(context: click.Context, param: click.Parameter, value: str) -> float:
    found = seconds_of(context, param, value)
    if not found:
        raise click.BadParameter("it is more than nothing", param=param)
    return found


@command("bench")
@click.argument("store", metavar="STORE")
@click.option(
    "--mtbf",
    callback=_time,
    default="24h",
    show_default=True,
    help="Mean time between failures of a machine: 90m, 24h, 7d.",
)
@click.option(
    "--sizes",
    callback=_sizes,
    default="100B,1MB,100MB",
    show_default=True,
    help="Sizes of the states, 1GB at most.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Keys that are stored at once, as a batch; default: 100, in object stores 16.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Commits of each size that are timed.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    default=3.0,
    show_default=True,
    help="How long a computing task is watched, for each size.",
)
@click.option(
    "--put-price",
    type=click.FloatRange(0),
    metavar="USD",
    help="For 1,000 requests that write; default: the list price of the object store.",
)
@click.option("--no-spool", is_flag=True, help="Measure without a spool.")
async def bench(
    context: Context,
    store: str,
    mtbf: float,
    sizes: list[int],
    batch: int | None,
    rounds: int,
    seconds: float,
    put_price: float | None,
    no_spool: bool,
) -> int:
    """Measure STORE, and recommend how often to store: a min_interval.

    It claims keys of its own under aiocheckpoint-bench/, writes states that do not compress, and
    deletes all of it in the end, also when it is interrupted. Other keys are not touched. A local
    store may be new; it is left, empty. An object store keeps a mark of each deleted key.
    """
    listed = PUT_PRICES.get(store.partition(":")[0].lower())
    price = listed if put_price is None else put_price
    if batch is None:  # object stores keep a small object for each key that was deleted
        batch = 100 if listed is None else 16
    total = sum(size * (rounds + 1) for size in sizes)
    context.note(f"writing {size_text(total)} in commits, and more beside a task that computes ...")
    prefix = f"{PREFIX}{secrets.token_hex(4)}/"
    spool: SpoolOption = None if no_spool else "auto"
    try:
        claims, costs, together = await _measured(
            context, store, prefix, sizes, batch, rounds, seconds, spool
        )
    finally:
        await _cleared(context, store, prefix)
    _tell(context, claims, together, batch)
    _tell_costs(context, costs, mtbf)
    _tell_intervals(context, costs, mtbf, price)
    return FINE


async def _measured(
    context: Context,
    store: str,
    prefix: str,
    sizes: Sequence[int],
    batch: int,
    rounds: int,
    seconds: float,
    spool: SpoolOption,
) -> tuple[Claims, list[Cost], float]:
    keyring = None if context.keys is None else Keyring.load(context.keys)
    async with Runtime(named(store), spool=spool, encryption=keyring) as rt:
        measuring = Measuring(rt, prefix, rounds, seconds)
        progress = context.progress("measuring")
        claims = await measuring.claims(progress.key)
        costs = [await measuring.commits(size, progress.key) for size in sizes]
        return claims, costs, await measuring.batch(batch, progress.key)


async def _cleared(context: Context, store: str, prefix: str) -> None:
    """Whatever has happened: what was made goes, and if it cannot, it is said what is left."""

    async def clear() -> list[str]:
        async with opened(store, context.keys, make=True) as opening:
            return await clear_away(opening, prefix)

    task = asyncio.ensure_future(asyncio.wait_for(clear(), _CLEARING))
    try:
        left = bool(await asyncio.shield(task))
    except (CheckpointError, TimeoutError, OSError):
        left = True
    except asyncio.CancelledError:
        context.note("interrupted again while clearing away; a moment")
        await task
        raise
    if left:
        context.warn(
            f"not all keys could be removed: aiocheckpoint rm --prefix {printable(store)} {prefix}"
        )


def _tell(context: Context, claims: Claims, together: float, batch: int) -> None:
    context.item("claim", new=claims.new, again=claims.again)
    context.item("batch", keys=batch, seconds=together)
    context.line(f"claim, open() of a new key            {_shown(claims.new)}")
    context.line(f"claim, open() of one that is there    {_shown(claims.again)}")
    each = _shown(together / batch)
    context.line(f"a batch of {counted(batch, 'key'):<27}{_shown(together)} ({each} a key)")


def _tell_costs(context: Context, costs: Sequence[Cost], mtbf: float) -> None:
    rows = [("state", "commit", "worst", "taken from the task", "min_interval")]
    for cost in costs:
        interval = recommended(cost.commit, cost.taken, mtbf)
        context.item("commit", **dataclasses.asdict(cost), min_interval=interval)
        rows.append(
            (
                _size(cost.size),
                _shown(cost.commit),
                _shown(cost.worst),
                _shown(cost.taken),
                f"{interval:g} s",
            )
        )
    context.line()
    for line in table(rows, "<>>>>"):
        context.line(line)
    context.line()
    context.line(
        f"min_interval: sqrt(2 * what a commit takes * {_shown(mtbf)} between failures), after"
    )
    context.line(
        "Young (1974) and Daly (2006), but no less than a commit lasts. A commit runs behind"
    )
    context.line(
        "the task; what it takes is by how much less a computing loop gets done meanwhile."
    )


def _tell_intervals(
    context: Context, costs: Sequence[Cost], mtbf: float, price: float | None
) -> None:
    for cost in costs:
        best = recommended(cost.commit, cost.taken, mtbf)
        choices = sorted({best, *((5.0, 60.0) if price is not None else (0.1, 5.0))})
        estimates = [
            estimate(cost.size, cost.commit, cost.taken, mtbf, interval) for interval in choices
        ]
        head = ["min_interval", "a lost machine loses", "at worst", "overhead"]
        rows = [(*head, *(("USD an hour", "USD a month") if price is not None else ()))]
        for each in estimates:
            rows.append(_row(each, best, price))
            values = dataclasses.asdict(each)
            hourly = _hourly(each, price)
            context.item("estimate", size=cost.size, **values, usd_an_hour=hourly)
        context.line()
        context.line(f"states of {_size(cost.size)}:")
        for line in table(rows, ">" * len(rows[0])):
            context.line(line)
    context.line()
    context.line("A killed process loses nothing: what it has staged is in the spool (not with")
    context.line(
        "--no-spool). Where two machines fail often, or a bill counts, choose another line."
    )


def _row(each: Estimate, best: float, price: float | None) -> tuple[str, ...]:
    mark = "* " if each.interval == best else ""
    row = (
        f"{mark}{each.interval:.3g} s",
        _shown(each.lost_mean),
        _shown(each.lost_most),
        f"{each.overhead * 100:.2g} %",
    )
    hourly = _hourly(each, price)
    if hourly is None:
        return row
    return (*row, f"{hourly:.4f}", f"{hourly * _HOURS:.2f}")


def _hourly(each: Estimate, price: float | None) -> float | None:
    """US dollars an hour, if requests have a price."""
    return None if price is None else each.requests / 1000 * price


def _size(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size % scale == 0:
            return f"{size // scale} {unit}"
    return f"{size} B"


def _shown(seconds: float) -> str:
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{seconds * scale:.3g} {unit}"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


COMMANDS = (bench,)
