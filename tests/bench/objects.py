"""The rows for object stores: many small puts, one large save, against the bare clients."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import obstore
from aiobotocore.session import get_session
from obstore.store import S3Store

from aiocheckpoint import Runtime
from aiocheckpoint.stores.s3 import client_config

from ..stores.objects import local
from ._measure import Row

KEYS, PUTS, SIZE = 16, 60, 1024
MB = 10**6
LARGE = 200 * MB
clock = time.perf_counter
_prefixes = itertools.count()

Put = Callable[[str, bytes, str | None], Awaitable[str]]


def _url(scheme: str, seconds: float = 0.0) -> str:
    endpoint = quote(local("s3", seconds), safe="")
    keys = "access_key_id=test&secret_access_key=testsecret&region=us-east-1"
    return f"{scheme}://bkt/{next(_prefixes)}?endpoint_url={endpoint}&{keys}"


def _driver(seconds: float = 0.0) -> Any:
    """aiobotocore's client, configured as ours is."""
    return get_session().create_client(
        "s3",
        endpoint_url=local("s3", seconds),
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="testsecret",
        config=client_config(),
    )


def _obstore(seconds: float = 0.0) -> S3Store:
    return S3Store(
        "bkt",
        endpoint=local("s3", seconds),
        region="us-east-1",
        access_key_id="test",
        secret_access_key="testsecret",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


async def _by_aiobotocore(seconds: float) -> float:
    async with _driver(seconds) as driver:

        async def put(name: str, data: bytes, version: str | None) -> str:
            more = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
            response = await driver.put_object(Bucket="bkt", Key=name, Body=data, **more)
            etag: str = response["ETag"]
            return etag

        return await _bare_puts(put)


async def _by_obstore(seconds: float) -> float:
    store = _obstore(seconds)

    async def put(name: str, data: bytes, version: str | None) -> str:
        mode: Any = "create" if version is None else {"e_tag": version}
        answer = await obstore.put_async(store, name, data, mode=mode, use_multipart=False)
        return answer["e_tag"] or ""

    return await _bare_puts(put)


async def _bare_puts(put: Put) -> float:
    """Seconds that the keys' puts take, each naming the version before."""
    prefix = f"bare-{next(_prefixes)}"

    versions: dict[int, str | None] = dict.fromkeys(range(KEYS))

    async def one(number: int, count: int) -> None:
        for _ in range(count):
            name, data = f"{prefix}/{number}", os.urandom(SIZE)
            versions[number] = await put(name, data, versions[number])

    async def all_keys(count: int) -> float:
        began = clock()
        async with asyncio.TaskGroup() as group:
            for number in range(KEYS):
                group.create_task(one(number, count))
        return clock() - began

    await all_keys(3)
    return await all_keys(PUTS)


async def _our_puts(rt: Runtime) -> float:
    """The same by handles, each of which writes and flushes."""
    async with AsyncExitStack() as stack:
        handles = [await stack.enter_async_context(rt.open(f"{n}")) for n in range(KEYS)]

        async def one(number: int, count: int) -> None:
            for _ in range(count):
                await handles[number].write(os.urandom(SIZE))
                await handles[number].flush()

        took = 0.0
        for count in (3, PUTS):  # connections first
            began = clock()
            async with asyncio.TaskGroup() as group:
                for number in range(KEYS):
                    group.create_task(one(number, count))
            took = clock() - began
        return took


async def puts(directory: Path, rounds: int) -> list[Row]:
    """Sixteen keys, each put as fast as it can be, by a runtime and by the bare client: to a
    service that takes no time, so that every instruction counts, and to one that takes as much as
    a near one."""
    rows = []
    for scheme, bare in (("s3", _by_aiobotocore), ("s3+obstore", _by_obstore)):
        for seconds in (0.0, 0.01):
            ratios, ours = [], []
            for _ in range(rounds + 1):
                base = await bare(seconds)
                async with Runtime(_url(scheme, seconds), min_interval=0, spool=None) as rt:
                    took = await _our_puts(rt)
                ratios.append(base / took)
                ours.append(KEYS * PUTS / took)
            service = f"answers after {seconds * 1000:.0f} ms" if seconds else "answers at once"
            rows.append(
                Row(
                    f"puts of {KEYS} concurrent keys to `{scheme}:`, against the bare client;"
                    f" the service {service}",
                    0.9,
                    "at least",
                    ratios[1:],
                    "%",
                    f"{statistics.median(ours):.0f} a second; 1 KB, a local service",
                )
            )
    return rows


async def _multipart(driver: Any, path: Path, size: int, at_once: int) -> None:
    """The best that the bare client does: parts read in threads, several under way."""
    target = {"Bucket": "bkt", "Key": "large"}
    upload = (await driver.create_multipart_upload(**target))["UploadId"]
    room = asyncio.Semaphore(at_once)

    async def part(number: int) -> dict[str, Any]:
        async with room:
            data = await asyncio.to_thread(_read, path, number * size, size)
            response = await driver.upload_part(
                **target, UploadId=upload, PartNumber=number + 1, Body=io.BytesIO(data)
            )
            return {"PartNumber": number + 1, "ETag": response["ETag"]}

    parts = await asyncio.gather(*map(part, range(-(-LARGE // size))))
    await driver.complete_multipart_upload(
        **target, UploadId=upload, MultipartUpload={"Parts": list(parts)}
    )


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


async def _bare_save(path: Path) -> float:
    took = []
    async with _driver() as driver:
        for size, at_once in ((8 << 20, 4), (16 << 20, 4), (8 << 20, 10)):
            began = clock()
            await _multipart(driver, path, size, at_once)
            took.append(clock() - began)
    return min(took)


async def _bare_save_by_obstore(path: Path) -> float:
    began = clock()
    await obstore.put_async(_obstore(), "large", path, chunk_size=8 << 20)
    return clock() - began


async def save(directory: Path, rounds: int) -> list[Row]:
    """A file of 200 MB, all of which has changed, against the bare clients' multipart."""
    path = directory / "large"
    rows = []
    for scheme, bare in (("s3", _bare_save), ("s3+obstore", _bare_save_by_obstore)):
        ratios, ours = [], []
        async with Runtime(_url(scheme), min_interval=0, spool=None) as rt, rt.open("k") as cp:
            for number in range(rounds + 1):
                await asyncio.to_thread(path.write_bytes, os.urandom(MB) * (LARGE // MB))
                base = await bare(path)
                began = clock()
                await cp.save(path, state=b"%d" % number)
                took = clock() - began
                ratios.append(base / took)
                ours.append(took)
        rows.append(
            Row(
                f"`save` of a file of 200 MB to `{scheme}:`, against the bare client's best",
                0.9,
                "at least",
                ratios[1:],
                "%",
                f"{LARGE / MB / statistics.median(ours):.0f} MB/s; a local service",
            )
        )
    return rows


ROWS = {"object-puts": puts, "object-save": save}
