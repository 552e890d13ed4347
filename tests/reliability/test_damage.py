"""Whatever is made of what is stored: the right answer, or the error that says so."""

from __future__ import annotations

import os
from typing import Any

import pytest
import xxhash

from aiocheckpoint import _keys, _region, _trees

from . import _damage
from ._damage import part
from ._torture import Budget


def test_mutants_are_read_rightly_or_refused() -> None:
    counts = part(Budget(cases=60, seed=7))
    assert counts["refused"] > 10_000
    assert counts["read"] > 1_000


def test_a_checksum_that_is_not_compared_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Equal(bytes):
        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = None  # type: ignore[assignment]

    class Blind:
        def xxh3_128_digest(self, data: bytes) -> bytes:
            return Equal(xxhash.xxh3_128_digest(data))

    monkeypatch.setattr(_trees, "xxhash", Blind())
    with pytest.raises(AssertionError, match="a wrong state"):
        part(Budget(cases=60, seed=7))


def test_a_half_whose_checksum_is_not_compared_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    look = _region._look

    def blind(fd: int, header: Any, half: int) -> Any:
        trailer, staged = look(fd, header, half)
        size, seq, _ = _region._TRAILER.unpack(trailer)
        start = _region._HEAD + half * (header.capacity + _region._TRAILER.size)
        if staged is None and size and size <= header.capacity:
            data = os.pread(fd, size, start)
            staged = _region.Staged(seq, data, header.codec)
        return trailer, staged

    monkeypatch.setattr(_region, "_look", blind)
    with pytest.raises(AssertionError, match="a wrong state"):
        part(Budget(cases=60, seed=7))


def test_a_path_that_leads_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "_fault", lambda manifest: "")
    with pytest.raises(AssertionError, match=r"a path that leads out|an absolute path"):
        part(Budget(cases=300, seed=7))


def test_a_key_that_climbs_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_damage, "store_name", lambda key: key)
    with pytest.raises(AssertionError, match="a name that"):
        part(Budget(cases=60, seed=7))
    assert _keys.store_name("a/b") != "a/b"
