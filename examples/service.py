"""A web service whose background jobs outlive it: killed or stopped, the next start goes on.

    python examples/service.py [--port PORT] [--store URL] [--workers N]

    POST /jobs {"name": "a", "steps": 50}    202: the job is stored; its progress is at Location
    GET /jobs/a                              running, done or failed; how far; the result
    GET /jobs                                all of them

A job counts prime numbers, a thousand numbers a step. What was asked for is part of its state, as
a store keeps states and no arguments: whoever finds the key can go on with it. So POST writes the
first state, and answers when that is stored. From then on the job is done sooner or later,
whatever becomes of the process; the same POST again only says how it is.

Progress is read from the store: what it shows would survive a power cut, and is a tenth of a second
old at most. One process serves a store: a second one would take the jobs away from the first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import aiocheckpoint

KEYS = "jobs/"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
NUMBERS = 1000  # of a step
GRACE = 10.0
DRAIN = 5  # seconds for requests that are under way, before the time of grace begins

log = logging.getLogger("service")


# The job


@dataclass
class Job:
    """The state: what was asked for, how far it is, what was found."""

    steps: int
    done: int = 0
    primes: int = 0


@aiocheckpoint.task(key=KEYS + "{name}", type=Job, retry=3)
async def count_primes(cp: aiocheckpoint.Checkpointer[Job], name: str, pause: float) -> int:
    """Go on where the state says; every step ends with a write."""
    job = await cp.read()
    if job is None:
        raise aiocheckpoint.NonRecoverableError("it was deleted before its turn")
    while job.done < job.steps:
        job.primes += await asyncio.to_thread(primes_among, job.done * NUMBERS, NUMBERS)
        await asyncio.sleep(pause)
        job.done += 1
        log.debug("%s: step %d", name, job.done)
        await cp.write(job)
    return job.primes


def primes_among(first: int, numbers: int) -> int:
    return sum(
        all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(first, 2), first + numbers)
    )


# All jobs of the store


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /jobs takes."""

    name: str
    steps: Annotated[int, msgspec.Meta(ge=1, le=10_000)]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                "a name has 1 to 64 of a-z A-Z 0-9 - _ . and does not begin with a dot"
            )


class Progress(msgspec.Struct, omit_defaults=True):
    """What GET /jobs/{name} gives. Without `steps`, its state cannot be read."""

    name: str
    status: str
    steps: int | None = None
    done: int | None = None
    result: int | None = None
    error: str | None = None


class Jobs:
    """Takes orders, works on `workers` of them at a time, says how they are."""

    def __init__(
        self, rt: aiocheckpoint.Runtime, group: asyncio.TaskGroup, workers: int, pause: float
    ) -> None:
        self._rt = rt
        self._group = group
        self._turns = asyncio.Semaphore(workers)
        self._pause = pause
        self._ordering = asyncio.Lock()
        self._begun: set[str] = set()
        self._errors: dict[str, str] = {}  # of this process: a store keeps no reasons

    async def order(self, order: Order) -> Progress:
        """The job's progress, once the job is stored; it has begun, or waits for its turn."""
        async with self._ordering:  # the same POST, twice at once, is one job
            found = await self.progress(order.name)
            if found is None:
                async with self._rt.open(KEYS + order.name, type=Job, flush_timeout=5) as cp:
                    await cp.write(Job(order.steps))
                # leaving has flushed: the job is stored
                found = Progress(order.name, "running", order.steps, 0)
        if found.steps not in (None, order.steps):
            raise HTTPException(409, f"{order.name!r} is a job of {found.steps} steps")
        if found.status == "failed":  # then it is tried again
            found = Progress(order.name, "running", found.steps, found.done)
        if found.status == "running":
            self.begin(order.name)
        return found

    async def go_on(self) -> None:
        """Begin what an earlier process has left."""
        async for found in self.all():
            if found.status == "running":
                self.begin(found.name)

    def begin(self, name: str) -> None:
        if name not in self._begun:
            self._begun.add(name)
            self._errors.pop(name, None)
            self._group.create_task(self._work(name))

    async def _work(self, name: str) -> None:
        try:
            async with self._turns:
                await self._rt.run(count_primes, name, self._pause)
        except aiocheckpoint.StoppedError:
            pass  # the next process goes on with it
        except Exception as exc:
            log.exception("job %r", name)
            self._errors[name] = str(exc)
        finally:
            self._begun.discard(name)

    async def all(self) -> AsyncIterator[Progress]:
        async for key in self._rt.keys(KEYS):
            found = await self.progress(key.removeprefix(KEYS))
            if found is not None:
                yield found

    async def progress(self, name: str) -> Progress | None:
        """What is stored of a job; None if there is no such job."""
        try:
            found = await self._rt.latest(KEYS + name)
        except aiocheckpoint.CorruptCheckpointError as exc:  # one damaged record harms no other
            return Progress(name, "failed", error=str(exc))
        if found is None or found.seq == 0:  # 0: claimed by a POST that did not come to its end
            return None
        progress = Progress(name, found.status, error=self._errors.get(name))
        if progress.status == "failed" and name in self._begun:
            progress.status = "running"
        try:
            job = msgspec.msgpack.decode(found.payload, type=Job)
        except msgspec.DecodeError as exc:  # of another version of this program
            progress.error = progress.error or f"its state cannot be read: {exc}"
            return progress
        progress.steps, progress.done = job.steps, job.done
        if progress.status == "done":
            progress.result = job.primes
        return progress


