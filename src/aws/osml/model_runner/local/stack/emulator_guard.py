"""Runs the AWS emulator for holders of an access key, and refuses requests of browsers.

Other users of this machine can reach a loopback port. A page in a browser can too, by a form, or by a host name that
resolves to this machine. The emulator itself serves requests of every origin.

This script does not import the project, because it may run in another environment, in which the emulator is installed.
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
_REFUSAL = b'{"__type": "AccessDeniedException", "message": "this emulator serves only holders of its access key"}'


def is_served(path: str, headers: Mapping[str, str], query: str, is_known: Callable[[str], bool]) -> bool:
    """Return True for a request that does not come from a browser and names an access key which ``is_known``."""
    if "origin" in headers or not _HOST.fullmatch(headers.get("host", "")):
        return False
    if path == HEALTH_PATH:
        return True
    if credential := _CREDENTIAL.search(headers.get("authorization", "")):
        return is_known(credential[1])
    # Signed URLs, of both versions of the signature.
    members = parse_qs(query)
    signed = members.get("X-Amz-Credential") or members.get("AWSAccessKeyId") or [""]
    return is_known(signed[0].split("/", 1)[0])


def guarded(application: Any, is_known: Callable[[str], bool]) -> Any:
    """Return an ASGI application that refuses a request that is not to be served, before its body is read."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await application(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope.get("query_string", b"").decode("latin-1")
        if is_served(scope["path"], headers, query, is_known):
            await application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            fields = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": fields})
            await send({"type": "http.response.body", "body": _REFUSAL})

    return serve


def main() -> None:
    """Serve until SIGTERM, at the address of the emulator's own variables, for holders of EMULATOR_ACCESS_KEY.

    If EMULATOR_ACCESS_KEY is not set, any access key is served.
    """
    from ministack import app
    from ministack.services import sts

    access_key = os.environ.pop(ACCESS_KEY_VARIABLE, "")

    def is_known(key: str) -> bool:
        if not access_key:
            return key != ""
        # The emulator's STS issues the keys of roles, and only to holders of a known key.
        return hmac.compare_digest(key.encode(), access_key.encode()) or key in sts._sessions

    app.app = guarded(app.app, is_known)
    app.main()


if __name__ == "__main__":
    main()
