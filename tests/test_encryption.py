"""Encrypted stores, as their users meet them: nothing in clear, nothing exchanged, clear errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import logging
import os
import pickle
import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from traceback import TracebackException
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aiocheckpoint
from aiocheckpoint import CodecError, CorruptCheckpointError, Keyring, Runtime, _mapped
from aiocheckpoint import _region as region
from aiocheckpoint._region import RegionHeader, Staged
from aiocheckpoint._sealing import HEAD, Place, Staging, unseal, unstage
from aiocheckpoint._spool import Lane, Spool
from aiocheckpoint.abc import Store
from aiocheckpoint.stores.memory import MemoryStore

from .children import read_back, run, state, store_state
from .support import files, listed, run_script
from .trees import make, seen

A, B = Keyring.generate_key(), Keyring.generate_key()
KEYRING = Keyring({"2026-11": A})
SECRET = b"the plain text that nobody else may read"
LOCAL = pytest.mark.parametrize("scheme", ["file", "sqlite"])


def url_of(scheme: str, directory: Path) -> str:
    return f"{scheme}:{directory}/{'s.db' if scheme == 'sqlite' else 's'}"


def clear(directory: Path, text: bytes = SECRET[:20]) -> list[Path]:
    """The files below a directory that have this text in them."""
    found = []
    for path in files(directory):
        with contextlib.suppress(FileNotFoundError):  # replaced as we look
            if text in path.read_bytes():
                found.append(path)
    return found


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A file of keys that other processes load."""
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text(f"# ours\n\n2026-11 = {base64.b64encode(A).decode()}\n")
    return path


# The keyring


def test_a_keyring_says_what_is_wrong_and_shows_no_key() -> None:
    """Keys of another size, ids of other characters and no keys at all are refused."""
    wrong: list[tuple[Any, Any]] = [
        ({}, None),
        ({"a": A[:31]}, None),
        ({"a": A + b"x"}, None),
        ({"a": A.hex()}, None),
        ({"a": bytearray(A)}, None),
        ({A: "a"}, None),
        ({base64.b64encode(A).decode(): A}, None),
        ({"": A}, None),
        ({"a b": A}, None),
        ({"é": A}, None),
        ({"a\n": A}, None),
        ({"#a": A}, None),
        ({"a" * 65: A}, None),
        ({"a": A}, "b"),
    ]
    for given_keys, primary in wrong:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the texts are looked at below
            Keyring(given_keys, primary)
        for shown in (A.hex(), repr(A)[2:-1], base64.b64encode(A).decode()):
            assert shown not in str(caught.value)
    assert Keyring({"!~" * 32: A}).primary == "!~" * 32


def test_a_keyring_keeps_its_keys_to_itself() -> None:
    """Its repr names the ids alone; it is neither pickled nor copied."""
    keyring = Keyring({"new": A, "old": B})
    assert repr(keyring) == "Keyring(<keys of new, old>)"
    assert str(keyring) == repr(keyring)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            attempt(keyring)
    assert len(Keyring.generate_key()) == 32
    assert Keyring.generate_key() != Keyring.generate_key()


def test_a_keyring_is_loaded_from_a_file(keys: Path) -> None:
    """The first key is the primary; comments and empty lines say nothing."""
    with keys.open("a") as file:
        file.write(f"  2025-01={base64.b64encode(B).decode()}  \n")
    assert Keyring.load(keys).ids == ("2026-11", "2025-01")
    assert Keyring.load(str(keys), primary="2025-01").ids == ("2025-01", "2026-11")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o644])
def test_a_file_of_keys_that_others_may_use_is_refused(keys: Path, mode: int) -> None:
    """The error says how to mend it."""
    keys.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        Keyring.load(keys)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "a=",
        "a=####",
        "=" + "A" * 44,
        "a=" + "A" * 43,
        "2026-11=" + "A" * 43 + "=",
        "é=A",
    ],
)
def test_a_bad_line_is_named_by_its_number(keys: Path, line: str) -> None:
    """And by nothing of what it says, which may be a key."""
    with keys.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 4: ") as caught:
        Keyring.load(keys)
    assert line not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["2025-01 = typo\n", "", "a =\n"])
