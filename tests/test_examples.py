"""The examples: they are run as they are, stopped and killed, and must come to the right end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .support import ROOT

EXAMPLES = ROOT / "examples"
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
WITHIN = 30.0


# flyte_style.py


class Flyte:
    """`flyte_style.py`, run in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.status = 0
        self.stderr = ""

    def __call__(self, *arguments: str) -> list[str]:
        """Run it to its end; what it prints."""
        done = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / "flyte_style.py", *arguments],
            cwd=self._directory,
            env=ENV,
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        self.status, self.stderr = done.returncode, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def flyte(tmp_path: Path) -> Flyte:
    return Flyte(tmp_path)


def resumptions(*starts: int) -> list[str]:
    return [f"attempt {n} resumes from {start}" for n, start in enumerate(starts, 1)]


@pytest.mark.parametrize(("n", "starts"), [(3, [0, 1, 2]), (1001, [0, 333, 666, 999])])
def test_the_loop_succeeds_within_three_retries(flyte: Flyte, n: int, starts: list[int]) -> None:
    """Each attempt resumes from where the one before it failed; the result is the last index."""
    assert flyte("--n", str(n)) == [*resumptions(*starts), f"the result is {n - 1}"]
    assert flyte.status == 0, flyte.stderr


def test_the_second_run_returns_the_stored_result(flyte: Flyte) -> None:
    """It runs nothing, says so, and `--fresh` begins anew."""
    flyte("--store", "file:states")
    assert flyte("--store", "file:states") == ["the result is 9"]
    assert "done since attempt 4: returning its result" in flyte.stderr
    again = flyte("--store", "file:states", "--fresh")
    assert again == [*resumptions(0, 3, 6, 9), "the result is 9"]


def test_a_loop_that_runs_out_of_retries_goes_on_in_the_next_run(flyte: Flyte) -> None:
    """5 needs a fourth retry: status 1, and the state is kept."""
    assert flyte("--n", "5") == resumptions(0, 1, 2, 3)
    assert flyte.status == 1
    assert "no retry is left: iteration 4 fails" in flyte.stderr
    assert flyte("--n", "5") == [*resumptions(4), "the result is 4"]
    assert flyte.status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--n", "2"], 2, "2 is too small: it is 3 or more"),
        (["--store", "jobs.db"], 1, "names no store"),
        (["--store", "sqlite:no/where.db"], 1, "create it first"),
    ],
)
def test_bad_arguments_of_the_loop_are_named(
    flyte: Flyte, arguments: list[str], status: int, message: str
) -> None:
    """Its status says that it failed, and one line says why."""
    assert flyte(*arguments) == []
    assert flyte.status == status
    assert message in flyte.stderr
    assert "Traceback" not in flyte.stderr
