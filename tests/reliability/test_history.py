"""The checker of histories takes what a register may do, and refuses what none does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ._history import NEVER, NOTHING, Handle, History, Look, Refused, State


def claim(name: str, at: int, epoch: int, found: State = NOTHING, until: int = 0) -> Handle:
    return Handle(name, at, until or at + 1, epoch, found)


def write(handle: Handle, number: int, at: int, flushed: int | None = None) -> None:
    handle.begun[number] = at
    handle.staged[number] = at + 1
    if flushed is not None:
        handle.flushed[number] = flushed


def look(at: int, epoch: int, found: State = NOTHING, until: int = 0) -> Look:
    return Look(at, until or at + 1, epoch, f"claim of {epoch}" if epoch else "", found)


def takeover() -> tuple[Handle, Handle]:
    """a stores a:1; b claims after that, and stores b:1."""
    a = claim("a", 10, 1)
    write(a, 1, 20, flushed=30)
    b = claim("b", 40, 2, State("a", 1))
    write(b, 1, 50, flushed=60)
    return a, b


@pytest.mark.parametrize("spool", [True, False])
def test_a_takeover_is_taken(spool: bool) -> None:
    looks = [
        look(1, 0),
        look(15, 1),
        look(25, 1),  # while a:1 is on its way: before it, or after
        look(25, 1, State("a", 1)),
        look(35, 1, State("a", 1)),
        look(45, 2, State("a", 1)),
        look(65, 2, State("b", 1)),
    ]
    History(takeover(), looks, spool=spool).check()


@pytest.mark.parametrize("spool", [True, False])
def test_what_may_have_happened_may_be_seen_at_any_later_time(spool: bool) -> None:
    a, b = takeover()
    write(b, 2, 70)
    lost = Handle("c", 80)  # killed before it knew
    d = claim("d", 200, 4, State("b", 2))
    looks = [look(90, 2, State("b", 1)), look(100, 2, State("b", 2)), look(110, 3, State("b", 2))]
    History([a, b, lost, d], looks, spool=spool).check()


def test_the_spool_gives_what_was_staged_and_not_stored() -> None:
    a, b = takeover()
    write(b, 2, 70)
    write(b, 3, 80)
    c = claim("c", 90, 3, State("b", 3))
    History([a, b, c], [], spool=True).check()
    write(b, 4, 100)  # a zombie by now, but c has stored nothing
    d = claim("d", 110, 4, State("b", 4))
    looks = [look(95, 3, State("b", 3)), look(120, 4, State("b", 4))]
    History([a, b, c, d], looks, spool=True).check()
    with pytest.raises(Refused, match="fenced by then"):
        History([a, b, c, d], [], spool=False).check()


def stale_read() -> History:
    return History(takeover(), [look(35, 1)], spool=False)


def read_before_it_was_written() -> History:
    return History(takeover(), [look(12, 1, State("a", 1))], spool=False)


def read_of_another_time() -> History:
    looks = [look(25, 1, State("a", 1), 26), look(27, 1, NOTHING, 28)]
    return History(takeover(), looks, spool=False)


def unknown_state() -> History:
    return History(takeover(), [look(35, 1, State("z", 9))], spool=False)


def lost_write() -> History:
    a, _ = takeover()
    return History([a, claim("b", 40, 2)], [], spool=False)


def lost_write_of_the_spool() -> History:
    a, b = takeover()
    write(b, 2, 70)
    return History([a, b, claim("c", 80, 3, State("b", 1))], [], spool=True)


def one_epoch_twice() -> History:
    a, b = takeover()
    b.epoch = 1
    return History([a, b], [], spool=False)


def one_epoch_under_two_claims() -> History:
    seen = look(35, 1, State("a", 1))
    return History(takeover(), [seen, seen._replace(claim="another")], spool=False)


def epoch_that_falls() -> History:
    a, b = takeover()
    a.epoch, a.found, b.epoch, b.found = 2, NOTHING, 1, NOTHING
    return History([a, b], [], spool=False)


def zombie_acknowledged() -> History:
    a, b = takeover()
    write(a, 2, 45, flushed=55)
    return History([a, b], [], spool=True)


def zombie_visible_under_its_own_epoch() -> History:
    a, b = takeover()
    write(a, 2, 45)
    return History([a, b], [look(55, 1, State("a", 2))], spool=False)


def zombie_visible_under_the_new_epoch() -> History:
    a, b = takeover()
    write(a, 2, 45)
    return History([a, b], [look(55, 2, State("a", 2))], spool=True)


def zombie_carried_on_over_a_newer_state() -> History:
    a, b = takeover()
    write(a, 2, 45)
    return History([a, b, claim("c", 70, 3, State("a", 2))], [], spool=True)


def older_spool() -> History:
    a, b = takeover()
    b.begun, b.staged, b.flushed = {}, {}, {}
    c = claim("c", 70, 3, State("a", 1))
    write(a, 2, 45)
    z = claim("z", 5, 1)
    a.epoch, b.epoch, c.epoch = 2, 3, 4
    write(z, 1, 6)
    return History([z, a, b, c, claim("d", 80, 5, State("z", 1))], [], spool=True)


def state_of_the_future() -> History:
    a, b = takeover()
    return History([a, b], [look(55, 1, State("b", 1), NEVER)], spool=False)


@pytest.mark.parametrize(
    "history",
    [
        stale_read,
        read_before_it_was_written,
        read_of_another_time,
        unknown_state,
        lost_write,
        lost_write_of_the_spool,
        one_epoch_twice,
        one_epoch_under_two_claims,
        epoch_that_falls,
        zombie_acknowledged,
        zombie_visible_under_its_own_epoch,
        zombie_visible_under_the_new_epoch,
        zombie_carried_on_over_a_newer_state,
        older_spool,
        state_of_the_future,
    ],
)
def test_is_refused(history: Callable[[], History]) -> None:
    with pytest.raises(Refused):
        history().check()
