"""The files of a checkpoint, into a store and out of it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import xxhash

from ._calls import AHEAD, bounded, read_blob, read_checked
from ._compression import Compression
from ._errors import CorruptCheckpointError, StoreError
from ._hops import hop
from ._packing import Packing
from ._records import Blob, Files
from ._trees import Manifest, decode_manifest, encode_manifest, gently, scan
from ._unpacking import unpack
from .abc import Store

PACK = "pack-"
MANIFEST = "tree-"
_log = logging.getLogger("aiocheckpoint")


async def store_tree(
    store: Store,
    key: str,
    tree_id: str,
    root: Path,
    base: Files | None,
    about_to_put: Callable[[str], object] = str,
    compression: Compression = None,
) -> Files:
    """Store what lies at `root`: the pack of what is not in `base`, then the manifest.

    `about_to_put` is told the name of each blob.

    Raises:
        OSError: something is wrong with the tree.
        StoreError: the store cannot take it.
    """
    name = f"{tree_id}.{os.urandom(4).hex()}"  # a try that was given up may land late
    before = None
    if base is not None:
        try:
            before = await check_tree(store, key, base)
        except CorruptCheckpointError as exc:
            _log.warning("%s; all files are stored anew", exc)
    found = await hop(scan, root)
    packing = await hop(Packing, root, found, before, PACK + name, compression)
    size = sum(entry.size for entry in found if entry.kind == "file")
    try:
        async with aclosing(packing.chunks()) as chunks:
            if first := await anext(chunks, b""):
                about_to_put(PACK + name)
                put = store.put_blob(key, PACK + name, _chain(first, chunks))
                await bounded(put, "put_blob", key, size=size)
    except (OSError, StoreError):
        if packing.failure is not None:
            raise packing.failure from None
        raise
    finally:
        packing.close()
    manifest = await hop(packing.manifest)
    frame = await hop(encode_manifest, manifest)
    about_to_put(MANIFEST + name)
    await bounded(store.put_blob(key, MANIFEST + name, frame), "put_blob", key, size=len(frame))
    return _files(tree_id, _blob(MANIFEST + name, frame), manifest)


def _blob(name: str, frame: bytes) -> Blob:
    return Blob(name, len(frame), xxhash.xxh3_128_digest(frame))


def _files(tree_id: str, blob: Blob, manifest: Manifest) -> Files:
    files = [entry for entry in gently(manifest.entries) if entry.kind == "file"]
    return Files(
        id=tree_id,
        manifest=blob,
        packs=tuple(pack.name for pack in manifest.packs),
        count=len(files),
        size=sum(entry.size for entry in gently(files)),
    )


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def read_manifest(store: Store, key: str, files: Files) -> Manifest:
    """The manifest that a record names.

    Raises:
        CorruptCheckpointError: it is missing or damaged, or lists other files than the record says.
        StoreError: it cannot be read.
    """
    frame = await read_checked(store, key, files.manifest, "the list of files")
    return await hop(_listed, key, files, frame)


def _listed(key: str, files: Files, frame: bytes) -> Manifest:
    manifest = decode_manifest(key, frame)
    if _files(files.id, files.manifest, manifest) != files:
        raise CorruptCheckpointError(
            f"the list of files of {key!r} is refused: their number, size or packs are not those"
            " that its record says"
        )
    return manifest


async def find_tree(store: Store, key: str, tree_id: str, blobs: list[str]) -> Files | None:
    """A tree of this id whose blobs are there, though no record may name them."""
    for name in blobs:
        if not name.startswith(f"{MANIFEST}{tree_id}."):
            continue
        try:
            frame = await read_blob(store, key, name, 0)
            manifest = decode_manifest(key, frame)
        except (CorruptCheckpointError, FileNotFoundError):
            continue
        files = _files(tree_id, _blob(name, frame), manifest)
        if files.blobs <= frozenset(blobs):
            return files
    return None


async def check_tree(store: Store, key: str, files: Files) -> Manifest:
    """Its manifest, if the blobs of a tree are there; what is in its packs is not read.

    Raises:
        CorruptCheckpointError: one is missing, or the manifest is damaged.
    """
    manifest = await read_manifest(store, key, files)
    missing = files.blobs.difference(await bounded(store.list_blobs(key), "list_blobs", key))
    if missing:
        raise CorruptCheckpointError(f"files of {key!r} are missing: no {min(missing)}")
    return manifest


async def restore_tree(store: Store, key: str, files: Files, target: Path) -> None:
    """Make the tree anew at `target`; see `unpack`."""

    async def read(name: str, start: int, size: int) -> AsyncIterator[bytes]:
        chunks = store.open_blob(key, name, start, size)
        try:
            while chunk := await bounded(anext(chunks, b""), "open_blob", key, AHEAD):
                yield chunk
        except FileNotFoundError:
            raise CorruptCheckpointError(f"files of {key!r} are missing: no {name}") from None

    await unpack(key, await read_manifest(store, key, files), target, read)
