"""`bench`: it measures with keys of its own, and leaves none behind."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiocheckpoint import Keyring, StoreError
from aiocheckpoint.abc import Store
from aiocheckpoint.cli import _bench, cli
from aiocheckpoint.cli._measuring import Measuring

from ..stores.objects import moto
from .test_commands import items, run, url, within

QUICK = ["--sizes", "100B,2MB", "--rounds", "2", "--seconds", "0.1", "--batch", "3"]
__all__ = ["url"]


def keys_of(url: str) -> list[str]:
    async def listed(store: Store) -> list[str]:
        return [key async for key in store.keys("")]

    return within(url, listed)


def test_it_measures_and_leaves_the_store_as_it_was(url: str) -> None:
    """Claims, each size and a batch are told; the keys that were there are there, and no others."""
    before = keys_of(url)
    result = run("bench", url, *QUICK)
    assert result.exit_code == 0
    for text in (
        "claim, open() of a new key",
        "a batch of 3 keys",
        "100 B",
        "2 MB",
        "Young (1974)",
    ):
        assert text in result.stdout
    assert keys_of(url) == before
    assert not [path for path in Path().rglob("*") if "bench" in path.name and path.is_file()]


def test_json_has_every_number(url: str) -> None:
    """In seconds and bytes, unrounded, with an estimate for each interval."""
    lines = items(run("bench", url, *QUICK, "--json", "--quiet", "--mtbf", "1h"))
    kinds = [line["type"] for line in lines]
    assert kinds.count("commit") == 2
    assert {"claim", "batch", "estimate"} <= set(kinds)
    for line in lines:
        if line["type"] == "commit":
            assert 0 < line["commit"] <= line["worst"]
            assert line["min_interval"] >= 0.1
        if line["type"] == "estimate":
            assert line["usd_an_hour"] is None
            assert line["lost_mean"] < line["lost_most"]


def test_a_price_is_told_by_the_hour_and_month(url: str) -> None:
    """Of a store that has none by itself, if one is given."""
    result = run("bench", url, *QUICK, "--put-price", "5", "--json")
    (line,) = [
        line
        for line in items(result)
        if line["type"] == "estimate" and line["size"] == 100 and line["interval"] == 60
    ]
    assert line["usd_an_hour"] == pytest.approx(60 / 1000 * 5)
    assert "USD a month" in run("bench", url, *QUICK, "--put-price", "5").stdout


def test_a_new_store_is_made_and_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one can be measured before it is used."""
    monkeypatch.chdir(tmp_path)
    assert run("bench", "sqlite:new.db", *QUICK).exit_code == 0
    assert keys_of("sqlite:new.db") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sizes", "many"], "is no size: write 100B,1MB,100MB"),
        (["--sizes", "2GB"], "1GB at most"),
        (["--mtbf", "often"], "is no duration"),
        (["--mtbf", "0h"], "more than nothing"),
        (["--put-price", "-1"], "--put-price"),
    ],
)
def test_wrong_options_are_refused(options: list[str], words: str) -> None:
    result = run("bench", "memory:", *options)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_store_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    """Told in a line; nothing is left to be cleared away."""
    result = run("bench", f"sqlite:{tmp_path}/no/such/place.db", *QUICK)
    assert result.exit_code == 3
    assert "create it first" in result.stderr


def test_what_a_failure_in_the_midst_has_made_is_removed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys_of(url)

    async def fail(*args: object) -> float:
        raise StoreError("the store has had enough", op="commit")

    monkeypatch.setattr(Measuring, "batch", fail)
    result = run("bench", url, *QUICK)
    assert result.exit_code == 3
    assert "had enough" in result.stderr
    assert keys_of(url) == before


def test_keys_that_cannot_be_removed_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that removes them."""

    async def refuse(store: Store, prefix: str) -> list[str]:
        raise StoreError("not now", op="delete")

    monkeypatch.setattr(_bench, "clear_away", refuse)
    result = run("bench", url, *QUICK)
    told = re.search(r"aiocheckpoint rm --prefix (\S+) (aiocheckpoint-bench/\w+/)", result.stderr)
    assert told is not None
    assert CliRunner().invoke(cli, ["rm", "--prefix", told[1], told[2], "--yes"]).exit_code == 0
    assert not any(key.startswith("aiocheckpoint-bench/") for key in keys_of(url))


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """It ends soon, with the code of an interrupt, and what it had made is removed."""
    location = f"sqlite:{tmp_path}/jobs.db"
    command = [sys.executable, "-m", "aiocheckpoint", "bench", location, "--seconds", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not (tmp_path / "jobs.db").exists() or not keys_of(location):
        assert time.monotonic() < until
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert keys_of(location) == []


def test_an_encrypted_store_is_measured_with_its_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"a = {base64.b64encode(Keyring.generate_key()).decode()}\n")
    keys.chmod(0o600)
    location = f"sqlite:{tmp_path}/jobs.db"
    assert run("bench", location, "--keys", str(keys), *QUICK).exit_code == 0
    assert keys_of(location) == []


def test_a_path_names_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for every other command."""
    monkeypatch.chdir(tmp_path)
    assert run("bench", "jobs.db", *QUICK).exit_code == 0
    assert keys_of("sqlite:jobs.db") == []


def test_it_measures_a_store_in_memory() -> None:
    assert run("bench", "memory:", *QUICK).exit_code == 0


@pytest.mark.parametrize("scheme", ["s3", "s3+obstore"])
def test_an_object_store_has_a_price(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list price, for what is measured; and no key is left."""
    service = moto()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", service.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", service.secret_key)
    bucket = service.bucket()
    location = service.url(bucket, scheme=scheme)
    lines = items(run("bench", location, *QUICK, "--json", "--quiet"))
    hourly = {
        (line["size"], line["interval"]): line["usd_an_hour"]
        for line in lines
        if line["type"] == "estimate"
    }
    assert hourly[100, 5.0] == pytest.approx(720 / 1000 * 0.005)
    assert hourly[2_000_000, 5.0] == pytest.approx(2 * 720 / 1000 * 0.005)
    assert keys_of(location) == []