# HTTP


async def post_job(request: Request) -> Response:
    try:
        order = msgspec.json.decode(await request.body(), type=Order)
    except msgspec.ValidationError as exc:
        raise HTTPException(422, str(exc)) from None
    except msgspec.DecodeError as exc:
        raise HTTPException(400, f"the body is not JSON: {exc}") from None
    progress = await jobs_of(request).order(order)
    status = HTTPStatus.OK if progress.status == "done" else HTTPStatus.ACCEPTED
    return reply(progress, status, {"location": f"/jobs/{order.name}"})


async def get_job(request: Request) -> Response:
    name = request.path_params["name"]
    try:
        progress = await jobs_of(request).progress(name)
    except ValueError:  # no key: too long, or with control characters
        progress = None
    if progress is None:
        raise HTTPException(404, f"there is no job {name!r}")
    return reply(progress)


async def get_jobs(request: Request) -> Response:
    return reply([progress async for progress in jobs_of(request).all()])


async def refuse(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return reply({"error": exc.detail}, exc.status_code, exc.headers)


async def store_failed(request: Request, exc: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.url.path, exc)
    return reply({"error": "the store does not answer: try again later"}, 503)


def reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = msgspec.json.encode(content)
    return Response(body, status, headers, media_type="application/json")


def jobs_of(request: Request) -> Jobs:
    jobs: Jobs = request.state.jobs
    return jobs


def make_app(store: str, *, workers: int, pause: float) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Jobs]]:
        async with (
            aiocheckpoint.Runtime(store, grace=GRACE) as rt,
            asyncio.TaskGroup() as group,
        ):
            jobs = Jobs(rt, group, workers, pause)
            await jobs.go_on()
            yield {"jobs": jobs}
            rt.stop()  # each job ends at its next write; the group waits for them, rt for the store

    return Starlette(
        routes=[
            Route("/jobs", post_job, methods=["POST"]),
            Route("/jobs", get_jobs),
            Route("/jobs/{name}", get_job),
        ],
        exception_handlers={HTTPException: refuse, aiocheckpoint.CheckpointError: store_failed},
        lifespan=lifespan,
        max_body_size=10_000,
    )


# The process


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--store", default="sqlite:service.db", metavar="URL")
    parser.add_argument("--workers", type=int, default=4, help="jobs at a time (default: 4)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds that a step sleeps")
    parser.add_argument("--verbose", action="store_true", help="log every step")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error("--workers is 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    # uvicorn handles these, and raises them again when it has shut down: then we exit by ourselves,
    # also as process 1 of a container, which does not die of signals
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        listener = socket.create_server((options.host, options.port))
    except (OSError, OverflowError) as exc:
        raise SystemExit(f"cannot listen on {options.host}:{options.port}: {exc}") from None
    host, port = listener.getsockname()[:2]
    print(f"http://{host}:{port}", flush=True)
    config = uvicorn.Config(
        make_app(options.store, workers=options.workers, pause=options.pause),
        lifespan="on",
        access_log=False,
        timeout_graceful_shutdown=DRAIN,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
