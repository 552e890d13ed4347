"""Whatever is made of what is stored: the right answer, or the error that says so."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from aiocheckpoint import _keys, _region, _trees

from . import _damage_targets
from ._damage import part
from ._torture import Budget


def test_mutants_are_read_rightly_or_refused() -> None:
    counts = part(Budget(cases=80, seed=7))
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
        part(Budget(cases=40, seed=7), "manifests")


def test_a_half_whose_checksum_is_not_compared_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    look = _region._look

    def blind(fd: int, header: Any, begin: int, half: int) -> Any:
        trailer, staged = look(fd, header, begin, half)
        size, seq, _ = _region._TRAILER.unpack(trailer)
        start = begin + _region._HEAD + half * (header.capacity + _region._TRAILER.size)
        if staged is None and size and size <= header.capacity:
            data = os.pread(fd, size, start)
            staged = _region.Staged(seq, data, header.codec)
        return trailer, staged

    monkeypatch.setattr(_region, "_look", blind)
    with pytest.raises(AssertionError, match="a wrong state"):
        part(Budget(cases=40, seed=7), "regions")


def test_a_path_that_leads_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "_fault", lambda manifest: "")
    with pytest.raises(AssertionError, match=r"a path that leads out|an absolute path"):
        part(Budget(cases=100, seed=7), "manifests")


def test_a_key_that_climbs_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_damage_targets, "store_name", lambda key: key)
    with pytest.raises(AssertionError, match="a name that"):
        part(Budget(cases=40, seed=7), "keys")
    assert _keys.store_name("a/b") != "a/b"


@given(
    scheme=st.sampled_from(["s3", "redis", "rediss", "postgresql"]),
    user=st.text(max_size=9),
    password=st.text(min_size=4, max_size=9),
    path=st.text(max_size=9),
    query=st.text(max_size=20),
)
def test_a_url_is_understood_or_refused_and_its_password_never_told(
    scheme: str, user: str, password: str, path: str, query: str
) -> None:
    secret = f"sesame{quote(password, safe='')}"
    url = f"{scheme}://{quote(user, safe='')}:{secret}@host:1/{path}?{query}"
    said = ""
    try:
        _damage_targets.parse_url(url)
    except ValueError as refused:
        said = str(refused)
    assert "sesame" not in said or "sesame" in path + query
