"""A model of a disk: from the file operations of a program to what a power cut may leave of them.

The operations go by paths, as a tracer sees them. Until somebody syncs it, each is only in memory:

- Of a file's data any prefix of the writes may be there, the last of them torn, or with its size
  but without its bytes; the disk may also have had its sectors written in any order.
- Of the names in a directory each change may be lost or kept by itself, in any order, except that
  one name goes through its own changes in turn. A rename is one change, and durable once the
  directory that it leads to is synced.
- A sync of a file does not sync its name. A sync of a directory does not sync what the names mean.

That is weaker than what ext4 and xfs do, so that what survives it survives them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, product
from typing import NamedTuple

from . import _torn
from ._torn import Op

Image = dict[str, bytes | str | None]
"""What is on a disk, by path: a file's bytes, where a symbolic link leads, None for a directory."""

_FEW = 8
"""Up to so many changes of names every subset is tried."""


@dataclass(eq=False)
class _Node:
    kind: str  # "directory", "file" or "link"
    target: str = ""
    data: bytes = b""  # this and `names` are durable
    names: dict[str, _Node] = field(default_factory=dict)
    pending: list[Op] = field(default_factory=list)
    live: dict[str, _Node] = field(default_factory=dict)  # what the program sees


class _Change(NamedTuple):
    """A change of names in directories: what these come to mean, None for nothing."""

    names: tuple[tuple[_Node, str, _Node | None], ...]

    def overlaps(self, other: _Change) -> bool:
        mine = {(id(folder), name) for folder, name, _ in self.names}
        return any((id(folder), name) in mine for folder, name, _ in other.names)


