"""Bounds what an HTTP answer may hold, before and after it is unpacked."""

import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2

MOST_BYTES = 4 * 2**20
"""Bytes of the longest answer that is read."""
ENCODINGS = "gzip, deflate"
"""What is asked for, and unpacked piece by piece."""


class UnreadableError(Exception):
    """An answer that cannot be read, and whether another attempt may mend it."""

    def __init__(self, reason: str, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


async def bound(response: httpx2.Response) -> None:
    """A response hook: reading the answer raises `UnreadableError` where it is too long."""
    encoding = response.headers.pop("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise UnreadableError(
            "the endpoint packs its answer in a way that was not asked for", False
        )
    stream: Any = response.stream
    response.stream = _Bounded(stream, packed=encoding not in ("", "identity"))


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, packed: bool) -> None:
        self._stream = stream
        self._unpack = zlib.decompressobj(47) if packed else None  # gzip or zlib, as it begins

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = read = 0
        async for data in self._stream:
            received += len(data)
            if self._unpack is not None:
                data = self._unpacked(data, MOST_BYTES + 1 - read)
            read += len(data)
            if max(received, read) > MOST_BYTES:
                size = MOST_BYTES // 2**20
                raise UnreadableError(f"the endpoint's answer is longer than {size} MiB", False)
            yield data

    def _unpacked(self, data: bytes, most: int) -> bytes:
        assert self._unpack is not None
        try:
            return self._unpack.decompress(data, most)
        except zlib.error as error:
            raise UnreadableError("the endpoint's answer is not the gzip it says", True) from error

    async def aclose(self) -> None:
        await self._stream.aclose()