def test_the_frames_of_an_error_hold_no_key(keys: Path, text: str) -> None:
    """Tools that show the variables of each frame show nothing of a file that has a bad line, or
    does not have the primary."""
    with keys.open("a") as file:
        file.write(text)
    with pytest.raises(ValueError, match=r"line 4|is none of the keys") as caught:
        Keyring.load(keys, primary="absent")
    frames = TracebackException.from_exception(caught.value, capture_locals=True)
    for shown in (repr(A)[2:-1], base64.b64encode(A).decode()):
        assert shown not in "".join(frames.format())


def test_a_directory_is_no_file_of_keys(tmp_path: Path) -> None:
    """Nor is an absent file, or an empty one."""
    with pytest.raises((ValueError, IsADirectoryError)):
        Keyring.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Keyring.load(tmp_path / "absent")
    (tmp_path / "empty").touch(mode=0o600)
    with pytest.raises(ValueError, match="needs a key"):
        Keyring.load(tmp_path / "empty")


def test_without_cryptography_the_error_names_the_extra() -> None:
    """A missing package says how to install it."""
    script = run_script(
        """
import sys
sys.modules["cryptography"] = None
for name in list(sys.modules):
    assert not name.startswith("cryptography."), name
import aiocheckpoint
try:
    aiocheckpoint.Keyring({"a": bytes(32)})
except ImportError as exc:
    print(exc)
"""
    )
    assert "pip install 'aiocheckpoint[encryption]'" in script.stdout


def test_what_is_no_keyring_is_refused_and_not_shown(tmp_path: Path) -> None:
    """A bare key is refused where it is given."""
    for wrong in (A, {"a": A}):
        with pytest.raises(TypeError, match="a Keyring") as caught:
            Runtime(tmp_path, encryption=wrong)  # type: ignore[arg-type]
        assert repr(A)[2:-1] not in str(caught.value)


# The store


@LOCAL
async def test_nothing_is_in_clear(scheme: str, tmp_path: Path) -> None:
    """Neither states, small or large, nor files and their names, nor results are in the store or
    the spool as they are; the spool is looked at while the states lie there."""
    url = url_of(scheme, tmp_path / "data")
    (tmp_path / "data").mkdir()
    tree = make(tmp_path / "tree", secret_name=SECRET, deep__er=SECRET * 100_000)

    async def task(cp: aiocheckpoint.Checkpointer[bytes]) -> str:
        await cp.write(SECRET)
        return SECRET.decode()

    async with Runtime(url, encryption=KEYRING, keep=2) as rt:
        async with rt.open("k") as cp:
            for state in (SECRET, SECRET * 100, SECRET * 50_000, SECRET * 200_000):
                await cp.write(state)
                assert clear(tmp_path / "data") == []
                await cp.flush()
            cp.write_nowait(SECRET)
            await cp.save(tree, state=SECRET)
            assert clear(tmp_path / "data") == []
            assert clear(tmp_path / "data", b"secret_name") == []
            await cp.write(SECRET * 3)
            latest = await rt.latest("k")
            assert latest is not None
            assert latest.payload == SECRET
        assert await rt.run(task, key="run") == SECRET.decode()
    assert clear(tmp_path / "data") == []
    async with aiocheckpoint.open(url, "k", encryption=KEYRING) as cp:
        assert await cp.read() == SECRET * 3
        await cp.restore(tmp_path / "back")
    assert seen(tmp_path / "back") == seen(tree)


