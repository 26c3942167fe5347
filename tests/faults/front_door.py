"""A proxy before the emulator that issues short-lived credentials and turns away whoever uses them too long."""

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs

import urllib3

# botocore renews credentials when they have this long to live, so those issued here say that they live longer than
# they do by as much.
_RENEWAL_S = 900
_CREDENTIAL = re.compile(r"Credential=([^/,]+)/\d+/[^/]+/([^/]+)/")
_DROPPED = frozenset({"connection", "transfer-encoding", "content-length", "host", "x-amz-security-token"})


class Call(NamedTuple):
    """A signed call: the role is empty where the worker signed as itself."""

    role: str
    service: str
    method: str
    path: str


class FrontDoor:
    """``url`` is for AWS_ENDPOINT_URL. Credentials live ``life_s``, and are to be renewed after ``renew_s``.

    ``issued`` counts by role, ``sessions`` holds what STS was asked for each; ``late`` lists the service and the role
    of each call with credentials that had expired. ``calls`` are all others; what ``may`` says no to is refused.
    """

    def __init__(
        self,
        upstream: str,
        sagemaker: str,
        life_s: float = 3600.0,
        renew_s: float = 3600.0,
        may: Callable[[Call], bool] = lambda _: True,
    ) -> None:
        self._upstreams = {"sagemaker": sagemaker}
        self._upstream = upstream
        self._life_s, self._renew_s = life_s, renew_s
        self._numbers = itertools.count(1)
        self._keys: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._http = urllib3.PoolManager(maxsize=64, retries=False)
        self._may = may
        self.calls: list[Call] = []
        self.sessions: list[dict[str, str]] = []
        self.issued: Counter[str] = Counter()
        self.used: Counter[tuple[str, str]] = Counter()
        self.late: list[tuple[str, str]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                status, headers, body = door.answer(self)
                self.send_response_only(status)
                length = headers.pop("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
                for name, value in headers.items():
                    if name.lower() not in _DROPPED:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that has gone is none."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def admit(self, key: str, role: str) -> None:
        """Know ``key`` as one of ``role``, without STS having issued it."""
        self._keys[key] = (role, float("inf"))

    def answer(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        found = _CREDENTIAL.search(request.headers.get("Authorization", ""))
        key, service = found.groups() if found else ("", "")
        if service == "sts":
            return 200, {"Content-Type": "text/xml"}, self._issue(body)
        with self._lock:
            role, expires = self._keys.get(key, ("", float("inf")))
            self.used[service, role] += 1
        if time.time() > expires:
            self.late.append((service, role))
            return 403, {"Content-Type": "text/xml"}, b"<Error><Code>ExpiredToken</Code></Error>"
        call = Call(role, service, request.command, request.path)
        self.calls.append(call)
        if not self._may(call):
            return (
                403,
                {"Content-Type": "text/xml"},
                b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
            )
        return self._forward(request, body, service, key)

    def _issue(self, body: bytes) -> bytes:
        asked = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        role = asked["RoleArn"]
        with self._lock:
            self.sessions.append(asked)
            self.issued[role] += 1
            key = f"ASIA{next(self._numbers):016d}"
            self._keys[key] = (role, time.time() + self._life_s)
        until = (datetime.now(UTC) + timedelta(seconds=_RENEWAL_S + self._renew_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
            <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>{key}</SessionToken>
            <Expiration>{until}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>""".encode()

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes, service: str, key: str
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROPPED}
        if "Authorization" in headers and key:
            # The emulator knows only keys that it has issued itself, and those of its owner.
            headers["Authorization"] = headers["Authorization"].replace(key, "local")
        url = self._upstreams.get(service, self._upstream) + request.path
        answer = self._http.request(
            request.command, url, body=body, headers=headers, redirect=False, decode_content=False
        )
        return answer.status, dict(answer.headers), answer.data
