"""PostgreSQL for tests: a database on a server that runs already, or a server of one's own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from .servers import free_port, missing

INSTALL = "apt-get install postgresql"
RUNNING = "postgresql://postgres@127.0.0.1:5432/postgres"


class Admin:
    """What tests do past the store, as the superuser, each statement at once."""

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, query: str | sql.Composed, *args: object) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            cursor = connection.execute(query.encode() if isinstance(query, str) else query, args)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            yield connection

    def at(self, user: str) -> str:
        """The URL of another user."""
        return self.url.replace("//postgres@", f"//{user}@")

    @contextmanager
    def database(self) -> Iterator[Admin]:
        """A database of its own, and a role to be used in it, both gone afterwards."""
        name = f"aiocheckpoint_test_{secrets.token_hex(6)}"
        self.run(f"CREATE DATABASE {name}")
        self.run(f"CREATE ROLE {name} LOGIN")
        try:
            yield Admin(self.url.rpartition("/")[0] + f"/{name}")
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")
            self.run(f"DROP ROLE {name}")


def running() -> Admin | None:
    """The server that this machine keeps for tests, if it does."""
    try:
        psycopg.connect(RUNNING, connect_timeout=5).close()
    except psycopg.OperationalError:
        return None
    return Admin(RUNNING)


class Server:
    """A server of one's own, to be stopped, frozen and set otherwise."""

    def __init__(self, directory: Path) -> None:
        found = [*Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), shutil.which("pg_ctl")]
        programs = sorted(Path(path) for path in found if path)
        if not programs:
            missing("PostgreSQL", INSTALL)
        self._bin = programs[-1].parent
        self._data = directory / "data"
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # as whom PostgreSQL refuses to run
            try:
                entry = pwd.getpwnam("postgres")
            except KeyError:
                missing("user postgres", INSTALL)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
            self._user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self.port = free_port()
        self.admin = Admin(f"postgresql://postgres@127.0.0.1:{self.port}/postgres")
        self._do("initdb", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--no-locale")
        with (self._data / "postgresql.conf").open("a") as config:
            config.write(
                f"port={self.port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\n"
                "max_connections=30\nshared_buffers=16MB\n"
            )
        (self._data / "pg_hba.conf").write_text(
            "host all locked 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        )

    def start(self) -> None:
        self._do("pg_ctl", "-w", "-l", str(self._data / "log"), "start")

    def kill(self) -> None:
        """End it as a crash does."""
        self._do("pg_ctl", "-w", "-m", "immediate", "stop")

    @property
    def runs(self) -> bool:
        return (self._data / "postmaster.pid").exists()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It neither answers nor hangs up."""
        main = int((self._data / "postmaster.pid").read_text().split()[0])
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
        pids = [main, *(pid for (pid,) in self.admin.run(query + " AND pid <> pg_backend_pid()"))]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def _do(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [self._bin / program, "-D", self._data, *args],
            cwd=self._data.parent,
            stdout=subprocess.DEVNULL,  # a pipe would stay open in the server
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
            **self._user,
        )
        assert done.returncode == 0, f"{program} failed: {done.returncode}"


@contextmanager
def own_server() -> Iterator[Server]:
    """A server that runs, and does not afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="aiocheckpoint-postgresql-"))
    try:
        server = Server(directory)
        server.start()
        try:
            yield server
        finally:
            if server.runs:
                server.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def some_server() -> Iterator[Admin]:
    """The server that runs here, else one of one's own."""
    if (admin := running()) is not None:
        yield admin
    else:
        with own_server() as server:
            yield server.admin
