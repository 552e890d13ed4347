"""URLs of object stores: a bucket, a prefix, and options. None of them is ever repeated, as they
may hold secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

_MOST_PREFIX = 200


class ObjectUrl(NamedTuple):
    scheme: str
    bucket: str
    prefix: str
    options: Mapping[str, str]


def parse_url(url: str, known: Mapping[str, Sequence[str]]) -> ObjectUrl:
    """Take a URL apart. `known` are the options of each scheme.

    Raises:
        ValueError: it names no bucket, or an option that is not known.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # not chained: it quotes what may be a secret
        raise ValueError("this URL cannot be read; write s3://bucket/prefix?option=value") from None
    scheme = parts.scheme
    example = f"{scheme}://bucket/prefix?option=value"
    if "@" in parts.netloc:
        raise ValueError(f"{scheme}: credentials do not go before the bucket; write {example}")
    if not parts.netloc or parts.fragment:
        raise ValueError(f"{scheme}: the URL names no bucket; write {example}")
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known[scheme] or name in options:
            what = "given twice" if name in options else "not known"
            names = ", ".join(known[scheme])
            raise ValueError(f"{scheme}: option {name!r} is {what}; there are {names}")
        options[name] = value
    return ObjectUrl(scheme, parts.netloc, unquote(parts.path), options)


def check_prefix(prefix: str) -> str:
    """A prefix without slashes around it; ValueError unless every service takes it."""
    prefix = prefix.strip("/")
    parts = prefix.split("/") if prefix else []
    plain = all(part.isprintable() and part not in ("", ".", "..") for part in parts)
    if not plain or len(prefix.encode()) > _MOST_PREFIX:
        raise ValueError(
            f"prefix {prefix!r}: write up to {_MOST_PREFIX} bytes, without control characters,"
            " empty parts, '.' and '..'"
        )
    return prefix


def check_endpoint(endpoint: str | None) -> str | None:
    """ValueError unless it is the URL of a host, without credentials."""
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("endpoint_url is written https://host:port, without credentials")
    return endpoint


def flag(options: Mapping[str, str], name: str) -> bool | None:
    """An option that is true or false; None if it is not given."""
    value = options.get(name)
    if value is None:
        return None
    if value.lower() not in ("true", "false"):
        raise ValueError(f"option {name!r} is true or false")
    return value.lower() == "true"


def identity_of(scheme: str, bucket: str, prefix: str, endpoint: str | None) -> str:
    """A store's name: where it lies, and nothing else."""
    host = urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else ""
    return f"{scheme}://{bucket}/{prefix}" + (f" at {host}" if host else "")


def s3_endpoint(given: str | None) -> str | None:
    """The endpoint that a client will use, as far as can be told without reading files."""
    return given or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
