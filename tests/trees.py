"""Trees on the disk, for tests: made from a few words, and seen whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

Seen = dict[bytes, tuple[str, int, object]]


def seen(root: Path) -> Seen:
    """All that a tree is: by path, the kind, the permissions, and the contents with their time."""
    top = os.fsencode(root)
    found = {b"": _one(top)}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = _one(path)
    return found


def _one(path: bytes) -> tuple[str, int, object]:
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return "link", 0, os.readlink(path)
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISDIR(info.st_mode):
        return "directory", mode, None
    with open(path, "rb") as file:
        return "file", mode, (file.read(), info.st_mtime_ns)


def make(root: Path, **files: bytes) -> Path:
    """A directory with these files; `a__b` is `a/b`."""
    for name, data in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def make_odd(root: Path) -> Path:
    """A tree that has of everything that may be saved."""
    make(root, plain=b"plain", empty=b"", deep__er__file=b"x" * 300_000)
    (root / "large").write_bytes(os.urandom((9 << 20) + 17))
    (root / "nothing").mkdir()
    (root / "private").mkdir(mode=0o700)
    (root / "private" / "key").write_bytes(b"secret")
    os.chmod(root / "private" / "key", 0o600)
    (root / "locked").mkdir()
    (root / "locked" / "inside").write_bytes(b"inside")
    os.chmod(root / "locked" / "inside", 0o440)
    os.chmod(root / "locked", 0o555)
    os.chmod(root / "plain", 0o755)
    os.utime(root / "plain", ns=(1, 1_234_567_890_123_456_789))
    (root / "to-file").symlink_to("deep/er/file")
    (root / "deep" / "up").symlink_to("../plain")
    (root / "to-directory").symlink_to("private")
    (root / "dangling").symlink_to("not/there")
    for name in (b"caf\xc3\xa9", b"cafe\xcc\x81", b"\xff\xfe", b"a\nb", b" ", b"-rf", b"n" * 255):
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(name)
    return root