async def test_files_come_back_and_go_on(tmp_path: Path) -> None:
    """Saves that change some of a tree's files restore as they were, range by range."""
    tree = make(tmp_path / "tree", small=b"s", large=os.urandom((9 << 20) + 5), other=b"o" * 4000)
    url = url_of("file", tmp_path)
    for number in range(4):
        async with aiocheckpoint.open(url, "k", encryption=KEYRING) as cp:
            make(tree, small=b"%d" % number)
            with (tree / "large").open("r+b") as file:
                file.seek(number << 22)
                file.write(b"changed")
            await cp.save(tree, state=b"%d" % number)
            await cp.restore(tmp_path / f"back-{number}")
            assert seen(tmp_path / f"back-{number}") == seen(tree)


async def test_a_move_is_refused_before_anything_moves(tmp_path: Path) -> None:
    """`save(move=True)` would put files in clear into the spool: they stay where they are."""
    tree = make(tmp_path / "tree", secret=SECRET)
    before = seen(tree)
    async with aiocheckpoint.open(url_of("file", tmp_path), "k", encryption=KEYRING) as cp:
        with pytest.raises(ValueError, match="save with move=False"):
            await cp.save(tree, state=b"state", move=True)
        assert await cp.read() is None
    assert seen(tree) == before
    assert clear(tmp_path / "s") == []


@LOCAL
async def test_keys_are_rotated(scheme: str, tmp_path: Path) -> None:
    """Each commit seals under the primary: once all keys were opened the old key can go."""
    url = url_of(scheme, tmp_path)
    async with aiocheckpoint.open(url, "k", encryption=Keyring({"old": A}), keep=2) as cp:
        await cp.write(b"x" * 2_000_000)
    both = Keyring({"new": B, "old": A})
    async with aiocheckpoint.open(url, "k", encryption=both, keep=2) as cp:
        assert await cp.read() == b"x" * 2_000_000
        await cp.write(b"y" * 2_000_000)
        await cp.flush()
        await cp.write(b"z" * 2_000_000)
    async with aiocheckpoint.open(url, "k", encryption=Keyring({"new": B}), keep=2) as cp:
        assert await cp.read() == b"z" * 2_000_000


async def _refused(url: str, kind: type[Exception], match: str, **options: Any) -> str:
    with pytest.raises(kind, match=match) as caught:
        async with aiocheckpoint.open(url, "k", **options):
            raise AssertionError("it opened")
    return str(caught.value)


@LOCAL
@pytest.mark.parametrize("keep", [1, 2])
async def test_wrong_keys_are_told_and_cost_nothing(scheme: str, keep: int, tmp_path: Path) -> None:
    """No keys, other ids, other keys of the id: each says so, falls back to nothing, and leaves
    all as it was."""
    url = url_of(scheme, tmp_path)
    for number in range(3):
        async with aiocheckpoint.open(url, "k", encryption=KEYRING, keep=keep) as cp:
            await cp.write(b"%d" % number)
    await _refused(url, CodecError, "is encrypted: open the store with encryption=", keep=keep)
    other = {"encryption": Keyring({"other": B}), "keep": keep}
    await _refused(url, CodecError, "under the key '2026-11', and the keyring has other", **other)
    same = {"encryption": Keyring({"2026-11": B}), "keep": keep}
    await _refused(url, CodecError, "another key of the same id", **same)
    async with Runtime(url, encryption=Keyring({"other": B})) as rt:
        with pytest.raises(CodecError, match="add that key"):
            await rt.latest("k")
        assert await listed(rt.keys()) == ["k"]
    async with aiocheckpoint.open(url, "k", encryption=KEYRING, keep=keep) as cp:
        assert cp.epoch == 4
        assert await cp.read() == b"2"


async def test_two_new_keys_of_one_id_cost_nothing(tmp_path: Path) -> None:
    """Machines that made each their own new key, under one id, read nothing of each other's; the
    generations under the old key, which both have, do not stand in."""
    url = url_of("file", tmp_path)
    ours, theirs = ({"new": new, "old": A} for new in (B, Keyring.generate_key()))
    for secret, text in (({"old": A}, b"1"), (ours, b"2")):
        async with aiocheckpoint.open(url, "k", encryption=Keyring(secret), keep=3) as cp:
            await cp.write(text)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    await _refused(url, CodecError, "same id, 'new'", encryption=Keyring(theirs), keep=3)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    async with aiocheckpoint.open(url, "k", encryption=Keyring(ours), keep=3) as cp:
        assert await cp.read() == b"2"


