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
    """One sentence of the contract a test."""


__all__ = ["StoreContract", "listed", "put", "read", "refused"]
