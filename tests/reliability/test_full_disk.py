"""A disk that fills up loses nothing that was acknowledged, and is used again once it has room."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from aiocheckpoint import CorruptCheckpointError
from aiocheckpoint.stores import _disk
from aiocheckpoint.stores import file as file_store

from ._full import WAYS, fill


@pytest.mark.parametrize(("scheme", "spool"), WAYS)
def test_a_disk_that_fills_up_loses_nothing(scheme: str, spool: str) -> None:
    counts = fill(scheme, spool, random.Random(1), turns=3)
    assert counts["fillings"] > 0


def test_a_failed_write_that_counts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write = _disk.write_durably

    def careless(fd: int, data: bytes) -> None:
        with suppress(OSError):
            write(fd, data)

    monkeypatch.setattr(file_store, "write_durably", careless)
    with pytest.raises((AssertionError, CorruptCheckpointError)):
        for number in range(20):
            fill("file", "none", random.Random(number), turns=2)
