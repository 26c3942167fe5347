"""Runs the AWS emulator for holders of an access key, and for no page in a browser.

Other users of this machine reach a loopback port, and so does a page in a browser, by a form or by a name that it lets
point here. The emulator itself serves any request and names no origin that it refuses.

A script without imports of this project: it may run in another environment, in which the emulator is installed.
"""

import hmac
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

ACCESS_KEY_VARIABLE = "EMULATOR_ACCESS_KEY"
HEALTH_PATH = "/_ministack/health"

_CREDENTIAL = re.compile(r"Credential=([^/,\s]{1,128})/")
_HOST = re.compile(r"(127\.0\.0\.1|localhost|[a-z0-9.-]{1,255}\.localhost)(:\d{1,5})?", re.IGNORECASE)
_REFUSAL = b'{"__type": "AccessDeniedException", "message": "this emulator serves holders of its access key alone"}'


def is_served(path: str, headers: Mapping[str, str], query: str, is_known: Callable[[str], bool]) -> bool:
    """Return True for a request that no browser made and that names an access key which ``is_known``."""
    if "origin" in headers or not _HOST.fullmatch(headers.get("host", "")):
        return False
    return path == HEALTH_PATH or is_known(_access_key(headers.get("authorization", ""), query))


def _access_key(authorization: str, query: str) -> str:
    if found := _CREDENTIAL.search(authorization):
        return found[1]
    members = parse_qs(query)
    # Signed URLs, of both versions of the signature.
    signed = members.get("X-Amz-Credential") or members.get("AWSAccessKeyId") or [""]
    return signed[0].split("/", 1)[0]


def guarded(application: Any, is_known: Callable[[str], bool]) -> Any:
    """Return an ASGI application that refuses what is not to be served, before its body is read."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan" and not is_served(*_head(scope), is_known):
            await _refuse(scope["type"], send)
        else:
            await application(scope, receive, send)

    return serve


def _head(scope: Any) -> tuple[str, Mapping[str, str], str]:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return scope["path"], headers, scope.get("query_string", b"").decode("latin-1")


async def _refuse(kind: str, send: Any) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})


def main() -> None:
    """Serve until SIGTERM; the emulator's own variables say where, EMULATOR_ACCESS_KEY for whom. Unset: for any key."""
    from ministack import app
    from ministack.services import sts

    access_key = os.environ.pop(ACCESS_KEY_VARIABLE, "")

    def is_known(key: str) -> bool:
        if not access_key:
            return key != ""
        # The emulator's STS issues the keys of roles, to holders of a known key alone.
        return hmac.compare_digest(key.encode(), access_key.encode()) or key in sts._sessions

    app.app = guarded(app.app, is_known)
    app.main()


if __name__ == "__main__":
    main()
