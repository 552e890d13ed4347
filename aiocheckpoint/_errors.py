"""The error tree: what can go wrong, and whether waiting may mend it."""

from __future__ import annotations


class CheckpointError(Exception):
    """The root of every error that aiocheckpoint raises on its own account."""

    def __reduce__(self) -> tuple[object, ...]:
        # as it is, past __init__ and its keywords: errors are pickled by process pools
        return _remade, (type(self), self.args), self.__dict__


def _remade(kind: type[CheckpointError], args: tuple[object, ...]) -> CheckpointError:
    error = kind.__new__(kind)
    error.args = args
    return error


class StoreError(CheckpointError):
    """A store refused, and trying the same again will not help (forbidden, too large).

    `op` is the store's operation and `key` the key that it was for, where there was one.
    """

    def __init__(self, message: str, *, op: str, key: str | None = None) -> None:
        self.op = op
        self.key = key
        super().__init__(message)

    def __str__(self) -> str:
        where = self.op if self.key is None else f"{self.op} {self.key!r}"
        return f"{where}: {self.args[0]}"


class StoreUnavailableError(StoreError):
    """The store did not answer, or not in time, or has no room: it may pass.

    What was asked may or may not have been done.
    """


class ConflictError(StoreError):
    """The version that a commit or delete named is not the key's version any more."""


class FencedError(CheckpointError):
    """A newer claim holds the key, or the key was deleted: this handle can never write again."""


class CorruptCheckpointError(CheckpointError):
    """A stored record is damaged, cut short or not ours, and no good one stands in for it."""


class CodecError(CheckpointError):
    """A state or result cannot be encoded or decoded."""


class SealedError(CodecError):
    """A stored record is encrypted, and there is no keyring."""


class FlushTimeoutError(CheckpointError, TimeoutError):
    """A flush ran out of time. `key`, `staged` and `stored` say how far it came (seqs)."""

    def __init__(self, message: str, *, key: str, staged: int, stored: int) -> None:
        self.key = key
        self.staged = staged
        self.stored = stored
        super().__init__(message)


class KeyInUseError(CheckpointError):
    """The key is open in this runtime already, or an earlier item of the map has it."""


class ClosedError(CheckpointError):
    """The handle or runtime is closed, or belongs to the parent of this forked process."""


class StoppedError(CheckpointError):
    """The runtime is stopping: the attempt ended at a consistent point, to be resumed."""


class RecoverableError(Exception):
    """Raise it in a task to ask for a retry, whatever the policy's `on` says.

    `retry_after` (seconds) replaces the policy's wait before that retry.
    """

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(*args)


class NonRecoverableError(Exception):
    """Raise it in a task to end the run as failed, whatever the policy says."""
