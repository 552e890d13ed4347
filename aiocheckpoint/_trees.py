"""Trees: what is saved of a file or a directory. The manifest, and the way to it and back.

A manifest lists the entries of a tree, each after the directory that it lies in, and says for
every file where its chunks lie: in packs, which are blobs of many chunks one after the other. The
frame is

    magic (8) | format (u16) | MessagePack of Manifest | XXH3-128 of all before (16)

Kept of an entry: its name, whatever bytes that has; whether it is a file, a directory or a
symbolic link; read, write and execute permissions; a file's modification time; where a link leads,
which must be within the tree. Not kept: owners, further permissions, attributes, hard links.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self, TypeVar

import msgspec
import xxhash

from ._errors import CodecError, CorruptCheckpointError

T = TypeVar("T")

FORMAT = 1
CHUNK = 4 << 20
"""Files are compared, moved and checked in chunks of so many bytes; the last is shorter."""

_MAGIC = b"\x89AIOCKT\n"
_PREFIX = struct.Struct("<8sH")
_SUM = 16
_PERMISSIONS = 0o777
_LATEST = (1 << 63) - 1

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Kind = Literal["file", "directory", "link"]


class Chunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A piece of a file: which pack of the manifest it lies in, and where. The digest is that of
    the file's bytes, so that they are known again however they are stored."""

    pack: int
    start: int
    size: int
    digest: bytes
    compressed: int = 0
    """The bytes that it takes in the pack, if it is compressed; 0 if it is not."""

    @property
    def stored(self) -> int:
        return self.compressed or self.size


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name of a tree; the root's own is empty."""

    path: bytes
    kind: Kind
    mode: int = 0
    mtime: int = 0
    """Of a file, in nanoseconds."""
    target: bytes = b""
    chunks: tuple[Chunk, ...] = ()

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)


