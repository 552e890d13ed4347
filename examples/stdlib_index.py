"""Index the running Python's standard library: what its files define, import and name most.

    python examples/stdlib_index.py

Interrupt it as you like (Ctrl-C, kill, kill -9) and start it again: it goes on with the file that
it had reached. Once it is done, it answers at once; `--fresh` makes it begin anew.
"""

from __future__ import annotations

import argparse
import keyword
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

import aiocheckpoint

RETRY = aiocheckpoint.RetryPolicy(on=OSError, retries=5)
LIMIT = 500


@dataclass
class Index:
    """The state of the job: how many files are done, and what was found in them."""

    files: int = 0
    statements: int = 0
    definitions: dict[str, int] = field(default_factory=dict)
    imports: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)


@aiocheckpoint.task(key="stdlib-index:{library}", type=Index, retry=RETRY)
async def build_index(cp: aiocheckpoint.Checkpointer[Index], library: Path) -> Index:
    """Index every source file under `library`, one step a file."""
    sources = find_sources(library)
    index = await cp.read(default=Index())
    with Progress(disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("indexing", total=len(sources), completed=index.files)
        for path in sources[index.files :]:
            add_file(index, path)
            await cp.write(index)
            progress.advance(bar)
    return index


def find_sources(library: Path) -> list[Path]:
    """The library's own files, in an order that is the same in every run."""
    found = list(library.glob("*.py"))
    for folder in library.iterdir():
        if folder.is_dir() and folder.name not in {"site-packages", "dist-packages"}:
            found += folder.rglob("*.py")
    return sorted(found)


def add_file(index: Index, path: Path) -> None:
    """One step: count in `index` what the file holds."""
    try:
        found = list(statements(path))
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        found = []  # the library ships some broken files, to test itself
    for words in found:
        match words:
            case ["def" | "class", name, *_] | ["async", "def", name, *_]:
                tally(index.definitions, [name])
            case ["import", *rest]:
                modules = " ".join(rest).replace(" . ", ".").split(" , ")
                tally(index.imports, (module.partition(" as ")[0] for module in modules))
            case ["from", *rest] if "import" in rest:
                tally(index.imports, ["".join(rest[: rest.index("import")])])
        tally(index.names, (w for w in words if w.isidentifier() and not keyword.iskeyword(w)))
    index.statements += len(found)
    index.files += 1


def statements(path: Path) -> Iterator[list[str]]:
    """The words of each statement (of each line of code, more or less)."""
    skipped = {tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT}
    words: list[str] = []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NEWLINE:
                yield words
                words = []
            elif token.type not in skipped:
                words.append(token.string)


def tally(counts: dict[str, int], words: Iterable[str]) -> None:
    """Count words, and drop the rarest now and then: a state that is written at every step has to
    stay small (here under 50 KB, about 0.1 ms to encode)."""
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    if len(counts) > 2 * LIMIT:
        common = Counter(counts).most_common(LIMIT)
        counts.clear()
        counts.update(common)


def main() -> None:
    parser = argparse.ArgumentParser(description="Index the standard library, resumably.")
    parser.add_argument("--db", default="stdlib-index.db", help="database of the checkpoints")
    parser.add_argument("--fresh", action="store_true", help="forget what is there")
    options = parser.parse_args()
    library = Path(sysconfig.get_path("stdlib"))
    store = f"sqlite:{options.db}"
    index = aiocheckpoint.run(build_index, library, store=store, fresh=options.fresh)
    print(f"{index.files} files, {index.statements} statements; the most common")
    for title in ("definitions", "imports", "names"):
        common = Counter(getattr(index, title)).most_common(8)
        print(f"{title:>12}:", ", ".join(f"{name} ({count})" for name, count in common))


if __name__ == "__main__":
    main()