async def test_a_run_does_not_try_a_wrong_key_again(tmp_path: Path) -> None:
    """A policy that retries everything does not retry this."""
    url = url_of("file", tmp_path)
    async with aiocheckpoint.open(url, "k", encryption=KEYRING) as cp:
        await cp.write(b"state")

    async def task(cp: aiocheckpoint.Checkpointer[bytes]) -> None:
        raise AssertionError("it ran")

    async with Runtime(url) as rt:
        with pytest.raises(CodecError):
            await rt.run(task, key="k", retry=3)


@LOCAL
async def test_a_plain_record_is_refused(scheme: str, tmp_path: Path) -> None:
    """Who can write to the store cannot have a record of his own believed."""
    url = url_of(scheme, tmp_path)
    async with aiocheckpoint.open(url, "k") as cp:
        await cp.write(b"forged")
    await _refused(url, CodecError, "is not encrypted.*copy it", encryption=KEYRING)
    async with aiocheckpoint.open(url, "k") as cp:
        assert await cp.read() == b"forged"
    async with Runtime(url, encryption=KEYRING) as rt:
        await rt.delete("k")
    async with aiocheckpoint.open(url, "k", encryption=KEYRING) as cp:
        assert await cp.read() is None


class _Rewritten:
    """A store in memory whose owner does as he likes."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def head(self, key: str = "k") -> bytes:
        return self.store._heads[key].record

    def put(self, record: bytes, key: str = "k") -> None:
        head = self.store._heads[key]
        self.store._heads[key] = head._replace(record=record)

    @property
    def blobs(self) -> dict[str, bytes]:
        return self.store._blobs["k"]

    async def write(self, *states: bytes, key: str = "k", keep: int = 1) -> None:
        options: dict[str, Any] = {"encryption": KEYRING, "min_interval": 0, "keep": keep}
        async with aiocheckpoint.open(self.store, key, **options) as cp:
            for state in states:
                await cp.write(state)
                await cp.flush()

    async def read(self, key: str = "k", keep: int = 1) -> bytes | None:
        async with aiocheckpoint.open(self.store, key, encryption=KEYRING, keep=keep) as cp:
            return await cp.read()


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_another_keys_record_is_damage() -> None:
    """A record, though sealed by us, opens under its own key only."""
    owner = _Rewritten()
    await owner.write(b"mine")
    await owner.write(b"theirs", key="other")
    owner.put(owner.head("other"))
    with pytest.raises(CorruptCheckpointError):
        await owner.read()
    assert await owner.read("other") == b"theirs"


async def test_an_old_state_under_a_new_header_is_damage() -> None:
    """Header and state are sealed as one: no splice of an old record and a new one opens."""
    owner = _Rewritten()
    await owner.write(b"a" * 100)
    old = owner.head()
    await owner.write(b"b" * 100)
    new = owner.head()
    assert len(old) == len(new)
    for cut in range(HEAD, len(new)):
        owner.put(new[:cut] + old[cut:])
        with pytest.raises(CorruptCheckpointError):
            await owner.read()
    owner.put(new)
    assert await owner.read() == b"b" * 100


async def test_an_old_blob_under_a_new_header_is_damage() -> None:
    """A large state is bound to the name that its record gives it."""
    owner = _Rewritten()
    await owner.write(b"a" * 2_000_000)
    before = dict(owner.blobs)
    await owner.write(b"b" * 2_000_000)
    (name,) = owner.blobs.keys() - before.keys()
    owner.blobs[name] = max(before.values())
    with pytest.raises(CorruptCheckpointError):
        await owner.read()


async def test_a_whole_old_record_is_believed() -> None:
    """What the owner of a store can do is to put back all of it as it was: no key tells."""
    owner = _Rewritten()
    await owner.write(b"old")
    old = owner.head()
    await owner.write(b"new")
    owner.put(old)
    assert await owner.read() == b"old"


@pytest.mark.parametrize("damage", [lambda d: _flipped(d, 200), lambda d: d[:-20], lambda d: b""])
async def test_a_good_generation_stands_in(
    damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """With keep=2 a damaged head, and a damaged generation, cost what they held and no more."""
    owner = _Rewritten()
    await owner.write(b"one", b"two", b"three", keep=3)
    owner.put(damage(owner.head()))
    assert await owner.read(keep=3) == b"three"
    assert "falling back to seq 3" in caplog.text
    await owner.write(b"four", b"five", keep=3)
    owner.put(damage(owner.head()))
    newest = max(name for name in owner.blobs if name.startswith("gen-"))
    owner.blobs[newest] = damage(owner.blobs[newest])
    assert await owner.read(keep=3) == b"four"


async def test_generations_cannot_be_exchanged() -> None:
    """An old generation under the name of a newer one does not open."""
    owner = _Rewritten()
    await owner.write(b"one", b"two", b"three", keep=3)
    owner.put(b"")
    names = sorted(name for name in owner.blobs if name.startswith("gen-"))
    owner.blobs[names[-1]] = owner.blobs[names[-2]]
    assert await owner.read(keep=3) == b"two"


async def test_a_flipped_bit_of_a_head_is_damage(caplog: pytest.LogCaptureFixture) -> None:
    """A key's id that was damaged is no unknown key."""
    caplog.set_level(logging.CRITICAL)
    owner = _Rewritten()
    await owner.write(b"state")
    good = owner.head()
    for at in range(0, len(good), 7):
        owner.put(_flipped(good, at))
        with pytest.raises(CorruptCheckpointError):
            await owner.read()
    owner.put(good)
    assert await owner.read() == b"state"


