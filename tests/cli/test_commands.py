"""The commands: what they print, for people and for machines, and how they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

import aiocheckpoint
from aiocheckpoint.abc import Store
from aiocheckpoint.cli import cli
from aiocheckpoint.cli._payload import decoded, shown
from aiocheckpoint.cli._text import age_text, duration, printable, size_text
from aiocheckpoint.stores import open_store

from .filled import KEYS, damage_blob, damage_head, fill, generations, record_of

T = TypeVar("T")


def run(*args: str) -> Result:
    """Run a command. Nothing but an exit code may come out of it."""
    result = CliRunner().invoke(cli, args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def items(result: Result) -> list[dict[str, Any]]:
    """The lines of --json."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def within(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do something to a store."""

    async def main() -> T:
        store = open_store(url)
        try:
            return await work(store)
        finally:
            await store.aclose()

    return asyncio.run(main())


@pytest.fixture(params=["file:jobs", "sqlite:jobs.db"], ids=["file", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A filled store."""
    monkeypatch.chdir(tmp_path)
    asyncio.run(fill(request.param, tmp_path))
    location: str = request.param
    return location


def test_ls_lists_keys(url: str) -> None:
    """Sorted; those of a prefix; those of a status; damaged ones as such."""
    assert run("ls", url).stdout.splitlines() == KEYS
    assert run("ls", url, "done/").stdout.splitlines() == ["done/1", "done/2"]
    assert run("ls", url, "--status", "failed").stdout.splitlines() == ["failed"]
    assert [item["key"] for item in items(run("ls", url, "--json"))] == KEYS
    lines = run("ls", "-l", url).stdout.splitlines()
    assert lines[0].split() == "status seq epoch attempt size files age key".split()  # noqa: SIM905
    assert [line.split()[-1] for line in lines[1:]] == KEYS
    assert lines[4].split()[:6] == ["running", "3", "1", "1", "2", "MiB"]
    within(url, lambda store: damage_head(store, "large"))
    result = run("ls", "-l", url)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[4].split() == ["damaged", "large"]
    assert "checksum" in result.stderr
    bad = items(run("ls", url, "--json", "--status", "damaged"))
    assert [(item["key"], item["status"]) for item in bad] == [("large", "damaged")]


def test_show_shows_a_record(url: str) -> None:
    """Its metadata, its state, its result, its files."""
    text = run("show", url, "done/2").stdout
    assert 'state:       {"number": 2}' in text
    assert "result:      4" in text
    (item,) = items(run("show", url, "done/2", "--json", "--payload"))
    assert item["status"] == "done"
    assert item["payload"] == {"number": 2}
    assert item["result"] == 4
    assert not item["stands_in"]
    assert "... (--payload shows all)" in run("show", url, "large").stdout
    assert "02" * (2 << 20) in run("show", url, "large", "--payload").stdout
    (item,) = items(run("show", url, "tree", "--json", "--files"))
    assert [entry["path"] for entry in item["entries"]] == [".", "changes", "sub", "sub/same"]
    assert "sub/same" in run("show", url, "tree", "--files").stdout
    assert CliRunner().invoke(cli, ["show", url, "small", "--raw"]).stdout_bytes == b"small"
    absent = run("show", url, "absent")
    assert (absent.exit_code, absent.stdout) == (1, "")
    assert "there is no key 'absent'" in absent.stderr


def test_show_says_when_an_earlier_record_stands_in(url: str) -> None:
    """The newest is damaged: what was kept is shown, and the command fails."""
    within(url, lambda store: damage_head(store, "tree"))
    result = run("show", url, "tree")
    assert result.exit_code == 1
    assert "an earlier record stands in" in result.stdout
    assert "damaged" in result.stderr
    assert items(run("show", url, "tree", "--json"))[0]["stands_in"]


def test_a_pickle_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it would run it: only its size and its codec are shown."""
    monkeypatch.chdir(tmp_path)

    async def write() -> None:
        codec = aiocheckpoint.PickleCodec()
        async with aiocheckpoint.open("file:jobs", "k", codec=codec) as cp:
            await cp.write({1, 2})

    asyncio.run(write())
    assert "of codec 'pickle' (--raw gives the bytes)" in run("show", "file:jobs", "k").stdout
    (item,) = items(run("show", "file:jobs", "k", "--json", "--payload"))
    assert item["payload"] is None
    assert item["payload_base64"]


def test_history_lists_what_is_kept(url: str) -> None:
    """The newest record first, each once; a damaged one as such."""
    found = items(run("history", url, "tree", "--json"))
    assert [item["seq"] for item in found] == sorted((item["seq"] for item in found), reverse=True)
    assert [item["newest"] for item in found] == [True] + [False] * (len(found) - 1)
    assert len(found) == len(within(url, lambda store: generations(store, "tree")))
    assert len(run("history", url, "tree").stdout.splitlines()) == len(found) + 1

    async def damage(store: Store) -> None:
        await damage_blob(store, "tree", (await generations(store, "tree"))[0])

    within(url, damage)
    result = run("history", url, "tree", "--json")
    assert result.exit_code == 1
    assert items(result)[-1]["status"] == "damaged"
    assert run("history", url, "absent").exit_code == 1


def test_verify_says_what_is_damaged(url: str) -> None:
    """Nothing, first; then the key, the place and what is wrong."""
    good = run("verify", url)
    assert good.exit_code == 0
    assert good.stdout.startswith("6 keys: ")

    async def damage(store: Store) -> str:
        blob = (await record_of(store, "large")).blob
        assert blob is not None
        await damage_blob(store, "large", blob.name)
        await store.put_blob("small", "odd", b"")
        return blob.name

    name = within(url, damage)
    bad = run("verify", url)
    assert bad.exit_code == 1
    assert f"large: {name}: the state is damaged" in bad.stdout
    assert "DAMAGE in 1 key\n" in bad.stdout
    assert "1 blob that nothing names" in bad.stdout
    lines = items(run("verify", url, "--json"))
    assert lines[-1]["type"] == "summary"
    assert (lines[-1]["keys"], lines[-1]["damaged"], lines[-1]["unnamed"]) == (6, 1, 1)
    (large,) = [line for line in lines if line.get("key") == "large"]
    assert large["damage"][0]["where"] == name
    assert run("verify", url, "small").exit_code == 0
    assert run("verify", "-q", url, "small").stdout == ""


def test_copy_copies(url: str) -> None:
    """All, some, again, over another; the exit code says whether all went well."""
    result = run("copy", url, "copy.db", "--key", "small", "--key", "tree")
    assert result.exit_code == 0
    assert "copied 2 keys" in result.stdout
    assert run("ls", "copy.db").stdout.splitlines() == ["small", "tree"]
    result = run("copy", url, "sqlite:copy.db", "--prefix", "done/")
    assert result.exit_code == 0
    lines = items(run("copy", url, "copy.db", "--json"))
    assert lines[-1]["same"] == 4
    assert lines[-1]["copied"] == 2
    assert {line["outcome"] for line in lines[:-1]} == {"same", "copied"}

    async def write() -> None:
        async with aiocheckpoint.open("sqlite:copy.db", "small") as cp:
            await cp.write(b"other")

    asyncio.run(write())
    result = run("copy", url, "copy.db")
    assert result.exit_code == 1
    assert "'small': refused: it is there already, and differs" in result.stderr
    assert run("copy", url, "copy.db", "--skip-existing").exit_code == 0
    assert "other" in run("show", "copy.db", "small").stdout
    assert run("copy", url, "copy.db", "--overwrite").exit_code == 0
    assert "other" not in run("show", "copy.db", "small").stdout
    assert run("copy", url, "copy.db", "--key", "absent").exit_code == 1
    for wrong in (["--overwrite", "--skip-existing"], ["--key", "k", "--prefix", "k"]):
        assert run("copy", url, "copy.db", *wrong).exit_code == 2
    assert "the same store" in run("copy", url, url).stderr


def test_rm_removes_what_was_named(url: str) -> None:
    """Keys, or all of a prefix, each with its blobs; an absent one is told."""
    refused = run("rm", url, "small")
    assert refused.exit_code == 2
    assert "pass --yes" in refused.stderr
    assert run("ls", url).stdout.splitlines() == KEYS
    result = run("rm", url, "tree", "absent", "-y")
    assert result.exit_code == 1
    assert result.stdout == "removed 1 key\n"
    assert "no key 'absent'" in result.stderr
    assert within(url, lambda store: store.list_blobs("tree")) == []
    lines = items(run("rm", url, "--prefix", "done/", "-y", "--json"))
    assert [(line["key"], line["outcome"]) for line in lines] == [
        ("done/1", "removed"),
        ("done/2", "removed"),
    ]
    assert run("ls", url).stdout.splitlines() == ["failed", "large", "small"]
    assert run("rm", url, "--prefix", "done/", "-y").exit_code == 0


def test_gc_removes_what_is_old(url: str) -> None:
    """Finished keys only if asked for, and of the status asked for; a list first."""
    assert run("gc", url).stderr == "nothing to remove\n"
    left = "state-" + "0" * 32 + "-2-1"
    within(url, lambda store: store.put_blob("small", left, b"left"))
    dry = run("gc", url, "--dry-run", "--older-than", "0s", "--status", "done,failed")
    assert dry.exit_code == 0
    assert f"blob  small: {left}" in dry.stdout
    assert "would remove 3 finished keys and 1 left-over blob" in dry.stdout
    assert run("gc", url, "--older-than", "0s").exit_code == 2
    assert run("ls", url).stdout.splitlines() == KEYS
    assert run("gc", url, "--older-than", "1h", "-y").stdout == (
        "removed 0 finished keys and 1 left-over blob\n"
    )
    assert run("gc", url, "--older-than", "0s", "-y").exit_code == 0
    assert run("ls", url).stdout.splitlines() == ["failed", "large", "small", "tree"]
    lines = items(run("gc", url, "--older-than", "0s", "--status", "failed", "-y", "--json"))
    assert lines[0]["key"] == "failed"
    assert lines[-1] == {"type": "summary", "keys": 1, "blobs": 0, "left": 0, "removed": True}
    for wrong in (["--older-than", "1x"], ["--status", "running"]):
        assert run("gc", url, *wrong).exit_code == 2
    within(url, lambda store: damage_head(store, "small"))
    assert run("gc", url).exit_code == 1


def test_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip of the pen makes no new store; only the target of a copy may be new."""
    monkeypatch.chdir(tmp_path)
    for location in ("file:nothing", "sqlite:nothing.db", "nothing", "nothing.db"):
        for command in (["ls"], ["show", "k"], ["verify"], ["gc", "-y"], ["rm", "k", "-y"]):
            result = run(command[0], location, *command[1:])
            assert result.exit_code == 3
            assert result.stderr.startswith("aiocheckpoint: there is no store: nothing")
        assert run("copy", location, "file:target").exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong usage is 2, a store that refuses 3. No password is told."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.db").write_bytes(b"no database at all, whatever its name" * 100)
    refused = run("ls", "no.db")
    assert refused.exit_code == 3
    assert len(refused.stderr.splitlines()) == 1
    unknown = run("ls", "nosuch://user:secret@host/")
    assert unknown.exit_code == 2
    assert "secret" not in unknown.stderr
    assert run("ls", "sqlite:").exit_code == 2
    assert run("show", "no.db", "k\x1b").exit_code == 2
    assert run("nosuch").exit_code == 2
    debug = CliRunner().invoke(cli, ["ls", "no.db", "--debug"])
    assert debug.exit_code == 3
    assert "Traceback" in debug.stderr


def test_unexpected_errors_tell_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver says may hold the address it was given: only its kind is told."""
    monkeypatch.chdir(tmp_path)

    def fail(url: object) -> Store:
        raise RuntimeError(f"cannot connect to {url}")

    monkeypatch.setattr("aiocheckpoint.cli._group.open_store", fail)
    result = run("ls", "redis://user:secret@host/")
    assert result.exit_code == 1
    assert "RuntimeError" in result.stderr
    assert "secret" not in result.stderr


HOSTILE = "\u202eevil\u2066 \u200b\ufeff e\u0301 ☃"


def test_nothing_reaches_a_terminal_as_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that turn the line, states with escape sequences, names of files: all escaped."""
    monkeypatch.chdir(tmp_path)
    nasty = b"\x1b[2J\x07\x9b31m\r\n" + HOSTILE.encode()

    async def write() -> None:
        async with aiocheckpoint.Runtime("file:jobs") as rt:
            async with rt.open(HOSTILE) as cp:
                await cp.write(b"\x1b[2J\x07\r\n" + HOSTILE.encode())
            async with rt.open("raw") as cp:
                await cp.write(nasty)
            async with rt.open("map", type=dict[str, object]) as packed:
                await packed.write({"\x1b]0;x\x07": "\x9b\u202e", "b": nasty})
            tree = tmp_path / "tree"
            tree.mkdir()
            (tree / "\x1b[31m\u202e").write_bytes(b"")
            (tree / "link").symlink_to("\x1b[31m")
            async with rt.open("files") as cp:
                await cp.save(tree, state=b"")

    asyncio.run(write())
    for args in (
        ["ls", "file:jobs"],
        ["ls", "-l", "file:jobs"],
        ["ls", "--json", "file:jobs"],
        ["show", "file:jobs", HOSTILE],
        ["show", "file:jobs", "raw"],
        ["show", "file:jobs", "map", "--json", "--payload"],
        ["show", "file:jobs", "map"],
        ["show", "file:jobs", "files", "--files"],
        ["show", "file:jobs", "files", "--files", "--json"],
        ["history", "file:jobs", HOSTILE],
        ["rm", "file:jobs", "\u202eno", "-y"],
        ["rm", "file:jobs", HOSTILE, "-y"],
    ):
        result = run(*args)
        for line in result.output.split("\n"):
            assert line.isprintable(), ascii(line)


def test_help_is_there_for_every_command() -> None:
    """With the exit codes; `-h` does as well."""
    for name in cli.commands:
        result = run(name, "-h")
        assert result.exit_code == 0
        assert "Exit codes:" in result.stdout
    assert set(cli.commands) == {"bench", "copy", "ls", "show", "history", "verify", "rm", "gc"}
    assert aiocheckpoint.__name__ in run("--version").stdout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 30 * 86400),
        ("12h", 43200),
        ("90m", 5400),
        ("1d12h", 129600),
        ("0s", 0),
        ("1.5h", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A number and a unit, or several."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1 d", "1x", "1d?", "1e3d"])
def test_what_is_no_duration(text: str) -> None:
    """Anything else, a bare number too."""
    with pytest.raises(ValueError, match="no duration"):
        duration(text)


def test_texts() -> None:
    """Sizes, ages, and what is escaped."""
    assert [size_text(size) for size in (0, 1023, 1536, 100 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "100 MiB",
        "3 TiB",
    ]
    assert age_text(0).endswith(" d")
    assert printable("a\x1b\u202e\U000e0001é") == "a\\x1b\\u202e\\U000e0001é"


def test_states_that_json_has_no_form_for() -> None:
    """Bytes, maps with other names than text, extensions, floats that are no numbers."""
    import msgspec

    def one(value: object) -> Any:
        good, found = decoded(msgspec.msgpack.encode(value), "msgpack")
        assert good
        json.dumps(found, allow_nan=False)
        return found

    assert one(b"\xff") == {"$bytes": "/w=="}
    assert one({1: "a"}) == {"$map": [[1, "a"]]}
    assert one(float("nan")) == {"$float": "nan"}
    assert one(msgspec.msgpack.Ext(5, b"x")) == {"$ext": 5, "data": "eA=="}
    assert one([1, None, True, 2.5, "x"]) == [1, None, True, 2.5, "x"]
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    assert decoded(msgspec.msgpack.encode(deep), "msgpack") == (False, None)
    assert decoded(b"\xc1", "msgpack") == (False, None)
    assert shown(b"\xff\x00", "bytes") == "ff00"
    assert shown(b"x", "pickle") is None
    assert shown("aé".encode(), "bytes", 2) == "a... (--payload shows all)"
    assert shown(b"a\x1b\n", "bytes") == "a\\x1b\\n"
    large = msgspec.msgpack.encode("x" * (2 << 20))
    assert shown(large, "msgpack", 100) == "2 MiB of msgpack... (--payload shows all)"
