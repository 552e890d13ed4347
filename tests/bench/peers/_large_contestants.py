"""Ways to keep 100 MB of arrays from an async loop, each as its own documentation says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ARRAYS, SIZE = 25, 1_000_000
"""So many arrays of so many 32-bit floats: 100 MB."""

BYTES = "bytes"
"""Where a state has what it is as bytes, for the ways that take them."""
State = dict[str, Any]
Begin = Callable[[State, int], Awaitable[Awaitable[object]]]
"""Begin to save the state as that number. When it returns the caller goes on; when what it gives
returns, the save is complete."""


@dataclass(frozen=True)
class Large:
    """One way. It is given a directory of its own."""

    name: str
    begin: Callable[[Path], AbstractAsyncContextManager[Begin]]
    load: Callable[[Path], Awaitable[State | None]]
    """The newest state that a new process would find."""
    durable: str
    """What is safe once it is complete."""
    takes_bytes: bool = False


def stamp(state: State, number: int) -> None:
    """Make it another state, whose every array says which."""
    for array in state.values():
        array[::1024] = number


def new_state() -> State:
    import numpy as np

    rng = np.random.default_rng(1)
    return {f"layer{n}": rng.random(SIZE, dtype=np.float32) for n in range(ARRAYS)}


def numbers(state: State) -> set[float]:
    """The numbers that a state says it is: more than one if it is torn."""
    return {float(value) for array in state.values() for value in set(array[::1024].tolist())}


def dump(state: State) -> bytes:
    """One copy, into the bytes that are stored."""
    return b"".join([memoryview(array).cast("B") for array in state.values()])


def _parse(data: bytes) -> State:
    import numpy as np

    flat = np.frombuffer(data, dtype=np.float32).reshape(ARRAYS, SIZE)
    return {f"layer{n}": flat[n] for n in range(ARRAYS)}


def _newest(place: Path) -> Path | None:
    """The complete directory or file of the highest number."""
    found = [path for path in place.iterdir() if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


async def _done() -> None:
    pass


# aiocheckpoint.


@asynccontextmanager
async def _ours(url: str, ready: bool, place: Path) -> AsyncIterator[Begin]:
    """`ready`: the state is bytes already, as one that was read, received or encoded."""
    from aiocheckpoint import Runtime

    async with Runtime(url.format(place), min_interval=0) as rt, rt.open("k") as cp:

        async def begin(state: State, number: int) -> Awaitable[object]:
            await cp.write(state[BYTES] if ready else dump(state))
            return cp.flush()

        yield begin


async def _our_load(url: str, place: Path) -> State | None:
    from aiocheckpoint import Runtime

    async with Runtime(url.format(place)) as rt:
        found = await rt.latest("k")
        return None if found is None else _parse(found.payload)


# By hand.


def _write_durably(path: Path, buffers: list[Any]) -> None:
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(f"{path}.new", path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@asynccontextmanager
async def _raw(place: Path) -> AsyncIterator[Begin]:
    async def begin(state: State, number: int) -> Awaitable[object]:
        await asyncio.to_thread(_write_durably, place / "1", list(state.values()))
        return _done()

    yield begin


@asynccontextmanager
async def _by_hand(place: Path) -> AsyncIterator[Begin]:
    import numpy as np

    buffers = [np.zeros(SIZE, dtype=np.float32) for _ in range(ARRAYS)]
    last: asyncio.Future[None] | None = None

    async def begin(state: State, number: int) -> Awaitable[object]:
        nonlocal last
        if last is not None:
            await last  # the buffers are its
        for buffer, array in zip(buffers, state.values(), strict=True):
            np.copyto(buffer, array)
        last = asyncio.ensure_future(asyncio.to_thread(_write_durably, place / "1", buffers))
        return last

    yield begin
    if last is not None:
        await last


async def _raw_load(place: Path) -> State | None:
    path = place / "1"
    return _parse(path.read_bytes()) if path.exists() else None


# torch and safetensors.

Write = Callable[[dict[str, Any], Path], None]


def _tensors(state: State) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in state.items()}


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _torch_save(tensors: dict[str, Any], path: Path) -> None:
    import torch

    torch.save(tensors, f"{path}.new")
    _sync(Path(f"{path}.new"))
    os.rename(f"{path}.new", path)


def _safetensors_save(tensors: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, f"{path}.new")
    _sync(Path(f"{path}.new"))
    os.rename(f"{path}.new", path)


@asynccontextmanager
async def _in_loop(
    write: Callable[[dict[str, Any], Path], None], place: Path
) -> AsyncIterator[Begin]:
    async def begin(state: State, number: int) -> Awaitable[object]:
        write(_tensors(state), place / "1")
        return _done()

    yield begin


@asynccontextmanager
async def _in_thread(write: Write, place: Path) -> AsyncIterator[Begin]:
    last: asyncio.Future[None] | None = None

    async def begin(state: State, number: int) -> Awaitable[object]:
        nonlocal last
        if last is not None:
            await last
        cloned = {name: tensor.clone() for name, tensor in _tensors(state).items()}
        last = asyncio.ensure_future(asyncio.to_thread(write, cloned, place / "1"))
        return last

    yield begin
    if last is not None:
        await last


async def _torch_load(place: Path) -> State | None:
    import torch

    path = place / "1"
    if not path.exists():
        return None
    return {name: tensor.numpy() for name, tensor in torch.load(path).items()}


async def _safetensors_load(place: Path) -> State | None:
    from safetensors.numpy import load_file

    path = place / "1"
    return load_file(path) if path.exists() else None


@asynccontextmanager
async def _dcp(kind: str, place: Path) -> AsyncIterator[Begin]:
    """With a stager of its own, whose buffers are used again: the fast way that is documented."""
    import torch.distributed as dist
    from torch.distributed.checkpoint import async_save
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    if kind == "process":
        dist.init_process_group("gloo", init_method=f"file://{place}/group", rank=0, world_size=1)
    shared = kind == "process"
    stager = DefaultStager(StagingOptions(False, shared, False, False))
    last: Any = None

    async def begin(state: State, number: int) -> Awaitable[object]:
        nonlocal last
        if last is not None:
            await asyncio.wrap_future(last)  # one at a time, as the documentation asks for
        last = async_save(
            _tensors(state),
            checkpoint_id=place / f"{number}",
            async_checkpointer_type=AsyncCheckpointerType[kind.upper()],
            async_stager=stager,
            no_dist=kind == "thread",
        )
        return asyncio.wrap_future(last)

    yield begin
    if last is not None:
        await asyncio.wrap_future(last)
    stager.close()
    if kind == "process":
        dist.destroy_process_group()


async def _dcp_load(place: Path) -> State | None:
    import torch
    from torch.distributed.checkpoint import load

    done = [p for p in place.iterdir() if p.name.isdigit() and (p / ".metadata").exists()]
    if not done:
        return None
    into = {f"layer{n}": torch.zeros(SIZE) for n in range(ARRAYS)}
    load(into, checkpoint_id=max(done, key=lambda path: int(path.name)), no_dist=True)
    return {name: tensor.numpy() for name, tensor in into.items()}


@asynccontextmanager
async def _orbax(place: Path) -> AsyncIterator[Begin]:
    import orbax.checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()  # saves asynchronously

    async def begin(state: State, number: int) -> Awaitable[object]:
        checkpointer.save(place / f"{number}", state)
        return asyncio.to_thread(checkpointer.wait_until_finished)

    yield begin
    checkpointer.wait_until_finished()
    checkpointer.close()


async def _orbax_load(place: Path) -> State | None:
    import orbax.checkpoint as ocp

    newest = _newest(place)
    if newest is None:
        return None
    found: State = ocp.StandardCheckpointer().restore(newest)
    return found


ALL = [
    Large("raw write and fsync, in a thread", _raw, _raw_load, "file and name synced"),
    Large(
        "by hand: a copy into a reused buffer, a thread that writes, syncs and renames",
        _by_hand,
        _raw_load,
        "file and name synced",
    ),
    *(
        Large(
            f"aiocheckpoint `{url.partition(':')[0]}:`, {what}",
            partial(_ours, url, ready),
            partial(_our_load, url),
            "file, name and record synced, with a checksum; the one before stays until then",
            takes_bytes=ready,
        )
        for url in ("file:{}/store", "sqlite:{}/db")
        for ready, what in ((True, "bytes that are at hand"), (False, "arrays joined to bytes"))
    ),
    Large("torch.save, then fsync", partial(_in_loop, _torch_save), _torch_load, "file synced"),
    Large(
        "torch.save, then fsync, of a clone in a thread",
        partial(_in_thread, _torch_save),
        _torch_load,
        "file synced",
    ),
    Large(
        "safetensors, then fsync, of a clone in a thread",
        partial(_in_thread, _safetensors_save),
        _safetensors_load,
        "file synced",
    ),
    Large("torch DCP async_save, thread", partial(_dcp, "thread"), _dcp_load, "files synced"),
    Large("torch DCP async_save, process", partial(_dcp, "process"), _dcp_load, "files synced"),
    Large("Orbax, async", _orbax, _orbax_load, "renamed, not synced after that"),
]
BY_NAME = {large.name: large for large in ALL}
