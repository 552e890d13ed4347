"""Options: what each may be. A wrong one is refused where it is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import xxhash

from .abc import Store

StoreOption = str | os.PathLike[str] | Store
SpoolOption = Literal["auto"] | str | os.PathLike[str] | None


def check_keep(keep: int) -> int:
    if type(keep) is not int or keep < 1:
        raise ValueError(f"keep={keep!r}: it is an int, 1 or more")
    return keep


def check_seconds(name: str, value: float) -> float:
    number: object = value
    if not isinstance(number, (int, float)):
        raise TypeError(f"{name}={value!r}: it is a number of seconds")
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name}={value!r}: it is a number of seconds, 0 or more")
    return number


def check_store(store: StoreOption) -> StoreOption:
    known = isinstance(store, (str, os.PathLike)) or hasattr(store, "commit")
    if isinstance(store, type) or not known:
        raise TypeError(f"store={store!r}: it is a URL (sqlite:jobs.db), a path or a Store")
    return store


def check_spool(option: SpoolOption) -> SpoolOption:
    known: object = option
    if not (known is None or (known and isinstance(known, (str, os.PathLike)))):
        raise TypeError(f"spool={option!r}: it is 'auto', a directory, or None for nowhere")
    return option


def spool_base(option: SpoolOption, store: Store) -> Path | None:
    """The directory of a store's regions, or None for no spool."""
    if option is None:
        return None
    if option == "auto":
        return store.spool_dir
    # one directory may serve several stores: each has its own part of it
    identity = xxhash.xxh3_128_hexdigest(store.identity.encode())
    return Path(option).absolute() / identity
