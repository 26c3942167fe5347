"""Stands in for S3 and Kinesis where an emulator's memory would not do: objects lie on disk, records are counted.

It knows what the product calls: put, get, uploads in parts, and PutRecords. Nothing is checked.
"""

import hashlib
import json
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_COPY_BYTES = 1 << 20
_PART = re.compile(rb"<PartNumber>(\d+)</PartNumber>")


class Storage:
    """Objects below a directory, and how many records came."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.records = 0
        self.uploads = 0
        self.lock = threading.Lock()

    def path(self, key: str) -> Path:
        """Return the file of an object, ``/bucket/key``; keys become digests, since some end where others go on."""
        return self.directory / hashlib.sha256(unquote(key).encode()).hexdigest()

    def part(self, upload: str, number: int) -> Path:
        """Return the file of a part."""
        return self.directory / f"{upload}-{number}"

    def next_upload(self) -> str:
        """Return an id."""
        with self.lock:
            self.uploads += 1
            return f"upload-{self.uploads}"

    def complete(self, key: str, upload: str, numbers: list[int]) -> None:
        """Put the parts of an object together."""
        first, *rest = (self.part(upload, number) for number in numbers)
        with first.open("ab") as whole:
            for part in rest:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole, _COPY_BYTES)
                part.unlink()
        first.replace(self.path(key))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: Storage

    def log_message(self, *_: object) -> None: ...

    def do_PUT(self) -> None:
        url, query = self._url()
        path = self.storage.path(url)
        if "partNumber" in query:
            path = self.storage.part(query["uploadId"][0], int(query["partNumber"][0]))
        body = self._body()
        unfinished = path.with_name(f"{path.name}.{threading.get_ident()}")
        unfinished.write_bytes(body)
        unfinished.replace(path)
        self._answer(200, b"", ETag=f'"{len(body)}"')

    def do_GET(self) -> None:
        url, _ = self._url()
        if url == "/records":
            self._answer(200, json.dumps(self.storage.records).encode())
            return
        path = self.storage.path(url)
        if path.exists():
            self._answer(200, path.read_bytes())
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_DELETE(self) -> None:
        self._answer(204, b"")

    def do_POST(self) -> None:
        url, query = self._url()
        body = self._body()
        operation = (self.headers.get("X-Amz-Target") or "").partition(".")[2]
        if operation == "PutRecords":
            self._take_records(body)
        elif operation == "DescribeStreamSummary":
            self._answer(200, b'{"StreamDescriptionSummary":{"StreamStatus":"ACTIVE"}}')
        elif "uploads" in query:
            upload = self.storage.next_upload()
            self._answer(200, f"<R><UploadId>{upload}</UploadId></R>".encode())
        else:
            numbers = [int(number) for number in _PART.findall(body)]
            self.storage.complete(url, query["uploadId"][0], numbers)
            self._answer(200, b"<R><ETag>whole</ETag></R>")

    def _take_records(self, body: bytes) -> None:
        count = body.count(b'"PartitionKey":')
        with self.storage.lock:
            self.storage.records += count
        record = {"SequenceNumber": "1", "ShardId": "shard"}
        self._answer(200, json.dumps({"FailedRecordCount": 0, "Records": [record] * count}).encode())

    def _url(self) -> tuple[str, dict[str, list[str]]]:
        url = urlsplit(self.path)
        return url.path, parse_qs(url.query, keep_blank_values=True)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return body
        chunks = []
        while body:
            size, _, body = body.partition(b"\r\n")
            length = int(size.partition(b";")[0], 16)
            if length == 0:
                break
            chunks.append(body[:length])
            body = body[length + 2 :]
        return b"".join(chunks)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve a directory, ``sys.argv[1]``, until the process ends; print the port first."""
    handler = type("Handler", (_Handler,), {"storage": Storage(Path(sys.argv[1]))})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
