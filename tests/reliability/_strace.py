"""What a process does to the files below a directory, as strace sees it."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests import servers
from tests.children import LATE, ROOT
from tests.reliability._disk import Image
from tests.reliability._jobs import Version
from tests.reliability._nameless import shown, with_names
from tests.reliability._torn import Op

_CALLS = (
    "openat,open,creat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,"
    "fdatasync,sync_file_range,msync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,sendfile,copy_file_range"
)
_LONGEST = 16 << 20
_HEX = r"(?:\\x[0-9a-f]{2})*"
_STRING = re.compile(rf'"({_HEX})"')
_WHERE = re.compile(rf"^(?:AT_FDCWD|\d+)<({_HEX})>(\(deleted\))?$")
_DONE = re.compile(r"^(\w+)\((.*)\)\s+= (\d+)(?:<.*)?$", re.DOTALL)


class Traced(NamedTuple):
    """A program's operations as strace saw them, and what the program itself tells."""

    ops: list[Op]
    recorded: list[Op]
    versions: list[Version]


def traced(name: str, url: str, base: Path, start: Image, *options: str) -> Traced:
    """Run a job of that name in a process of its own, under strace."""
    above = base.parent
    trace, marks, told = above / "trace", above / "marks", above / "told"
    program = [sys.executable, "-m", "tests.reliability._program", name, url, base, marks, told]
    strace("-xx", "-s", _LONGEST, "-o", trace, "-e", _CALLS, *program, *options)
    recorded, versions = pickle.loads(told.read_bytes())
    ops = _Trace(str(base), str(marks), start).ops(_whole(trace.read_text().splitlines()))
    return Traced(list(with_names(list(ops))), recorded, versions)


def strace(*arguments: object) -> str:
    """Run strace, on all threads and with the paths of descriptors; what the program printed."""
    command = [servers.program("strace", "strace", "apt-get install strace"), "-f", "-y", "-qq"]
    done = subprocess.run(
        [str(each) for each in (*command, *arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=LATE,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        if "ptrace" in done.stderr.lower():
            servers.missing("permission to trace", "run the container with --cap-add=SYS_PTRACE")
        raise AssertionError(f"the program failed:\n{done.stderr}")
    return done.stdout


def _whole(lines: Sequence[str]) -> Iterator[str]:
    """The calls, in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in lines:
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>").rstrip()
        elif found := re.match(r"<\.\.\. \w+ resumed>", call):
            yield begun.pop(process) + call[found.end() :]
        else:
            yield call


class _Trace:
    def __init__(self, root: str, marks: str, start: Image) -> None:
        self._root = root
        self._marks = marks
        self._known = set(start)
        self._at: dict[str, int] = {}  # where a plain write to a descriptor goes

    def ops(self, calls: Iterator[str]) -> Iterator[Op]:
        for call in calls:
            if (match := _DONE.match(call)) is not None:
                yield from self._op(match[1], _arguments(match[2]), int(match[3]))

    def _op(self, call: str, args: list[str], result: int) -> Iterator[Op]:
        match call:
            case "openat":
                yield from self._opened(self._path(args[0], args[1]), args[2], result)
            case "write" if self._file(args[0]) == self._marks:
                kind, number = _text(args[1]).split()
                yield Op(kind, at=int(number))
            case "mkdir" | "symlink" | "unlink" | "rmdir":
                path = self._path(None, args[-1] if call == "symlink" else args[0])
                yield from self._named(call, path, _text(args[0]) if call == "symlink" else "")
            case "mkdirat":
                yield from self._named("mkdir", self._path(args[0], args[1]))
            case "symlinkat":
                yield from self._named("symlink", self._path(args[1], args[2]), _text(args[0]))
            case "unlinkat":
                kind = "rmdir" if "AT_REMOVEDIR" in args[2] else "unlink"
                yield from self._named(kind, self._path(args[0], args[1]))
            case "rename" | "link":
                yield from self._moved(call, self._path(None, args[0]), self._path(None, args[1]))
            case "renameat" | "renameat2" | "linkat":
                src, dst = self._path(args[0], args[1]), self._path(args[2], args[3])
                if _text(args[1]).startswith("/proc/self/fd/"):
                    src = self._below(self._file(args[0]))
                yield from self._moved(call.partition("at")[0], src, dst)
            case _ if (path := self._below(self._file(args[0]))) is not None:
                yield from self._written(call, path, args, result)

    def _opened(self, path: str | None, flags: str, fd: int) -> Iterator[Op]:
        self._at[str(fd)] = 0
        if path is not None and "O_CREAT" in flags and path not in self._known:
            yield from self._named("create", path)
        elif path is not None and "O_TRUNC" in flags:
            yield Op("truncate", path)

    def _named(self, kind: str, path: str | None, to: str = "") -> Iterator[Op]:
        if path is not None:
            (self._known.discard if kind in ("unlink", "rmdir") else self._known.add)(path)
            yield Op(kind, path, to)

    def _moved(self, kind: str, src: str | None, dst: str | None) -> Iterator[Op]:
        if src is None or dst is None:
            return
        self._known.add(dst)
        if kind == "rename":
            for path in [p for p in self._known if p == src or p.startswith(f"{src}/")]:
                self._known.remove(path)
                self._known.add(dst + path[len(src) :])
        yield Op(kind, src, dst)

    def _written(self, call: str, path: str, args: list[str], size: int) -> Iterator[Op]:
        fd = args[0].partition("<")[0]
        match call:
            case "write":
                yield Op("write", path, at=self._at[fd], data=_bytes(args[1])[:size])
                self._at[fd] += size
            case "pwrite64":
                yield Op("write", path, at=int(args[3]), data=_bytes(args[1])[:size])
            case "pwritev" | "pwritev2":
                yield Op("write", path, at=int(args[3]), data=_bytes(args[1])[:size])
                if args[4:] == ["RWF_SYNC"]:
                    yield Op("sync", path, site=_site("RWF_SYNC", path))
            case "ftruncate":
                yield Op("truncate", path, at=int(args[1]))
            case "fallocate":
                yield Op("reserve", path, at=int(args[2]) + int(args[3]))
            case "fsync" | "fdatasync":
                yield Op("sync", path, site=_site(call, path))
            case _:
                raise AssertionError(f"strace saw a call that is not modelled: {call} of {path}")

    def _file(self, descriptor: str) -> str | None:
        found = _WHERE.match(descriptor)
        return None if found is None else shown(_unhex(found[1]).decode() + (found[2] or ""))

    def _path(self, above: str | None, name: str) -> str | None:
        folder = self._file(above) if above is not None else str(ROOT)
        return self._below(os.path.normpath(os.path.join(folder or "/", _text(name))))

    def _below(self, path: str | None) -> str | None:
        if path == self._root:
            return ""
        inside = path is not None and path.startswith(f"{self._root}/")
        return path[len(self._root) + 1 :] if path and inside else None


def _arguments(text: str) -> list[str]:
    """Strings are in hexadecimal, so that no comma is in one."""
    return re.sub(r"\[\{iov_base=([^,]*), iov_len=\d+\}\]", r"\1", text).split(", ")


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _bytes(argument: str) -> bytes:
    found = _STRING.fullmatch(argument)
    assert found is not None, f"data that strace has cut short: {argument[-20:]}"
    return _unhex(found[1])


def _text(argument: str) -> str:
    return _bytes(argument).decode()


def _site(call: str, path: str) -> str:
    """The call, and of what; of files with random names, that it is one."""
    return f"{call} {re.sub(r'[^/]*[0-9a-f]{16}[^/]*', 'FILE', path) or 'DIRECTORY'}"
