"""An open handle leaves no blob behind, however its store fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aiocheckpoint import Runtime, StoreUnavailableError
from aiocheckpoint.abc import Source
from aiocheckpoint.stores.memory import MemoryStore
from aiocheckpoint.testing import Wrapper

from .support import true

LARGE = bytes(2 << 20)


class LosesAnswers(Wrapper):
    """Every third blob is stored, and said not to be."""

    puts = 0

    async def put_blob(self, key: str, name: str, source: Source) -> None:
        await super().put_blob(key, name, source)
        self.puts += 1
        if self.puts % 3 == 0:
            raise StoreUnavailableError("the answer was lost", op="put_blob", key=key)


class RefusesToDelete(Wrapper):
    """Every third time."""

    calls = 0

    async def delete_blobs(self, key: str, names: Sequence[str]) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            raise StoreUnavailableError("not now", op="delete_blobs", key=key)
        await super().delete_blobs(key, names)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("fault", [LosesAnswers, RefusesToDelete])
async def test_no_blob_is_left_behind(fault: type[Wrapper], keep: int) -> None:
    store = MemoryStore()
    async with Runtime(fault(store), keep=keep, min_interval=0) as rt, rt.open("k") as cp:
        for number in range(18):
            await cp.write(b"%d" % number + LARGE)
            await cp.flush()
        # one more is kept than asked for, and a collection waits for the next success
        most = (keep + 1) * keep
        await true(lambda: len(store._blobs["k"]) <= most + 3)
