"""Multipart uploads to S3: some parts under way while the next is gathered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from ._object_client import PARTS_AT_ONCE, bare, part_size
from ._s3_body import Body

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client as Driver
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef as CompletedPart
    from types_aiobotocore_s3.type_defs import CreateMultipartUploadOutputTypeDef as Created

_ABORTS = (0.0, 0.1, 0.5)  # seconds before each try


class S3Upload:
    """One object on its way, in parts side by side."""

    def __init__(self, driver: Driver, bucket: str, name: str, size: int | None) -> None:
        self._s3 = driver
        self._object: Any = {"Bucket": bucket, "Key": name}
        self._size = size
        self._buffers: list[bytes | memoryview] = []
        self._gathered = 0
        self._room = asyncio.Semaphore(PARTS_AT_ONCE)
        self._parts: list[asyncio.Task[str]] = []
        self._failure: Exception | None = None
        self._created: asyncio.Task[Created] | None = None

    async def write(self, chunk: bytes | memoryview) -> None:
        """Take some more. Raises what has become of earlier parts."""
        rest = memoryview(chunk)
        while rest:
            room = part_size(len(self._parts), self._size) - self._gathered
            self._buffers.append(rest[:room])
            self._gathered += len(rest[:room])
            if len(rest) >= room:
                await self._send()
            rest = rest[room:]

    async def finish(self) -> None:
        if self._gathered:
            await self._send()
        parts: list[CompletedPart] = [
            {"PartNumber": number, "ETag": f'"{etag}"'}
            for number, etag in enumerate(await asyncio.gather(*self._parts), start=1)
        ]
        await self._s3.complete_multipart_upload(
            **self._object, UploadId=await self._id(), MultipartUpload={"Parts": parts}
        )

    async def abort(self) -> None:
        """A part that is under way could be kept, and billed: none is when the upload goes."""
        for part in self._parts:
            part.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)
        if self._created is None:
            return
        # a part that was under way may be kept all the same, and then it takes another time:
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
        for wait in _ABORTS:
            await asyncio.sleep(wait)
            try:
                await self._s3.abort_multipart_upload(**self._object, UploadId=await self._id())
            except ClientError as exc:
                if exc.response.get("Error", {}).get("Code") == "NoSuchUpload":
                    return
            except Exception:
                continue  # what is left in the end, a lifecycle rule removes

    async def _id(self) -> str:
        if self._created is None:
            create = self._s3.create_multipart_upload(**self._object)
            self._created = asyncio.ensure_future(create)
        return (await asyncio.shield(self._created))["UploadId"]

    async def _send(self) -> None:
        upload_id = await self._id()
        await self._room.acquire()
        if self._failure is not None:
            raise self._failure
        number = len(self._parts) + 1
        body = Body(self._buffers)
        self._buffers, self._gathered = [], 0
        self._parts.append(asyncio.ensure_future(self._part(number, upload_id, body)))

    async def _part(self, number: int, upload_id: str, body: Any) -> str:
        try:
            response = await self._s3.upload_part(
                **self._object, PartNumber=number, UploadId=upload_id, Body=body
            )
            return bare(response["ETag"])
        except Exception as exc:
            self._failure = exc
            raise
        finally:
            self._room.release()
