"""The example of Flyte's page on intra-task checkpoints, on our API.

    python examples/flyte_style.py [--n N] [--store URL] [--fresh]

A loop to n fails every n // 3 iterations, except at the one that an attempt begins with. Each
iteration stores `i + 1`, so three retries bring it to its end. The run is the key `flyte-style/N`
of the store: start the script again and it returns the stored result without running anything.

Numbers below 3 are refused, as n // 3 is 0 for them. 5 is the one number that needs a fourth
retry: its run fails, and the next start goes on from there with three new ones.

Exit status: 0 for a result, 1 if the retries ran out or the store failed, 2 for bad arguments,
128 + the signal's number if it was stopped.
"""

from __future__ import annotations

import argparse
import logging

import aiocheckpoint
from aiocheckpoint import Checkpointer, RecoverableError, RetryPolicy

RETRIES = 3
RETRY = RetryPolicy(on=RecoverableError, retries=RETRIES, wait_max=0.05)


@aiocheckpoint.task(key="flyte-style/{n}", type=int, retry=RETRY)
async def loop(cp: Checkpointer[int], n: int) -> int:
    """Loop to n, failing now and then; the last index."""
    start = await cp.read(default=0)
    print(f"attempt {cp.attempt} resumes from {start}", flush=True)
    every = n // RETRIES
    for i in range(start, n):
        if i > start and i % every == 0:
            raise RecoverableError(f"iteration {i} fails")
        await cp.write(i + 1)
    return n - 1


def at_least_three(text: str) -> int:
    if (n := int(text)) < RETRIES:
        raise argparse.ArgumentTypeError(f"{n} is too small: it is {RETRIES} or more")
    return n


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=at_least_three, default=10, help="iterations (default: 10)")
    parser.add_argument("--store", default="sqlite:flyte-style.db", metavar="URL", help="a store")
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever is stored")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        last = aiocheckpoint.run(loop, options.n, store=options.store, fresh=options.fresh)
    except RecoverableError as exc:
        raise SystemExit(f"no retry is left: {exc}; start me again and I go on") from None
    except (aiocheckpoint.CheckpointError, ValueError) as exc:
        raise SystemExit(f"{options.store}: {exc}") from None
    print(f"the result is {last}")


if __name__ == "__main__":
    main()
