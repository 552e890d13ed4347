"""Damage again, by a fuzzer that goes where the code has not been: atheris, on libFuzzer.

libFuzzer ends the process it runs in, hence each run is a process: `python -m
tests.reliability._fuzz KIND DIRECTORY RUNS SEED [FLAW]`.
"""

from __future__ import annotations

import asyncio
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..servers import missing
from ._torture import Budget, Case, Counts

KINDS = ("records", "manifests", "regions", "sealed", "staged", "databases", "keys", "urls")
_RUNS = {"databases": 2_000}
_MANY = 50_000
_WORDS = """"/"
"../"
"\\xa2.."
"%"
"@"
"""
_HANGS = 20  # seconds that reading one input may take
_MEMORY = 8 << 30  # bytes of addresses that the whole process may have


def part(budget: Budget) -> Counts:
    """One case is one run over one kind of things that are read."""
    if missing_fuzzer() is not None:
        print(f"{budget.part}: left out: {missing_fuzzer()}", flush=True)
        return Counts(left_out=1)

    def one(case: Case) -> Counts:
        kind = KINDS[case.number % len(KINDS)]
        return fuzz(kind, _RUNS.get(kind, _MANY), case.random().randrange(1, 1 << 31))

    return budget.each(one)


def missing_fuzzer() -> str | None:
    """Why it cannot be used; None if it can."""
    try:
        _atheris()
    except ImportError:
        return "no atheris here: pip install atheris (Linux, x86_64)"
    return None


def need_fuzzer() -> None:
    """Skip the test where there is none."""
    if (why := missing_fuzzer()) is not None:
        if sys.platform == "linux":
            missing("atheris", "pip install atheris")
        pytest.skip(why)


def fuzz(kind: str, runs: int, seed: int, flaw: str = "") -> Counts:
    """What a run came to.

    Raises:
        AssertionError: what was read is wrong, hangs, takes too much memory, or ends with an error
            that nobody promises; with the input that it was.
    """
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", __spec__.name, kind, directory, str(runs), str(seed), flaw]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stderr + done.stdout
        for crash in Path(directory).glob("bad-*"):
            raise AssertionError(f"{said[-4000:]}\n{kind}, the input: {crash.read_bytes().hex()}")
        tried = re.search(r"Done (\d+) runs", said)
        assert tried is not None, said[-4000:]
        assert done.returncode == 0, said[-4000:]
        corpus = sum(1 for _ in (Path(directory) / "corpus").iterdir())
        return Counts(inputs=int(tried[1]), paths=corpus, wrong=0)


def _atheris() -> ModuleType:
    import atheris

    module: ModuleType = atheris
    return module


# Guarantees broken on purpose, in the process that is to find it.


def _any_path(targets: Any) -> None:
    import aiocheckpoint._trees

    aiocheckpoint._trees._fault = lambda manifest: ""


def _no_checksum(targets: Any) -> None:
    def blind(data: bytes) -> Any:
        mended = bytearray(data)
        targets._mend_frame(mended)
        return read(bytes(mended))

    read, targets._read_record = targets._read_record, blind


def _names_as_they_are(targets: Any) -> None:
    targets.store_name = lambda key: key


def _any_error(targets: Any) -> None:
    regions = targets._regions
    targets._regions = lambda scratch: regions(scratch)._replace(refuses=(KeyError,))


def _endless(targets: Any) -> None:
    def read(data: bytes) -> None:
        while b"%" in data:
            pass

    targets._read_url = read


_FLAWS: dict[str, Callable[[Any], None]] = {
    flaw.__name__.lstrip("_"): flaw
    for flaw in (_any_path, _no_checksum, _names_as_they_are, _any_error, _endless)
}


def main(kind: str, directory: str, runs: str, seed: str, flaw: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    atheris = _atheris()
    with atheris.instrument_imports(include=["aiocheckpoint"]):
        from . import _damage_targets

    if flaw:
        _FLAWS[flaw](_damage_targets)
    runner = asyncio.Runner()
    scratch, corpus = Path(directory, "scratch"), Path(directory, "corpus")
    scratch.mkdir()
    corpus.mkdir()
    everything = _damage_targets.targets(scratch, runner.run)
    assert tuple(everything) == KINDS, "each of them is to be fuzzed"
    target = everything[kind]
    for number, sample in enumerate(target.samples):
        (corpus / f"{number}").write_bytes(sample)
    words = Path(directory, "words")
    words.write_text(_WORDS)

    def read(data: bytes) -> None:
        target.judge(bytearray(data), lies=False)
        if target.mend is not None:
            target.judge(bytearray(data), lies=True)

    largest = max(map(len, target.samples))
    options = {
        "runs": runs,
        "seed": seed,
        "timeout": 1 if flaw == "endless" else _HANGS,
        "rss_limit_mb": 0,  # it would count the most that the process had before it was this one
        "max_len": max(4096, 2 * largest),
        "artifact_prefix": f"{directory}/bad-",
        "dict": words,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([__spec__.name, *arguments, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
