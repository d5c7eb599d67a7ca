"""Bounds what an HTTP answer may hold, before and after it is unpacked."""

import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2

MOST_BYTES = 4 * 2**20
"""Bytes of the longest answer that is read."""
ENCODINGS = "gzip, deflate"
"""What is asked for, and unpacked piece by piece."""
_MOST_MEMBERS = 1000
"""Parts that a gzip stream may have."""
_GZIP, _ZLIB_OR_GZIP, _RAW = 31, 47, -15
"""How zlib names the formats."""


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
        self._unpack = _Unpacker() if packed else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = read = 0
        async for data in self._stream:
            received += len(data)
            if self._unpack is not None:
                data = self._unpack(data, MOST_BYTES + 1 - read)
            read += len(data)
            if max(received, read) > MOST_BYTES:
                size = MOST_BYTES // 2**20
                raise UnreadableError(f"the endpoint's answer is longer than {size} MiB", False)
            yield data

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Unpacker:
    """Unpacks gzip of one or several parts, and deflate with or without a header, as it begins."""

    def __init__(self) -> None:
        self._part: Any = None
        self._parts = 0
        self._begin = b""

    def __call__(self, data: bytes, most: int) -> bytes:
        """Unpack a piece, up to so many bytes."""
        if self._part is None:
            data = self._begin = self._begin + data
            if len(data) < 2:
                return b""
            self._part = zlib.decompressobj(_format_of(data))
        found = b""
        try:
            while data and len(found) < most:
                if self._part.eof:
                    if not data.startswith(b"\x1f"):  # padding
                        break
                    self._part, self._parts = zlib.decompressobj(_GZIP), self._parts + 1
                    if self._parts > _MOST_MEMBERS:
                        raise UnreadableError("the endpoint's answer is of too many parts", False)
                found += self._part.decompress(data, most - len(found))
                data = self._part.unused_data
        except zlib.error as error:
            raise UnreadableError("the endpoint's answer is not the gzip it says", True) from error
        return found


def _format_of(data: bytes) -> int:
    """How to unpack what begins like this: raw deflate has no header."""
    is_zlib = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
    return _ZLIB_OR_GZIP if is_zlib or data[:2] == b"\x1f\x8b" else _RAW
