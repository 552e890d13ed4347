"""Redis's errors as ours: which may pass, and what to do about the others."""

from __future__ import annotations

import re

from redis import exceptions as redis

from .._errors import StoreError, StoreUnavailableError

# redis-py takes the code off the message of these, and puts several under ConnectionError
_CODES: list[tuple[type[Exception], str]] = [
    (redis.AuthenticationError, "NOAUTH"),
    (redis.AuthenticationWrongNumberOfArgsError, "NOAUTH"),
    (redis.NoPermissionError, "NOPERM"),
    (redis.OutOfMemoryError, "OOM"),
    (redis.ReadOnlyError, "READONLY"),
    (redis.BusyLoadingError, "LOADING"),
    (redis.MasterDownError, "MASTERDOWN"),
    (redis.ClusterDownError, "CLUSTERDOWN"),
    (redis.TryAgainError, "TRYAGAIN"),
    (redis.AskError, "MOVED"),
    (redis.ClusterCrossSlotError, "MOVED"),
]
# At the start, or after what Redis 6 puts before the errors of a script.
_CODE = re.compile(r"(?:^|@user_script: ?\d+: )-?([A-Z]+)\b")
_PASSING = {
    "OOM": "the server is full: raise its maxmemory, or delete keys",
    "READONLY": "this is a replica: name the primary, or wait for the failover",
    "LOADING": "the server has just started",
    "BUSY": "somebody's script keeps the server busy",
    "MASTERDOWN": "the replica has lost its primary",
    "CLUSTERDOWN": "the cluster is down",
    "TRYAGAIN": "the cluster is being reshaped",
    "NOREPLICAS": "too few replicas are connected for its min-replicas-to-write",
    "MISCONF": "the server cannot write to its own disk: see its log, make room there",
}
NO_CLUSTER = "Redis Cluster is not supported: name a server outside a cluster"
_PERMISSION = (
    "give this user ~PREFIX/* and +@read +@write +@scripting +@connection +info +config|get"
)
_CERTIFICATE = "name who signed it: rediss://HOST?ssl_ca_certs=FILE"
_LASTING = {
    "NOAUTH": "put the right user and password into the URL: redis://USER:PASSWORD@HOST",
    "WRONGPASS": "put the right user and password into the URL: redis://USER:PASSWORD@HOST",
    "NOPERM": _PERMISSION,
    "WRONGTYPE": "another program has that key: take another prefix, redis://HOST?prefix=NAME",
    "MOVED": NO_CLUSTER,
    "ASK": NO_CLUSTER,
    "CROSSSLOT": NO_CLUSTER,
}


def answered(text: str, op: str, key: str | None) -> StoreError:
    """The error for what the server answered."""
    found = _CODE.search(text)
    code = found[1] if found else ""
    if found and code in _PASSING | _LASTING:
        text = text[found.start(1) :].strip()
    if hint := _PASSING.get(code):
        return StoreUnavailableError(f"{text} ({hint})", op=op, key=key)
    if hint := _LASTING.get(code):
        return StoreError(f"{text} ({hint})", op=op, key=key)
    if "can't run this command" in text or "no permission" in text.lower():
        return StoreError(f"{text} ({_PERMISSION})", op=op, key=key)
    return StoreError(text, op=op, key=key)


def translated(exc: Exception, op: str, key: str | None) -> StoreError:
    """The error for what redis-py raised. What is lost with a connection may have been done."""
    text = str(exc).strip()
    for kind, code in _CODES:
        if isinstance(exc, kind):
            return answered(text if text.startswith(code) else f"{code} {text}", op, key)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return StoreError(f"{text} ({_CERTIFICATE})", op=op, key=key)
    if isinstance(exc, redis.ConnectionError | redis.TimeoutError | OSError):
        return StoreUnavailableError(text or type(exc).__name__, op=op, key=key)
    return answered(text, op, key)