class Pack(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A blob of chunks."""

    name: str
    size: int


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """A whole tree. The first entry is the root, a file or a directory. Packs go by age, the
    oldest first."""

    packs: tuple[Pack, ...]
    entries: tuple[Entry, ...]
    compression: str = ""
    """How those chunks are compressed that are."""


def encode_manifest(manifest: Manifest) -> bytes:
    body = _PREFIX.pack(_MAGIC, FORMAT) + msgspec.msgpack.encode(manifest)
    return body + xxhash.xxh3_128_digest(body)


def decode_manifest(key: str, data: bytes) -> Manifest:
    """The manifest of a frame, in which nothing leads out of the tree.

    Raises:
        CorruptCheckpointError: damaged, cut short, not a manifest, or not a tree.
        CodecError: whole, but of a later format.
    """

    def corrupt(what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"the list of files of {key!r} {what}")

    if len(data) < _PREFIX.size + _SUM or data[:8] != _MAGIC:
        raise corrupt("is none, or is cut short")
    body = memoryview(data)[:-_SUM]
    if xxhash.xxh3_128_digest(body) != data[-_SUM:]:
        raise corrupt("is damaged: its checksum does not match")
    _, form = _PREFIX.unpack_from(data)
    if form != FORMAT:
        raise CodecError(
            f"the list of files of {key!r} has format {form}, and this aiocheckpoint reads format"
            f" {FORMAT}: upgrade aiocheckpoint"
        )
    try:
        manifest = msgspec.msgpack.decode(body[_PREFIX.size :], type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise corrupt(f"makes no sense ({exc})") from exc
    if fault := _fault(manifest):
        raise corrupt(f"is refused: {fault}")
    return manifest


def _fault(manifest: Manifest) -> str | None:
    """Why this is no tree that may be restored; None if it is one."""
    if not manifest.entries or manifest.entries[0].path:
        return "it has no root"
    root = manifest.entries[0]
    if root.kind == "link" or (root.kind == "file" and len(manifest.entries) > 1):
        return "its root is no directory"
    directories = set[bytes]()
    seen = set[bytes]()
    for entry in gently(manifest.entries):
        path = entry.path
        parent, _, name = path.rpartition(b"/")
        if entry is not root and (name in (b"", b".", b"..") or b"\0" in name):
            return f"{path!r} is not a path"
        if entry is not root and parent not in directories:
            return f"{path!r} does not lie in a directory of the tree"
        if path in seen:
            return f"{path!r} is there twice"
        seen.add(path)
        if entry.kind == "directory":
            directories.add(path)
        if entry.kind == "link" and (fault := link_fault(path, entry.target)):
            return f"{path!r} -> {entry.target!r} {fault}"
        if entry.kind != "file" and entry.chunks:
            return f"{path!r} is no file and has contents"
        if not 0 <= entry.mode <= _PERMISSIONS:
            return f"{path!r} has permissions that no file here has"
        for chunk in entry.chunks:
            if not 0 <= chunk.pack < len(manifest.packs) or chunk.start < 0:
                return f"{path!r} lies nowhere"
            if not 0 < chunk.size <= CHUNK:
                return f"{path!r} has a piece of {chunk.size} bytes"
            if not 0 <= chunk.compressed < chunk.size:
                return f"{path!r} has a piece that is compressed to {chunk.compressed} bytes"
            if chunk.start + chunk.stored > manifest.packs[chunk.pack].size:
                return f"{path!r} lies past the end of its pack"
    return None


def link_fault(path: bytes, target: bytes) -> str | None:
    """Why a link at `path` may not lead to `target`; None if it may.

    It may go up only at its beginning, and no further than to the root: what comes after then
    stays inside, through however many other links of the tree.
    """
    parts = target.split(b"/")
    if not target or b"\0" in target:
        return "leads nowhere"
    if target.startswith(b"/"):
        return "is absolute"
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    if b".." in parts[ups:]:
        return "goes up (..) after it went down"
    if ups > path.count(b"/"):
        return "leads out of the tree"
    return None


class Found(msgspec.Struct, frozen=True, gc=False):
    """An entry as it lies on the disk, with what changes when somebody changes it."""

    path: bytes
    kind: Kind
    mode: int
    device: int
    inode: int
    size: int
    mtime: int
    ctime: int
    target: bytes = b""

    @classmethod
    def of(cls, path: bytes, kind: Kind, info: os.stat_result, target: bytes = b"") -> Found:
        return cls(
            path,
            kind,
            0 if kind == "link" else info.st_mode & _PERMISSIONS,
            info.st_dev,
            info.st_ino,
            info.st_size,
            info.st_mtime_ns,
            info.st_ctime_ns,
            target,
        )

    def entry(self, chunks: tuple[Chunk, ...] = ()) -> Entry:
        mtime = max(-_LATEST, min(self.mtime, _LATEST)) if self.kind == "file" else 0
        return Entry(self.path, self.kind, self.mode, mtime, self.target, chunks)

    def check(self, info: os.stat_result) -> None:
        """Raise OSError if the open file is not what was found, or was changed since."""
        now = Found.of(self.path, self.kind, info, self.target)
        if now != self:
            raise refusal(self.path, "was changed while it was saved: save it when it is done")


def gently(items: Iterable[T]) -> Iterator[T]:
    """The same, with the interpreter given away now and then: while one thread computes, a loop in
    another one stands still for 5 ms at a time."""
    for number, item in enumerate(items):
        if not number % 256:
            time.sleep(0)
        yield item


@contextmanager
def _naming(path: bytes) -> Iterator[None]:
    """Have an error say the path in the tree, not the last name alone."""
    try:
        yield
    except OSError as exc:
        exc.filename = os.fsdecode(path)
        raise


class Walk:
    """Reaches the entries of a tree from its root, and follows no link on the way: whoever may
    write in the tree cannot lead us out of it. Paths may be longer than the system's limit.
    """

    def __init__(self, root: bytes) -> None:
        """Raises OSError if the root is no directory."""
        self._root = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)
        self._path = b""
        self._here = self._root

    def directory(self, path: bytes) -> int:
        """A descriptor of a directory of the tree, open until the next one is asked for."""
        if path != self._path:
            self._leave()
            with _naming(path):
                for name in filter(None, path.split(b"/")):
                    above, self._here = self._here, os.open(name, _DIRECTORY, dir_fd=self._here)
                    if above != self._root:
                        os.close(above)
            self._path = path
        return self._here

    def open(self, path: bytes, flags: int, mode: int = 0) -> int:
        """Open an entry, if it is no link."""
        above, _, name = path.rpartition(b"/")
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        here = self.directory(above)
        with _naming(path):
            return os.open(name, flags, mode, dir_fd=here)

    def close(self) -> None:
        self._leave()
        os.close(self._root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave(self) -> None:
        here, self._here, self._path = self._here, self._root, b""
        if here != self._root:
            os.close(here)


def scan(root: Path) -> list[Found]:
    """What lies there: the root, which may be a link, and all below it, directories first.

    Raises:
        OSError: it is missing or cannot be read, or is something else than a file, a directory or
            a link that stays within the tree.
    """
    top = os.fsencode(root)
    info = os.stat(top)
    if stat.S_ISREG(info.st_mode):
        return [Found.of(b"", "file", info)]
    if not stat.S_ISDIR(info.st_mode):
        raise refusal(top, f"is {_describe(info)}: only files and directories can be saved")
    found = [Found.of(b"", "directory", info)]
    left = [b""]
    with Walk(top) as walk:
        while left:
            here = left.pop()
            entries = sorted(_entries(walk, here), key=_path)
            found += entries
            left += [entry.path for entry in reversed(entries) if entry.kind == "directory"]
    return found


def _path(found: Found) -> bytes:
    return found.path


def check_movable(root: Path) -> None:
    """Raise OSError if what lies there cannot be saved; nor can a link be moved in place of what
    it leads to."""
    if stat.S_ISLNK(root.lstat().st_mode):
        raise refusal(os.fsencode(root), "is a link: move what it leads to")
    scan(root)


def _entries(walk: Walk, directory: bytes) -> Iterator[Found]:
    fd = walk.directory(directory)
    with _naming(directory):
        listing = os.scandir(fd)
    with listing:
        for item in listing:
            name = os.fsencode(item.name)
            path = directory + b"/" + name if directory else name
            info = item.stat(follow_symlinks=False)
            if stat.S_ISREG(info.st_mode):
                yield Found.of(path, "file", info)
            elif stat.S_ISDIR(info.st_mode):
                yield Found.of(path, "directory", info)
            elif stat.S_ISLNK(info.st_mode):
                target = os.fsencode(os.readlink(name, dir_fd=fd))
                if fault := link_fault(path, target):
                    leads = os.fsdecode(target)
                    raise refusal(
                        path, f"is a link to {leads!r}, which {fault}: only links within can be"
                    )
                yield Found.of(path, "link", info, target)
            else:
                raise refusal(path, f"is {_describe(info)}: leave it out of what is saved")


def make_removable(top: Path) -> None:
    """Let directories that nobody may write to be emptied."""
    for directory, _, _ in os.walk(top):
        os.chmod(directory, 0o700)


def refusal(path: bytes, why: str) -> OSError:
    return OSError(errno.EINVAL, why, os.fsdecode(path))


def _describe(info: os.stat_result) -> str:
    mode = info.st_mode
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "a device"
    return "no file"