async def test_two_runtimes_fence_each_other(tmp_path: Path) -> None:
    """Claims work as without encryption."""
    url = url_of("file", tmp_path)
    with pytest.raises(aiocheckpoint.FencedError):
        async with aiocheckpoint.open(url, "k", encryption=KEYRING, min_interval=0) as old:
            await old.write(b"old")
            await old.flush()
            async with aiocheckpoint.open(url, "k", encryption=KEYRING) as new:
                assert await new.read() == b"old"
                await new.write(b"new")
                await old.write(b"late")
                await old.flush()
    assert await latest(url) == b"new"


async def latest(url: str) -> bytes | None:
    async with Runtime(url, encryption=KEYRING) as rt:
        found = await rt.latest("k")
        return None if found is None else found.payload


async def test_many_keys_at_once(tmp_path: Path) -> None:
    """A batch of many keys is sealed as one and opens key by key."""
    url = url_of("sqlite", tmp_path)
    async with Runtime(url, encryption=KEYRING) as rt, contextlib.AsyncExitStack() as stack:
        for number in range(60):
            cp = await stack.enter_async_context(rt.open(f"k{number}"))
            await cp.write(SECRET + b"%d" % number * 3000)
    assert clear(tmp_path) == []
    async with Runtime(url, encryption=KEYRING) as rt:
        for number in range(60):
            latest = await rt.latest(f"k{number}")
            assert latest is not None
            assert latest.payload == SECRET + b"%d" % number * 3000


@pytest.mark.parametrize("size", [100, 200_000, 3_000_000])
def test_interpreter_exit_stores(size: int, keys: Path, tmp_path: Path) -> None:
    """What an interpreter that exits has staged is sealed and stored, whatever its size."""
    url = url_of("file", tmp_path)
    run_script(
        """
import asyncio, random, sys
import aiocheckpoint

async def main():
    global cp
    keyring = aiocheckpoint.Keyring.load(sys.argv[2])
    runtime = aiocheckpoint.Runtime(sys.argv[1], encryption=keyring, compression="zstd", spool=None)
    await runtime.__aenter__()
    cp = await runtime.open("k").__aenter__()
    await cp.write(random.Random(1).randbytes(int(sys.argv[3])))

asyncio.run(main())
""",
        url,
        keys,
        size,
    )
    assert read_back(url, encryption=KEYRING) == random.Random(1).randbytes(size)


