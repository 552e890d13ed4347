"""The Redis store and its server: what it refuses, what it waits for, what it tells."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aiocheckpoint._errors import ConflictError, StoreError, StoreUnavailableError
from aiocheckpoint.abc import Put
from aiocheckpoint.stores import _redis_line
from aiocheckpoint.stores import redis as redis_module
from aiocheckpoint.stores._redis_errors import answered
from aiocheckpoint.stores.redis import RedisStore
from aiocheckpoint.testing.contract import listed, put, read

from ..servers import free_port
from ..support import true
from .redis_server import ALWAYS, Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "redis", *ALWAYS) as server:
        yield server


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def lasting(error: BaseException) -> bool:
    return type(error) is StoreError


async def test_evicting(server: Server, raw: redis.Redis) -> None:
    """A server that deletes keys when memory is short is refused, until it is told not to."""
    store = RedisStore(server.url)
    raw.config_set("maxmemory-policy", "allkeys-lru")
    for call in (store.load("k"), put(store, "k", None, b"x"), listed(store)):
        with pytest.raises(StoreError, match="CONFIG SET maxmemory-policy noeviction") as caught:
            await call
        assert lasting(caught.value)
    raw.config_set("maxmemory-policy", "noeviction")
    await put(store, "k", None, b"x")
    await store.aclose()


async def test_evicting_what_expires(server: Server, raw: redis.Redis) -> None:
    """A server that evicts only what expires is refused only if our keys do."""
    raw.config_set("maxmemory-policy", "volatile-ttl")
    store, expiring = RedisStore(server.url), RedisStore(server.url, ttl=3600)
    await put(store, "k", None, b"x")
    with pytest.raises(StoreError, match="volatile-ttl"):
        await expiring.load("k")
    await store.aclose()
    await expiring.aclose()


async def test_evicting_after_restart(server: Server) -> None:
    """A server that comes back with other settings is looked at anew."""
    store = RedisStore(server.url)
    version = await put(store, "k", None, b"x")
    server.options += ("--maxmemory-policy", "allkeys-lfu")
    server.restart()
    with suppress(StoreUnavailableError):
        await store.load("k")
    with pytest.raises(StoreError, match="allkeys-lfu"):
        await put(store, "k", version, b"y")
    await store.aclose()


@pytest.mark.parametrize(
    ("options", "level", "meaning"),
    [
        (
            ("--appendonly", "yes", "--appendfsync", "always"),
            logging.INFO,
            "on the server's disk (",
        ),
        (("--appendonly", "yes", "--appendfsync", "everysec"), logging.INFO, "lose that second"),
        (("--appendonly", "yes", "--appendfsync", "no"), logging.INFO, "half a minute"),
        (("--appendonly", "no"), logging.WARNING, "loses everything"),
        (
            ("--appendonly", "no", "--save", "60", "1"),
            logging.WARNING,
            "newer than its last snapshot",
        ),
        (("--rename-command", "CONFIG", ""), logging.INFO, "could not be found out"),
    ],
)
async def test_durable(
    tmp_path: Path,
    options: tuple[str, ...],
    level: int,
    meaning: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What stored means on this server is said in one line, once."""
    caplog.set_level(logging.INFO, "aiocheckpoint")
    with Server(tmp_path / "redis", *options) as server:
        store = RedisStore(server.url)
        version = await put(store, "k", None, b"x")
        await asyncio.gather(*(store.load("k") for _ in range(10)))
        await put(store, "k", version, b"x")
        await store.aclose()
    (line,) = [record for record in caplog.records if "stored" in record.getMessage()]
    assert line.levelno == level
    assert meaning in line.getMessage()
    assert line.getMessage().startswith(store.identity)


async def test_policy_without_config(tmp_path: Path) -> None:
    """Where CONFIG is forbidden the policy is read elsewhere."""
    options = ("--rename-command", "CONFIG", "", "--maxmemory-policy", "allkeys-random")
    with Server(tmp_path / "redis", *options) as server:
        store = RedisStore(server.url)
        with pytest.raises(StoreError, match="allkeys-random"):
            await store.load("k")
        await store.aclose()


async def test_full(server: Server, raw: redis.Redis) -> None:
    """A full server is passing: what was stored stays, and no chunk of a blob is left behind."""
    store = RedisStore(server.url)
    version = await put(store, "k", None, b"one")
    await store.put_blob("k", "b", b"as it was")
    before = set(raw.keys())
    raw.config_set("maxmemory", "1")
    (answer,) = await store.commit([Put("k", version, b"two")])
    assert isinstance(answer, StoreUnavailableError)
    assert "raise its maxmemory" in str(answer)
    for size in (1, 9 << 20):
        with pytest.raises(StoreUnavailableError, match="raise its maxmemory"):
            await store.put_blob("k", "b", bytes(size))
    assert await store.load("k") == (b"one", version)
    assert await read(store.open_blob("k", "b")) == b"as it was"
    assert set(raw.keys()) == before
    raw.config_set("maxmemory", "0")
    await put(store, "k", version, b"two")
    await store.aclose()


