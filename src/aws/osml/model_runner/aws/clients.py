"""The one place where boto3 clients are made: one per service and role, kept for the life of the process."""

import functools
import os
import threading
from typing import Any

import boto3
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.session import Session, get_session
from cachetools import LRUCache

from .dynamodb_rows import read_rows_fast
from .role_session import RoleSession

# How long a call may hang and how botocore tries again, by service. SageMaker's runtime gets one send per call because
# the model's own retry layer decides there: botocore never repeats 424, 429 ModelNotReady or 530, and its retry quota
# runs dry in an outage just when it is needed.
_RETRIES = {"sagemaker-runtime": 1, "dynamodb": 4, "sqs": 4}
_READ_TIMEOUT_S = {"sagemaker-runtime": 70, "sqs": 30}
_DEFAULT_SENDS = 5
# Whose calls botocore does not check before it sends them: it walks through every feature of every tile for that, and
# the tables' own code makes these calls.
_UNCHECKED = frozenset({"dynamodb"})
# Sessions of roles are per job; a worker has few jobs at a time, and those that it no longer works for are forgotten.
_KEPT_SESSIONS = 64
_CLIENTS_PER_SESSION = 4


# Of calls that are made again soon in any case: one send, which does not hang for long.
_HURRIED_CONNECT_S = 2
_HURRIED_READ_S = 5


def client_config(service: str, max_connections: int, is_hurried: bool = False) -> Config:
    """Return botocore's settings for ``service``, which may hold ``max_connections`` open at once."""
    sends = 1 if is_hurried else _RETRIES.get(service, _DEFAULT_SENDS)
    return Config(
        retries={"mode": "standard", "total_max_attempts": sends},
        connect_timeout=_HURRIED_CONNECT_S if is_hurried else 5,
        read_timeout=_HURRIED_READ_S if is_hurried else _READ_TIMEOUT_S.get(service, 20),
        max_pool_connections=max_connections,
        parameter_validation=service not in _UNCHECKED,
        tcp_keepalive=True,
    )


Role = str | RoleSession | None


class AwsClients:
    """Makes boto3 clients on first use and hands out the same one ever after; any thread may ask.

    A client for a role signs with credentials that refresh themselves before they expire: the worker's own role
    assumes the other one, and such a chain never lasts longer than an hour.
    """

    def __init__(self, region: str | None = None, max_connections: int = 256) -> None:
        self._region = region
        self._max_connections = max_connections
        self._external_id: str | None = None
        self._narrows_roles = True
        self._lock = threading.RLock()
        self._own_session: boto3.Session | None = None
        self._sessions: LRUCache[RoleSession, boto3.Session] = LRUCache(_KEPT_SESSIONS)
        self._own_clients: dict[str, Any] = {}
        self._clients: LRUCache[tuple[str, RoleSession], Any] = LRUCache(_KEPT_SESSIONS * _CLIENTS_PER_SESSION)
        self._dynamodb: dict[bool, Any] = {}
        self._hurried_sqs: Any = None

    def client(self, service: str, assumed_role: Role = None) -> Any:
        """Return the process's client of ``service``, signing as ``assumed_role`` when one is given."""
        role = _role_session(assumed_role)
        with self._lock:
            if role is None:
                if service not in self._own_clients:
                    self._own_clients[service] = self._new_client(service, None)
                return self._own_clients[service]
            if (service, role) not in self._clients:
                self._clients[service, role] = self._new_client(service, role)
            return self._clients[service, role]

    def _new_client(self, service: str, role: RoleSession | None) -> Any:
        config = client_config(service, self._max_connections)
        return self._session(role).client(service, region_name=self._region, config=config)

    def set_role_terms(self, external_id: str | None, narrows_roles: bool) -> None:
        """Tell ``external_id`` whenever a role is assumed from now on, and whether its session's policy as well.

        Without its policy a session may do all that its role may.
        """
        self._external_id = external_id
        self._narrows_roles = narrows_roles

    def with_fresh_credentials(self) -> "AwsClients":
        """Return clients with the same settings that know nothing yet, credentials least of all."""
        made = AwsClients(self._region, self._max_connections)
        made.set_role_terms(self._external_id, self._narrows_roles)
        return made

    def dynamodb_resource(self, is_hurried: bool = False) -> Any:
        """Return the DynamoDB resource, whose client turns Python values into DynamoDB's and back.

        With ``is_hurried`` it is one for renewals: its calls are sent once and fail within seconds.
        """
        with self._lock:
            if is_hurried not in self._dynamodb:
                config = client_config("dynamodb", self._max_connections, is_hurried)
                made = self._session(None).resource("dynamodb", region_name=self._region, config=config)
                read_rows_fast(made.meta.client)
                self._dynamodb[is_hurried] = made
            return self._dynamodb[is_hurried]

    def hurried_sqs(self) -> Any:
        """Return a client of SQS for renewals: its calls are sent once and fail within seconds."""
        with self._lock:
            if self._hurried_sqs is None:
                config = client_config("sqs", self._max_connections, is_hurried=True)
                self._hurried_sqs = self._session(None).client("sqs", region_name=self._region, config=config)
            return self._hurried_sqs

    def credentials(self, assumed_role: Role = None) -> Any:
        """Return botocore credentials of ``assumed_role`` or of the worker itself; None when there are none.

        ``get_frozen_credentials()`` of what comes back gives a key, a secret and a token that are valid now.
        """
        with self._lock:
            return self._session(_role_session(assumed_role)).get_credentials()

    def _session(self, role: RoleSession | None) -> Any:
        if role is None:
            if self._own_session is None:
                self._own_session = self._new_session(get_session())
            return self._own_session
        if role not in self._sessions:
            self._sessions[role] = self._new_session(self._as_role(get_session(), role))
        return self._sessions[role]

    def _new_session(self, session: Session) -> boto3.Session:
        return boto3.Session(botocore_session=session, region_name=self._region)

    def _as_role(self, session: Session, role: RoleSession) -> Session:
        """Return ``session`` signing as ``role``; the role is assumed at the first call that needs it."""
        arguments = {"RoleSessionName": role.name}
        if self._external_id:
            arguments["ExternalId"] = self._external_id
        if self._narrows_roles and role.policy:
            arguments["Policy"] = role.policy
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=lambda _service, **_credentials: self.client("sts"),
            source_credentials=session.get_credentials(),
            role_arn=role.role_arn,
            extra_args=arguments,
        )
        session._credentials = DeferredRefreshableCredentials(  # type: ignore[attr-defined]  # no public setter
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )
        return session


def _role_session(role: Role) -> RoleSession | None:
    if isinstance(role, str):
        return RoleSession(role) if role else None
    return role


@functools.lru_cache(maxsize=1)
def default_clients() -> AwsClients:
    """Return the clients that constructors use when none are passed in, for the region that the environment names."""
    # boto3 itself reads only the first of the two, and containers are often given the second.
    return AwsClients(os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION"))
