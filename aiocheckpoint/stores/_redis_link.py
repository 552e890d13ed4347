"""Commands and scripts to a Redis server, and the one place where its errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from .._errors import StoreError
from ._loops import running_loop
from ._redis_errors import answered, translated
from ._redis_line import Line
from ._redis_scripts import Script
from ._redis_url import Place

Value = bytes | str | int | memoryview


class Link:
    """Sends what it is given, never twice, over connections of whichever loop runs."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._closed = False
        self._lines: dict[asyncio.AbstractEventLoop, Line] = {}
        self._told: set[str] = set()

    async def call(self, op: str, key: str | None, *command: Value) -> Any:
        """Send a command; its answer."""
        line = self._line()
        try:
            return await (await line.ready(op))(*command)
        except (RedisError, OSError) as exc:
            raise self._failed(line, exc, op, key) from self._unless_it_tells(exc)

    async def script(
        self, op: str, key: str | None, script: Script, about: str, args: Sequence[Value]
    ) -> Any:
        """Run a script about one of our keys; its answer."""
        rest = (1, about.encode(), self.place.prefix, self.place.ttl_ms, *args)
        line = self._line()
        try:
            send = await line.ready(op)
            try:
                return await send("EVALSHA", script.sha, *rest)
            except NoScriptError:  # and so it did not run
                return await send("EVAL", script.text, *rest)
        except (RedisError, OSError) as exc:
            raise self._failed(line, exc, op, key) from self._unless_it_tells(exc)

    def answered(self, answer: bytes, op: str, key: str | None) -> StoreError:
        """The error for one that a script has answered as a value."""
        return _noted(self._line(), answered(answer.decode("utf-8", "replace"), op, key))

    async def aclose(self) -> None:
        self._closed = True
        lines, self._lines = self._lines, {}
        for loop, line in lines.items():
            if loop is running_loop():
                await line.close()
            else:
                with suppress(RuntimeError):  # that loop has ended, and closed what was its own
                    loop.call_soon_threadsafe(line.close_soon)

    def _line(self) -> Line:
        if self._closed:
            raise RuntimeError("this store is closed")
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            for other in [other for other in list(self._lines) if other.is_closed()]:
                self._lines.pop(other, None)
            line = self._lines[loop] = Line(self.place, self._told)
        return line

    def _failed(self, line: Line, exc: Exception, op: str, key: str | None) -> StoreError:
        if not isinstance(exc, ResponseError):
            line.looked = False
        error = translated(exc, op, key)
        if self._unless_it_tells(exc) is None:
            error.args = (str(error.args[0]).replace(self.place.secret, "***"),)
        return _noted(line, error)

    def _unless_it_tells(self, exc: Exception) -> Exception | None:
        """None if it quotes the password, as servers do of an AUTH that they do not know."""
        return None if self.place.secret and self.place.secret in str(exc) else exc


def _noted(line: Line, error: StoreError) -> StoreError:
    if str(error.args[0]).startswith("READONLY"):
        line.demoted = True
    return error
