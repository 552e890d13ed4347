"""Codecs: what becomes of a state on its way to bytes and back."""

from __future__ import annotations

import contextlib
import json
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocheckpoint import CodecError, MsgspecCodec, PickleCodec, Runtime
from aiocheckpoint._codecs import Coder
from aiocheckpoint.stores.memory import MemoryStore


@dataclass
class Point:
    x: int
    y: float = 0.5


class Progress(msgspec.Struct):
    step: int
    seen: set[str] = msgspec.field(default_factory=set)
    at: datetime | None = None


class Colour(Enum):
    RED = "red"


class JsonCodec:
    """One's own codec, by protocol."""

    name = "json"

    def encode(self, state: Any, /) -> bytes:
        return json.dumps(state).encode()

    def decode(self, data: bytes, /) -> Any:
        return json.loads(data)


async def there_and_back(state: Any, **options: Any) -> Any:
    """What the same attempt reads, having checked that the next one reads the same."""
    store = MemoryStore()
    async with Runtime(store) as rt:
        async with rt.open("k", **options) as cp:
            assert await cp.read() is None
            await cp.write(state)
            now = await cp.read()
        async with rt.open("k", **options) as cp:
            later = await cp.read()
    assert type(now) is type(later)
    assert now == later
    return now


@pytest.mark.parametrize("state", [b"", b"x", bytearray(b"y"), memoryview(b"z"), b"0" * 2_000_000])
async def test_bytes_are_themselves(state: Any) -> None:
    for options in ({}, {"type": bytes}):
        found = await there_and_back(state, **options)
        assert type(found) is bytes
        assert found == bytes(state)


async def test_empty_bytes_are_a_state_and_none_is_not() -> None:
    async with Runtime("memory:") as rt, rt.open("k") as cp:
        assert await cp.read() is None
        assert await cp.read(default=b"nothing yet") == b"nothing yet"
        await cp.write(b"")
        assert await cp.read() == b""
        assert await cp.read(default=b"nothing yet") == b""


async def test_a_buffer_changed_after_write_is_stored_as_it_was() -> None:
    async with Runtime("memory:") as rt, rt.open("k") as cp:
        buffer = bytearray(b"before")
        await cp.write(buffer)  # type: ignore[arg-type]
        buffer[:] = b"after!"
        assert await cp.read() == b"before"


@pytest.mark.parametrize("write", ["write", "write_nowait"])
async def test_an_object_changed_after_write_is_stored_as_it_was(write: str) -> None:
    async with Runtime("memory:") as rt, rt.open("k", type=dict) as cp:
        state = {"list": [1]}
        if write == "write":
            await cp.write(state)
        else:
            cp.write_nowait(state)
        state["list"].append(2)
        assert await cp.read() == {"list": [1]}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("text", "text"),
        ({"a": [1, 2.5, None, True]}, {"a": [1, 2.5, None, True]}),
        ((1, 2), [1, 2]),
        (Point(1), {"x": 1, "y": 0.5}),
        (0, 0),
        (False, False),
        ([], []),
    ],
)
async def test_without_a_type_states_come_back_as_plain_values(state: Any, expected: Any) -> None:
    assert await there_and_back(state) == expected


NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (Point(1, 2.0), Point),
        (Progress(3, {"a"}, NOW), Progress),
        (NOW, datetime),
        (timedelta(seconds=3), timedelta),
        (uuid.UUID(int=7), uuid.UUID),
        (Decimal("1.5"), Decimal),
        (Colour.RED, Colour),
        ({"a": Point(1)}, dict[str, Point]),
        ((1, "a"), tuple[int, str]),
        (5, int),
        ("text", str),
        (bytearray(b"x"), bytearray),
        ({1, 2}, set[int]),
    ],
)
async def test_with_a_type_states_come_back_as_that_type(state: Any, kind: Any) -> None:
    found = await there_and_back(state, type=kind)
    assert found == state
    assert type(found) is type(state)


async def test_pickle_takes_what_msgspec_does_not_and_only_on_request() -> None:
    state = {1: complex(1, 2), "f": len}
    assert await there_and_back(state, codec=PickleCodec()) == state
    async with Runtime("memory:") as rt, rt.open("k") as cp:
        with pytest.raises(CodecError, match="codec 'msgpack' cannot encode a dict"):
            await cp.write(state)  # type: ignore[arg-type]


async def test_with_pickle_bytes_are_pickled_too() -> None:
    store = MemoryStore()
    async with Runtime(store) as rt:
        async with rt.open("k", codec=PickleCodec()) as cp:
            await cp.write(b"x")
            assert await cp.read() == b"x"
        found = await rt.latest("k")
    assert found is not None
    assert (found.codec, pickle.loads(found.payload)) == ("pickle", b"x")


async def test_ones_own_codec_needs_only_the_protocol() -> None:
    assert await there_and_back({"a": [1]}, codec=JsonCodec()) == {"a": [1]}


async def test_none_is_refused_and_nothing_is_staged() -> None:
    for options in ({}, {"type": bytes}, {"type": int | None}, {"codec": PickleCodec()}):
        async with Runtime("memory:") as rt:
            opened: Any = rt.open("k", **options)
            async with opened as cp:
                for write in (cp.write, cp.write_nowait):
                    with pytest.raises(CodecError, match="None cannot be a state"):
                        result = write(None)
                        if result is not None:
                            await result
                assert await cp.read() is None
                assert cp.statistics().staged == 0


