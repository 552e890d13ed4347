"""Servers that tests talk to, found or started; a test skips by name where one is missing."""

from __future__ import annotations

import os
import shutil
import socket
from typing import NoReturn

import pytest


def missing(server: str, install: str) -> NoReturn:
    """Skip a test for want of a server, or fail it where CI is meant to have that.

    `install` says how one gets it.
    """
    reason = f"no {server} here: {install}"
    if os.environ.get("AIOCHECKPOINT_CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str, server: str, install: str) -> str:
    """The path of a server's program."""
    path = shutil.which(name)
    if path is None:
        missing(server, install)
    return path


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
