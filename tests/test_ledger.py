"""The ledger against a model of its rules: what may be collected, and when."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aiocheckpoint._heads import generation_name
from aiocheckpoint._ledger import Ledger
from aiocheckpoint._records import Blob, Files, Record

numbers = st.integers(0, 5)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("save"), numbers, numbers),
        st.tuples(
            st.just("commit"), st.none() | numbers, st.sampled_from(["ok", "lost", "ok big"])
        ),
        st.tuples(st.sampled_from(["begin", "end"]), st.integers(0, 1), st.none()),
        st.tuples(st.just("delete"), st.none(), st.none()),
    ),
    max_size=40,
)


def blob(name: str) -> Blob:
    return Blob(name, 1, b"")


def files(number: int, packs: tuple[str, ...]) -> Files:
    return Files(f"{number}", blob(f"tree-{number}"), packs, 1, 1)


def record(commit: int, tree: Files | None, state: str | None) -> Record:
    its = None if state is None else blob(state)
    return Record(key="k", run=b"", claim=b"c", epoch=1, commit=commit, blob=its, files=tree)


def names(of: Record, keep: int) -> frozenset[str]:
    found = set() if of.files is None else set(of.files.blobs)
    found |= set() if of.blob is None else {of.blob.name}
    return frozenset(found | ({generation_name(of)} if keep > 1 else set()))


class Model:
    """The rules said plainly: what is in the store, every record in its order, and who builds."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.there: set[str] = set()
        self.records: list[tuple[frozenset[str], bool]] = []
        self.users: set[int] = set()

    def needed(self, staged: Files | None) -> set[str]:
        """What must not go: of the newest successes `keep` and one more, and all since; what is
        staged."""
        found = set() if staged is None else set(staged.blobs)
        successes = 0
        for its, succeeded in reversed(self.records):
            successes += succeeded
            found |= its
            if successes > self.keep:
                break
        return found


@given(keep=st.integers(1, 3), steps=steps)
def test_ledger_behaves_like_its_model(keep: int, steps: list[tuple[Any, ...]]) -> None:
    """After each success all goes that no rule keeps, and nothing else; while anybody builds,
    nothing; and what was deleted of a key is what no record names."""
    ledger, model = Ledger(keep), Model(keep)
    first = record(1, None, None)
    assert ledger.adopt(first, [], []) == []
    model.records.append((names(first, keep), True))
    model.there |= names(first, keep)
    trees: list[Files] = []
    staged: Files | None = None
    commit = 1
    for op, one, two in steps:
        if op == "save":  # of packs some are an earlier tree's
            number = len(trees)
            base = () if staged is None else staged.packs[: int(one)]
            tree = files(number, (*base, f"pack-{number}"))
            ledger.begin(tree.id)
            for name in (f"pack-{number}", f"tree-{number}"):
                ledger.put(name)
                model.there.add(name)
            trees.append(tree)
            if two:  # else it was cancelled
                staged = tree
            ledger.end(tree.id)
        elif op == "begin":
            ledger.begin(one)
            model.users.add(one)
        elif op == "end":
            ledger.end(one)
            model.users.discard(one)
        elif op == "delete":
            named = {name for its, _ in model.records for name in its}
            loose = {n for n in model.there - named if n.startswith(("pack-", "tree-"))}
            expected = set() if model.users else loose
            gone = set(ledger.abandoned())
            assert gone == expected
            model.there -= gone
            if staged is not None and staged.blobs & gone:
                staged = None
        else:
            commit += 1
            state = f"state-{commit}" if two == "ok big" else None
            new = record(commit, staged if one else None, state)
            model.there |= names(new, keep)
            ledger.name(new)
            if two == "lost":
                model.records.append((names(new, keep), False))
                continue
            model.records.append((names(new, keep), True))
            gone = set(ledger.superfluous(staged))
            if model.users:
                assert not gone
                continue
            assert gone == model.there - model.needed(staged)
            model.there -= gone


def test_adopting_takes_over_what_is_kept() -> None:
    """At the claim all goes that neither the record nor a generation to keep needs; the
    generations go one by one as later records are stored."""
    ledger = Ledger(2)
    found = record(7, files(1, ("pack-1",)), "state-7")
    old = [frozenset({"gen-old", "pack-0"}), frozenset({"gen-older", "pack-1"})]
    there = sorted({"stray", "gen-old", "gen-older", "pack-0", *names(found, 2)})
    assert ledger.adopt(found, there, old) == ["stray"]
    gone: list[list[str]] = []
    for commit in (8, 9):
        ledger.name(record(commit, found.files, None))
        gone.append(ledger.superfluous(None))
    assert gone[0] == ["gen-old", "pack-0"]
    assert gone[1] == ["gen-older"]


def test_nothing_is_kept_account_of_where_there_is_nothing() -> None:
    """Records of small states, one generation: no ledger grows."""
    ledger = Ledger(1)
    ledger.adopt(record(1, None, None), [], [])
    for commit in range(2, 5):
        ledger.name(record(commit, None, None))
        assert ledger.superfluous(None) == []
    assert ledger.empty
