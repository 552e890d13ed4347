"""Compression of states and files, on their way to the store."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Literal

from ._errors import CodecError

Compression = Literal["zstd"] | None

WORTH = 200
"""Bytes below which nothing is compressed."""
QUICK = 16 << 10
"""Bytes that are compressed sooner than a thread is reached."""
_RATIO = 1024
"""Bytes that one stored byte may stand for: who makes us read little makes us hold little."""
_LEVEL = 3
_WINDOW = 8 << 20  # four times what frames of this level ask for
_PORTION = 1 << 20


def check_compression(compression: Compression) -> Compression:
    """
    Raises:
        ImportError: the extra `zstd` is not installed.
    """
    if compression is None:
        return None
    known: object = compression
    if known != "zstd":
        raise ValueError(f"compression={known!r}: it is 'zstd', or None for none")
    try:
        _zstandard()
    except ImportError as exc:
        raise ImportError(
            f"compression='zstd' needs {exc.name or 'zstandard'}, which is not installed:"
            " pip install 'aiocheckpoint[zstd]'",
            name=exc.name,
        ) from exc
    return compression


def compress(data: bytes | memoryview) -> bytes | None:
    """The data compressed, None if that does not make it smaller. In whichever thread."""
    if len(data) < WORTH:
        return None
    # a compressor of its own for each call: one that two threads share crashes
    frame: bytes = _zstandard().ZstdCompressor(level=_LEVEL).compress(data)
    frame = frame.ljust(-(-len(data) // _RATIO), b"\0")
    return frame if len(frame) < len(data) else None


def decompress(data: bytes | memoryview, size: int) -> bytes:
    """What was compressed, which is `size` bytes. In whichever thread.

    Raises:
        ValueError: it is not that.
        CodecError: the extra `zstd` is not installed.
    """
    try:
        zstandard = _zstandard()
    except ImportError as exc:
        raise CodecError(
            f"it is compressed, and {exc.name or 'zstandard'} is not installed:"
            " pip install 'aiocheckpoint[zstd]'"
        ) from exc
    if size > len(data) * _RATIO:
        raise ValueError(f"{len(data)} bytes cannot be {size} compressed ones")
    try:
        if zstandard.get_frame_parameters(data).content_size != size:
            raise ValueError("its size is another one")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        buffer = io.BytesIO()
        with decompressor.stream_reader(data) as reader:
            while part := reader.read(min(_PORTION, size - buffer.tell())):
                buffer.write(part)
    except zstandard.ZstdError as exc:
        raise ValueError(str(exc)) from exc
    if buffer.tell() != size:
        raise ValueError("it ends too early")
    return buffer.getvalue()


def _zstandard() -> ModuleType:
    import zstandard

    return zstandard