async def test_full_in_mid_blob(server: Server, raw: redis.Redis) -> None:
    """A server that fills up in the middle of a blob keeps none of it."""
    store = RedisStore(server.url)
    await store.load("k")
    raw.config_set("maxmemory", str(raw.info("memory")["used_memory"] + (10 << 20)))
    with pytest.raises(StoreUnavailableError, match="raise its maxmemory"):
        await store.put_blob("k", "b", os.urandom(40 << 20))
    assert raw.keys() == []
    await store.aclose()


async def test_someone_elses_key(server: Server, raw: redis.Redis) -> None:
    """Keys that another program has are an error of those alone."""
    raw.set("aiocheckpoint/head/b", "theirs")
    raw.set("aiocheckpoint/blobs/b", "theirs")
    raw.hset("aiocheckpoint/head/half", "version", "1")
    store = RedisStore(server.url)
    answers = await store.commit([Put(key, None, b"x") for key in "abc"])
    for key, answer in zip("abc", answers, strict=True):
        assert isinstance(answer, StoreError) == (key == "b"), answer
    assert isinstance(answers[1], StoreError)
    assert lasting(answers[1])
    assert (answers[1].op, answers[1].key) == ("commit", "b")
    for call in (
        store.load("b"),
        store.load("half"),
        store.put_blob("b", "x", b"x"),
        store.list_blobs("b"),
        read(store.open_blob("b", "x")),
        store.delete("b", "1"),
    ):
        with pytest.raises(StoreError, match="take another prefix") as caught:
            await call
        assert lasting(caught.value)
    assert await listed(store) == ["a", "c"]
    raw.delete("aiocheckpoint/keys")
    raw.set("aiocheckpoint/keys", "theirs")
    with pytest.raises(StoreError, match="take another prefix"):
        await put(store, "new", None, b"x")
    assert await store.load("new") is None
    await store.aclose()


