"""The slot against a model of it: the newest state wins."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocheckpoint import ClosedError
from aiocheckpoint._region import Moved, Staged, Tree
from aiocheckpoint._slot import Meta, Slot

BYTES = "bytes"
data = st.binary(max_size=5)
puts = st.tuples(st.sampled_from(["fast", "put", "foreign"]), data, st.sampled_from([BYTES, "c"]))
steps = st.lists(
    st.one_of(
        puts,
        st.tuples(st.just("tree"), st.none() | data, st.sampled_from([BYTES, "c"])),
        st.tuples(st.sampled_from(["take", "store", "amend"]), st.none(), st.none()),
    ),
    max_size=30,
)
trees = st.sampled_from([None, Moved("carried-0", Path("carried"))])
carried = st.one_of(
    st.none(), st.builds(Staged, st.integers(1, 1000), data, st.just(BYTES), tree=trees)
)


def write(slot: Slot, state: bytes) -> int:
    """What `Checkpointer.write` does with plain bytes."""
    if type(state) is not slot.raw:
        return slot.put(state, BYTES)
    seq = next(slot.numbers)
    slot.state = state
    slot.seq = seq
    return seq


@given(first=carried, plain=st.booleans(), steps=steps)
def test_slot_behaves_like_its_model(
    first: Staged | None, plain: bool, steps: list[tuple[Any, ...]]
) -> None:
    """After any steps the newest put is the newest, with the newest files that were staged before
    it; seqs rise, and dirty means not all stored."""
    slot = Slot("k", first, Meta(), None, plain=plain)
    newest = first
    tree: Tree | None = None if first is None else first.tree
    seq = stored = 0 if first is None else first.seq
    meta = stored_meta = slot.meta
    taken: tuple[int, Meta] | None = None
    for op, state, codec in steps:
        if op in ("fast", "put", "foreign"):
            if op == "fast":
                codec = BYTES
                got = write(slot, state)
            elif op == "put":
                got = slot.put(state, codec)
            else:
                got = slot.put_foreign(state, codec)
            assert got > seq
            seq = got
            newest = Staged(got, state, codec, tree)
        elif op == "tree":
            tree = Moved(f"own-{seq}", Path("own"))
            encoded = None if state is None else (state, codec)
            seq = slot.put_tree(tree, seq, encoded, seq)
            before = (b"", "") if newest is None else (newest.data, newest.codec)
            state, codec = encoded or before
            newest = Staged(seq, state, codec, tree)
        elif op == "amend":
            meta = slot.meta = Meta(burnt=meta.burnt + 1)
        elif op == "take":
            taken = slot.newest_seq, slot.meta
            assert slot.newest() == newest
        elif taken is not None:
            stored, stored_meta = taken
            slot.stored, slot.stored_meta = taken
        assert slot.newest() == newest
        assert slot.newest_seq == seq
        assert slot.dirty == (stored != seq or stored_meta is not meta)


def test_puts_of_many_threads_are_numbered_apart() -> None:
    """Four threads that stage at once get different numbers, and the highest is the newest."""
    slot = Slot("k", None, Meta(), None, plain=True)
    seqs: list[list[int]] = [[] for _ in range(4)]

    def put(mine: list[int]) -> None:
        mine.extend(slot.put_foreign(b"", BYTES) for _ in range(500))

    threads = [threading.Thread(target=put, args=(mine,)) for mine in seqs]
    for thread in threads:
        thread.start()
    own = [write(slot, b"own") for _ in range(500)]
    for thread in threads:
        thread.join()
    every = sorted([*own, *(seq for mine in seqs for seq in mine)])
    assert every == list(range(1, 2501))
    newest = slot.newest()
    assert newest is not None
    assert newest.seq == slot.newest_seq == 2500


def test_closed_slot_keeps_what_it_has_and_takes_no_more() -> None:
    """After `close` each way of staging raises its reason."""
    slot = Slot("k", None, Meta(), None, plain=True)
    slot.put(b"last", BYTES)
    slot.close(ClosedError("closed"))
    for put in (slot.put, slot.put_foreign):
        with pytest.raises(ClosedError, match="closed"):
            put(b"late", BYTES)
    assert slot.raw is None
    assert slot.newest() == Staged(1, b"last", BYTES)
