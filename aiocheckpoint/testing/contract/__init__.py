"""The contract of `abc.Store` as tests: subclass `StoreContract` for your store.

    class TestMyStore(StoreContract):
        async def make_store(self): return MyStore(self.url)
        async def raw_head(self, store, key): ...    # read past the store, with another client

Collect it with any runner that knows async methods (with pytest: anyio's plugin, on asyncio).
Records are never empty, so no store is asked to keep an empty one.
"""

from ._base import listed, put, read, refused
from .blobs import Blobs
from .heads import Heads
from .interruptions import Interruptions
from .keys import Keys
from .scale import Scale


class StoreContract(Heads, Keys, Blobs, Interruptions, Scale):
    """One sentence of the contract a test: about forty, as async methods named `test_...`.

    Two methods are for you to write. `async make_store() -> Store` gives another instance over the
    same data for as long as a test runs (or the same one, if the data are the instance itself).
    `async raw_head(store, key) -> bytes | None` gives the record that a key holds, read by other
    means than the store.

    Three attributes may be set: `many_keys` (10,000), how many a listing is tried with;
    `large_blob` (200 MiB), bytes of the largest blob; `in_memory` (False), true for a store that
    keeps its data in this process, whose use of memory is not measured then.
    """


__all__ = ["StoreContract", "listed", "put", "read", "refused"]
