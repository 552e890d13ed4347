"""Write docs/reference.md from the docstrings: python docs/make_reference.py

The order and the words between the names are here; all else is in the package.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import operator
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
sys.path.insert(0, str(ROOT))

import aiocheckpoint  # noqa: E402
from aiocheckpoint import testing  # noqa: E402
from aiocheckpoint.stores.file import FileStore  # noqa: E402
from aiocheckpoint.stores.memory import MemoryStore  # noqa: E402
from aiocheckpoint.stores.sqlite import SqliteStore  # noqa: E402

INTRODUCTION = """
This page is made from the docstrings by `docs/make_reference.py`. Everything on it is imported from
`aiocheckpoint`, unless it says otherwise.

A few words are used in one sense only. A **state** is what you pass to `write()`. It is **staged**
when `write()` has returned, and **stored** when the store has confirmed that it is durable. A
**Checkpoint** is a stored record, read back. A **key** is one job's name in a store. An **attempt**
is one try of a run. A **claim** is an attempt's hold on a key; the key's **epoch** counts its
claims. The **spool** is local staging that outlives the process. A state's **seq** is its number:
it rises with each `write()` and goes on over attempts.

In the signatures, `Seconds` is a float or a timedelta, `SpoolOption` is `"auto"`, a directory or
None, `Status` is `"running"`, `"done"` or `"failed"`, `On` is what `RetryPolicy` says of `on`, and
`Version` is a str or an int that only its store understands.
"""

MADE_BY_US = {"Checkpointer", "Checkpoint", "Statistics", "Task", "Outcome", "StoreContract"}
LEFT_OUT = {"Task.key_for", "Task.encode_result", "Task.decode_result"}  # the runner's own

GROUPS: list[tuple[str, str, list[str]]] = [
    (
        "Opening a key",
        """
A store is named by a URL, by a path, or is a `Store` object:

- `sqlite:jobs.db`, or a path that ends in `.db`, `.sqlite` or `.sqlite3`: an SQLite database.
- `file:checkpoints`, or any other path: a directory.
- `memory:`: a dict, for tests.

The last part of a path is made if it is missing, its parent is not. `sqlite:jobs.db` is relative
to the working directory, `sqlite:/var/jobs.db` is absolute; `sqlite:///var/jobs.db` is the same.
A `Store` that you pass is yours to close; one that was opened from a URL is closed for you.

A key is a str of 1 to 200 bytes of UTF-8 without control characters. It may hold anything else,
`/` and `..` included: it is no path.
""",
        ["open", "Checkpointer"],
    ),
    (
        "Programs without an event loop",
        "",
        ["blocking", "blocking.open", "blocking.Checkpointer"],
    ),
    ("Running tasks", "", ["Runtime", "Outcome", "run", "task", "Task", "current"]),
    ("Retries", "", ["RetryPolicy", "RecoverableError", "NonRecoverableError"]),
    ("What is read back", "", ["Checkpoint", "Statistics"]),
    (
        "Encryption and compression",
        'See [How to encrypt and compress](howto-encryption.md). `Compression` is `"zstd"` or'
        " None.",
        ["Keyring"],
    ),
    (
        "Codecs",
        """
Without `type=` or `codec=`, bytes (and bytearray and memoryview) are stored as they are and given
back as bytes. Everything else that msgspec encodes (dict, list, numbers, str, dataclasses,
`msgspec.Struct`, datetime, UUID) becomes MessagePack, and is given back as plain dicts, lists and
numbers. With `type=State` it is given back as a `State`. `None` is no state.
""",
        ["Codec", "MsgspecCodec", "PickleCodec"],
    ),
    (
        "Errors",
        """
```text
Exception
├── CheckpointError
│   ├── StoreError
│   │   ├── StoreUnavailableError      it may pass
│   │   └── ConflictError
│   ├── FencedError
│   ├── CorruptCheckpointError
│   ├── CodecError
│   ├── FlushTimeoutError              also a TimeoutError
│   ├── KeyInUseError
│   ├── ClosedError
│   └── StoppedError
├── RecoverableError                   for you to raise
└── NonRecoverableError                for you to raise
```
""",
        [
            "CheckpointError",
            "StoreError",
            "StoreUnavailableError",
            "ConflictError",
            "FencedError",
            "CorruptCheckpointError",
            "CodecError",
            "FlushTimeoutError",
            "KeyInUseError",
            "ClosedError",
            "StoppedError",
        ],
    ),
    (
        "Stores",
        "`aiocheckpoint.abc` has the contract, and two small types that its methods use, "
        "`Head` and `Put`.",
        ["Store"],
    ),
]

CLOSING = """
## Logging

