"""Files that are made without a name (O_TMPFILE), and get their names by links."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ._torn import Op

_NAMELESS = re.compile(r"(?:.*/)?#\d+")
_GONE = re.compile(r" ?\(deleted\)$")


def shown(path: str) -> str:
    """What the system shows of an open file's path, without its remark that there is none."""
    return _GONE.sub("", path)


def with_names(ops: Sequence[Op]) -> Iterator[Op]:
    """The operations as if such a file were made when it gets its first name: before that, nothing
    of it would outlive a power cut."""
    sizes: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for op in ops:
        if _NAMELESS.fullmatch(op.path) is None:
            if op.kind == "unlink":
                for links in names.values():
                    if op.path in links:
                        links.remove(op.path)
            yield op
        elif op.kind == "link":
            links = names.setdefault(op.path, [])
            if links:
                yield op._replace(path=links[0])
            else:
                yield Op("create", op.to)
                yield Op("truncate", op.to, at=sizes[op.path])
            links.append(op.to)
        elif names.get(op.path):
            yield op._replace(path=names[op.path][0])
        elif op.kind == "truncate":
            sizes[op.path] = op.at
