"""Histories of one key, and whether they are linearizable.

The key is a register that holds an epoch and a state. A claim raises the epoch by one and carries
on the state that it finds; a write of the newest claim replaces the state; a look reads both. Every
state says which claim wrote it and which of its writes it was, so what a register has held is in a
known order: by epoch, then by the number of the write within it (0: what was carried on). With the
order of the contents known, a history is linearizable exactly if no operation that began after
another one had ended belongs before it (https://doi.org/10.1137/S0097539794279614), which takes a
sort and no search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

NEVER = 1 << 63
"""When something ends of which nobody knows whether it took effect."""


class State(NamedTuple):
    """Who wrote it, and which of his writes it was. All compare by `History.order`."""

    handle: str
    number: int


NOTHING = State("", 0)


@dataclass(slots=True)
class Handle:
    """A claim, and what was written by it. Times are those of one clock that all clients share."""

    name: str
    invoked: int
    returned: int = NEVER
    epoch: int = 0
    """0: it is not known to have succeeded."""
    found: State = NOTHING
    begun: dict[int, int] = field(default_factory=dict)
    """When each write began."""
    staged: dict[int, int] = field(default_factory=dict)
    """When each write returned."""
    flushed: dict[int, int] = field(default_factory=dict)
    """When each write that was acknowledged as stored was so."""


class Look(NamedTuple):
    """A read that claims nothing."""

    invoked: int
    returned: int
    epoch: int
    claim: str
    """The id that the record has; empty if there was no record."""
    found: State


class Refused(AssertionError):
    """The history is none of a linearizable register."""


class _Step(NamedTuple):
    """An operation, and the contents that it made or found."""

    invoked: int
    returned: int
    epoch: int
    number: int
    made: bool
    what: str


class History:
    """All that was done to one key. `spool` says whether claims look into a spool that all share:
    then a claim finds what the claim before it had staged, even if that was not stored; or else
    what the writer of the stored state had."""

    def __init__(self, handles: Iterable[Handle], looks: Iterable[Look], *, spool: bool) -> None:
        self.handles = {handle.name: handle for handle in handles}
        self.looks = list(looks)
        self.spool = spool
        self._claims: dict[int, Handle] = {}
        self._stored: dict[int, int] = {}  # the newest write of an epoch that was stored
        self._carried: dict[int, State] = {}  # what an epoch began with

    def order(self, state: State) -> tuple[int, int]:
        """Where a state comes among all."""
        if state == NOTHING:
            return 0, 0
        handle = self.handles.get(state.handle)
        if handle is None or not handle.epoch or state.number not in handle.begun:
            raise Refused(f"{state} was found, and nobody wrote it")
        return handle.epoch, state.number

    def check(self) -> None:
        """Raises `Refused` with the first thing that no register does."""
        self._one_claim_an_epoch()
        self._what_was_stored()
        self._what_was_carried()
        self._in_real_time()

    def _one_claim_an_epoch(self) -> None:
        for handle in self.handles.values():
            if not handle.epoch:
                continue
            other = self._claims.setdefault(handle.epoch, handle)
            if other is not handle:
                raise Refused(f"epoch {handle.epoch} was claimed by {other.name} and {handle.name}")
        ids: dict[int, str] = {0: ""}
        for look in self.looks:
            if ids.setdefault(look.epoch, look.claim) != look.claim:
                raise Refused(f"epoch {look.epoch} was seen under two claims")

    def _what_was_stored(self) -> None:
        for epoch, handle in self._claims.items():
            self._begins_with(epoch, handle.found)
            self._stored[epoch] = max(handle.flushed, default=0)
        for look in self.looks:
            epoch, number = self.order(look.found)
            if epoch == look.epoch:
                self._stored[epoch] = max(self._stored.get(epoch, 0), number)
            else:
                self._begins_with(look.epoch, look.found)

    def _begins_with(self, epoch: int, state: State) -> None:
        if self.order(state)[0] >= max(epoch, 1):
            raise Refused(f"epoch {epoch} began with {state}, which is of a later one")
        if self._carried.setdefault(epoch, state) != state:
            raise Refused(f"epoch {epoch} had {self._carried[epoch]} and {state} of older epochs")

    def _what_was_carried(self) -> None:
        """Each epoch begins with what the one before ended with, or what was staged after it."""
        before, last = 0, NOTHING  # the epoch before, and the state that it is known to have stored
        for epoch in sorted(self._stored.keys() | self._carried.keys()):
            if epoch in self._carried:
                carried = self._carried[epoch]
                self._carries(epoch, carried, before, last)
                last = carried
            if stored := self._stored.get(epoch, 0):
                last = State(self._claims[epoch].name, stored)
            before = epoch

    def _carries(self, epoch: int, carried: State, before: int, last: State) -> None:
        if self.order(carried) < self.order(last):
            raise Refused(f"epoch {epoch} began with {carried}, and {last} was stored before it")
        writer = self.order(carried)[0]
        if carried != last and writer != before:
            # a state that its writer staged before or after others claimed: of the spool alone, and
            # only as long as none of these has stored anything
            origin = self.order(last)[0] or min(self._claims, default=0)
            if not self.spool or writer != origin:
                raise Refused(f"epoch {epoch} began with {carried}, which was fenced by then")
        if self.spool and epoch in self._claims and (owner := self._claims.get(epoch - 1)):
            began = self._claims[epoch].invoked
            staged = max((n for n, when in owner.staged.items() if when < began), default=0)
            if staged and self.order(carried) < (epoch - 1, staged):
                raise Refused(f"epoch {epoch} began with {carried}: {owner.name} staged {staged}")

    def _in_real_time(self) -> None:
        """Whatever began after something had ended comes after it."""
        steps = list(self._steps())
        ends = sorted(steps, key=lambda step: step.returned)
        ended, newest = 0, _Step(0, 0, 0, 0, made=True, what="nothing")
        for step in sorted(steps, key=lambda step: step.invoked):
            while ends[ended].returned < step.invoked:
                newest = max(newest, ends[ended], key=lambda each: (each.epoch, each.number))
                ended += 1
            made, contents = (newest.epoch, newest.number), (step.epoch, step.number)
            if contents < made or (step.made and contents == made):
                raise Refused(
                    f"{step.what}, {contents}, began {(step.invoked - newest.returned) / 1e6:.3f}"
                    f" ms after {newest.what}, {made}, had ended"
                )

    def _steps(self) -> Iterator[_Step]:
        # What an epoch has carried on may come from the spool, and then when it was staged says
        # nothing: its writer may have been fenced and not have known.
        seen = {
            self.order(look.found)
            for look in self.looks
            if not self.spool or look.epoch == self.order(look.found)[0]
        }
        if not self.spool:
            seen.update(map(self.order, self._carried.values()))
        for epoch, handle in self._claims.items():
            yield _Step(
                handle.invoked, handle.returned, epoch, 0, made=True, what=f"claim {handle.name}"
            )
            for number, began in handle.begun.items():
                if number in handle.flushed or (epoch, number) in seen:
                    ended = handle.flushed.get(number, NEVER)
                    what = f"write {handle.name}:{number}"
                    yield _Step(began, ended, epoch, number, made=True, what=what)
        for look in self.looks:
            epoch, number = self.order(look.found)
            number = number if epoch == look.epoch else 0
            yield _Step(look.invoked, look.returned, look.epoch, number, made=False, what="a look")
