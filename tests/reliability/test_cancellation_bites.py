"""What the tests of cancellation look for, they find: one fault after the other, put in by hand."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aiocheckpoint import StoreError, _io_thread, _unpacking
from aiocheckpoint._exit import Exit
from aiocheckpoint._keeper import Keeper
from aiocheckpoint._opening import Opening
from aiocheckpoint.stores._blobs import GrowingFile

from . import _left
from ._cancellation import points_of
from ._cancelling import Program, interrupt
from ._programs import handle, moving, opening, saving
from ._ways import WAYS

Patch = pytest.MonkeyPatch


class Attack:
    """Interrupts a program at all points of one kind."""

    def __init__(self, program: Program, base: Path, doing: str, way: str, **how: Any) -> None:
        self._args = program, how.pop("scheme", "memory"), how.pop("backend", "asyncio"), base
        side = how.pop("side", "user")
        points = [one for one in points_of(*self._args) if one.side == side]
        self._points = [one for one in points if one.doing == doing]
        self._way = WAYS[way]
        self._how = how
        self(1)  # there is no fault yet

    def __call__(self, most: int | None = None) -> None:
        assert self._points
        for point in self._points[:most]:
            interrupt(*self._args, self._way, point, **self._how)


def when_interrupted(patch: Patch, method: str, fault: Callable[..., object]) -> None:
    """Have a method of the keeper do `fault` when it is interrupted; that may raise, or return."""
    sound: Callable[..., Coroutine[Any, Any, Any]] = getattr(Keeper, method)

    async def faulty(keeper: Keeper, *args: Any) -> Any:
        try:
            return await sound(keeper, *args)
        except BaseException:
            if fault(keeper, *args) == "swallow":
                return None
            raise

    patch.setattr(Keeper, method, faulty)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_exit_without_its_shield_is_found(tmp_path: Path, monkeypatch: Patch, backend: str) -> None:
    attack = Attack(handle, tmp_path, "open, leaving", "scope", scheme="slow", backend=backend)
    monkeypatch.setattr(_io_thread, "done_or_blocked", _io_thread.done)
    with pytest.raises(AssertionError, match="the block was left, and 'k' has"):
        attack()


def test_exit_that_gives_up_at_the_second_cancel_is_found(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    attack = Attack(handle, tmp_path, "open, leaving", "native twice", scheme="slow")
    monkeypatch.setattr(_io_thread, "block", lambda _: None)
    with pytest.raises(AssertionError, match="the block was left, and 'k' has"):
        attack()


def test_exit_that_does_not_wait_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(handle, tmp_path, "flush", "native", scheme="slow")

    async def leave(self: Exit, exc: BaseException | None, timeout: float) -> None:
        self.close(timeout)

    monkeypatch.setattr(Exit, "leave", leave)
    with pytest.raises(AssertionError, match="the block was left, and 'k' has"):
        attack()


def test_save_that_leaves_its_temporary_file_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(saving, tmp_path, "save", "native", scheme="file", side="io")
    monkeypatch.setattr(GrowingFile, "discard", lambda _: None)
    with pytest.raises(AssertionError, match=r"left: .*\.tmp-"):
        attack()


def test_restore_that_leaves_its_directory_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(saving, tmp_path, "restore", "scope", side="io", backend="trio")
    monkeypatch.setattr(_unpacking, "_remove_all", lambda _: None)
    with pytest.raises(AssertionError, match=r"left: .*\.restoring-"):
        attack()


def test_restore_that_leaves_a_part_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(saving, tmp_path, "restore", "native")

    def fill(_: Keeper, target: Path) -> None:
        target.mkdir()
        (target / "small").write_bytes(b"one")

    when_interrupted(monkeypatch, "restore", fill)
    with pytest.raises(AssertionError, match="out is no whole tree"):
        attack()


def test_save_that_mixes_pairs_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(saving, tmp_path, "save", "scope")

    def stage_the_state_alone(keeper: Keeper, _: Path, encoded: tuple[bytes, str] | None) -> None:
        if encoded is not None:
            keeper._slot.put(*encoded)

    when_interrupted(monkeypatch, "save", stage_the_state_alone)
    with pytest.raises(AssertionError, match=r"'k' has \(b'2', None\), not of"):
        attack()


def test_move_that_can_be_cancelled_with_the_files_in_its_hands_is_found(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    async def move(keeper: Keeper, path: Path, encoded: tuple[bytes, str] | None) -> int:
        held, spool = keeper._held, keeper._slot.spool
        assert spool is not None
        number = next(held.trees)
        moved = spool.take(path, held.tree_id(number))
        await anyio.lowlevel.checkpoint()
        seq = keeper._slot.put_tree(moved, number, encoded, keeper._slot.newest_seq)
        keeper._io.post(keeper._writer.woken, held)
        return seq

    monkeypatch.setattr(Keeper, "move", move)
    with pytest.raises(AssertionError, match=r"left in the spool|not of"):
        Attack(moving, tmp_path, "save(move=True)", "native")


def test_flush_that_swallows_the_cancellation_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(handle, tmp_path, "flush", "native")
    when_interrupted(monkeypatch, "until_stored", lambda *_: "swallow")
    with pytest.raises(AssertionError, match="native ended as None"):
        attack()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_flush_that_makes_an_error_of_it_is_found(
    tmp_path: Path, monkeypatch: Patch, backend: str
) -> None:
    attack = Attack(handle, tmp_path, "flush", "scope", backend=backend)

    def fail(*_: object) -> None:
        raise StoreError("interrupted", op="flush")

    when_interrupted(monkeypatch, "until_stored", fail)
    with pytest.raises(AssertionError, match="a cancellation became an error"):
        attack()


def test_flush_that_leaves_a_task_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(handle, tmp_path, "flush", "native")
    tasks: list[asyncio.Task[None]] = []

    def go_on_behind(*_: object) -> None:
        tasks.append(asyncio.ensure_future(anyio.sleep_forever()))

    when_interrupted(monkeypatch, "until_stored", go_on_behind)
    with pytest.raises(AssertionError, match="1 tasks are left"):
        attack()


def test_flush_that_leaves_a_thread_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(handle, tmp_path, "flush", "native")
    end = threading.Event()
    monkeypatch.setattr(_left, "WITHIN", 0.2)
    when_interrupted(
        monkeypatch, "until_stored", lambda *_: threading.Thread(target=end.wait).start()
    )
    try:
        with pytest.raises(AssertionError, match="threads are left"):
            attack()
    finally:
        end.set()


def test_restore_that_leaves_a_descriptor_is_found(tmp_path: Path, monkeypatch: Patch) -> None:
    attack = Attack(saving, tmp_path, "restore", "native")
    kept: list[int] = []
    when_interrupted(monkeypatch, "restore", lambda *_: kept.append(os.open(tmp_path, os.O_RDONLY)))
    try:
        with pytest.raises(AssertionError, match="descriptors are left"):
            attack()
    finally:
        for descriptor in kept:
            os.close(descriptor)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_claim_that_nobody_takes_and_nobody_lets_go_of_is_found(
    tmp_path: Path, monkeypatch: Patch, backend: str
) -> None:
    attack = Attack(opening, tmp_path, "open", "step", late=True, backend=backend)
    monkeypatch.setattr(Opening, "_abandon", lambda *_: None)
    with pytest.raises(AssertionError, match="2 claims are held"):
        attack()
