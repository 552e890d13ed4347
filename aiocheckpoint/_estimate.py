"""How often to store: what a commit costs against what a failure loses. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ._records import INLINE_LIMIT

PART = 8 << 20
"""Bytes that an object store gets in one request; larger objects are uploaded in parts of these."""

PUT_PRICES = {"s3": 0.005, "s3+obstore": 0.005, "gs": 0.005, "az": 0.0065}
"""US dollars for 1,000 requests that write, by scheme: list prices for the standard (hot) class of
S3 in us-east-1, of Google Cloud Storage in one region, and of Azure's hot, locally redundant blobs.
As of 2025; look up yours."""

_ROUND = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def young_daly(cost: float, mtbf: float) -> float:
    """Seconds between two checkpoints that lose least in all: sqrt(2 * cost * mtbf).

    `cost` is what one takes from the task, `mtbf` the mean time between failures, both in seconds.
    J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974;
    J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS
    22(3), 2006, which gives the same where the cost is small against the time between failures.
    """
    return math.sqrt(2 * cost * mtbf)


def rounded(seconds: float) -> float:
    """Up to a number that a person would write; 0.1 at least."""
    seconds = max(seconds, 0.1)
    power: float = 10.0 ** math.floor(math.log10(seconds))
    return next(step * power for step in _ROUND if step * power >= seconds * (1 - 1e-9))


@dataclass(frozen=True)
class Estimate:
    """What comes of storing a state of one size every so often.

    All times are in seconds. What a failure loses is what a lost machine loses: with a spool, a
    killed process loses nothing.
    """

    interval: float
    """The shortest time between two commits: `min_interval`."""
    lost_mean: float
    """What a failure at a random moment loses: half an interval, and the commit under way."""
    lost_most: float
    """What it loses at the worst moment."""
    overhead: float
    """The share of the task's time that commits and failures take together."""
    requests: float
    """Requests an hour that write, of an object store."""


def estimate(size: int, commit: float, cost: float, mtbf: float, interval: float) -> Estimate:
    """`commit` is how long one commit of `size` bytes lasts, `cost` what it takes from the task."""
    interval = max(interval, commit)
    lost = interval / 2 + commit
    return Estimate(
        interval=interval,
        lost_mean=lost,
        lost_most=interval + commit,
        overhead=cost / interval + lost / mtbf,
        requests=3600 / interval * requests_of(size),
    )


def recommended(commit: float, cost: float, mtbf: float) -> float:
    """The interval to use: Young's, but never shorter than the commit itself lasts."""
    return rounded(max(young_daly(cost, mtbf), commit))


def requests_of(size: int) -> int:
    """Requests that write, for one commit of a state to an object store: the record, and before it
    what does not lie in it, in parts if it is large. Deletions are free."""
    if size <= INLINE_LIMIT:
        return 1
    parts = math.ceil(size / PART)
    return 2 if parts == 1 else parts + 3
