"""Stands in for AWS where an emulator's memory would not do: objects and one table lie on disk, records are counted.

It knows what the product calls: put, get, uploads in parts, PutRecords, and writing and reading rows by key. No
condition is checked. Calls for other tables go on to the emulator.

    disk_storage.py DIRECTORY TABLE EMULATOR_URL
"""

import hashlib
import json
import re
import shutil
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
import urllib3

_MOST_ANSWER_BYTES = 15_000_000
_COPY_BYTES = 1 << 20
_PART = re.compile(rb"<PartNumber>(\d+)</PartNumber>")


class Storage:
    """Objects below a directory, and how many records came."""

    def __init__(self, directory: Path, table: str = "", emulator: str = "") -> None:
        self.directory = directory
        self.records = 0
        self.table = table
        self.emulator = emulator
        self.pool = urllib3.PoolManager(maxsize=16)
        self.uploads = 0
        self.lock = threading.Lock()

    def path(self, key: str) -> Path:
        """Return the file of an object, ``/bucket/key``; keys become digests, since some end where others go on."""
        return self.directory / hashlib.sha256(unquote(key).encode()).hexdigest()

    def row(self, key: dict[str, dict[str, str]]) -> Path:
        """Return the file of a row of the table."""
        name = "#".join(key[name]["S"] for name in ("hash_key", "range_key"))
        return self.directory / f"{hashlib.sha256(name.encode()).hexdigest()}.row"

    def part(self, upload: str, number: int) -> Path:
        """Return the file of a part."""
        return self.directory / f"{upload}-{number}"

    def next_upload(self) -> str:
        """Return an id."""
        with self.lock:
            self.uploads += 1
            return f"upload-{self.uploads}"

    def complete(self, key: str, upload: str, numbers: list[int]) -> None:
        """Note which parts make an object: many gigabytes are not put together while a client waits."""
        self._parts_of(key).write_text("\n".join(str(self.part(upload, number)) for number in numbers))

    def joined(self, key: str) -> Path:
        """Return the file of an object, whose parts are put together now."""
        path, parts = self.path(key), self._parts_of(key)
        if parts.exists():
            with path.open("wb") as whole:
                for part in map(Path, parts.read_text().splitlines()):
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, whole, _COPY_BYTES)
                    part.unlink()
            parts.unlink()
        return path

    def _parts_of(self, key: str) -> Path:
        return self.path(key).with_suffix(".parts")


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

    def do_HEAD(self) -> None:
        # A sink looks for the result of another job; each run has a directory of its own.
        self._answer(404, b"")

    def do_DELETE(self) -> None:
        self._answer(204, b"")

    def do_POST(self) -> None:
        url, query = self._url()
        body = self._body()
        service, _, operation = (self.headers.get("X-Amz-Target") or "").partition(".")
        if service.startswith("DynamoDB"):
            self._do_rows(operation, body)
        elif operation == "PutRecords":
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

    def _do_rows(self, operation: str, body: bytes) -> None:
        request, storage = orjson.loads(body), self.storage
        if operation == "PutItem" and request["TableName"] == storage.table:
            self._put_row(request["Item"])
            answer: Any = {}
        elif operation == "BatchWriteItem" and storage.table in request["RequestItems"]:
            for write in request["RequestItems"][storage.table]:
                self._put_row(write["PutRequest"]["Item"])
            answer = {"UnprocessedItems": {}}
        elif operation == "BatchGetItem" and storage.table in request["RequestItems"]:
            self._get_rows(request["RequestItems"][storage.table]["Keys"])
            return
        else:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            found = storage.pool.request("POST", storage.emulator, body=body, headers=headers)
            self._answer(found.status, found.data)
            return
        self._answer(200, orjson.dumps(answer))

    def _put_row(self, item: dict[str, Any]) -> None:
        path = self.storage.row(item)
        path.write_bytes(zlib.compress(orjson.dumps(item), 1))

    def _get_rows(self, keys: list[Any]) -> None:
        """Return rows up to 16 MB, as DynamoDB does, and the keys of the others."""
        rows: list[bytes] = []
        rest = list(keys)
        while rest and sum(map(len, rows)) < _MOST_ANSWER_BYTES:
            path = self.storage.row(rest.pop(0))
            if path.exists():
                rows.append(zlib.decompress(path.read_bytes()))
        table = orjson.dumps(self.storage.table)
        left = orjson.dumps({self.storage.table: {"Keys": rest}} if rest else {})
        self._answer(200, b'{"Responses":{%b:[%b]},"UnprocessedKeys":%b}' % (table, b",".join(rows), left))

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
    """Serve until the process ends; print the port first."""
    handler = type("Handler", (_Handler,), {"storage": Storage(Path(sys.argv[1]), *sys.argv[2:])})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
