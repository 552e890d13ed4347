"""What stores, and programs that use checkpoints, may be tested with."""

from .contract import StoreContract
from .faults import FaultyStore, SlowStore, Wrapper

__all__ = ["FaultyStore", "SlowStore", "StoreContract", "Wrapper"]