def test_blocking_and_scripts_take_a_keyring(tmp_path: Path) -> None:
    """The other two ways in encrypt as well."""
    url = url_of("file", tmp_path)
    with aiocheckpoint.blocking.open(url, "k", encryption=KEYRING) as cp:
        cp.write(SECRET)

    async def task(cp: aiocheckpoint.Checkpointer[bytes]) -> bytes | None:
        return await cp.read()

    assert aiocheckpoint.run(task, store=url, key="k", encryption=KEYRING) == SECRET
    assert clear(tmp_path) == []


# The spool

_KILLED = """
    size = int(args[1])
    keyring = aiocheckpoint.Keyring.load(args[0])
    async with aiocheckpoint.open(url, "k", encryption=keyring, min_interval=1000) as cp:
        await cp.write(state(1, size))
        await cp.flush()
        for number in range(2, 6):
            await cp.write(state(number, size))
        cp.write_nowait(state(6, size))
        await cp.write(state(7, size + 1))
        die()
"""


@LOCAL
@pytest.mark.parametrize("size", [100, 5000, 300_000])
def test_a_killed_process_loses_nothing_and_leaves_nothing_in_clear(
    scheme: str, size: int, keys: Path, tmp_path: Path
) -> None:
    """What it had staged is promoted from its sealed spool."""
    url = url_of(scheme, tmp_path)
    run(_KILLED, url, keys, size)
    spools = [path for path in files(tmp_path) if "spool" in str(path)]
    assert spools
    for number in range(2, 8):
        assert clear(tmp_path, state(number, 100)[2:30]) == []
    assert read_back(url, encryption=KEYRING) == state(7, size + 1)