async def test_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing or wrong password is an error that lasts; none is ever told."""
    caplog.set_level(logging.DEBUG)
    server = Server(tmp_path / "redis", "--requirepass", "tru/st#no1")
    server.password = "tru/st#no1"
    address = f"127.0.0.1:{server.port}"
    with server:
        told = []
        for user in ("", ":wr0ng@", "me:wr0ng@"):
            store = RedisStore(f"redis://{user}{address}")
            with pytest.raises(StoreError, match="right user and password") as caught:
                await store.load("k")
            assert lasting(caught.value)
            told += traceback.format_exception(caught.value)
            told += [repr(store), store.identity, repr(vars(store)), str(store.spool_dir)]
            await store.aclose()
        store = RedisStore(f"redis://:tru%2Fst%23no1@{address}")
        await put(store, "k", None, b"x")
        told += [repr(store), store.identity, repr(vars(store)), str(store.spool_dir)]
        server.kill()
        with pytest.raises(StoreUnavailableError) as down:
            await store.load("k")
        told += traceback.format_exception(down.value)
        await store.aclose()
    everything = "\n".join([*told, caplog.text])
    for secret in ("wr0ng", "tru/st", "tru%2Fst"):
        assert secret not in everything


async def test_password_quoted_by_the_server(tmp_path: Path) -> None:
    """A password that the server quotes in its error is not passed on."""
    with Server(tmp_path / "redis", "--rename-command", "AUTH", "") as server:
        store = RedisStore(f"redis://:hush@127.0.0.1:{server.port}")
        with pytest.raises(StoreError, match="unknown command") as caught:
            await store.load("k")
        assert "hush" not in "".join(traceback.format_exception(caught.value))
        await store.aclose()


async def test_permissions(server: Server, raw: redis.Redis) -> None:
    """The permissions that the hint names suffice; without them it is an error that lasts."""
    allowed = ("~aiocheckpoint/*", "+@read", "+@write", "+@scripting", "+@connection", "+info")
    acl: Callable[..., object] = raw.execute_command
    acl("ACL SETUSER", "most", "on", ">pw", *allowed, "+config|get")
    acl("ACL SETUSER", "none", "on", ">pw", "~*", "+@connection")
    acl("ACL SETUSER", "other", "on", ">pw", "~other/*", *allowed[1:])
    acl("ACL SETUSER", "reader", "on", ">pw", "~*", "+@read", "+@scripting")
    url = server.url.replace("redis://", "redis://{}:pw@")
    store = RedisStore(url.format("most"), ttl=3600)
    version = await put(store, "k", None, b"x")
    await store.put_blob("k", "b", bytes(9 << 20))
    assert len(await read(store.open_blob("k", "b"))) == 9 << 20
    assert await listed(store) == ["k"]
    await store.delete_blobs("k", ["b"])
    await store.delete("k", version)
    await store.aclose()
    for user in ("none", "other", "reader"):
        store = RedisStore(url.format(user))
        with pytest.raises(StoreError, match=r"give this user ~PREFIX/\*") as caught:
            await put(store, "k", None, b"x")
        assert lasting(caught.value)
        await store.aclose()


async def test_replica(server: Server, tmp_path: Path) -> None:
    """A replica can be read, and its refusal to be written is passing, as after a failover."""
    primary = RedisStore(server.url)
    version = await put(primary, "k", None, b"x")
    with Server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port)) as replica:
        store = RedisStore(replica.url)
        with replica.client() as raw:
            await true(lambda: raw.info("replication")["master_link_status"] == "up")
            assert await store.load("k") == (b"x", version)
            assert await listed(store) == ["k"]
            for call in (
                put(store, "k", version, b"y"),
                store.put_blob("k", "b", b"y"),
                store.delete("k", version),
            ):
                with pytest.raises(StoreUnavailableError, match="name the primary"):
                    await call
            raw.config_set("replica-serve-stale-data", "no")
            server.kill()
            await true(lambda: raw.info("replication")["master_link_status"] == "down")
            with pytest.raises(StoreUnavailableError, match="lost its primary"):
                await store.load("k")
            raw.replicaof("NO", "ONE")
        await put(store, "k", version, b"y")
        await store.aclose()
    await primary.aclose()


class Address:
    """A host name: leads new connections to another server once it has been changed."""

    def __init__(self, port: int) -> None:
        self.leads_to = port
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.leads_to)
        self._pipes.add(asyncio.ensure_future(self._pipe(reader, back)))
        self._pipes.add(asyncio.ensure_future(self._pipe(there, writer)))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


async def test_failover(server: Server, raw: redis.Redis, tmp_path: Path) -> None:
    """When the primary becomes a replica, the next try goes where the name leads by then."""
    options = (*ALWAYS, "--replicaof", "127.0.0.1", str(server.port))
    address = Address(server.port)
    with Server(tmp_path / "other", *options) as other, other.client() as raw_other:
        async with address as url:
            store = RedisStore(url)
            version = await put(store, "k", None, b"one")
            await asyncio.gather(*(store.load("k") for _ in range(10)))
            await true(lambda: raw_other.exists("aiocheckpoint/head/k") == 1)
            raw_other.replicaof("NO", "ONE")
            raw.replicaof("127.0.0.1", str(other.port))
            address.leads_to = other.port
            for call in (put(store, "k", version, b"x"), store.put_blob("k", "b", b"x")):
                with suppress(StoreUnavailableError):
                    await call
            head = await store.load("k")
            assert head is not None
            version = await put(store, "k", head.version, b"two")
            await store.aclose()
        assert raw_other.hget("aiocheckpoint/head/k", "record") == b"two"


async def test_slow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch that the server cannot take in time a part is done, and the rest not begun."""
    store = RedisStore(server.url)
    await store.load("k")
    monkeypatch.setattr(redis_module, "_SENDING", 0.0)
    batch = [Put(f"{n}", None, b"x") for n in range(3000)]
    for answer in await store.commit(batch):
        assert isinstance(answer, StoreUnavailableError)
        assert "too slow" in str(answer)
    assert await listed(store) == []
    monkeypatch.setattr(_redis_line, "_SOCKET_TIMEOUT", 0.3)
    frozen = RedisStore(server.url)
    await frozen.load("k")
    monkeypatch.setattr(redis_module, "_SENDING", 0.1)
    server.freeze()
    told = [str(answer) for answer in await frozen.commit(batch)]
    server.thaw()
    assert sum("too slow" in answer for answer in told) == 1000
    await store.aclose()
    await frozen.aclose()


async def test_too_few_replicas(server: Server, raw: redis.Redis) -> None:
    """A server that wants replicas, and has none, is passing."""
    raw.config_set("min-replicas-to-write", "1")
    store = RedisStore(server.url)
    with pytest.raises(StoreUnavailableError, match="too few replicas"):
        await put(store, "k", None, b"x")
    await store.aclose()


async def test_cluster(tmp_path: Path) -> None:
    """A node of a cluster is refused, and it is said why."""
    with Server(tmp_path / "redis", "--cluster-enabled", "yes") as server:
        store = RedisStore(server.url)
        with pytest.raises(StoreError, match="Redis Cluster is not supported") as caught:
            await store.load("k")
        assert lasting(caught.value)
        await store.aclose()


