"""The progress bar of a map. Needs the extra `rich`, so it is imported only when asked for."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Items per second: the last half minute's, at the end those of all."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("-/s" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class Bar:
    """A line on stderr: items, failures, rate.

    On a terminal it is drawn while the map runs. Elsewhere its last state is one line of text.
    """

    def __init__(self, name: str, total: int | None) -> None:
        """`total`: how many items there are, if that is known."""
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]:,} failed"),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # what the program prints is drawn above the bar, unless it goes elsewhere
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._failed = 0
        self._task = self._progress.add_task(name, total=total, failed=0)

    def start(self) -> None:
        self._progress.start()

    def advance(self, *, failed: bool) -> None:
        self._failed += failed
        self._progress.update(self._task, advance=1, failed=self._failed)

    def stop(self) -> None:
        self._progress.stop()
