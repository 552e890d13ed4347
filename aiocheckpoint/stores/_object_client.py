"""The thin seam below the object stores: what a client does, and what a service's answer means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from .._errors import ConflictError, StoreError, StoreUnavailableError

PART = 8 << 20
"""Bytes of a part of a large blob, up and down. Services want 5 MiB or more of all but the last."""
PARTS_AT_ONCE = 4
TIMEOUT = 30.0
"""Seconds after which a request is given up."""
PART_TIMEOUT = 600.0
"""The same for a part of a blob, as many may share a slow link. How long a whole blob may take is
for the core to say."""
CONNECT_TIMEOUT = 5.0

_EVEN_PARTS = 3000  # of a size, as some services want it; then they grow fourfold
_MOST_PARTS = 9000  # services take 10,000


class Found(NamedTuple):
    """A whole object, and the version to name when replacing it."""

    data: bytes
    version: str


class Piece(NamedTuple):
    """Some bytes of an object, how many it has in all, and a tag of this very content."""

    data: bytes
    total: int
    tag: str


class Listed(NamedTuple):
    """An object of a listing: its whole name and its size."""

    name: str
    size: int


class Upload(Protocol):
    """A large object on its way, in parts side by side."""

    async def write(self, chunk: bytes | memoryview) -> None:
        """Take more of it, once there is room."""

    async def finish(self) -> None:
        """Return when the object is there."""

    async def abort(self) -> None:
        """Have nothing left of it. Never raises."""


class ObjectClient(Protocol):
    """One service, seen as flat names that hold bytes. What it raises is the driver's own."""

    quoted: bool
    """Whether conditions name ETags in quotes, as the standard has it; some services refuse it."""

    async def get(self, name: str) -> Found: ...

    async def get_piece(self, name: str, start: int, stop: int, tag: str | None) -> Piece:
        """The bytes from `start` to before `stop`, if the content still has that tag."""

    async def put(
        self, name: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Put a whole object, if the condition holds; its version. Ends within TIMEOUT, and what
        a slow link needs."""

    def list(self, prefix: str) -> AsyncIterator[list[Listed]]:
        """Page by page, in any order, all whose names start with `prefix`."""

    async def delete(self, name: str) -> None:
        """Remove an object. That it is absent may be an error, or none."""

    def upload(self, name: str, size: int | None) -> Upload:
        """Begin a large object. `size` if it is known."""

    def explain(self, exc: Exception) -> Answer | None:
        """What the service said, if it is the driver's error."""


class Answer(NamedTuple):
    """A service's refusal; the status is 0 if there was no answer at all."""

    status: int
    code: str
    text: str
    cause: Exception
    """The driver's error, without secrets."""

    @property
    def absent(self) -> bool:
        """The object is not there. Any other 404 (no bucket, no such page) is a failure."""
        return self.status == 404 and self.code in _ABSENT

    @property
    def refused(self) -> bool:
        """A condition did not hold; to name the version of an absent object is one of the ways."""
        return self.status == 412 or self.code in _REFUSED or self.absent

    @property
    def past_the_end(self) -> bool:
        return self.status == 416

    def error(self, where: str, op: str, key: str | None) -> StoreError:
        """The error to raise from `cause`."""
        kind, hint = self._judged()
        return kind(f"{where}: {self.text}; {hint}", op=op, key=key)

    def _judged(self) -> tuple[type[StoreError], str]:
        if self.code in _REFUSED or self.status == 412:
            return ConflictError, "another version is the head"
        if not self.status:
            return StoreUnavailableError, "see whether the endpoint is right and can be reached"
        if self.code in _PASSING:
            return StoreUnavailableError, _PASSING[self.code]
        if self.code in _LASTING:
            return StoreError, _LASTING[self.code]
        if self.status in (408, 409, 425, 429) or (self.status >= 500 and self.status != 501):
            return StoreUnavailableError, "the service is busy or ill"
        return StoreError, _BY_STATUS.get(self.status, "see the cause below")


_ABSENT = frozenset({"NoSuchKey", "BlobNotFound"})
_REFUSED = frozenset({"PreconditionFailed", "ConditionNotMet", "BlobAlreadyExists"})
_EXPIRED = "the credentials have expired; renew them"
_PASSING = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeout": "the connection was too slow",
    "IncompleteBody": "the connection was cut",
    "BadDigest": "the bytes were damaged on their way",
    "XAmzContentSHA256Mismatch": "the bytes were damaged on their way",
    "SlowDown": "the service asks for fewer requests; see min_interval",
    "Throttling": "the service asks for fewer requests; see min_interval",
    "RequestLimitExceeded": "the service asks for fewer requests; see min_interval",
    "ConditionalRequestConflict": "another request for the same key was under way",
    "OperationAborted": "another request for the same key was under way",
}
_NO_BUCKET = "create it, or name another one"
_RIGHTS = (
    "allow this user to get, put, delete and list (without leave to list,"
    " S3 says the same of what is absent)"
)
_LASTING = {
    "NoSuchBucket": _NO_BUCKET,
    "ContainerNotFound": _NO_BUCKET,
    "AccessDenied": _RIGHTS,
    "NoCredentials": "give credentials, or anonymous=true",
    "InvalidAccessKeyId": "give other credentials",
    "SignatureDoesNotMatch": "see whether secret key and region are right",
    "PermanentRedirect": "name the bucket's region",
    "AuthorizationHeaderMalformed": "name the bucket's region",
    "RequestTimeTooSkewed": "set this machine's clock",
    "EntityTooLarge": "the service takes no object that large",
    "NotImplemented": "the service lacks what this store needs",
}
_BY_STATUS = {
    400: "see whether bucket, region and endpoint are right",
    401: "give other credentials",
    403: _RIGHTS,
    404: "see whether bucket and endpoint are right",
    413: "the service takes no object that large",
    501: _LASTING["NotImplemented"],
}


def patience(size: int) -> float:
    """Seconds that a put of so many bytes may take; the core allows for as slow a link."""
    return TIMEOUT + size / (1 << 20)


def part_size(number: int, size: int | None) -> int:
    """Bytes of part `number` (from 0): parts never run out before the service's largest object."""
    if size is not None:
        return max(PART, -(-size // _MOST_PARTS))
    return PART << (2 * (number // _EVEN_PARTS))


def bare(etag: str) -> str:
    """An ETag without its quotes."""
    return etag[1:-1] if etag[:1] == etag[-1:] == '"' else etag
