"""The only module that makes boto3 clients: one per service and role, kept for the life of the process."""

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

# Sends per call and read time-outs, by service. SageMaker's runtime has one send per call, because ``inference.retry``
# decides there. A retry of botocore never repeats 424, 429 ModelNotReady or 530. An outage exhausts its retry quota.
_SENDS = {"sagemaker-runtime": 1, "dynamodb": 4, "sqs": 4}
_READ_TIMEOUT_S = {"sagemaker-runtime": 70, "sqs": 30}
_DEFAULT_SENDS = 5
# Services whose calls botocore does not validate before it sends them. Validation walks through every feature of every
# tile, and only the code of the tables makes these calls.
_UNCHECKED = frozenset({"dynamodb"})
# Sessions of roles are per job. A worker has few jobs at a time; sessions of older jobs are dropped.
_KEPT_SESSIONS = 64
_CLIENTS_PER_SESSION = 4

# Time-outs of calls that are repeated soon in any case: they are sent once and must not hang.
_HURRIED_CONNECT_S = 2
_HURRIED_READ_S = 5


def client_config(service: str, max_connections: int, is_hurried: bool = False) -> Config:
    """Return botocore's settings for ``service``, with at most ``max_connections`` open connections."""
    sends = 1 if is_hurried else _SENDS.get(service, _DEFAULT_SENDS)
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
    """Makes boto3 clients on first use, and returns the same client afterwards; any thread may call.

    A client for a role signs with credentials that botocore refreshes before they expire. The worker's own role assumes
    that role, and such a chained session lasts an hour at most.
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
        """Set the external id for assuming roles, and whether sessions are narrowed by their session policy.

        Without its policy a session has all permissions of its role.
        """
        self._external_id = external_id
        self._narrows_roles = narrows_roles

    def with_fresh_credentials(self) -> "AwsClients":
        """Return new clients with the same settings and no cached credentials."""
        made = AwsClients(self._region, self._max_connections)
        made.set_role_terms(self._external_id, self._narrows_roles)
        return made

    def dynamodb_resource(self, is_hurried: bool = False) -> Any:
        """Return the DynamoDB resource, whose client converts Python values to DynamoDB's and back.

        With ``is_hurried`` the resource is for renewals: its calls are sent once and fail within seconds.
        """
        with self._lock:
            if is_hurried not in self._dynamodb:
                config = client_config("dynamodb", self._max_connections, is_hurried)
                made = self._session(None).resource("dynamodb", region_name=self._region, config=config)
                read_rows_fast(made.meta.client)
                self._dynamodb[is_hurried] = made
            return self._dynamodb[is_hurried]

    def hurried_sqs(self) -> Any:
        """Return an SQS client for renewals: its calls are sent once and fail within seconds."""
        with self._lock:
            if self._hurried_sqs is None:
                config = client_config("sqs", self._max_connections, is_hurried=True)
                self._hurried_sqs = self._session(None).client("sqs", region_name=self._region, config=config)
            return self._hurried_sqs

    def credentials(self, assumed_role: Role = None) -> Any:
        """Return botocore credentials of ``assumed_role`` or of the worker itself; None without credentials.

        Their ``get_frozen_credentials()`` returns a key, a secret and a token that are valid now.
        """
        with self._lock:
            return self._session(_role_session(assumed_role)).get_credentials()

    def _session(self, role: RoleSession | None) -> Any:
        if role is None:
            if self._own_session is None:
                self._own_session = self._new_session(get_session())
            return self._own_session
        if role not in self._sessions:
            # The first call that needs the role assumes it.
            session = get_session()
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
            self._sessions[role] = self._new_session(session)
        return self._sessions[role]

    def _new_session(self, session: Session) -> boto3.Session:
        return boto3.Session(botocore_session=session, region_name=self._region)


def _role_session(role: Role) -> RoleSession | None:
    if isinstance(role, str):
        return RoleSession(role) if role else None
    return role


@functools.lru_cache(maxsize=1)
def default_clients() -> AwsClients:
    """Return the clients that constructors use by default, for the region in the environment."""
    # boto3 itself reads only the first variable, and containers often have only the second.
    return AwsClients(os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION"))
