"""Faults between a worker's boto3 clients and the server, by rules: each names a write and what happens to it.

A rule is a dict: ``on`` is the name of a write (see ``name_of_call``), several of them in a list, or ``*`` for every
write; ``do`` is one of

* ``die_before``, ``die_after``: the process ends as if killed, before the call or when the server has done it;
* ``stop_before``, ``stop_after``: the whole process is stopped there (SIGSTOP) until the test wakes it;
* ``lose``: the server executes the call, and the response is lost;
* ``refuse``: the call does not reach the server; the response is ``code`` with ``status``;
* ``partly``: of a batch, each entry is refused with the probability ``share``;
* ``repeat``: the server gets it three times;
* ``delay``: it is sent ``seconds`` later;
* ``limit``: a stream reports that it takes records of ``kib`` at most.

``nth`` (from 1) and ``times`` say which sends, ``chance`` how likely each is, ``while`` names a file: the rule holds
as long as that exists. All processes append their faults to the journal, one JSON object a line.
"""

import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session

from aws.osml.model_runner.database.feature_table import BLOB_PREFIX

Rule = Mapping[str, Any]

# How each write of the protocol is known: by operation and by words of its expressions.
_DYNAMODB: Mapping[str, Sequence[tuple[str, ...]]] = {
    "TransactWriteItems": (
        ("D1", "image_status = :left", "region_success = :zero"),
        ("D3", "image_status = :left"),
        ("A1", "attribute_not_exists(job_id)"),
        ("A2", "num_attempts = :next"),
        ("R3", "ADD region_"),
    ),
    "PutItem": (
        ("N1", "_callers#"),
        ("A4", "attribute_not_exists(region_id)"),
        ("T1", "range_key"),
        ("A0", "expire_time < :now"),
    ),
    "BatchWriteItem": (("T1-overflow",),),
    "DeleteItem": (("L3", "attribute_not_exists(fact)"), ("G5",)),
    "UpdateItem": (
        ("A2", "num_attempts = :next"),
        ("A3", "region_count = :region_count"),
        ("A4-planned", "SET planned_time"),
        ("F0", "status_outbox = :outbox", "attribute_not_exists(region_count)"),
        ("G3", "status_outbox = :outbox", "agg_fence = :fence"),
        ("R1", "stalled_attempts :one"),
        ("R2-progress", "SET stalled_attempts = :one, backoffs"),
        ("R2-release", "not_before = :not_before ADD backoffs"),
        ("G1", "SET agg_owner"),
        ("G1-renew", "SET agg_lease_until = :until"),
        ("G1-release", "SET agg_lease_until = :zero, agg_stalled"),
        ("G1-failed", "SET agg_lease_until = :zero, agg_not_before = :not_before, agg_error"),
        ("G2-position", "sink_positions = :positions"),
        ("G2-done", "ADD sinks_done"),
        ("G2-failed", "SET sink_errors"),
        ("G4", "REMOVE status_outbox"),
        ("Q1", "SET lease_owner = :owner, lease_until = :until ADD fence"),
        ("L1", "SET due_time = :until"),
        ("L2", "due_time = :due"),
        ("E1", "SET slot_owner = :owner"),
        ("E2", "SET lease_until = :until", "slot_owner = :owner"),
        ("sweep", "SET lease_owner = :owner, lease_until = :until"),
        ("R2", "SET lease_until = :until"),
        ("swept", "SET swept_time"),
        ("queued", "SET queued_time"),
    ),
}
# Where the work bucket's objects lie: their PutObject is a part of T1.
_BLOB_PATH = f"/{BLOB_PREFIX}"
_OTHERS = {
    "SendMessageBatch": "A4-send",
    "SendMessage": "send",
    "DeleteMessage": "delete",
    "ChangeMessageVisibility": "hide",
    "ReceiveMessage": "receive",
    "PutObject": "S3",
    "PutRecords": "Kinesis",
}
_SERVICES = ("dynamodb", "sqs", "sns", "s3", "kinesis", "sts")
# Reads: a rule on "*" does not apply to them.
_READS = frozenset(
    {"receive", "GetItem", "Query", "Scan", "BatchGetItem", "DescribeStreamSummary", "GetQueueAttributes"}
)
# Every conditional write: whether the server took it is recorded.
CONDITIONAL = frozenset(
    {"A0", "A1", "A2", "A3", "A4", "A4-planned", "F0", "R1", "R2", "R2-progress", "R2-release", "R3", "T1"}
    | {"D1", "D3", "G1", "G1-renew", "G1-release", "G1-failed", "G2-position", "G2-done", "G2-failed", "G3", "G4"}
)


