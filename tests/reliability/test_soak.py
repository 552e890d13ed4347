"""At full rate and with faults, nothing that the process holds grows."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from aiocheckpoint._writer import Writer
from aiocheckpoint.stores._blobs import BlobFiles
from aiocheckpoint.stores.file import FileStore

from ._soak import soak
from ._soaking import write_page


def test_memory_descriptors_threads_and_disk_stay_flat(tmp_path: Path) -> None:
    done = soak(6, 12, seed=1)
    assert done.leaks() == {}
    assert done.counts["faults"] > 10
    write_page(done, tmp_path)
    assert (tmp_path / "soak.svg").read_text().endswith("</svg>\n")


def test_a_leak_of_descriptors_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    load, leaked = FileStore._load, []

    def leaking(self: FileStore, key: str) -> Any:
        leaked.append(os.open(os.devnull, os.O_RDONLY))
        return load(self, key)

    monkeypatch.setattr(FileStore, "_load", leaking)
    try:
        assert "descriptors" in soak(2, 8, seed=1).leaks()
    finally:
        for descriptor in leaked:
            os.close(descriptor)


def test_a_leak_of_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settled, leaked = Writer.settled, []

    def leaking(self: Writer, held: Any, outcome: Any) -> None:
        leaked.append(bytearray(b"x" * 500_000))
        settled(self, held, outcome)

    monkeypatch.setattr(Writer, "settled", leaking)
    assert "memory" in soak(2, 8, seed=1).leaks()


def test_a_leak_of_threads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    leave, over = Writer.leave, threading.Event()

    def leaking(self: Writer, held: Any, timeout: float) -> None:
        threading.Thread(target=over.wait, daemon=True).start()
        leave(self, held, timeout)

    monkeypatch.setattr(Writer, "leave", leaking)
    try:
        assert "threads" in soak(2, 8, seed=1).leaks()
    finally:
        over.set()


def test_a_leak_of_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlobFiles, "_delete", lambda self, key, names: None)
    assert "disk" in soak(2, 8, seed=1).leaks()
