"""The process that demo.py interrupts: the job of stdlib_index.py, under a witness.

    python examples/demo_worker.py DATABASE RESULT [--fail-at FILE ...]

The witness says on standard output, unbuffered, what has happened to the job: it is the evidence
that demo.py judges by. A line is `resumed`, `staged` or `failing`, a seq, and a number of files.
"""

from __future__ import annotations

import argparse
import logging
import os
import sysconfig
from pathlib import Path
from typing import cast

import msgspec
from stdlib_index import RETRY, Index, build_index

import aiocheckpoint


class Witness:
    """Stands between the job and its checkpointer, and fails the steps that it is told to."""

    def __init__(self, cp: aiocheckpoint.Checkpointer[Index], fail_at: set[int]) -> None:
        self.cp = cp
        self.fail_at = fail_at
        self.seq = 0

    async def read(self, default: Index) -> Index:
        index = await self.cp.read(default)
        self.seq = self.cp.statistics().staged
        say("resumed", self.seq, index.files)
        return index

    async def write(self, index: Index) -> int:
        if index.files in self.fail_at:
            self.fail_at.remove(index.files)
            say("failing", self.seq, index.files)
            raise aiocheckpoint.RecoverableError("the demo's own failure", retry_after=0.05)
        try:
            self.seq = await self.cp.write(index)
        except aiocheckpoint.StoppedError:  # raised once the state was staged
            self.seq = self.cp.statistics().staged
            say("staged", self.seq, index.files)
            raise
        say("staged", self.seq, index.files)
        return self.seq


@aiocheckpoint.task(key="stdlib-index:{library}", type=Index, retry=RETRY)
async def watched_job(
    cp: aiocheckpoint.Checkpointer[Index], library: Path, fail_at: set[int]
) -> Index:
    witness = cast("aiocheckpoint.Checkpointer[Index]", Witness(cp, fail_at))
    return await build_index.fn(witness, library)


def say(event: str, seq: int, files: int) -> None:
    try:
        os.write(1, f"{event} {seq} {files}\n".encode())
    except BrokenPipeError:
        raise aiocheckpoint.NonRecoverableError("nobody listens any more") from None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("database", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--fail-at", type=int, nargs="*", default=[])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")

    library = Path(sysconfig.get_path("stdlib"))
    store = f"sqlite:{options.database}"
    index = aiocheckpoint.run(watched_job, library, set(options.fail_at), store=store)
    options.result.write_bytes(msgspec.json.encode(index))


if __name__ == "__main__":
    main()
