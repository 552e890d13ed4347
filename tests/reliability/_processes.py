"""Processes that start at once, for tests that need many of them."""

from __future__ import annotations

import multiprocessing
from functools import cache
from multiprocessing.context import ForkServerContext


@cache
def processes() -> ForkServerContext:
    """Children are forked from a server that has imported all, and runs no thread."""
    context = multiprocessing.get_context("forkserver")
    # there is one server for all parts, and it is told once
    context.set_forkserver_preload(
        [
            "tests.reliability._victim",
            "tests.reliability._powered",
            "aiocheckpoint.stores.file",
            "aiocheckpoint.stores.sqlite",
        ]
    )
    return context