@pytest.mark.parametrize(
    ("state", "options"),
    [
        (object(), {}),
        (lambda: 0, {}),
        (1 << 70, {}),
        ({"deep": {1, (2, 3), object}}, {}),
        ("text", {"type": bytes}),
        ({}, {"type": bytes}),
        (lambda: 0, {"codec": PickleCodec()}),
    ],
)
async def test_a_state_that_cannot_be_encoded_leaves_the_one_before(
    state: Any, options: dict[str, Any]
) -> None:
    good: Any = b"good"
    async with Runtime("memory:") as rt:
        opened: Any = rt.open("k", **options)
        async with opened as cp:
            await cp.write(good)
            with pytest.raises(CodecError) as caught:
                await cp.write(state)
            assert type(state).__name__ in str(caught.value)
            assert await cp.read() == good
            assert cp.statistics().staged == 1
        found = await rt.latest("k")
        assert found is not None
        assert found.seq == 1


async def test_a_recursive_state_is_an_error() -> None:
    state: list[Any] = []
    state.append(state)
    async with Runtime("memory:") as rt, rt.open("k", type=list) as cp:
        with pytest.raises(CodecError):
            await cp.write(state)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({}, {"codec": PickleCodec()}),
        ({}, {"type": int}),
        ({"codec": PickleCodec()}, {}),
        ({"codec": PickleCodec()}, {"codec": JsonCodec()}),
        ({"codec": JsonCodec()}, {"type": bytes}),
    ],
)
async def test_another_codec_than_the_writers_is_named(
    written: dict[str, Any], read: dict[str, Any]
) -> None:
    store = MemoryStore()
    state: Any = b"x" if not written else "x"
    async with Runtime(store) as rt:
        first: Any = rt.open("k", **written)
        async with first as cp:
            await cp.write(state)
        second: Any = rt.open("k", **read)
        async with second as cp:
            with pytest.raises(CodecError, match=r"was written as .* and is read as") as caught:
                await cp.read()
            assert "latest()" in str(caught.value)
            found = await cp.latest()
            assert found is not None  # as the message says
            assert found.payload
        third: Any = rt.open("k", **written)  # nothing was lost
        async with third as cp:
            assert await cp.read() == state


async def test_a_state_that_does_not_fit_the_type_is_an_error_that_keeps_it() -> None:
    store = MemoryStore()
    async with Runtime(store) as rt:
        async with rt.open("k", type=dict) as cp:
            await cp.write({"steps": 3})
        async with rt.open("k", type=Progress) as new:
            with pytest.raises(CodecError, match="step"):
                await new.read()
            found = await new.latest()
            assert found is not None
            assert msgspec.msgpack.decode(found.payload) == {"steps": 3}
        async with rt.open("k", type=dict) as cp:
            assert await cp.read() == {"steps": 3}


class Returns(JsonCodec):
    """A codec that does not keep to the protocol."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def encode(self, state: Any, /) -> bytes:
        what: bytes = self.what
        return what


@pytest.mark.parametrize("what", ["text", None, bytearray(b"x"), 5])
async def test_a_codec_that_returns_no_bytes_is_named(what: Any) -> None:
    async with Runtime("memory:") as rt, rt.open("k", codec=Returns(what)) as cp:
        with pytest.raises(CodecError, match=f"returned {type(what).__name__} instead of bytes"):
            await cp.write(1)


async def test_the_error_of_a_codec_is_the_cause() -> None:
    class Failing(JsonCodec):
        def encode(self, state: Any, /) -> bytes:
            raise LookupError("no such thing")

    async with Runtime("memory:") as rt, rt.open("k", codec=Failing()) as cp:
        with pytest.raises(CodecError, match="no such thing") as caught:
            await cp.write(1)
        assert isinstance(caught.value.__cause__, LookupError)


class Named(JsonCodec):
    def __init__(self, name: Any) -> None:
        self.name = name


@pytest.mark.parametrize("name", ["", "x" * 33, "é", "bytes", "a\nb", None, 5, b"json"])
def test_a_codec_with_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        Coder(codec=Named(name))


@pytest.mark.parametrize("codec", [object(), "pickle", PickleCodec, 5])
def test_what_is_no_codec_is_refused(codec: Any) -> None:
    with pytest.raises(TypeError, match="codec"):
        Coder(codec=codec)


def test_a_type_and_a_codec_are_one_too_many() -> None:
    with pytest.raises(TypeError, match="type= or codec=, not both"):
        Coder(int, MsgspecCodec(int))


@pytest.mark.parametrize("kind", [object(), 5, "int", lambda: 0])
def test_a_type_that_is_none_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="type="):
        Coder(kind)


class Opaque:
    pass


def test_a_type_that_msgspec_does_not_know_asks_for_a_codec() -> None:
    coder: Coder[Opaque] = Coder(Opaque)
    with pytest.raises(CodecError, match="codec="):
        coder.encode(Opaque())


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(state=values.filter(lambda value: value is not None))
def test_plain_values_come_back_as_they_were(state: Any) -> None:
    coder: Coder[Any] = Coder()
    data, codec = coder.encode(state)
    assert codec == "msgpack"
    assert coder.decode(data, codec) == state


@given(data=st.binary(max_size=50))
def test_foreign_bytes_are_a_codec_error_or_a_value(data: bytes) -> None:
    makers: list[Callable[[], Coder[Any]]] = [Coder, lambda: Coder(Point), lambda: Coder(int)]
    for make in makers:
        with contextlib.suppress(CodecError):
            make().decode(data, "msgpack")
