"""A proxy before the emulator that issues short-lived credentials and turns away whoever uses them too long."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

from aws_proxy.proxy import Answer, AwsProxy, Call, Forward, xml_error

# botocore renews credentials when they have this long to live, so those issued here say that they live longer than
# they do by as much.
_RENEWAL_S = 900


class FrontDoor(AwsProxy):
    """``url`` is for AWS_ENDPOINT_URL. Credentials live ``life_s``, and are to be renewed after ``renew_s``.

    ``issued`` counts by role, ``sessions`` holds the requests to STS; ``late`` lists the service and the role of each
    call with expired credentials. ``calls`` are all others. A call for which ``may`` returns False is refused.
    The ``role`` of a call is empty where the worker signed as itself.
    """

    def __init__(
        self,
        upstream: str,
        sagemaker: str,
        life_s: float = 3600.0,
        renew_s: float = 3600.0,
        may: Callable[[Call], bool] = lambda _: True,
    ) -> None:
        super().__init__(upstream, sagemaker, [self._check])
        self._life_s, self._renew_s = life_s, renew_s
        self._numbers = itertools.count(1)
        self._keys: dict[str, tuple[str, float]] = {}
        self._may = may
        self.calls: list[Call] = []
        self.sessions: list[dict[str, str]] = []
        self.issued: Counter[str] = Counter()
        self.used: Counter[tuple[str, str]] = Counter()
        self.late: list[tuple[str, str]] = []

    def admit(self, key: str, role: str) -> None:
        """Know ``key`` as one of ``role``, without STS having issued it."""
        self._keys[key] = (role, float("inf"))

    def _check(self, call: Call, forward: Forward) -> Answer:
        if call.service == "sts":
            return Answer(200, {"Content-Type": "text/xml"}, self._issue(call.body))
        with self._lock:
            call.role, expires = self._keys.get(call.key, ("", float("inf")))
            self.used[call.service, call.role] += 1
        if time.time() > expires:
            self.late.append((call.service, call.role))
            return xml_error("ExpiredToken", status=403)
        self.calls.append(replace(call, body=b""))
        if not self._may(call):
            return xml_error("AccessDenied", "Access Denied", 403)
        return forward(replace(call, headers=_as_owner(call)))

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


def _as_owner(call: Call) -> dict[str, str]:
    """Return headers with the emulator owner's key; the emulator accepts only this key and its own keys."""
    headers = {name: value for name, value in call.headers.items() if name != "x-amz-security-token"}
    if call.key:
        headers["authorization"] = headers.get("authorization", "").replace(call.key, "local")
    return headers