The logger is `aiocheckpoint`. INFO: claims, promotions from the spool, results of runs that are
done already, one line at the end of a map (whose items' lines are DEBUG). WARNING: an outage of a
store begins or ends, a failed attempt is tried again, the iterator of a map's items has failed, an
earlier record stands in for a damaged one, a spool cannot be made or read, a store went back in
time. ERROR: a flush failed where nobody was there to raise it to. Nothing is logged per write.

## Testing

`aiocheckpoint.testing` imports no test runner.
"""


class Source:
    """What the syntax tree knows of a class: its members, in order, and the strings below them."""

    def __init__(self, cls: type) -> None:
        (tree,) = ast.parse(inspect.getsource(cls)).body
        assert isinstance(tree, ast.ClassDef)
        self.fields: list[tuple[str, str]] = []  # as written in the class, and the words for it
        self.methods: list[str] = []
        for node, words in _with_words(tree.body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                field = f"{node.target.id}: {ast.unparse(node.annotation)}"
                self.fields.append((field, words))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.name == "__init__":
                    self.fields += _set_in(node)
                elif not node.name.startswith("_") and node.name not in self.methods:
                    self.methods.append(node.name)


def _with_words(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Each statement, and the string that follows it, if one does."""
    for node, after in itertools.zip_longest(body, body[1:]):
        words = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            words = inspect.cleandoc(str(after.value.value))
        yield node, words


def _set_in(init: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, str]]:
    """The public attributes that `__init__` sets and describes."""
    for node, words in _with_words(init.body):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if words and isinstance(target, ast.Attribute) and not target.attr.startswith("_"):
            yield target.attr, words


def section(path: str, thing: object) -> Iterator[str]:
    """The section of one public name."""
    name = path.rpartition(".")[2]
    yield f"### `{path}`"
    if inspect.ismodule(thing):
        yield prose(thing)
        return
    if not isinstance(thing, type):
        yield signature(name, thing)
        yield prose(thing)
        return
    if made_by_users(thing):
        yield signature(name, thing)
    yield prose(thing)
    if not issubclass(thing, BaseException) and not path.startswith("aiocheckpoint.stores"):
        yield from members(path if path.startswith("blocking.") else name, thing)


def made_by_users(cls: type) -> bool:
    if issubclass(cls, aiocheckpoint.CheckpointError) or getattr(cls, "_is_protocol", False):
        return False
    plain = (Exception.__init__, BaseException.__init__)
    return cls.__init__ not in plain and cls.__name__ not in MADE_BY_US


def members(name: str, cls: type) -> Iterator[str]:
    """What a class has: attributes and properties as a list, then its methods."""
    source = Source(cls)
    described = "Attributes:" in (cls.__doc__ or "")
    fields = [] if described or getattr(cls, "_is_protocol", False) else source.fields
    attributes = [_item(field, words) for field, words in fields if field[0] != "_"]
    methods: list[str] = []
    for method in source.methods:
        member = inspect.getattr_static(cls, method)
        words = inspect.getdoc(member) or ""
        if isinstance(member, property):
            kind = _kind(member)
            attributes.append(_item(f"{method}: {kind}", words))
        elif words and method[:5] != "test_" and f"{name}.{method}" not in LEFT_OUT:
            methods += [f"#### `{name}.{method}`", signature(method, member), prose(member)]
    if attributes:
        yield "\n".join(attributes)
    yield from methods


def _kind(member: property) -> str:
    assert member.fget is not None
    return str(inspect.signature(member.fget).return_annotation)


def _item(code: str, words: str) -> str:
    return f"- `{code}`" + (f": {' '.join(words.split())}" if words else "")


def signature(name: str, thing: object) -> str:
    """Signatures as code, a parameter a line if that is long; overloads if all are short."""
    function = typing.cast(Callable[..., object], getattr(thing, "__func__", thing))
    lines = [_signature(name, one) for one in typing.get_overloads(function)]
    if not lines or any("\n" in line for line in lines):
        lines = [_signature(name, function)]
    return "```text\n" + "\n".join(lines) + "\n```"


def _signature(name: str, function: Callable[..., object]) -> str:
    shape = inspect.signature(function)
    parts: list[str] = []
    for p in shape.parameters.values():
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and not any(part[0] == "*" for part in parts):
            parts.append("*")
        star = "*" if p.kind is p.VAR_POSITIONAL else ""
        value = p.default.__name__ if isinstance(p.default, type) else repr(p.default)
        value = "..." if p.default is ... else value
        default = "" if p.default is p.empty else f" = {value}"
        parts.append(f"{star}{p.name}: {p.annotation}{default}")
        if p.kind is p.POSITIONAL_ONLY:
            parts.append("/")
    word = "async " if inspect.iscoroutinefunction(function) else ""
    returns = "" if isinstance(function, type) else f" -> {shape.return_annotation}"
    line = f"{word}{name}({', '.join(parts)}){returns}"
    if len(line) > 88:
        line = f"{word}{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    return line


def prose(thing: object) -> str:
    """A docstring as Markdown: its sections (Args, Raises) become lists."""
    lines: list[str] = []
    listing = False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"(Args|Raises|Attributes)( \(.*\))?:", line):
            lines += [f"**{line.removesuffix(':')}**", ""]
            listing = True
        elif listing and (item := re.fullmatch(r"    (\S[^:]*): (.*)", line)):
            names = ", ".join(f"`{one}`" for one in item[1].split(", "))
            lines.append(f"- {names}: {item[2]}")
        elif listing and line.startswith("        "):
            lines.append("  " + line.strip())
        elif listing and line.startswith("    "):
            lines.append("- " + line.strip())
        else:
            listing = listing and not line
            lines.append(line)
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = ["# Reference", INTRODUCTION]
    for title, words, names in GROUPS:
        parts += [f"## {title}", words]
        for name in names:
            parts += section(name, operator.attrgetter(name)(aiocheckpoint))
    for name, store in (("file", FileStore), ("memory", MemoryStore), ("sqlite", SqliteStore)):
        parts += section(f"aiocheckpoint.stores.{name}.{store.__name__}", store)
    parts.append(CLOSING)
    for name in testing.__all__:
        parts += section(f"aiocheckpoint.testing.{name}", getattr(testing, name))
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
