"""An object service behind a proxy that does to requests what is drawn."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from aiocheckpoint.stores import open_store

from ..stores.faulty import (
    CutAnswer,
    CutRequest,
    Delay,
    Fault,
    Proxy,
    Refuse,
    Request,
    Reset,
    proxied,
)
from ..stores.objects import moto
from ._torture import Counts

Draw = Callable[[random.Random], Fault]

FAULTS: dict[str, Draw] = {
    "500": lambda rng: Refuse(500, "InternalError"),
    "500 when done": lambda rng: Refuse(500, "InternalError", done=True),
    "503": lambda rng: Refuse(503, "SlowDown"),
    "503 when done": lambda rng: Refuse(503, "ServiceUnavailable", done=True),
    "late request": lambda rng: Delay(request=rng.uniform(0.1, 0.8)),
    "late answer": lambda rng: Delay(answer=rng.uniform(0.1, 0.8)),
    "reset": lambda rng: Reset(),
    "reset when done": lambda rng: Reset(done=True),
    "cut request": lambda rng: CutRequest(),
    "cut answer": lambda rng: CutAnswer(),
}


class ObjectOutages:
    """A bucket, reached through the proxy; troubles fall upon a part of the requests, or all."""

    def __init__(
        self, proxy: Proxy, scheme: str, bucket: str, rates: Sequence[float] = (0.2, 0.5, 1.0)
    ) -> None:
        self.url = proxy.service.url(bucket, "outages", scheme)
        self._proxy = proxy
        self._rates = rates
        self._faults = Counts()
        self._lock = threading.Lock()

    @asynccontextmanager
    async def trouble(self, rng: random.Random) -> AsyncIterator[str]:
        rate = rng.choice(self._rates)
        names = [rng.choice(list(FAULTS))] if rng.random() < 0.5 else list(FAULTS)
        own = random.Random(rng.random())

        def fault(request: Request) -> Fault:
            with self._lock:
                if own.random() >= rate:
                    return None
                name = own.choice(names)
                self._faults[name] += 1
                return FAULTS[name](own)

        self._proxy.fault = fault
        try:
            yield f"outages of {rate:.0%}"
        finally:
            self._proxy.fault = lambda request: None

    def counts(self) -> Counts:
        return self._faults


@contextmanager
def objects(scheme: str, rates: Sequence[float] = (0.2, 0.5, 1.0)) -> Iterator[ObjectOutages]:
    service = moto()
    with proxied(service) as proxy:
        outages = ObjectOutages(proxy, scheme, service.bucket(), rates)
        asyncio.run(_used_once(outages.url))
        yield outages


async def _used_once(url: str) -> None:
    """obstore keeps its threads' descriptors for as long as the process lives."""
    store = open_store(url)
    await store.load("k")
    await store.aclose()
