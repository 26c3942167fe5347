"""The way from a worker to the services: every call takes time, lets others run, and may go wrong on the way.

A call is made as boto3 makes it: sent again, up to so many times, when it fails in a way that botocore repeats. Each
send may fail before it reaches the service, or take effect and lose its response. The process may die on either side
of the effect, and so between any two lines of the code that lie between two calls.
"""

import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError

from .dynamodb import DynamoDB, aws_error, cancelled
from .scheduler import Process, Scheduler
from .services import SQS, Chance

_CALLS_PER_S = 50.0
_READERS = 10
_MODEL_S = (0.5, 12.0)
_STANDSTILL_S = (20.0, 200.0)
_READ_TIMEOUT_S = 20.0
# So many long polls that bring nothing are one here.
_PATIENCE = 6
# How often botocore sends a call, as the worker's clients are set up.
_SENDS = {"dynamodb": 4, "sqs": 4, "sagemaker-runtime": 1}
_DEFAULT_SENDS = 5

_ON_THE_WAY = ("error", "lost_reply", "crash_before", "crash_after", "pause", "stall")


class Port:
    """One process's line to all services."""

    def __init__(self, scheduler: Scheduler, chance: Chance, process: Process) -> None:
        self._scheduler = scheduler
        self._chance = chance
        self._rng = scheduler.rng
        self._process = process
        self._is_together = False
        edges = itertools.accumulate(getattr(chance.faults, name) for name in _ON_THE_WAY)
        self._edges = list(zip(_ON_THE_WAY, edges, strict=True))
        self._most = self._edges[-1][1]

    def call(self, operation: str, effect: Callable[..., Any], request: dict[str, Any], sends: int) -> Any:
        """Have the service do something; raises what boto3 would."""
        for attempt in range(sends):
            if attempt:
                self._scheduler.sleep(self._rng.uniform(0, min(20.0, 2.0 ** (attempt - 1))))
            if self._is_late(request):
                self._scheduler.sleep(self._rng.uniform(*_STANDSTILL_S))
            fault = self._fault()
            if fault or not self._is_together:
                self._travel(fault)
            if fault == "error":
                continue
            if not fault:
                return effect(**request)
            answer = self._faulty(fault, effect, request)
            if answer is not None:
                return answer
        raise self._failure(operation, fault)

    def read_together(self, read: Callable[[int], list[Any]], numbers: Iterable[int]) -> list[list[Any]]:
        """Do reads ten at a time, as threads would: what is read at once takes the time of one."""
        numbers = list(numbers)
        found: list[list[Any]] = []
        for start in range(0, len(numbers), _READERS):
            self._scheduler.sleep(self._rng.expovariate(_CALLS_PER_S))
            self._is_together = True
            try:
                found += [read(number) for number in numbers[start : start + _READERS]]
            finally:
                self._is_together = False
        return found

    def think(self) -> None:
        """Wait as long as a model takes."""
        self._scheduler.sleep(self._rng.uniform(*_MODEL_S))

    def _is_late(self, request: dict[str, Any]) -> bool:
        text = self._chance.faults.late_write
        return bool(text) and text in str(request) and self._chance.strikes("late")

    def _fault(self) -> str:
        if not self._most or not self._chance.is_active:
            return ""
        drawn = self._rng.random()
        if drawn >= self._most:
            return ""
        fault = next(name for name, edge in self._edges if drawn < edge)
        self._chance.injected[fault] = self._chance.injected.get(fault, 0) + 1
        return fault

    def _travel(self, fault: str) -> None:
        if fault == "crash_before":
            self._process.die()
        elif fault == "pause":
            self._process.pause(self._rng.uniform(*_STANDSTILL_S))
        elif fault == "stall":
            self._scheduler.sleep(self._rng.uniform(*_STANDSTILL_S))
        self._scheduler.sleep(self._rng.expovariate(_CALLS_PER_S))

    def _faulty(self, fault: str, effect: Callable[..., Any], request: dict[str, Any]) -> Any:
        """Do it all the same; return None when the answer, be it an error, is lost."""
        if fault == "lost_reply":
            with suppress(ClientError):
                effect(**request)
            # Mostly the connection breaks; sometimes nothing comes, and the caller waits in vain.
            self._scheduler.sleep(_READ_TIMEOUT_S if self._rng.random() < 0.2 else 0.05)
            return None
        if fault != "crash_after":
            return effect(**request)
        with suppress(ClientError):
            effect(**request)
        return self._process.die()

    def _failure(self, operation: str, fault: str) -> Exception:
        address = "https://aws.test"
        if fault == "lost_reply":
            return ReadTimeoutError(endpoint_url=address)
        kind = self._rng.randrange(4)
        if kind == 0:
            return EndpointConnectionError(endpoint_url=address)
        if kind == 1:
            return ConnectTimeoutError(endpoint_url=address)
        code, status = ("InternalServerError", 500) if kind == 2 else ("ThrottlingException", 400)
        return aws_error(code, operation, status=status)


