"""A plain model of one key: what was staged, what was acknowledged, what may be read."""

from __future__ import annotations

from typing import NamedTuple


class Broken(AssertionError):
    """Something that a guarantee excludes."""


class Pair(NamedTuple):
    """A state and the files that it goes with, by their numbers."""

    state: int
    tree: int


NOTHING = Pair(0, 0)


class Claim:
    """One claim of a key: what it found, and all that it has staged since."""

    def __init__(self, key: Key, found: Pair) -> None:
        self.key = key
        self.history = [found]
        self.stored = 0
        """The place in the history of the newest that was acknowledged, or seen in the store."""
        self.most = 1 << 60
        """The place beyond which nothing can be stored any more: a later claim has found that."""
        self.attempts = key.attempts
        last = key.last
        self.origin: Claim | None = last if last is None or last.stored else last.origin or last
        """Whose state the key has as long as this claim has stored none: it may have staged more,
        not knowing of this claim, and the next claim in its process carries that on."""
        self.adopted = False
        """True if it was left and not all was stored: the next claim in this process has it all."""

    @property
    def newest(self) -> Pair:
        return self.history[-1]

    @property
    def disputed(self) -> bool:
        """Whether anybody else may have claimed or deleted the key since."""
        return self.key.attempts != self.attempts

    def stage(self, pair: Pair) -> None:
        self.history.append(pair)

    def acknowledge(self) -> None:
        """All that is staged was said to be stored."""
        last = len(self.history) - 1
        if last > max(self.most, self.stored):
            raise Broken(f"{self.newest} was acknowledged, and a newer claim has not found it")
        self.stored = last

    def check(self, pair: Pair) -> int:
        """The place of what somebody has read."""
        if pair not in self.history:
            raise Broken(f"{pair} was read, which is not of {self.history}")
        place = self.history.index(pair)
        if place < self.stored:
            raise Broken(f"backwards: {pair} was read after {self.history[self.stored]}")
        return place


class Key:
    """What may be read of a key, now."""

    def __init__(self) -> None:
        self.last: Claim | None = None
        """The newest claim that somebody was told of; None if the key cannot have a state."""
        self.attempts = 0
        """Claims and deletions that were begun: each may have taken effect, or yet take it."""
        self.may_be_gone = False
        """True if a deletion failed, and may have been done, or yet be."""

    def claimed(self, found: Pair) -> Claim:
        """A claim came through, and found this."""
        last = self.last
        if last is not None and not last.stored and found not in last.history:
            last = last.origin
        if self._gone(found) or last is None:
            if found != NOTHING:
                raise Broken(f"{found} was read of a key that was deleted, or never was")
        else:
            last.most = last.check(found)
            whole = last.most == len(last.history) - 1
            if last.adopted and self.attempts == last.attempts + 1 and not whole:
                raise Broken(f"{found} was read, and {last.newest} was still being stored here")
        self.may_be_gone = False
        self.last = Claim(self, found)
        return self.last

    def seen(self, pair: Pair | None) -> None:
        """Somebody has looked into the store."""
        last = self.last
        if pair is None:
            if last is not None and not self.may_be_gone:
                raise Broken("the key is not there any more")
        elif last is None or (pair == NOTHING and self.may_be_gone):
            if pair != NOTHING:
                raise Broken(f"{pair} was seen of a key that was deleted, or never was")
        else:
            last.stored = last.check(pair)

    def deleted(self) -> None:
        """A deletion came through."""
        if self.last is not None:
            self.last.most = len(self.last.history) - 1
        self.last = None
        self.may_be_gone = False

    def _gone(self, found: Pair) -> bool:
        return found == NOTHING and self.may_be_gone
