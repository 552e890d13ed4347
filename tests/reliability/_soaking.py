"""The soak as a part of `make torture`, and its page: data and a plot beside the documentation."""

from __future__ import annotations

import logging
import platform
import sys
from pathlib import Path

import msgspec

from ._soak import Sample, Soak, soak
from ._torture import Budget, Counts

_PANELS = {
    "memory": "memory, MB",
    "descriptors": "descriptors",
    "threads": "threads",
    "disk": "disk, MB",
}


def part(budget: Budget) -> Counts:
    """Soak for as long as the budget says; an error if anything grows."""
    logging.getLogger("aiocheckpoint").setLevel(logging.ERROR)  # it would tell of every fault
    seconds = 60.0 if budget.seconds is None else budget.seconds
    done = soak(seconds, max(8, min(360, round(seconds / 5))), budget.seed, _tell)
    if budget.doc is not None:
        write_page(done, budget.doc)
    assert not done.leaks(), done.leaks()
    return Counts(done.counts)


def _tell(sample: Sample) -> None:
    print(
        f"soak: {sample.seconds:,.0f} s: {sample.memory:,.0f} MB of memory, {sample.descriptors}"
        f" descriptors, {sample.threads} threads, {sample.disk:,.1f} MB of disk",
        file=sys.stderr,
        flush=True,
    )


def write_page(done: Soak, directory: Path) -> None:
    """Write `soak.json` and, from the same data, `soak.svg`."""
    data = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **msgspec.to_builtins(done),
    }
    text = msgspec.json.format(msgspec.json.encode(data), indent=1)
    (directory / "soak.json").write_bytes(text + b"\n")
    plot(done, directory / "soak.svg")


def plot(done: Soak, path: Path) -> None:
    """What the process held, over time; readable on light and on dark."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    grey = "#808080"
    with rc_context({"svg.hashsalt": "soak", "font.size": 9}):
        figure = Figure(figsize=(7, 6), layout="constrained")
        panels = figure.subplots(len(_PANELS), 1, sharex=True)
        minutes = [sample.seconds / 60 for sample in done.samples]
        for panel, (name, label) in zip(panels, _PANELS.items(), strict=True):
            values = [getattr(sample, name) for sample in done.samples]
            panel.plot(minutes, values, color="#3b82f6", linewidth=1)
            panel.set_ylim(0, max(values) * 1.2)
            panel.set_ylabel(label, color=grey)
            panel.tick_params(colors=grey)
            panel.spines[:].set_color(grey)
            panel.grid(color=grey, alpha=0.25)
        panels[-1].set_xlabel("minutes", color=grey)
        figure.savefig(path, transparent=True, metadata={"Date": None})
