"""The commands on stores that are encrypted or compressed."""

from __future__ import annotations

import asyncio
import base64
import random
from pathlib import Path

import pytest

from aiocheckpoint import Keyring, Runtime
from aiocheckpoint._copying import copy_key
from aiocheckpoint._sealed import SealedStore
from aiocheckpoint.abc import Put, Store
from aiocheckpoint.stores.memory import MemoryStore

from ..support import files
from ..trees import make, seen
from .test_commands import items, run

TEXT = random.Random(1).randbytes(3_000_000).hex().encode()  # half of it is left, compressed
OLD, NEW = Keyring.generate_key(), Keyring.generate_key()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory with two files of keys."""
    monkeypatch.chdir(tmp_path)
    for name, key_id, key in (("old", "2025-01", OLD), ("new", "2026-11", NEW)):
        Path(name).touch(mode=0o600)
        Path(name).write_text(f"{key_id} = {base64.b64encode(key).decode()}\n")


def fill(url: str, keyring: Keyring | None = None) -> None:
    """A large state, and a tree with a state; both with a generation."""

    async def main() -> None:
        make(Path("tree"), text=TEXT, small=b"small", sub__dir=b"d" * 1000)
        options = {"keep": 2, "compression": "zstd", "encryption": keyring}
        async with Runtime(url, **options) as rt:  # type: ignore[arg-type]
            async with rt.open("large") as cp:
                await cp.write(TEXT)
            async with rt.open("tree") as cp:
                await cp.save("tree", state=b"state")

    asyncio.run(main())


def check(url: str, keyring: Keyring | None) -> None:
    """All that `fill` has made is there."""

    async def main() -> None:
        async with Runtime(url, encryption=keyring) as rt:
            async with rt.open("large") as cp:
                assert await cp.read() == TEXT
            async with rt.open("tree") as cp:
                assert await cp.read() == b"state"
                await cp.restore(f"back-{url[-3:]}")

    asyncio.run(main())
    assert seen(Path(f"back-{url[-3:]}")) == seen(Path("tree"))


def test_copy_encrypts_rotates_and_decrypts() -> None:
    """From plain to encrypted, to other keys, and back to plain; each copy is good."""
    fill("file:one")
    assert run("copy", "file:one", "sqlite:two", "--target-keys", "old").exit_code == 0
    check("sqlite:two", Keyring.load("old"))
    rotate = ["--keys", "old", "--target-keys", "new"]
    assert run("copy", "sqlite:two", "file:six", *rotate).exit_code == 0
    assert run("verify", "file:six", "--keys", "new").exit_code == 0
    assert [p for p in files(Path("six")) if TEXT[:20] in p.read_bytes()] == []
    again = run("copy", "sqlite:two", "file:six", *rotate)
    assert again.exit_code == 0
    assert "2 the same there already" in again.stdout
    check("file:six", Keyring.load("new"))
    assert run("copy", "file:six", "file:ten", "--keys", "new", "--decrypt").exit_code == 0
    assert run("verify", "file:ten").exit_code == 0
    check("file:ten", None)


@pytest.mark.parametrize("head", ["none", "another"])
@pytest.mark.parametrize("before", [[], ["--target-keys", "old"]])
@pytest.mark.parametrize("after", [["--target-keys", "new"], []])
def test_what_lies_there_otherwise_encrypted_is_copied_again(
    before: list[str], after: list[str], head: str
) -> None:
    """A copy in clear or under other keys, cut short or finished: none of its blobs is used."""
    fill("file:one")
    assert run("copy", "file:one", "file:two", *before).exit_code == 0
    for path in Path("two").glob("*/head.*") if head == "none" else ():
        path.unlink()
    assert run("copy", "file:one", "file:two", *after, "--overwrite").exit_code == 0
    keys = ["--keys", "new"] if after else []
    assert run("verify", "file:two", *keys).exit_code == 0
    check("file:two", Keyring.load("new") if after else None)


@pytest.mark.parametrize("options", [[], ["--target-keys", "new", "--decrypt"]])
def test_copy_decrypts_only_when_told(options: list[str]) -> None:
    """Without a word about the target nothing of an encrypted store is copied in clear."""
    fill("file:one", Keyring.load("old"))
    refused = run("copy", "file:one", "file:two", "--keys", "old", *options)
    assert refused.exit_code == 2
    assert "--decrypt" in refused.output
    assert not Path("two").exists()


def test_without_keys_nothing_is_read_and_keys_are_listed() -> None:
    """An encrypted store without its keys is told to be one, and is not called damaged."""
    fill("file:one", Keyring.load("old"))
    assert run("ls", "file:one").stdout.split() == ["large", "tree"]
    for command in (
        "ls -l file:one",
        "show file:one large",
        "history file:one large",
        "verify file:one",
        "gc file:one -n",
        "copy file:one file:two",
    ):
        told = run(*command.split())
        assert told.exit_code == 3, command
        assert told.output == (
            "aiocheckpoint: the store is encrypted: give the file of its keyring (--keys FILE)\n"
        )
    wrong = run("show", "file:one", "large", "--keys", "new")
    assert wrong.exit_code == 1
    assert "under the key '2025-01', and the keyring has 2026-11" in wrong.output
    shown = items(run("show", "file:one", "large", "--keys", "old", "--json"))
    assert shown[0]["size"] == len(TEXT)
    assert run("rm", "file:one", "large", "--yes").exit_code == 0


def test_bad_files_of_keys_are_told() -> None:
    """Nothing is opened with a file that others may read, or that is none."""
    fill("file:one")
    Path("old").chmod(0o644)
    told = run("ls", "file:one", "--keys", "old")
    assert told.exit_code == 2
    assert "chmod 600" in told.output
    Path("new").write_text("nonsense\n")
    told = run("ls", "file:one", "--keys", "new")
    assert told.exit_code == 2
    assert "line 1" in told.output
    assert "nonsense" not in told.output


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("kind", ["pack-", "tree-", "gen-"])
def test_verify_finds_damage(kind: str, encrypted: bool) -> None:
    """A flipped bit of a compressed pack, a manifest or a generation, sealed or not, is told."""
    options = ["--keys", "old"] if encrypted else []
    fill("file:one", Keyring.load("old") if encrypted else None)
    assert run("verify", "file:one", *options).exit_code == 0
    blob = max(Path("one/tree/blobs").glob(f"{kind}*"))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    told = run("verify", "file:one", *options)
    assert told.exit_code == 1
    assert f"tree: {blob.name}" in told.output
    bad = run("copy", "file:one", "file:two", *options, *(["--decrypt"] if encrypted else []))
    assert bad.exit_code == 1


async def test_two_records_that_do_not_open_are_not_the_same() -> None:
    """A copy of what cannot be read onto what cannot be read has not copied anything."""
    source, target = MemoryStore(), MemoryStore()
    await source.commit([Put("k", None, b"rubbish")])
    await target.commit([Put("k", None, b"other rubbish")])
    keyring = Keyring({"a": OLD})
    sealed: list[Store] = [SealedStore(source, keyring), SealedStore(target, keyring)]
    copied = await copy_key(sealed[0], sealed[1], "k", "overwrite", lambda _: None)
    assert copied.outcome == "failed"
