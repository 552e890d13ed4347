"""What a redis:// URL says."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

_TLS = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_PREFIX = re.compile(r"[!-.0-~]{1,100}")
_PREFIX_DEFAULT = "aiocheckpoint"
_LEAST_TTL = 60.0
_FORM = "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE][?prefix=NAME&ttl=SECONDS]"


@dataclass(frozen=True)
class Place:
    """A server, a database, a prefix; and how to come there."""

    identity: str
    prefix: str
    ttl_ms: int
    """0: nothing expires."""
    url: str = field(repr=False)
    """For redis-py, with what is secret."""
    secret: str = field(repr=False)


def place(url: str, prefix: str | None, ttl: float | None) -> Place:
    """Read a URL. What is given beside it counts more than what it says.

    Raises:
        ValueError: it is not such a URL. It is not quoted, as it may hold a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        # not chained: it quotes what may be part of a password
        raise ValueError(
            f"this redis URL cannot be read: write {_FORM}, with % escapes in the password"
        ) from None
    split = "@" in parts.path + parts.query or parts.fragment  # in the middle of a password
    if parts.scheme not in _TLS or not parts.netloc or split:
        raise ValueError(f"this is no redis URL: write {_FORM}, with % escapes in the password")
    database = unquote(parts.path).strip("/") or options.pop("db", "") or "0"
    if not re.fullmatch("[0-9]{1,5}", database):
        raise ValueError(f"the path of a redis URL is the number of a database: {_FORM}")
    said = options.pop("prefix", _PREFIX_DEFAULT)
    prefix = said if prefix is None else prefix
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"prefix {prefix!r} is not 1 to 100 visible ASCII characters without a slash"
        )
    lifetime = options.pop("ttl", None)
    if ttl is None and lifetime is not None:
        ttl = _seconds(lifetime)
    if ttl is not None and not (_LEAST_TTL <= ttl < math.inf):
        raise ValueError(f"ttl={ttl:g} is not a number of seconds, {_LEAST_TTL:g} at least")
    for name in options:
        if not name.startswith("ssl_"):
            raise ValueError(f"a redis URL has no option {name!r}, but prefix, ttl, db and ssl_...")
    tls = _TLS[parts.scheme]
    if options and not tls:
        raise ValueError("ssl_ options need a rediss:// URL")
    host = (parts.hostname or "localhost").lower()
    host = f"[{host}]" if ":" in host else host
    user, _, address = parts.netloc.rpartition("@")
    netloc = f"{user}@{address or 'localhost'}" if user else address
    scheme = "rediss" if tls else "redis"
    return Place(
        identity=f"redis://{host}:{port}/{int(database)}/{prefix}",
        prefix=prefix,
        ttl_ms=0 if ttl is None else int(ttl * 1000),
        url=urlunsplit((scheme, netloc, f"/{int(database)}", urlencode(options), "")),
        secret=unquote(parts.password or ""),
    )


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
