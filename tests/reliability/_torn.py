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
    if not ops:
        return data
    found = bytearray(data)
    for op in ops:
        _resize(found, op)
        if op.kind in WRITES:
            found[op.at : op.at + len(op.data)] = op.data
    return bytes(found)


def _resize(data: bytearray, op: Op) -> None:
    end = op.at + len(op.data)
    if op.kind == "truncate":
        del data[end:]
    data.extend(bytes(max(0, end - len(data))))


def every(data: bytes, ops: Sequence[Op]) -> Iterator[bytes]:
    """Each prefix of the operations, the last one whole or torn."""
    yield data
    for op in ops:
        if op.kind in WRITES:
            yield from _torn(data, op, _cuts(len(op.data)))
        data = after(data, [op])
        yield data


def some(data: bytes, ops: Sequence[Op], rng: random.Random) -> bytes:
    """A random one of these; or what a disk leaves that writes in an order of its own."""
    if not ops:
        return data
    if rng.random() < 0.5:
        count = rng.randrange(len(ops) + 1)
        data = after(data, ops[:count])
        if count < len(ops) and ops[count].kind in WRITES and (size := len(ops[count].data)) > 1:
            return rng.choice(list(_torn(data, ops[count], [rng.randrange(1, size)])))
        return data
    return _in_any_order(data, ops, rng)


def _in_any_order(data: bytes, ops: Sequence[Op], rng: random.Random) -> bytes:
    """Each sector as some of the operations in turn have left it."""
    share = rng.random()
    sized = rng.randrange(len(ops) + 1)  # so many of them have changed the size for good
    seen: dict[int, int] = {}
    found = bytearray(data)
    sizes = [len(data)]
    for number, op in enumerate(ops):
        _resize(found, op)
        sizes.append(len(found))
        at, end = op.at, op.at + len(op.data)
        while at < end:
            sector = at // SECTOR
            until = min(end, (sector + 1) * SECTOR)
            if sector not in seen:
                seen[sector] = len(ops) if rng.random() < share else rng.randrange(len(ops) + 1)
            if number < seen[sector]:
                found[at:until] = op.data[at - op.at : until - op.at]
            at = until
    size = sizes[sized]
    return bytes(found[:size]).ljust(size, b"\0")


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
