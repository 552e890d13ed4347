"""An asyncio-native checkpoint runtime: write never waits, leaving never loses."""

from . import blocking
from ._checkpointer import Checkpointer
from ._codecs import MsgspecCodec, PickleCodec
from ._errors import (
    CheckpointError,
    ClosedError,
    CodecError,
    ConflictError,
    CorruptCheckpointError,
    FencedError,
    FlushTimeoutError,
    KeyInUseError,
    NonRecoverableError,
    RecoverableError,
    StoppedError,
    StoreError,
    StoreUnavailableError,
)
from ._keyring import Keyring
from ._map import Outcome
from ._open import open
from ._policy import RetryPolicy
from ._records import Checkpoint, Statistics
from ._runner import current
from ._runtime import Runtime
from ._script import run
from ._task import Task, task
from .abc import Codec, Store

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Checkpointer",
    "ClosedError",
    "Codec",
    "CodecError",
    "ConflictError",
    "CorruptCheckpointError",
    "FencedError",
    "FlushTimeoutError",
    "KeyInUseError",
    "Keyring",
    "MsgspecCodec",
    "NonRecoverableError",
    "Outcome",
    "PickleCodec",
    "RecoverableError",
    "RetryPolicy",
    "Runtime",
    "Statistics",
    "StoppedError",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "Task",
    "blocking",
    "current",
    "open",
    "run",
    "task",
]