def test_a_killed_process_and_another_key(
    keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A spool sealed under a key that is not at hand is neither ignored nor removed: the error
    says which key it wants, and with it the state is there."""
    url = url_of("file", tmp_path)
    run(_KILLED.replace("die()", "await cp.flush()"), url, keys, 100)
    # sealed in the store under the one key, and in the spool under another
    keys.write_text(f"2027-01 = {base64.b64encode(B).decode()}\n" + keys.read_text())
    run(
        """
    keyring = aiocheckpoint.Keyring.load(args[0])
    old = aiocheckpoint.Keyring.load(args[0], primary="2026-11")
    async with aiocheckpoint.open(url, "k", encryption=keyring, min_interval=1000) as cp:
        cp._writer.store._keyring = old
        await cp.write(state(8))
        await cp.flush()
        await cp.write(state(9))
        die()
""",
        url,
        keys,
    )
    before = {path: path.read_bytes() for path in files(tmp_path)}
    with pytest.raises(CodecError, match=r"seq 9, encrypted under the key '2027-01'.*remove"):
        read_back(url, encryption=KEYRING)
    other = Keyring({"2026-11": A, "2027-01": A})
    with pytest.raises(CodecError, match=r"another key of the same id, '2027-01'.*remove"):
        read_back(url, encryption=other)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    assert read_back(url, encryption=Keyring.load(keys)) == state(9)


def test_files_in_the_spool_are_not_believed(keys: Path, tmp_path: Path) -> None:
    """Files in clear that somebody has put into the spool never become a checkpoint's, though it
    has a state that goes with files which are gone from the store."""
    url = url_of("file", tmp_path)
    tree = make(tmp_path / "tree", good=b"good")
    run(
        """
    keyring = aiocheckpoint.Keyring.load(args[0])
    async with aiocheckpoint.open(url, "k", encryption=keyring, min_interval=1000) as cp:
        await cp.write(b"stored")
        await cp.flush()
        cp._writer.store._store.commit = lambda batch: asyncio.sleep(1000)
        saving = asyncio.ensure_future(cp.save(args[1], state=b"staged"))
        while cp._slot.files is None:
            await asyncio.sleep(0.01)
        die()
""",
        url,
        keys,
        tree,
    )
    (spool,) = {path.parent for path in _regions(tmp_path / "s" / ".spool")}
    (manifest,) = (tmp_path / "s").rglob("tree-*")
    make(spool / f"{manifest.name[5:].partition('.')[0]}.tree", evil=b"evil")
    manifest.unlink()
    assert read_back(url, encryption=KEYRING) == b"stored"


def _regions(directory: Path) -> list[Path]:
    return [path for path in files(directory) if path.name[:32].isalnum() and "." in path.name]


def test_a_plain_region_is_not_believed(
    tmp_path: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who can write in the spool cannot have a state of his own promoted."""
    url = url_of("file", tmp_path)
    run(_KILLED, url, keys, 100)
    for path in _regions(tmp_path / "s" / ".spool"):
        claim = bytes.fromhex(path.name[:32])
        path.unlink()
        place = path.with_name(f"{claim.hex()}.7")
        forged = region.make_region(place, claim, "bytes", "", 100, print)
        forged.stage(1000, b"forged")
    assert (read_back(url, encryption=KEYRING) or b"")[:2] == b"1:"
    assert "seq 1000 of 'k' in the spool is not used: it is not encrypted" in caplog.text


def test_a_changed_region_is_not_believed(
    tmp_path: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is a state that was changed and given its checksum."""
    url = url_of("file", tmp_path)
    run(_KILLED, url, keys, 100)
    for path in _regions(tmp_path / "s" / ".spool"):
        data = bytearray(path.read_bytes())
        begin = _mapped.offset(path)
        header = region._decode_header(bytes(data[begin : begin + region._HEAD]))
        for half in (0, 1):
            at = begin + region._HEAD + half * (header.capacity + region._TRAILER.size)
            end = at + header.capacity
            size, seq, _ = region._TRAILER.unpack_from(data, end)
            data[at + 20] ^= 1
            digest = region._hash(bytes(data[at : at + size]), seq)
            region._TRAILER.pack_into(data, end, size, seq, digest)
        path.write_bytes(data)
    assert (read_back(url, encryption=KEYRING) or b"")[:2] == b"1:"
    assert "in the spool is not used: it was not sealed here" in caplog.text


CLAIM = bytes(range(16))


@settings(deadline=None)
@given(
    data=st.binary(max_size=5000),
    seq=st.integers(0, 2**63),
    codec=st.sampled_from(["bytes", "msgpack", "c" * 32]),
    tree=st.sampled_from(["", f"{CLAIM.hex()}-1"]),
)
def test_what_is_staged_opens_as_that_alone(data: bytes, seq: int, codec: str, tree: str) -> None:
    """A staged state is bound to its key, claim, seq, codec and tree."""
    staging = Staging(KEYRING, "k", CLAIM)
    under = staging.under
    sealed = staging.sealer(codec, tree)(seq, data)
    assert len(sealed) == len(data) + Staging.ROOM
    assert unstage(KEYRING, "k", CLAIM, under, codec, tree, seq, sealed) == data
    changed = bytearray(sealed)
    changed[seq % len(sealed)] ^= 1
    other = under._replace(salt=bytes(16))
    for key, claim, used, kind, files_of, number, text in (
        ("other", CLAIM, under, codec, tree, seq, sealed),
        ("k", bytes(16), under, codec, tree, seq, sealed),
        ("k", CLAIM, other, codec, tree, seq, sealed),
        ("k", CLAIM, under, "other", tree, seq, sealed),
        ("k", CLAIM, under, codec, "other", seq, sealed),
        ("k", CLAIM, under, codec, tree, seq + 1, sealed),
        ("k", CLAIM, under, codec, tree, seq, bytes(changed)),
        ("k", CLAIM, under, codec, tree, seq, sealed[:-1]),
        ("k", CLAIM, under, codec, tree, seq, b""),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - any will do
            unstage(KEYRING, key, claim, used, kind, files_of, number, text)


def test_no_nonce_comes_twice() -> None:
    """Many regions and threads of one claim number their states together."""
    staging = Staging(KEYRING, "k", CLAIM)
    nonces: list[bytes] = []

    def stage(codec: str) -> None:
        seal = staging.sealer(codec, "")
        nonces.extend([seal(1, b"same")[:12] for _ in range(2000)])

    threads = [threading.Thread(target=stage, args=("bytes",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(nonces)) == 16_000
    assert staging.under.salt != Staging(KEYRING, "k", CLAIM).under.salt


@pytest.mark.parametrize("size", [0, 1, 331, 332, 333, 16_384, 16_385, 4 << 20, (4 << 20) + 1])
def test_states_of_any_size_are_staged_sealed(size: int, tmp_path: Path) -> None:
    """Regions grow as they do for plain states, up to the same limit, and are read back."""
    directory = tmp_path / "spool"
    spool = Spool(directory, CLAIM, Staging(KEYRING, "k", CLAIM))
    lane = Lane(spool, lambda seq, data: lane.stage(Staged(seq, data, "bytes")))
    directory.mkdir(mode=0o700)
    lane.reserve(None)
    assert lane.region is not None
    assert lane.region.capacity == 332
    state = SECRET * (size // len(SECRET)) + SECRET[: size % len(SECRET)]
    lane.region.stage(1, state)
    lane.stage(Staged(2, state[:-1], "bytes"))
    if size > region.SPOOL_LIMIT:
        return
    path = lane.region.path
    found = region.read_region(path, CLAIM)
    assert found is not None
    assert found.sealed is not None
    assert found.path == path
    about = "bytes", "", found.staged.seq, found.staged.data
    assert unstage(KEYRING, "k", CLAIM, found.sealed, *about) == state[:-1]
    assert clear(directory) == []


def test_the_longest_header_of_a_region_fits() -> None:
    """Key id, codec and tree may all be as long as they can be."""
    under = Staging(Keyring({"i" * 64: A}), "k", CLAIM).under
    tree = f"{CLAIM.hex()}-{2**31}"
    header = RegionHeader(CLAIM, "b" * 36, "c" * 32, 1 << 22, tree, under)
    block = region._encode_header(header)
    assert len(block) == region._HEAD
    assert region._decode_header(block) == header


def test_regions_of_before_are_read(tmp_path: Path) -> None:
    """A header without a key, as earlier versions made it, is a plain region's."""
    old = msgspec.msgpack.encode([CLAIM, "boot", "bytes", 100, ""])
    assert msgspec.msgpack.decode(old, type=RegionHeader).sealed is None


def test_the_sealed_store_is_what_a_raw_look_finds(tmp_path: Path) -> None:
    """By other means than the package's own: the row in the database is a sealed record."""
    url = url_of("sqlite", tmp_path)
    store_state(url, SECRET, encryption=KEYRING)
    connection = sqlite3.connect(tmp_path / "s.db")
    try:
        (row,) = connection.execute("SELECT record FROM aiocheckpoint_heads").fetchone()
    finally:
        connection.close()
    assert row.startswith(b"\x89AIOCKE\n")
    assert SECRET in unseal(KEYRING, Place("record", "k"), row)


def test_a_store_of_ones_own_is_wrapped(tmp_path: Path) -> None:
    """A Store instance is encrypted as a URL is, and closed by who made it."""
    store: Store = MemoryStore()

    async def main() -> None:
        for _ in range(2):
            async with aiocheckpoint.open(store, "k", encryption=KEYRING) as cp:
                await cp.write(SECRET)
        head = await store.load("k")
        assert head is not None
        assert SECRET not in head.record

    asyncio.run(main())
