"""Finding the score parts of a large evaluation again, on an object store with 30 ms an object.

    python jobs/benchmarks/parts.py [--parts N] [--delay SECONDS]

Parts of 64 pairs each lie on a server that speaks as much of S3 as is needed, and waits before each
answer about one object. Timed: reading them as earlier versions left them, a file each (which joins
the files); the same command again; and reading them as quick actors write them.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow as pa

from paft_ray.evaluation.units import MOST_UNITS
from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage, to_parquet

_PAGE = 1000
_ONE, _TOGETHER = "b/one/", "b/together/"


def part(number: int) -> pa.Table:
    """A part of 64 pairs, about as large as one of scores."""
    rows = range(64)
    table = pa.table(
        {
            "prompt_id": ["0123456789abcdef"] * 64,
            "example_id": [f"{number:08x}{row:08x}" for row in rows],
            "prediction": ["positive"] * 64,
            "correct": [row % 2 == 0 for row in rows],
            "logprob": [-number / 50_000 - row / 64 for row in rows],
        }
    )
    return table.replace_schema_metadata({"seconds": "1.5", "packing": "packed"})


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a body whose length is not said before."""
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while (await reader.readline()).strip():
        pass
    return body


def chunks(body: bytes) -> Iterator[bytes]:
    """Yield the content of chunks that are signed or summed up, each after its length."""
    while size := int(body.partition(b"\r\n")[0].split(b";")[0], 16):
        body = body.partition(b"\r\n")[2]
        yield body[:size]
        body = body[size + 2 :]


class Server:
    """Objects in memory, over HTTP."""

    def __init__(self, objects: dict[str, bytes], delay_s: float) -> None:
        self.objects, self.delay_s = objects, delay_s
        self.uploads: dict[str, dict[int, bytes]] = {}

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        while head := await reader.readline():
            method, target, _ = head.decode().split(" ")
            headers = {}
            while line := (await reader.readline()).decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            if headers.get("expect"):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if "transfer-encoding" in headers:
                body = await read_chunks(reader)  # of HTTP, around S3's own
                body = b"".join(chunks(body)) if "aws-chunked" in str(headers) else body
            else:
                body = await reader.readexactly(int(headers.get("content-length", 0)))
            status, more, data = await self.answer(method, target, headers, body)
            lines = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in more.items())]
            lines += [] if "Content-Length" in more else [f"Content-Length: {len(data)}"]
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            await writer.drain()
        writer.close()

    async def answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content."""
        parts = urlsplit(target)
        name, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query, True)
        if "list-type" in query:
            return 200, {}, self.list(name.rstrip("/"), query)
        await asyncio.sleep(self.delay_s)
        if method == "POST" and "uploads" in query:
            self.uploads[name] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></Initiate{{}}>"
            return 200, {}, text.format("MultipartUploadResult").encode()
        if method == "PUT" and "uploadId" in query:
            self.uploads[name][int(query["partNumber"][0])] = body
            return 200, {"ETag": '"x"'}, b""
        if method == "POST":
            self.objects[name] = b"".join(d for _, d in sorted(self.uploads.pop(name).items()))
            return 200, {}, b"<CompleteMultipartUploadResult/>"
        if method == "PUT":
            self.objects[name] = body
            return 200, {"ETag": '"x"'}, b""
        if method == "DELETE":
            self.objects.pop(name, None)
            return 204, {}, b""
        if (data := self.objects.get(name)) is None:
            return 404, {}, b""
        about = {"Last-Modified": "Sat, 01 Nov 2025 00:00:00 GMT", "ETag": '"x"'}
        if method == "HEAD":
            return 200, {**about, "Content-Length": str(len(data))}, b""
        if (span := headers.get("range", "")).startswith("bytes="):
            first, _, last = span.removeprefix("bytes=").partition("-")
            piece = data[int(first) : int(last or len(data)) + 1]
            about["Content-Range"] = f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}"
            return 206, about, piece
        return 200, about, data

    def list(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        """One page of the names that begin with a prefix."""
        prefix = f"{bucket}/{query.get('prefix', [''])[0]}"
        after = query.get("continuation-token", [""])[0]
        found = sorted(n for n in self.objects if n.startswith(prefix) and n > after)
        page = found[:_PAGE]
        items = "".join(
            f"<Contents><Key>{escape(n.partition('/')[2])}</Key><Size>{len(self.objects[n])}</Size>"
            "<LastModified>2025-11-01T00:00:00.000Z</LastModified></Contents>"
            for n in page
        )
        more = len(found) > len(page)
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}</ListBucketResult>"
        ).encode()


def serve(listening: socket.socket, count: int, delay_s: float) -> None:
    """Serve that many parts, as single files and as quick actors write them, until it is ended."""
    objects = {f"{_ONE}{n:016x}.parquet": to_parquet(part(n)) for n in range(count)}
    server = Server(objects, delay_s)

    async def run() -> None:
        async with await asyncio.start_server(server.talk, sock=listening) as running:
            await running.serve_forever()

    asyncio.run(run())


def timed(name: str, parts: Parts, keys: list[str]) -> dict[str, object]:
    """Find and read all parts, as an evaluation does that begins again."""
    files, started = len(parts.folder.names()), time.perf_counter()
    missing = set(keys) - parts.finished()
    tables = parts.read(keys)
    seconds = time.perf_counter() - started
    assert not missing
    assert [t["example_id"][0].as_py()[:8] for t in tables] == [
        f"{n:08x}" for n in range(len(keys))
    ]
    row = {"what": name, "files": files, "parts": len(tables), "seconds": round(seconds, 1)}
    sys.stderr.write(json.dumps(row) + "\n")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=50_000)
    parser.add_argument("--delay", type=float, default=0.03)
    options = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_DEFAULT_REGION="x")
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = multiprocessing.get_context("fork").Process(
        target=serve, args=(listening, options.parts, options.delay), daemon=True
    )
    server.start()
    port = listening.getsockname()[1]
    keys = [f"{n:016x}" for n in range(options.parts)]
    where = "s3://{}?endpoint_override=127.0.0.1:{}&scheme=http"
    one, together = (
        Parts(Storage.open(where.format(folder.rstrip("/"), port))) for folder in (_ONE, _TOGETHER)
    )
    rows = [timed("a file each, as earlier versions wrote them", one, keys)]
    rows.append(timed("the same again: joined", one, keys))
    for start in range(0, len(keys), MOST_UNITS):
        own = itertools.islice(range(start, len(keys)), MOST_UNITS)
        together.write({keys[n]: part(n) for n in own})
    rows.append(timed(f"{MOST_UNITS} together, as quick actors write them", together, keys))
    server.kill()
    sys.stdout.write(json.dumps({"delay_s": options.delay, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
