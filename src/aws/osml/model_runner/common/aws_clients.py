"""The one place where boto3 clients are made: one per service and role, kept for the life of the process."""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.session import Session, get_session

ROLE_SESSION_NAME = "AWSOversightMLModelRunner"

# How long a call may hang and how botocore tries again, by service. SageMaker's runtime gets one send per call because
# the model's own retry layer decides there: botocore never repeats 424, 429 ModelNotReady or 530, and its retry quota
# runs dry in an outage just when it is needed.
_RETRIES = {"sagemaker-runtime": 1, "dynamodb": 4, "sqs": 4}
_READ_TIMEOUT_S = {"sagemaker-runtime": 70, "sqs": 30}
_DEFAULT_SENDS = 5


def client_config(service: str, max_connections: int) -> Config:
    """Return botocore's settings for ``service``, which may hold ``max_connections`` open at once."""
    return Config(
        retries={"mode": "standard", "total_max_attempts": _RETRIES.get(service, _DEFAULT_SENDS)},
        connect_timeout=5,
        read_timeout=_READ_TIMEOUT_S.get(service, 20),
        max_pool_connections=max_connections,
        tcp_keepalive=True,
    )


class AwsClients:
    """Makes boto3 clients on first use and hands out the same one ever after; any thread may ask.

    A client for a role signs with credentials that refresh themselves before they expire: the worker's own role
    assumes the other one, and such a chain never lasts longer than an hour.
    """

    def __init__(self, region: str | None = None, max_connections: int = 256) -> None:
        self._region = region
        self._max_connections = max_connections
        self._lock = threading.RLock()
        self._sessions: dict[str | None, boto3.Session] = {}
        self._clients: dict[tuple[str, str | None], Any] = {}
        self._dynamodb: Any = None

    def client(self, service: str, assumed_role: str | None = None) -> Any:
        """Return the process's client of ``service``, signing as ``assumed_role`` when one is given."""
        key = (service, assumed_role or None)
        with self._lock:
            if key not in self._clients:
                config = client_config(service, self._max_connections)
                self._clients[key] = self._session(key[1]).client(service, region_name=self._region, config=config)
            return self._clients[key]

    def dynamodb_resource(self) -> Any:
        """Return the DynamoDB resource, whose client turns Python values into DynamoDB's and back."""
        with self._lock:
            if self._dynamodb is None:
                config = client_config("dynamodb", self._max_connections)
                self._dynamodb = self._session(None).resource("dynamodb", region_name=self._region, config=config)
            return self._dynamodb

    def credentials(self, assumed_role: str | None = None) -> Any:
        """Return botocore credentials of ``assumed_role`` or of the worker itself; None when there are none.

        ``get_frozen_credentials()`` of what comes back gives a key, a secret and a token that are valid now.
        """
        with self._lock:
            return self._session(assumed_role or None).get_credentials()

    def _session(self, role: str | None) -> Any:
        if role not in self._sessions:
            base = get_session()
            if role is not None:
                base = _session_as_role(base, role, lambda: self.client("sts"))
            self._sessions[role] = boto3.Session(botocore_session=base, region_name=self._region)
        return self._sessions[role]


def _session_as_role(session: Session, role: str, sts: Callable[[], Any]) -> Session:
    """Return ``session`` signing as ``role``; the role is assumed at the first call that needs it."""
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=lambda _service, **_credentials: sts(),
        source_credentials=session.get_credentials(),
        role_arn=role,
        extra_args={"RoleSessionName": ROLE_SESSION_NAME},
    )
    session._credentials = DeferredRefreshableCredentials(  # type: ignore[attr-defined]  # botocore has no public setter
        method="assume-role", refresh_using=fetcher.fetch_credentials
    )
    return session


@functools.lru_cache(maxsize=1)
def default_clients() -> AwsClients:
    """Return the clients that constructors use when none are passed in, for the region that the environment names."""
    # boto3 itself reads only the first of the two, and containers are often given the second.
    return AwsClients(os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION"))