def name_of_call(operation: str, body: str, url: str = "") -> str:
    """Return the name under which rules know a call: the protocol's letters where it has some."""
    if operation == "PutObject" and _BLOB_PATH in url:
        return "T1-blob"
    if operation == "Publish":
        is_end = re.search(r"\b(SUCCESS|PARTIAL|FAILED)\b", body) and "image_status" in body
        return "G4-publish" if is_end else "publish"
    if operation in _OTHERS:
        return _OTHERS[operation]
    expressions = " ".join(re.findall(r'"(?:Update|Condition)Expression": ?"([^"]*)"', body))
    for name, *words in _DYNAMODB.get(operation, ()):
        if all(word in expressions for word in words):
            return name
    return operation


class Journal:
    """Faults and the calls that they hit, in a file to which many processes append."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, **event: Any) -> None:
        line = json.dumps({"pid": os.getpid(), "time": time.time(), **event}) + "\n"
        os.write(self._file, line.encode())


class Injector:
    """Applies rules to each send of each client that this process makes."""

    def __init__(self, rules: Sequence[Rule], journal: Journal, seed: int) -> None:
        self._rules = list(rules)
        self._journal = journal
        self._rng = random.Random(seed)
        self._sends: Counter[int] = Counter()
        self._fired: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._session = URLLib3Session(max_pool_connections=64, timeout=20)

    def install(self) -> None:
        """Wrap the making of clients; resources make theirs the same way."""
        make_client = boto3.Session.client

        def client(session: Any, service: str, *arguments: Any, **options: Any) -> Any:
            made = make_client(session, service, *arguments, **options)
            if service in _SERVICES:
                made.meta.events.register_first("before-send", self._on_send)
            return made

        boto3.Session.client = client

    def _on_send(self, request: Any, event_name: str, **_: Any) -> AWSResponse | None:
        operation = event_name.rsplit(".", 1)[-1]
        name = name_of_call(operation, _text(request.body), request.url)
        rule = self._rule_for(name)
        if rule is not None:
            return self._apply(rule, name, request)
        return self._send(name, request) if name in CONDITIONAL else None

    def _rule_for(self, name: str) -> Rule | None:
        with self._lock:
            for index, rule in enumerate(self._rules):
                if self._holds(index, rule, name):
                    self._fired[index] += 1
                    return rule
        return None

    def _holds(self, index: int, rule: Rule, name: str) -> bool:
        names = [rule["on"]] if isinstance(rule["on"], str) else rule["on"]
        if name not in names and not ("*" in names and name not in _READS):
            return False
        if "while" in rule and not os.path.exists(rule["while"]):
            return False
        self._sends[index] += 1
        if self._sends[index] < rule.get("nth", 1) or self._fired[index] >= rule.get("times", 10**9):
            return False
        return self._rng.random() < rule.get("chance", 1.0)

    def _send(self, name: str, request: Any) -> AWSResponse:
        # A process that is stopped meanwhile reads the answer when it wakes, to what the server did long before.
        sent = time.time()
        answer = self._session.send(request)
        self._journal.note(write=name, status=answer.status_code, row=_row_of(request.body), sent=sent)
        return answer

    def _apply(self, rule: Rule, name: str, request: Any) -> AWSResponse | None:
        did = rule["do"]
        self._journal.note(fault=did, on=name, row=_row_of(request.body))
        if did.endswith("_after") or did == "lose":
            self._send(name, request)
        match did:
            case "die_before" | "die_after":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop_before" | "stop_after":
                # To this very thread: a signal to the process may reach another one first, and this one goes on.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
                self._journal.note(fault="woke", on=name)
            case "refuse":
                return refusal(request, rule["code"], rule["status"])
            case "partly" | "limit":
                return self._changed(rule, request)
            case "repeat":
                for _ in range(2):
                    self._session.send(request)
            case "delay":
                time.sleep(rule["seconds"])
        if did in ("stop_after", "lose"):
            raise ReadTimeoutError(endpoint_url=request.url)
        return self._send(name, request) if name in CONDITIONAL else None

    def _changed(self, rule: Rule, request: Any) -> AWSResponse:
        """Send a part of a batch, or change an answer."""
        if rule["do"] == "limit":
            return self._limited(request, rule["kib"])
        document = json.loads(_text(request.body))
        if "Records" in document:
            return self._records_partly(request, document, rule["share"])
        return self._items_partly(request, document, rule["share"])

    def _items_partly(self, request: Any, document: dict[str, Any], share: float) -> AWSResponse:
        kept: dict[str, list[Any]] = {}
        left: dict[str, list[Any]] = {}
        for table, entries in document["RequestItems"].items():
            for entry in entries:
                (left if self._rng.random() < share else kept).setdefault(table, []).append(entry)
        if kept:
            self._session.send(_with_body(request, document | {"RequestItems": kept}))
        return answer_of(request, 200, json.dumps({"UnprocessedItems": left}).encode())

    def _limited(self, request: Any, kib: int) -> AWSResponse:
        summary = json.loads(self._session.send(request).content)
        summary["StreamDescriptionSummary"]["MaxRecordSizeInKiB"] = kib
        return answer_of(request, 200, json.dumps(summary).encode())

    def _records_partly(self, request: Any, document: dict[str, Any], share: float) -> AWSResponse:
        records = document["Records"]
        kept = [index for index in range(len(records)) if self._rng.random() >= share]
        refused = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "too much"}
        results: list[dict[str, Any]] = [dict(refused) for _ in records]
        if kept:
            some = _with_body(request, document | {"Records": [records[index] for index in kept]})
            taken = json.loads(self._session.send(some).content)["Records"]
            for index, result in zip(kept, taken, strict=True):
                results[index] = result
        failed = sum("ErrorCode" in result for result in results)
        return answer_of(request, 200, json.dumps({"FailedRecordCount": failed, "Records": results}).encode())


class _Body:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self) -> Any:
        yield self.body


def answer_of(request: Any, status: int, body: bytes) -> AWSResponse:
    """Return an answer that no server gave."""
    kind = "text/xml" if body.startswith(b"<") else "application/x-amz-json-1.0"
    return AWSResponse(request.url, status, {"Content-Type": kind, "x-amzn-RequestId": "made-up"}, _Body(body))


def refusal(request: Any, code: str, status: int) -> AWSResponse:
    """Return an error in the words of the service that was asked."""
    if "X-Amz-Target" in request.headers:
        document: dict[str, Any] = {"__type": code, "message": "as the test asked"}
        if code == "TransactionCanceledException":
            document["CancellationReasons"] = [{"Code": "TransactionConflict"}, {"Code": "None"}]
        return answer_of(request, status, json.dumps(document).encode())
    error = f"<Error><Code>{code}</Code><Message>as the test asked</Message></Error>"
    if b"Action=" in _text(request.body).encode():
        error = f"<ErrorResponse>{error}</ErrorResponse>"
    return answer_of(request, status, error.encode())


def _with_body(request: Any, document: Mapping[str, Any]) -> Any:
    body = json.dumps(document).encode()
    headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
    return AWSPreparedRequest(
        request.method, request.url, {**headers, "Content-Length": str(len(body))}, body, stream_output=False
    )


def _text(body: Any) -> str:
    if isinstance(body, bytes | bytearray):
        return body.decode(errors="replace")
    return body if isinstance(body, str) else ""


def _row_of(body: Any) -> str:
    """Return the image or tile of a write, or an empty text if the write names neither."""
    found = re.findall(r'"(?:image_id|hash_key|range_key|region_id|job_id)": ?\{"S": ?"([^"]*)"', _text(body)[:20_000])
    return " ".join(found[:2])
