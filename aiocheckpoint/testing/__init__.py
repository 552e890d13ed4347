"""What stores, and programs that use checkpoints, may be tested with."""

from .contract import StoreContract
from .faults import FaultyStore, SlowStore, Wrapper
from .tasks import Interrupted, check_resumes, interrupt_at, no_waiting

__all__ = [
    "FaultyStore",
    "Interrupted",
    "SlowStore",
    "StoreContract",
    "Wrapper",
    "check_resumes",
    "interrupt_at",
    "no_waiting",
]
