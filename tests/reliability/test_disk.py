"""The model of a disk: what it says a power cut may leave."""

from __future__ import annotations

import random

import pytest

from tests.reliability._disk import Disk, Image
from tests.reliability._torn import Op

NEW = Op("create", "new")
DATA = Op("write", "new", data=b"data")
WHOLE: Image = {"new": b"data"}


def left(*ops: Op, start: Image | None = None, limit: int = 1000) -> list[Image]:
    disk = Disk(start or {})
    for op in ops:
        disk.apply(op)
    states, exhaustive = disk.states(random.Random(1), limit)
    assert exhaustive
    return states


def test_what_is_not_synced_may_be_lost_or_torn() -> None:
    """A new file may have no name, no bytes, some bytes, or its size and no bytes."""
    states = left(NEW, DATA)
    for state in ({}, {"new": b""}, {"new": b"da"}, {"new": b"da\0\0"}, {"new": bytes(4)}, WHOLE):
        assert state in states


def test_a_sync_of_a_file_does_not_sync_its_name() -> None:
    assert left(NEW, DATA, Op("sync", "new")) == [{}, WHOLE]


def test_a_sync_of_a_directory_does_not_sync_its_files() -> None:
    states = left(NEW, DATA, Op("sync", ""))
    assert {"new": b""} in states
    assert {} not in states


def test_what_is_synced_stays() -> None:
    assert left(NEW, DATA, Op("sync", "new"), Op("sync", "")) == [WHOLE]


def test_names_are_kept_in_any_order() -> None:
    """The second of two new names may be there without the first."""
    states = left(Op("mkdir", "a"), Op("mkdir", "b"))
    assert sorted(map(sorted, states)) == [[], ["a"], ["a", "b"], ["b"]]


def test_a_name_goes_through_its_changes_in_turn() -> None:
    start: Image = {"a": b"old"}
    states = left(Op("unlink", "a"), Op("create", "a"), Op("unlink", "a"), start=start)
    assert states == [{"a": b"old"}, {}, {"a": b""}]


def test_a_rename_is_one_change() -> None:
    """It replaces: there is the old file or the new one, never none, never both."""
    start: Image = {"temp": b"new", "name": b"old"}
    states = left(Op("rename", "temp", "name"), start=start)
    assert states == [start, {"name": b"new"}]


def test_a_rename_out_of_a_directory_is_durable_with_the_other_one() -> None:
    start: Image = {"a": None, "b": None, "a/x": b"1"}
    moved = Op("rename", "a/x", "b/x")
    assert len(left(moved, Op("sync", "a"), start=start)) == 2
    assert left(moved, Op("sync", "b"), start=start) == [{"a": None, "b": None, "b/x": b"1"}]


def test_a_lost_directory_takes_along_what_is_in_it() -> None:
    inside = [Op("mkdir", "d"), Op("create", "d/x"), Op("sync", "d")]
    assert left(*inside) == [{}, {"d": None, "d/x": b""}]


def test_a_link_keeps_the_data_of_its_file() -> None:
    states = left(NEW, DATA, Op("sync", "new"), Op("link", "new", "head"), Op("unlink", "new"))
    assert {"head": b"data"} in states
    assert all(state.get("head", b"data") == b"data" for state in states)


def test_many_states_are_sampled_with_the_extremes() -> None:
    """A sample has at least what is left if all is lost, and if nothing is."""
    disk = Disk({})
    ops = [Op("create", f"{i}") for i in range(20)]
    ops += [Op("write", f"{i}", data=bytes([i + 1]) * 2000) for i in range(20)]
    for op in ops:
        disk.apply(op)
    states, exhaustive = disk.states(random.Random(1), 50)
    assert not exhaustive
    assert 25 < len(states) <= 50
    assert {} in states
    assert disk.live() in states


def test_sectors_are_written_in_any_order() -> None:
    """Somewhere in the samples the second sector of a write is there, and not the first."""
    disk = Disk({"file": bytes(1024)})
    disk.apply(Op("write", "file", data=b"x" * 1024))
    for i in range(9):
        disk.apply(Op("mkdir", f"{i}"))
    states, _ = disk.states(random.Random(1), 200)
    assert any(state["file"] == bytes(512) + b"x" * 512 for state in states)


def test_a_file_without_a_name_is_refused() -> None:
    """What the model does not know, it does not take for good."""
    with pytest.raises(ValueError, match="no name"):
        left(NEW, Op("unlink", "new"), DATA)
