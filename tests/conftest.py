"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from typing import Any

import pytest

# a shell starts what runs behind with SIGINT ignored, and the processes of tests would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

uvloop_missing = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=uvloop_missing),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run every async test on asyncio, on uvloop and on trio."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend
