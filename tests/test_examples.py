"""The examples: they are run as they are, stopped and killed, and must come to the right end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

import aiocheckpoint

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


# service.py


class Service:
    """`service.py` as a process, over HTTP, with what it logged."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._log = directory / "service.log"
        self._logged = self._log.stat().st_size if self._log.exists() else 0
        command = [sys.executable, "-W", "error", str(EXAMPLES / "service.py"), "--port", "0"]
        command += ["--store", f"sqlite:{directory}/service.db", "--verbose", *options]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=ENV, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        self.http = httpx.Client(base_url=url, timeout=WITHIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.http.close()
        self.process.kill()
        self.process.communicate()
        if exc is not None:
            exc.add_note(self.log)

    @property
    def log(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._logged)
            return log.read().decode()

    @property
    def steps(self) -> list[tuple[str, int]]:
        """The steps that this process worked on: an append-only file that no checkpoint mends."""
        found = re.findall(r"^(\w+): step (\d+)$", self.log, re.MULTILINE)
        return [(name, int(step)) for name, step in found]

    def order(self, name: str, steps: int) -> httpx.Response:
        return self.http.post("/jobs", json={"name": name, "steps": steps})

    def progress(self) -> dict[str, dict[str, Any]]:
        answer = self.http.get("/jobs").raise_for_status()
        return {job["name"]: job for job in answer.json()}

    def until(
        self, condition: Callable[[dict[str, dict[str, Any]]], bool]
    ) -> dict[str, dict[str, Any]]:
        """Look at the jobs until they are so; how they then are."""
        deadline = time.monotonic() + WITHIN
        while not condition(found := self.progress()):
            assert time.monotonic() < deadline, f"it never came true: {found}"
            time.sleep(0.02)
        return found

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(WITHIN)


def reached(steps: int) -> Callable[[dict[str, dict[str, Any]]], bool]:
    """Whether so many steps are done, of all jobs together."""
    return lambda jobs: sum(job["done"] for job in jobs.values()) >= steps


def finished(jobs: dict[str, dict[str, Any]]) -> bool:
    return all(job["status"] != "running" for job in jobs.values())


def primes_below(limit: int) -> int:
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for n in range(2, int(limit**0.5) + 1):
        sieve[n * n :: n] = bytes(len(sieve[n * n :: n]))
    return sum(sieve)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_jobs_go_on_after_a_restart(tmp_path: Path, number: int, status: int) -> None:
    """Ended three times at different points, also right after a POST was answered: no step is lost.

    SIGTERM repeats none. SIGKILL may come between a step and its write: that one is done again.
    """
    orders = {"a": 60, "b": 50, "c": 40}
    options = ("--workers", "2", "--pause", "0.005")
    traces: list[list[tuple[str, int]]] = []
    seen: dict[str, int] = {}
    for late, threshold in (("x", 5), ("y", 60), ("z", 110)):
        with Service(tmp_path, *options) as service:
            if not traces:
                for name, steps in orders.items():
                    answer = service.order(name, steps)
                    assert answer.status_code == 202
                    assert service.http.get(answer.headers["location"]).json()["steps"] == steps
            jobs = service.until(reached(threshold))
            assert all(jobs[name]["done"] >= done for name, done in seen.items())
            seen = {name: job["done"] for name, job in jobs.items()}
            orders[late] = 10
            assert service.order(late, 10).status_code == 202
            assert service.end(number) == status
            assert "Traceback" not in service.log
        traces.append(service.steps)
    with Service(tmp_path, *options) as service:
        jobs = service.until(finished)
    traces.append(service.steps)

    assert {name: job["status"] for name, job in jobs.items()} == dict.fromkeys(orders, "done")
    for name, steps in orders.items():
        assert jobs[name]["result"] == primes_below(1000 * steps)
        parts = [[step for job, step in trace if job == name] for trace in traces]
        parts = [part for part in parts if part]
        assert sorted({step for part in parts for step in part}) == list(range(1, steps + 1))
        assert all(part == list(range(part[0], part[-1] + 1)) for part in parts)
        ahead = {after[0] - before[-1] for before, after in pairwise(parts)}
        assert ahead <= ({0, 1} if number == signal.SIGKILL else {1})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that does one job at a time."""
    directory = tmp_path_factory.mktemp("service")
    with Service(directory, "--workers", "1", "--pause", "0") as service:
        yield service


def test_no_more_jobs_than_workers_run_at_a_time(service: Service) -> None:
    """With one worker a job begins when the one before it has ended."""
    for name in ("first", "second"):
        assert service.order(name, 20).status_code == 202
    service.until(finished)
    steps = [step for step in service.steps if step[0] in ("first", "second")]
    assert steps == [(name, step) for name in ("first", "second") for step in range(1, 21)]


def test_the_same_order_again_is_the_same_job(service: Service) -> None:
    """It is answered by how the job is; another order of that name is refused."""
    assert service.order("twice", 15).status_code == 202
    assert service.order("twice", 15).status_code == 202
    assert service.order("twice", 16).status_code == 409
    done = {"name": "twice", "status": "done", "steps": 15, "done": 15, "result": 1754}
    assert service.until(finished)["twice"] == done
    again = service.order("twice", 15)
    assert (again.status_code, again.json()) == (200, done)
    assert service.http.get("/jobs/twice").json() == done
    assert [step for name, step in service.steps if name == "twice"] == list(range(1, 16))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b'{"name": "a", ', 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[]", 422, "Expected `object`"),
        (b'{"steps": 5}', 422, "`name`"),
        (b'{"name": "a"}', 422, "`steps`"),
        (b'{"name": "a", "steps": 0}', 422, ">= 1"),
        (b'{"name": "a", "steps": 10001}', 422, "<= 10000"),
        (b'{"name": "a", "steps": "5"}', 422, "Expected `int`, got `str`"),
        (b'{"name": "a", "steps": true}', 422, "Expected `int`, got `bool`"),
        (b'{"name": "a", "steps": 5, "step": 6}', 422, "`step`"),
        (b'{"name": "", "steps": 5}', 422, "a name has 1 to 64"),
        (b'{"name": "a\\n", "steps": 5}', 422, "a name has 1 to 64"),
        (b'{"name": "../a", "steps": 5}', 422, "a name has 1 to 64"),
        (b'{"name": "a%sa", "steps": 5}' % (b"a" * 63), 422, "a name has 1 to 64"),
        (b'{"name": "%s", "steps": 5}' % (b"a" * 20_000), 413, "Too Large"),
    ],
)
def test_a_bad_order_is_refused(service: Service, body: bytes, status: int, message: str) -> None:
    """The answer says what is wrong, and nothing is stored."""
    before = service.progress()
    answer = service.http.post("/jobs", content=body)
    assert answer.status_code == status, answer.text
    assert message in answer.text
    assert service.progress() == before


@pytest.mark.parametrize("name", ["nobody", "%00", "%F0%9F%90%8C", "..%2F..%2Fa", "a" * 300])
def test_an_unknown_job_is_not_found(service: Service, name: str) -> None:
    """Whatever its name is, the answer is 404."""
    assert service.http.get(f"/jobs/{name}").status_code == 404


async def leave_jobs(url: str) -> None:
    """What an earlier process and an earlier version may leave behind."""
    async with aiocheckpoint.Runtime(url) as rt:
        for key, state in {
            "jobs/good": {"steps": 5, "done": 3, "primes": primes_below(3000)},
            "jobs/old": {"position": 3},
            "jobs/damaged": {"steps": 5, "done": 3, "primes": 0},
        }.items():
            async with rt.open(key, type=dict[str, int]) as cp:
                await cp.write(state)
        async with rt.open("jobs/unanswered"):
            pass  # a POST was killed between its claim and its first write


def test_a_job_that_cannot_go_on_holds_up_no_other(tmp_path: Path) -> None:
    """A foreign state and a damaged record are failed jobs that say why; the next one goes on."""
    asyncio.run(leave_jobs(f"sqlite:{tmp_path}/service.db"))
    with sqlite3.connect(tmp_path / "service.db") as database:
        database.execute(
            "UPDATE aiocheckpoint_heads SET record = substr(record, 1, 50) WHERE key = ?",
            ("jobs/damaged",),
        )
    database.close()
    with Service(tmp_path, "--pause", "0.01") as service:
        jobs = service.until(finished)
        assert sorted(jobs) == ["damaged", "good", "old"]
        assert (jobs["good"]["done"], jobs["good"]["result"]) == (5, primes_below(5000))
        assert [step for _, step in service.steps] == [4, 5]
        assert jobs["old"]["status"] == jobs["damaged"]["status"] == "failed"
        assert "decode" in jobs["old"]["error"]
        assert "is cut short" in jobs["damaged"]["error"]
        assert service.order("unanswered", 1).status_code == 202
        assert service.order("old", 5).status_code == 202  # tried again, and fails again
        assert service.until(finished)["unanswered"]["result"] == primes_below(1000)
        assert service.order("long", 10_000).status_code == 202  # minutes, and not waited for
        assert service.end(signal.SIGINT) == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "sqlite:/no/where.db"], "create it first"),
        (["--port", "70000"], "cannot listen"),
    ],
)
def test_a_service_that_cannot_start_says_why(
    tmp_path: Path, options: list[str], message: str
) -> None:
    """It ends with a status that is not 0."""
    with Service(tmp_path, *options) as service:
        assert service.process.wait(WITHIN) > 0
        assert message in service.log
