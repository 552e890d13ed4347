"""The ledger of one claim's blobs: what may be collected, and when."""

from __future__ import annotations

from ._heads import generation_name
from ._records import Files, Record


class Ledger:
    """Every blob that a claim has put or taken over, from before it is put until it may go.

    Pure, and of the I/O thread. The rules:

    - What a record names stays until `keep` later records have been stored; one generation more
      stays for readers that are under way.
    - What failed or ambiguous commits named goes only once a later one has succeeded.
    - What was put and is named by no record goes with the next success, unless it is staged.
    - Nothing goes while anybody builds on blobs, or reads them.
    """

    __slots__ = ("_keep", "_loose", "_named", "_users")

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._named: list[tuple[frozenset[str], bool]] = []
        """The blobs of each record put, oldest first, and whether its commit succeeded."""
        self._loose: frozenset[str] = frozenset()
        """Blobs that were put, or are about to be, and that no record names yet."""
        self._users: frozenset[object] = frozenset()

    @property
    def empty(self) -> bool:
        """True if there is nothing to keep account of."""
        return not self._named and not self._loose

    def adopt(
        self, record: Record, names: list[str], generations: list[frozenset[str]]
    ) -> list[str]:
        """Right after the claim: take over the generations to keep; the names that may go."""
        self._named += [(generation, True) for generation in generations]
        self.name(record)
        self._succeeded()
        alive = self._alive()
        return [name for name in names if name not in alive]

    def begin(self, user: object) -> None:
        """Somebody begins to build on blobs, or to read them."""
        self._users |= {user}

    def end(self, user: object) -> None:
        """He has ended; what he put and nobody staged is loose."""
        self._users -= {user}

    def put(self, name: str) -> None:
        """A blob is about to be put."""
        self._loose |= {name}

    def name(self, record: Record) -> None:
        """A commit is about to name its blobs."""
        names = set() if record.files is None else set(record.files.blobs)
        if record.blob is not None:
            names.add(record.blob.name)
        if self._keep > 1:
            names.add(generation_name(record))
        if names or self._named:
            self._named.append((frozenset(names), False))
            self._loose -= names

    def superfluous(self, staged: Files | None) -> list[str]:
        """After a success: the blobs that may go. `staged` are in no record yet, perhaps."""
        self._succeeded()
        if self._users:
            return []
        old = self._old()
        alive = self._alive() | (frozenset() if staged is None else staged.blobs)
        gone = (old | self._loose) - alive
        self._loose &= alive
        return sorted(gone)

    def abandoned(self) -> list[str]:
        """When the key is deleted: what was put and is named by no record. While it is still being
        put, nothing: then ask again."""
        if self._users:
            return []
        loose, self._loose = self._loose, frozenset()
        return sorted(loose)

    def _succeeded(self) -> None:
        if self._named:
            self._named[-1] = (self._named[-1][0], True)

    def _old(self) -> frozenset[str]:
        kept = 0
        for index in range(len(self._named) - 1, -1, -1):
            kept += self._named[index][1]
            if kept > self._keep:
                old, self._named = self._named[:index], self._named[index:]
                return frozenset().union(*(names for names, _ in old))
        return frozenset()

    def _alive(self) -> frozenset[str]:
        return frozenset().union(*(names for names, _ in self._named))
