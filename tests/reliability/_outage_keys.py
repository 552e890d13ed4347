"""What the writers of an outage were told of a key, and what may therefore be found."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ._victim import numbers_of

MOST_ALIVE = 8
"""Encoded states of a key that may be alive at a time: of a handle and of the one before it, each
may have one staged, one just replaced, and one on its way to the store."""


class Broken(AssertionError):
    """Something was found that a guarantee excludes."""


class Counting:
    """A codec that knows which of its encoded states are still alive."""

    name = "counting"

    def __init__(self) -> None:
        self.alive: set[int] = set()  # of ids: adding and discarding are atomic

    def encode(self, state: bytes, /) -> bytes:
        alive = self.alive

        class Counted(bytes):
            def __new__(cls, data: bytes) -> Counted:
                made = super().__new__(cls, data)
                alive.add(id(made))
                return made

            def __del__(self) -> None:
                alive.discard(id(self))

        return Counted(state)

    def decode(self, data: bytes, /) -> bytes:
        return bytes(data)


@dataclass
class Known:
    """One key. States are numbered, and no number is used twice."""

    name: str
    keep: int
    rng: random.Random
    """What its writer draws."""
    codec: Counting = field(default_factory=Counting)
    begun: int = 0
    """The newest state that a write or save was begun with."""
    staged: int = 0
    """The newest state that is staged."""
    tree: int = 0
    """The files that it goes with."""
    oldest: int = 0
    """No older one may be read by the next `open`."""
    stored: int = 0
    """The newest state that was acknowledged, or seen in the store."""

    def next(self) -> int:
        self.begun += 1
        return self.begun

    def has_staged(self, number: int, tree: int) -> None:
        self.staged = self.oldest = number
        self.tree = tree
        if len(self.codec.alive) > MOST_ALIVE:
            raise Broken(f"{self.name}: {len(self.codec.alive)} states are alive")

    def acknowledged(self, number: int) -> None:
        self.stored = max(self.stored, number)

    def opened(self, found: bytes | None) -> None:
        """What was read right after the key was opened."""
        number, tree = (0, 0) if found is None else numbers_of(found)
        if not self.oldest <= number <= self.staged:
            raise Broken(f"{self.name}: {number} read, {self.oldest} to {self.staged} promised")
        self.staged = self.oldest = number
        self.tree = tree
        self.acknowledged(number)  # a claim stores what it carries on

    def restored(self, tree: int) -> None:
        if tree != self.tree:
            raise Broken(f"{self.name}: files {tree}, and {self.tree} go with {self.staged}")

    def seen(self, found: bytes, floor: int) -> None:
        """What a look at the store found that began when `floor` was stored."""
        number = numbers_of(found)[0] if found else 0
        if not floor <= number <= self.begun:
            raise Broken(f"{self.name}: {number} seen, {floor} to {self.begun} promised")
        self.acknowledged(number)

    def left_behind(self, *, spool: bool) -> None:
        """The runtime has ended. What it could not store only the spool has."""
        if not spool:
            self.oldest = self.stored
