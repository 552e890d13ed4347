"""Codecs: what becomes of a state on its way to bytes and back."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, Generic, TypeVar, cast

import msgspec

from ._errors import CodecError
from .abc import Codec

T = TypeVar("T")

BYTES = "bytes"
MSGPACK = "msgpack"


class MsgspecCodec(Generic[T]):
    """MessagePack by msgspec, decoded into `type`: the codec that `type=` stands for."""

    name = MSGPACK

    def __init__(self, type: type[T]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(type)

    def encode(self, state: T, /) -> bytes:
        return self._encoder.encode(state)

    def decode(self, data: bytes, /) -> T:
        return self._decoder.decode(data)


class PickleCodec:
    """Anything that pickle takes. Use it only where all who can write to the store are trusted:
    reading a pickle runs code that its writer chose."""

    name = "pickle"

    def encode(self, state: object, /) -> bytes:
        return pickle.dumps(state, protocol=5)

    def decode(self, data: bytes, /) -> object:
        return pickle.loads(data)


class Coder(Generic[T]):
    """The rules that every state passes, whichever codec does the work.

    Without a codec, bytes stay as they are and all else is MessagePack, each under its own name.
    """

    def __init__(self, type: type[T] | None = None, codec: Codec[T] | None = None) -> None:
        if codec is not None and type is not None:
            raise TypeError("give type= or codec=, not both")
        self.raw = codec is None and type in (None, bytes)
        """True if bytes are their own encoding."""
        self._only_bytes = type is bytes
        self._codec: Codec[T]
        if codec is not None:
            untyped: object = codec
            methods = (getattr(codec, "encode", None), getattr(codec, "decode", None))
            if inspect.isclass(untyped) or not all(map(callable, methods)):
                raise TypeError(f"codec={codec!r}: it is an object with name, encode and decode")
            name = getattr(codec, "name", None)
            if not (isinstance(name, str) and name.isascii() and name.isprintable()):
                raise ValueError(f"a codec's name is printable ASCII text, not {name!r}")
            if not 1 <= len(name) <= 32:
                raise ValueError(f"a codec's name has 1 to 32 characters, not {len(name)}")
            if name == BYTES:
                raise ValueError(f"{BYTES!r} names plain bytes; give the codec another name")
            self._codec = codec
        else:
            decoded: Any = Any if type is None else type
            try:
                self._codec = MsgspecCodec(decoded)
            except TypeError as exc:
                raise TypeError(f"type={type!r}: {exc}; pass a codec= for it") from exc

    def encode(self, state: T) -> tuple[bytes, str]:
        """The state's bytes and the name of their codec.

        Raises:
            CodecError: the state is None, or the codec does not take it.
        """
        if state is None:
            raise CodecError(
                "None cannot be a state: it is what read() gives when there is none;"
                " write a value, or delete() the checkpoint"
            )
        if self.raw and isinstance(state, (bytes, bytearray, memoryview)):
            return bytes(state), BYTES
        if self._only_bytes:
            raise CodecError(f"type=bytes, but the state is a {type(state).__name__}")
        try:
            data = self._codec.encode(state)
        except Exception as exc:
            raise CodecError(
                f"codec {self._codec.name!r} cannot encode a {type(state).__name__}: {exc};"
                " write something that it takes, or pass another codec="
            ) from exc
        if not isinstance(data, bytes):
            raise CodecError(
                f"codec {self._codec.name!r} returned {type(data).__name__} instead of bytes"
            )
        return data, self._codec.name

    def decode(self, data: bytes, codec: str) -> T:
        """The state that these bytes are.

        Raises:
            CodecError: they were written by another codec, or do not fit the type.
        """
        if self.raw and codec == BYTES:
            return cast(T, data)
        if codec != self._codec.name or self._only_bytes:
            wanted = BYTES if self._only_bytes else self._codec.name
            raise CodecError(
                f"the state was written as {codec!r} and is read as {wanted!r}: open the key with"
                " the type= or codec= that wrote it (latest() gives the bytes as they are)"
            )
        try:
            return self._codec.decode(data)
        except Exception as exc:
            raise CodecError(
                f"codec {codec!r} cannot decode the state: {exc}"
                " (latest() gives the bytes as they are)"
            ) from exc


def coder(type: type[T] | None, codec: Codec[T] | None) -> Coder[T]:
    """The rules for a type or a codec; one for all keys that have neither."""
    if codec is None and (type is None or type is _bytes):
        return cast(Coder[T], _plain if type is None else _only_bytes)
    return Coder(type, codec)


_bytes = bytes
_plain: Coder[Any] = Coder()
_only_bytes: Coder[bytes] = Coder(bytes)