async def test_busy(server: Server, raw: redis.Redis) -> None:
    """A server that somebody's endless script keeps busy is passing."""
    raw.config_set("lua-time-limit", "1")
    store = RedisStore(server.url)
    version = await put(store, "k", None, b"x")

    def hog() -> None:
        with server.client() as client, suppress(redis.ResponseError):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=hog)
    thread.start()
    for asked in (store, RedisStore(server.url)):
        with pytest.raises(StoreUnavailableError, match="keeps the server busy"):
            while True:
                await asked.load("k")
        await asked.aclose()
    raw.script_kill()
    thread.join(10)
    again = RedisStore(server.url)
    await put(again, "k", version, b"y")
    await again.aclose()


async def test_frozen(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is passing; what it was asked, it may do when it wakes."""
    monkeypatch.setattr(_redis_line, "_SOCKET_TIMEOUT", 0.3)
    store = RedisStore(server.url)
    version = await put(store, "k", None, b"one")
    server.freeze()
    with pytest.raises(StoreUnavailableError):
        await put(store, "k", version, b"two")
    server.thaw()
    head = await store.load("k")
    assert head is not None
    assert (head.record == b"one") == (head.version == version)
    await put(store, "k", head.version, b"three")
    await store.aclose()


async def test_gone(server: Server) -> None:
    """A server that is not there is passing, and needs nothing of us when it is back."""
    store = RedisStore(server.url)
    version = await put(store, "k", None, b"one")
    server.kill()
    for call in (store.load("k"), put(store, "k", version, b"x"), store.list_blobs("k")):
        with pytest.raises(StoreUnavailableError) as caught:
            await call
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
    server.start()
    assert await store.load("k") == (b"one", version)
    await put(store, "k", version, b"two")
    await store.aclose()


async def test_forgotten_scripts(server: Server, raw: redis.Redis) -> None:
    """A server that has forgotten the scripts is told them again."""
    store = RedisStore(server.url)
    version = await put(store, "k", None, b"one")
    raw.script_flush()
    with pytest.raises(ConflictError):
        await put(store, "k", None, b"x")
    raw.script_flush()
    await put(store, "k", version, b"two")
    await store.aclose()


async def test_closed(server: Server, raw: redis.Redis) -> None:
    """Closing leaves no connection, and a closed store says so."""
    store = RedisStore(server.url)
    await asyncio.gather(*(store.load("k") for _ in range(40)))
    assert 2 <= len(raw.client_list()) <= 17
    await store.aclose()
    await true(lambda: len(raw.client_list()) == 1)
    with pytest.raises(RuntimeError, match="closed"):
        await store.load("k")
    await store.aclose()


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis of a test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "redis.crt", directory / "redis.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_tls(tmp_path: Path, scheme: str) -> None:
    """TLS is spoken with a server whose certificate is known, and with no other."""
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-auth-clients", "no")
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    with Server(tmp_path / "redis", *tls, *files):
        store = RedisStore(f"{scheme}://127.0.0.1:{port}?ssl_ca_certs={certificate}")
        version = await put(store, "k", None, b"x")
        assert await store.load("k") == (b"x", version)
        await store.put_blob("k", "b", bytes(9 << 20))
        assert await read(store.open_blob("k", "b")) == bytes(9 << 20)
        await store.aclose()
        store = RedisStore(f"{scheme}://127.0.0.1:{port}")
        with pytest.raises(StoreError, match="name who signed it") as caught:
            await store.load("k")
        assert lasting(caught.value)
        await store.aclose()


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("OOM command not allowed", StoreUnavailableError, "OOM command not allowed (the server"),
        ("@user_script: 43: -OOM command not allowed\r\n", StoreUnavailableError, "OOM command"),
        ("@user_script:1: READONLY You can't write", StoreUnavailableError, "name the primary"),
        (
            "Error running script (call to f_85da): @user_script:31: WRONGTYPE Operation",
            StoreError,
            "WRONGTYPE Operation (another program",
        ),
        ("MISCONF Redis is configured to save", StoreUnavailableError, "its own disk"),
        ("MOVED 866 127.0.0.1:7001", StoreError, "Redis Cluster is not supported"),
        ("ERR unknown command 'EVALSHA', with args beginning with: OOM", StoreError, "EVALSHA"),
        ("The user executing the script can't run this command", StoreError, "give this user"),
        ("", StoreError, ""),
    ],
)
def test_answers(text: str, kind: type[StoreError], told: str) -> None:
    """What a server answers, or a script of Redis 6, is passing or not by its code."""
    error = answered(text, "commit", "k")
    assert type(error) is kind
    assert told in str(error)
