"""What a store does wrong at its next calls, drawn by Hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st

Kind = Literal[
    "none",
    "refused",
    "lost",
    "late",
    "delayed",
    "hangs",
    "lost in silence",
    "late in silence",
    "partial",
    "forbidden",
    "broken",
]
PASSING: tuple[Kind, ...] = (
    "refused",  # StoreUnavailableError, and nothing done
    "lost",  # done, and StoreUnavailableError
    "late",  # StoreUnavailableError, and done later
    "delayed",  # done after a while; the answer takes as long again
    "hangs",  # no answer, and nothing done
    "lost in silence",  # done, and no answer
    "late in silence",  # no answer, and done later
    "partial",  # some of a batch or of what is read, then StoreUnavailableError
)
LASTING: tuple[Kind, ...] = (
    "forbidden",  # StoreError, and nothing done
    "broken",  # an error that no store should raise
)


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind = "none"
    seconds: float = 0.0
    """How late."""
    op: str = ""
    """The operation that it waits for; "": the next, whichever it is."""


NONE = Fault()

_seconds = st.sampled_from([0.0, 0.01, 0.2, 1.0, 5.0, 20.0, 29.9, 45.0])


_ops = st.sampled_from(["", "", "commit", "commit", "put_blob", "load", "delete"])


def faults(*kinds: Kind) -> st.SearchStrategy[Fault]:
    """One of these; the earlier ones are simpler."""
    return st.builds(Fault, st.sampled_from(kinds), _seconds, _ops)


_any = st.one_of(
    st.just(NONE),
    faults("refused", "lost", "late", "partial"),
    faults(*PASSING),
    faults(*PASSING, *LASTING),
)
outages = st.builds(Fault, st.sampled_from(["refused", "refused", "hangs", "lost", *LASTING]))
"""What goes wrong all the time."""
plans = st.lists(_any, min_size=1, max_size=12)
"""Faults for the calls to come, in turn."""
few = st.lists(_any, max_size=3)
"""Faults for what is done next."""
