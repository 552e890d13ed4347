"""A trivial object service in memory: enough of S3, GCS or Azure to test and measure clients by.

It checks no signatures and forgets everything. Run it in a process of its own:
`python -m tests.stores.local_service PORT s3|gs|az [SECONDS]`, which each answer takes.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PHRASES = {200: "OK", 201: "Created", 204: "No Content", 206: "Partial Content"}


class Object(NamedTuple):
    data: bytes
    number: int

    @property
    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{self.number:032x}"',
            "x-goog-generation": str(self.number),
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


def refusal(status: int, code: str) -> Reply:
    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    return Reply(
        status, {"Content-Type": "application/xml", "x-ms-error-code": code}, text.encode()
    )


class Service:
    """Objects by path, and what each dialect says of them."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self._objects: dict[str, Object] = {}
        self._parts: dict[str, dict[str, bytes]] = {}
        self._numbers = itertools.count(1)

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        parts = urlsplit(target)
        query = {n: v[0] for n, v in parse_qs(parts.query, keep_blank_values=True).items()}
        path = unquote(parts.path)
        if "list-type" in query or query.get("comp") == "list":
            return self._list(path.rstrip("/"), query)
        if query.get("comp") == "batch":
            return self._batch(body)
        special = {"uploadId", "uploads", "comp"} & query.keys()
        if special and method != "GET":
            return self._multipart(method, path, query, body)
        return getattr(self, f"_{method.lower()}")(path, headers, body)  # type: ignore[no-any-return]

    def _put(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        old = self._objects.get(path)
        generation = headers.get("x-goog-if-generation-match")
        if headers.get("if-none-match") == "*" or generation == "0":
            if old is not None:
                azure = self.dialect == "az"
                return refusal(*((409, "BlobAlreadyExists") if azure else self._failed))
        elif generation is not None or "if-match" in headers:
            if old is None and self.dialect == "s3":
                return refusal(404, "NoSuchKey")
            wanted = headers.get("if-match", f'"{int(generation or 0):032x}"')
            if old is None or old.headers["ETag"] != wanted:
                return refusal(*self._failed)
        new = self._objects[path] = Object(body, next(self._numbers))
        return Reply(201 if self.dialect == "az" else 200, new.headers)

    @property
    def _failed(self) -> tuple[int, str]:
        return 412, "ConditionNotMet" if self.dialect == "az" else "PreconditionFailed"

    def _get(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        found = self._objects.get(path)
        if found is None:
            return refusal(404, "BlobNotFound" if self.dialect == "az" else "NoSuchKey")
        if headers.get("if-match", found.headers["ETag"]) != found.headers["ETag"]:
            return refusal(*self._failed)
        wanted = headers.get("range") or headers.get("x-ms-range")
        if wanted is None:
            return Reply(200, found.headers, found.data)
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        data = found.data[int(start) : int(last) + 1]
        if not data:
            return refusal(416, "InvalidRange")
        whole = f"bytes {start}-{int(start) + len(data) - 1}/{len(found.data)}"
        return Reply(206, {**found.headers, "Content-Range": whole}, data)

    def _delete(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        gone = self._objects.pop(path, None)
        if gone is None and self.dialect != "s3":
            return self._get(path, {}, b"")
        return Reply(202 if self.dialect == "az" else 204)

    def _batch(self, body: bytes) -> Reply:
        answers = []
        for number, line in enumerate(re.findall(rb"^DELETE (\S+)", body, re.MULTILINE)):
            reply = self._delete(unquote(line.decode()).partition("?")[0], {}, b"")
            answers.append(
                "--batch\r\nContent-Type: application/http\r\n"
                f"Content-ID: {number}\r\n\r\nHTTP/1.1 {reply.status} Some\r\n"
                f"x-ms-error-code: {reply.headers.get('x-ms-error-code', '')}\r\n\r\n\r\n"
            )
        text = "".join([*answers, "--batch--\r\n"])
        return Reply(202, {"Content-Type": "multipart/mixed; boundary=batch"}, text.encode())

    def _multipart(self, method: str, path: str, query: dict[str, str], body: bytes) -> Reply:
        upload = query.get("uploadId", path)
        parts = self._parts.setdefault(upload, {})
        if method == "DELETE":
            del self._parts[upload]
            return Reply(204)
        if "uploads" in query:
            upload = f"upload-{next(self._numbers)}"
            self._parts[upload] = {}
            text = "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>"
            text += f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return Reply(200, {}, text.encode())
        number = query.get("partNumber") or query.get("blockid")
        if number is not None:
            parts[number.zfill(9)] = body
            headers = {"ETag": f'"part-{number}"'}
            return Reply(201 if self.dialect == "az" else 200, headers)
        del self._parts[upload]
        order = sorted(parts)
        if self.dialect == "az":
            order = re.findall(r"<(?:Latest|Uncommitted)>([^<]+)<", body.decode())
        new = Object(b"".join(parts[number] for number in order), next(self._numbers))
        self._objects[path] = new
        tag = escape(new.headers["ETag"])
        text = f"<CompleteMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><ETag>{tag}</ETag>"
        text += "</CompleteMultipartUploadResult>"
        return Reply(201 if self.dialect == "az" else 200, new.headers, text.encode())

    def _list(self, bucket: str, query: dict[str, str]) -> Reply:
        start = f"{bucket}/{query.get('prefix', '')}"
        found = [(p[len(bucket) + 1 :], o) for p, o in self._objects.items() if p.startswith(start)]
        first = int(query.get("continuation-token") or query.get("marker") or 0)
        page, more = found[first : first + 1000], len(found) > first + 1000
        token = str(first + 1000) if more else ""
        when = "2026-01-01T00:00:00.000Z"
        if self.dialect == "az":
            text = "<EnumerationResults><Blobs>"
            for name, item in page:
                text += f"<Blob><Name>{escape(name)}</Name><Properties>"
                text += "<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>"
                text += f"<Etag>{item.number}</Etag><Content-Length>{len(item.data)}"
                text += "</Content-Length><Content-Type>x</Content-Type></Properties></Blob>"
            text += f"</Blobs><NextMarker>{token}</NextMarker></EnumerationResults>"
        else:
            text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>"
            for name, item in page:
                text += f"<Contents><Key>{escape(name)}</Key><Size>{len(item.data)}</Size>"
                text += f"<LastModified>{when}</LastModified><ETag>{item.number}</ETag></Contents>"
            if more:
                text += f"<NextContinuationToken>{token}</NextContinuationToken>"
            text += "</ListBucketResult>"
        return Reply(200, {"Content-Type": "application/xml"}, text.encode())


class Connection(asyncio.Protocol):
    """Requests of one connection, in order."""

    def __init__(
        self, answer: Callable[[str, str, dict[str, str], bytes], Reply], seconds: float
    ) -> None:
        self._answer = answer
        self._seconds = seconds
        self._head = bytearray()
        self._request: tuple[str, str, dict[str, str]] | None = None
        self._body: list[bytes] = []
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._request is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            lines = self._head[:end].decode("latin-1").split("\r\n")
            data = bytes(self._head[end + 4 :])
            self._head.clear()
            method, target, _ = lines[0].split(" ", 2)
            headers = {
                n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])
            }
            self._request = method, target, headers
            self._left = int(headers.get("content-length", 0))
            if "expect" in headers:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if data:
            self._body.append(data)
            self._left -= len(data)
        if not self._left:
            request, self._request = self._request, None
            body, self._body = b"".join(self._body), []
            reply = self._answer(*request, body)
            if self._seconds:
                loop = asyncio.get_running_loop()
                loop.call_later(self._seconds, self._send, request[0], reply)
            else:
                self._send(request[0], reply)

    def _send(self, method: str, reply: Reply) -> None:
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        lines = [f"HTTP/1.1 {reply.status} {_PHRASES.get(reply.status, 'No')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if reply.body and method != "HEAD":
            self._transport.write(reply.body)


async def main(port: int, dialect: str, seconds: float = 0.0) -> None:
    service = Service(dialect)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(service.answer, seconds), "127.0.0.1", port
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])))