class Client:
    """A boto3 client of one service, in one process."""

    def __init__(self, service: str, twin: Any, port: Port, is_hurried: bool = False) -> None:
        self._twin = twin
        self._port = port
        self._sends = 1 if is_hurried else _SENDS.get(service, _DEFAULT_SENDS)

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        effect, call, sends = getattr(self._twin, operation), self._port.call, self._sends

        def send(**request: Any) -> Any:
            return call(operation, effect, request, sends)

        setattr(self, operation, send)
        return send


class DynamoClient(Client):
    """Adds what botocore adds to a transaction, and what happens where one meets another write on its item."""

    _numbers = itertools.count()

    def __init__(self, twin: DynamoDB, port: Port, chance: Chance, is_hurried: bool = False) -> None:
        super().__init__("dynamodb", twin, port, is_hurried)
        self._chance = chance

    def put_item(self, **request: Any) -> Any:
        return self._write_one("put_item", request)

    def update_item(self, **request: Any) -> Any:
        return self._write_one("update_item", request)

    def delete_item(self, **request: Any) -> Any:
        return self._write_one("delete_item", request)

    def _write_one(self, operation: str, request: dict[str, Any]) -> Any:
        if self._chance.strikes("plain_conflict"):
            raise aws_error("TransactionConflictException", operation)
        return self._port.call(operation, getattr(self._twin, operation), request, self._sends)

    def transact_write_items(self, **request: Any) -> Any:
        if self._chance.strikes("conflict"):
            raise cancelled(["None"] * (len(request["TransactItems"]) - 1) + ["TransactionConflict"])
        request["ClientRequestToken"] = str(next(self._numbers))
        return self._port.call("transact_write_items", self._twin.transact_write_items, request, self._sends)


class SqsClient(Client):
    """Adds the long poll."""

    def __init__(self, twin: SQS, port: Port, is_hurried: bool = False) -> None:
        super().__init__("sqs", twin, port, is_hurried)

    def receive_message(self, **request: Any) -> Any:
        if not self._twin.queues[request["QueueUrl"]].wait(_PATIENCE * request["WaitTimeSeconds"]):
            return {}
        return self._port.call("receive_message", self._twin.receive_message, request, self._sends)


class RuntimeClient(Client):
    """Adds the time that a model takes."""

    def invoke_endpoint(self, **request: Any) -> Any:
        self._port.think()
        try:
            return self._port.call("invoke_endpoint", self._twin.invoke_endpoint, request, self._sends)
        except (ConnectTimeoutError, ReadTimeoutError):
            self._twin.timeouts[request["Body"]] += 1
            raise


class Clients:
    """The clients of one process, as ``AwsClients`` hands them out."""

    def __init__(self, twins: dict[str, Any], port: Port, chance: Chance) -> None:
        self._clients: dict[str, Any] = {
            "dynamodb": DynamoClient(twins["dynamodb"], port, chance),
            "sqs": SqsClient(twins["sqs"], port),
            "sns": Client("sns", twins["sns"], port),
            "s3": Client("s3", twins["s3"], port),
            "ec2": Client("ec2", twins["ec2"], port),
            "sagemaker": Client("sagemaker", twins["sagemaker"], port),
            "kinesis": Client("kinesis", twins["kinesis"], port),
            "sagemaker-runtime": RuntimeClient("sagemaker-runtime", twins["sagemaker-runtime"], port),
        }
        self._hurried_dynamodb = DynamoClient(twins["dynamodb"], port, chance, is_hurried=True)
        self._hurried_sqs = SqsClient(twins["sqs"], port, is_hurried=True)

    def client(self, service: str, assumed_role: str | None = None) -> Any:
        return self._clients[service]

    def dynamodb_resource(self, is_hurried: bool = False) -> Any:
        client = self._hurried_dynamodb if is_hurried else self._clients["dynamodb"]
        return SimpleNamespace(meta=SimpleNamespace(client=client))

    def hurried_sqs(self) -> Any:
        return self._hurried_sqs

    def credentials(self, assumed_role: str | None = None) -> Any:
        return None
