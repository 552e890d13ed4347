"""What a `postgresql://` URL says: libpq's part, and ours."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_OURS = ("table", "pool_size", "prepare_threshold")
_SUFFIX = len("_chunks")
_LONGEST = 63  # bytes of an identifier; PostgreSQL cuts longer ones, so that two become one


class Settings(NamedTuple):
    """Holds the password: never to be shown."""

    conninfo: str
    table: tuple[str, ...]
    """The table's name, after its schema's if one was given; neither is quoted."""
    pool_size: int
    prepare_threshold: int | None
    identity: str

    def __repr__(self) -> str:
        return f"<{self.identity}>"


def parse_url(url: str) -> Settings:
    """Take our options out of a URL; libpq knows the others.

    Raises:
        ValueError: it says something that neither knows. The text never quotes a password, nor
            what may be a part of one.
    """
    scheme, _, rest = url.partition(":")
    address, _, query = rest.partition("?")
    _refuse_stray_at(address, query)
    theirs = []
    ours: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name in _OURS:
            ours[name] = unquote(value)
        else:
            theirs.append(item)
    libpq_url = f"{scheme.lower()}:{address}" + ("?" + "&".join(theirs) if theirs else "")
    try:
        found = conninfo_to_dict(libpq_url)
    except psycopg.Error:
        raise ValueError(_complaint(theirs)) from None  # libpq's text quotes the URL
    params = {name: str(value) for name, value in found.items() if value is not None}
    params.setdefault("connect_timeout", "10")
    params.setdefault("fallback_application_name", "aiocheckpoint")
    params["client_encoding"] = "UTF8"
    table = _table(ours.get("table", "aiocheckpoint"))
    return Settings(
        make_conninfo("", **params),
        table,
        _number(ours, "pool_size", 5, 3),
        None
        if ours.get("prepare_threshold", "").lower() in ("none", "off")
        else _number(ours, "prepare_threshold", 5, 0),
        _identity(params, table),
    )


def _refuse_stray_at(address: str, query: str) -> None:
    """libpq would take a part of the password for the host, the database or an option."""
    authority, _, path = address.removeprefix("//").partition("/")
    cut_short = "@" not in authority and ":" in authority and "@" in query
    if authority.count("@") > 1 or "@" in path or cut_short:
        raise ValueError(
            "a PostgreSQL URL has an @ where none can be; in user and password write @ as %40,"
            " / as %2F, ? as %3F, : as %3A, and in a database's name @ as %40"
        )


def _complaint(options: list[str]) -> str:
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} | {"ssl"}
    for name in (option.partition("=")[0] for option in options):
        if name not in known and re.fullmatch(r"\w+", name):
            ours = ", ".join(_OURS)
            return (
                f"{name!r} is no option of a PostgreSQL URL: there are {ours}, and libpq's such"
                " as sslmode"
            )
    return (
        "not a PostgreSQL URL; write postgresql://user:password@host:5432/database?table=name,"
        " with what is special in user and password percent-encoded"
    )


def _table(text: str) -> tuple[str, ...]:
    parts = tuple(text.split("."))
    if len(parts) > 2 or not all(parts) or "\0" in text:
        raise ValueError(f"table={text!r}: write table=name or table=schema.name, unquoted")
    for part, room in zip(reversed(parts), (_LONGEST - _SUFFIX, _LONGEST), strict=False):
        if len(part.encode()) > room:
            raise ValueError(f"table={text!r} is too long: {room} bytes at most for {part!r}")
    return parts


def _number(ours: dict[str, str], name: str, default: int, least: int) -> int:
    text = ours.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) < least:
        raise ValueError(f"{name}={text!r} in the URL: it is a number, {least} or more")
    return int(text)


def _identity(params: dict[str, str], table: tuple[str, ...]) -> str:
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val is not None
    }
    said = {**defaults, **params}
    host = said.get("host") or said.get("hostaddr") or "localhost"
    database = said.get("dbname") or said.get("user", "")
    if service := said.get("service"):
        host = f"{service}:{host}"
    return f"postgresql://{host}:{said.get('port', '5432')}/{database}/{'.'.join(table)}"