class Disk:
    """Takes operation after operation; has all that a crash may leave at that point."""

    def __init__(self, image: Image) -> None:
        """`image` is what is durable at the start."""
        self._root = _Node("directory")
        self._changes: list[_Change] = []
        for path, what in sorted(image.items()):
            folder, name = self._parent(path)
            node = _Node("directory")
            if isinstance(what, str):
                node = _Node("link", target=what)
            elif what is not None:
                node = _Node("file", data=what)
            folder.names[name] = folder.live[name] = node

    def apply(self, op: Op) -> None:
        match op.kind:
            case "create" | "mkdir" | "symlink":
                kind = {"create": "file", "mkdir": "directory", "symlink": "link"}[op.kind]
                self._change((*self._parent(op.path), _Node(kind, target=op.to)))
            case "link":
                self._change((*self._parent(op.to), self._node(op.path)))
            case "unlink" | "rmdir":
                self._change((*self._parent(op.path), None))
            case "rename":
                node = self._node(op.path)
                self._change((*self._parent(op.path), None), (*self._parent(op.to), node))
            case "write" | "truncate" | "reserve" | "mapped":
                self._node(op.path).pending.append(op)
            case "sync":
                self._sync(self._node(op.path))
            case "staged" | "acknowledged":
                pass
            case _:
                raise ValueError(f"no such operation: {op.kind}")

    def live(self) -> Image:
        """What the program sees."""
        return _rendered(self._root, lambda node: node.live, _written)

    def states(self, rng: random.Random, limit: int) -> tuple[list[Image], bool]:
        """What may be left: all of it, as far as data are written in order, if that is no more
        than `limit`, and some where they are not; and whether it is all. Otherwise the extremes,
        then random ones, up to the limit."""
        if len(self._changes) <= _FEW:
            kept = list(self._every_kept())
            count = 0
            for keep in kept:
                count += self._count(keep, limit)
                if count > limit:
                    break
            else:
                found = [image for keep in kept for image in self._with(keep)]
                found += [self._sample(rng) for _ in range(limit // 8) if len(found) > len(kept)]
                return _distinct(found), True
        everything = frozenset(range(len(self._changes)))
        ends = [frozenset[int](), everything]
        singles = [self._closed({i}) for i in everything]
        singles += [frozenset(self._without(i)) for i in everything]
        rng.shuffle(singles)
        found = []
        for keep in dict.fromkeys(ends + singles[: max(0, limit // 4 - 2)]):
            found.append(self._image(keep, _durable))
            found.append(self._image(keep, _written))
        while len(found) < limit:
            found.append(self._sample(rng))
        return _distinct(found), False

    def _sample(self, rng: random.Random) -> Image:
        share = rng.random()
        keep = self._closed(i for i in range(len(self._changes)) if rng.random() < share)
        return self._image(keep, lambda node: _torn.some(node.data, node.pending, rng))

    def _count(self, keep: frozenset[int], limit: int) -> int:
        """How many states there are with these names, or more than the limit."""
        count = 1
        for node in self._unsynced(keep):
            if len(node.pending) > limit:  # each is good for one at least
                return limit + 1
            count *= sum(1 for _ in islice(_torn.every(node.data, node.pending), limit + 1))
            if count > limit:
                break
        return count

    def _with(self, keep: frozenset[int]) -> Iterator[Image]:
        nodes = self._unsynced(keep)
        for chosen in product(*(list(_torn.every(node.data, node.pending)) for node in nodes)):
            data = dict(zip(nodes, chosen, strict=True))
            yield self._image(keep, partial(_chosen, data))

    def _unsynced(self, keep: frozenset[int]) -> list[_Node]:
        """The files that these names lead to and whose data are in memory alone."""
        found: dict[int, _Node] = {}

        def see(node: _Node) -> bytes:
            if node.pending:
                found[id(node)] = node
            return b""

        self._image(keep, see)
        return list(found.values())

    def _every_kept(self) -> Iterator[frozenset[int]]:
        for bits in product((False, True), repeat=len(self._changes)):
            keep = frozenset(i for i, bit in enumerate(bits) if bit)
            if self._closed(keep) == keep:
                yield keep

    def _closed(self, keep: Iterable[int]) -> frozenset[int]:
        """With the changes that the same names went through before."""
        closed: set[int] = set()
        todo = list(keep)
        while todo:
            i = todo.pop()
            if i not in closed:
                closed.add(i)
                mine = self._changes[i]
                todo.extend(j for j in range(i) if self._changes[j].overlaps(mine))
        return frozenset(closed)

    def _without(self, lost: int) -> Iterator[int]:
        """All changes but this one, and those that need it."""
        return (i for i in range(len(self._changes)) if lost not in self._closed({i}))

    def _image(self, keep: frozenset[int], data: Callable[[_Node], bytes]) -> Image:
        names: dict[int, dict[str, _Node]] = {}
        for i in sorted(keep):
            for folder, name, node in self._changes[i].names:
                _set(names.setdefault(id(folder), dict(folder.names)), name, node)
        return _rendered(self._root, lambda node: names.get(id(node), node.names), data)

    def _change(self, *names: tuple[_Node, str, _Node | None]) -> None:
        for folder, name, node in names:
            _set(folder.live, name, node)
        self._changes.append(_Change(names))

    def _sync(self, node: _Node) -> None:
        if node.kind == "file":
            node.data, node.pending = _written(node), []
            return
        # a rename's last name is the one that it leads to
        mine = [i for i, change in enumerate(self._changes) if change.names[-1][0] is node]
        durable = self._closed(mine)
        for i in sorted(durable):
            for folder, name, what in self._changes[i].names:
                _set(folder.names, name, what)
        self._changes = [c for i, c in enumerate(self._changes) if i not in durable]

    def _node(self, path: str) -> _Node:
        node = self._root
        for part in filter(None, path.split("/")):
            if part not in node.live:
                raise ValueError(f"{path} has no name any more: that is not modelled")
            node = node.live[part]
        return node

    def _parent(self, path: str) -> tuple[_Node, str]:
        above, _, name = path.rpartition("/")
        return self._node(above), name


def _durable(node: _Node) -> bytes:
    return node.data


def _chosen(data: dict[_Node, bytes], node: _Node) -> bytes:
    return data.get(node, node.data)


def _written(node: _Node) -> bytes:
    return _torn.after(node.data, node.pending)


def _set(names: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _rendered(
    root: _Node, names: Callable[[_Node], dict[str, _Node]], data: Callable[[_Node], bytes]
) -> Image:
    image: Image = {}
    todo = [("", root)]
    while todo:
        above, folder = todo.pop()
        for name, node in names(folder).items():
            path = f"{above}{name}"
            if node.kind == "directory":
                image[path] = None
                todo.append((f"{path}/", node))
            else:
                image[path] = node.target if node.kind == "link" else data(node)
    return image


def _distinct(images: Iterable[Image]) -> list[Image]:
    return [dict(found) for found in dict.fromkeys(tuple(sorted(i.items())) for i in images)]
