"""Keys: any that the core lets through, listed in order."""

from __future__ import annotations

from ..._errors import StoreError
from ...abc import Put
from ._base import Contract, listed, put, read

HOSTILE_KEYS = [
    *("a", "A", "a/b", "a%2fb", "%2f", "..", ".", ".hidden", "-rf", "con", "nul.txt", "key"),
    *("head.000000000001", "blobs", "dot.", "two words ", " ", "'", '"', "%", "%%", "_", "*", "?"),
    *("\\", "a\\b", "~", "%~", "$HOME", ";--", "é", "e\u0301", "ß", "İ", "日本", "😀", "\u2028"),
    *("x" * 200, "x" * 199 + "y", "X" * 200, "/" * 200, "😀" * 50),
]


class Keys(Contract):
    async def test_hostile_keys(self) -> None:
        """Any key is kept apart from every other, and is listed as it was given."""
        store = await self.make_store()
        versions = [await put(store, key, None, key.encode()) for key in HOSTILE_KEYS]
        for key, version in zip(HOSTILE_KEYS, versions, strict=True):
            await store.put_blob(key, "blob", key.encode())
            assert await store.load(key) == (key.encode(), version)
            assert await self.raw_head(store, key) == key.encode()
        for key in HOSTILE_KEYS:
            assert await read(store.open_blob(key, "blob")) == key.encode()
        assert await listed(store) == sorted(HOSTILE_KEYS)
        await store.aclose()

    async def test_keys_by_prefix(self) -> None:
        """Keys are listed in order, and a prefix means nothing but itself."""
        store = await self.make_store()
        count = 110
        keys = [f"{prefix}{i}" for prefix in ("a%", "a_", "ab") for i in range(count)]
        answers = await store.commit([Put(key, None, b"x") for key in keys])
        assert not [answer for answer in answers if isinstance(answer, StoreError)]
        for key in ("a", "é", "\uffff", "😀"):
            await put(store, key, None, b"x")
        assert await listed(store) == sorted([*keys, "a", "é", "\uffff", "😀"])
        assert await listed(store, "a%") == sorted(keys[:count])
        assert await listed(store, "a_") == sorted(keys[count : 2 * count])
        assert await listed(store, "ab10") == ["ab10", *(f"ab10{i}" for i in range(10))]
        assert await listed(store, "A") == []
        await store.aclose()
