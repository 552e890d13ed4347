"""What a crash may leave of a file's data that was written and not synced."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SECTOR = 512
WRITES = "write", "mapped"


class Op(NamedTuple):
    """One operation on files; `site` is where in the program a sync was called for."""

    kind: str
    path: str = ""
    to: str = ""
    at: int = 0
    data: bytes = b""
    site: str = ""


def after(data: bytes, ops: Sequence[Op]) -> bytes:
    """The data once all of these are done."""
    for op in ops:
        if op.kind == "truncate":
            data = data[: op.at].ljust(op.at, b"\0")
        elif op.kind == "reserve":
            data = data.ljust(op.at, b"\0")
        else:
            data = data[: op.at].ljust(op.at, b"\0") + op.data + data[op.at + len(op.data) :]
    return data


def every(data: bytes, ops: Sequence[Op]) -> Iterator[bytes]:
    """Each prefix of the operations, the last one whole or torn."""
    yield data
    for op in ops:
        if op.kind in WRITES:
            yield from _torn(data, op, _cuts(len(op.data)))
        data = after(data, [op])
        yield data


def some(data: bytes, ops: Sequence[Op], rng: random.Random) -> bytes:
    """A random one of these; or each sector as it was before or after any of the operations,
    and the size as well, for a disk that writes in an order of its own."""
    if not ops:
        return data
    if rng.random() < 0.5:
        count = rng.randrange(len(ops) + 1)
        data = after(data, ops[:count])
        if count < len(ops) and ops[count].kind in WRITES and (size := len(ops[count].data)) > 1:
            return rng.choice(list(_torn(data, ops[count], [rng.randrange(1, size)])))
        return data
    versions = [data]
    for op in ops:
        versions.append(after(versions[-1], [op]))
    size = len(rng.choice(versions))
    found = bytearray(versions[-1][:size].ljust(size, b"\0"))
    for op in ops:  # what they touched, sector by sector
        if op.kind in WRITES:
            first, last = op.at // SECTOR, (op.at + len(op.data) - 1) // SECTOR
            for sector in range(first, min(last, size // SECTOR) + 1):
                start, end = sector * SECTOR, min(size, (sector + 1) * SECTOR)
                if start < end:
                    version = rng.choice(versions)
                    found[start:end] = version[start:end].ljust(end - start, b"\0")
    return bytes(found)


def _cuts(size: int) -> list[int]:
    cuts = {1, size // 2, size // 2 // SECTOR * SECTOR, size - 1, (size - 1) // SECTOR * SECTOR}
    return sorted(cut for cut in cuts if 0 < cut < size)


def _torn(data: bytes, op: Op, cuts: Sequence[int]) -> Iterator[bytes]:
    """Cut short there; and as long as it should be, with nothing from there on."""
    whole = after(data, [op])
    if len(whole) > len(data):
        yield data.ljust(len(whole), b"\0")
    for cut in cuts:
        short = after(data, [op._replace(data=op.data[:cut])])
        yield short
        if len(short) < len(whole):
            yield short.ljust(len(whole), b"\0")
