"""Steps that refuse what AWS throttles, and slow down what AWS is slow at."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aws_proxy.proxy import Answer, Call, Forward, json_error
from aws_proxy.units import item_bytes, write_units

EXCEEDED = "ProvisionedThroughputExceededException"
THROTTLING = "ThrottlingException"
_MESSAGE = "Throughput exceeds the current capacity of your table or index."
_REASONS = {EXCEEDED: "ProvisionedThroughputExceeded", THROTTLING: "ThrottlingError"}
_READS = frozenset({"GetItem", "BatchGetItem", "TransactGetItems", "Query", "Scan"})
_SINGLE_WRITES = frozenset({"PutItem", "UpdateItem", "DeleteItem"})


class Admission(Protocol):
    """Decides whether a call may pass now; ``charge`` takes what it consumed."""

    def admits(self) -> bool: ...

    def charge(self, units: float) -> None: ...


class TokenBucket:
    """Admits ``rate`` units a second and ``burst`` at once; a large call is admitted whole and leaves a debt."""

    def __init__(self, rate: float, burst: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._burst = rate if burst is None else burst
        self._clock = clock
        self._level = self._burst
        self._filled_at = clock()
        self._lock = threading.Lock()

    def admits(self) -> bool:
        with self._lock:
            now = self._clock()
            self._level = min(self._burst, self._level + (now - self._filled_at) * self.rate)
            self._filled_at = now
            return self._level > 0

    def charge(self, units: float) -> None:
        with self._lock:
            self._level -= units


class Chance:
    """Admits a ``share`` of all calls, always the same ones for a ``seed``: as when others use the rest."""

    def __init__(self, share: float, seed: int = 0) -> None:
        self.share = share
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def admits(self) -> bool:
        with self._lock:
            return self._rng.random() < self.share

    def charge(self, units: float) -> None:
        """Keep no account."""


class ThrottledWrites:
    """Refuses writes to ``table`` that ``admission`` does not admit; of a batch, the rest comes back unprocessed.

    An empty ``table`` means every table. ``refused`` counts by operation.
    """

    def __init__(self, admission: Admission, table: str = "", code: str = EXCEEDED) -> None:
        self.admission = admission
        self.refused: Counter[str] = Counter()
        self._table = table
        self._code = code

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.service != "dynamodb":
            return forward(call)
        if call.operation in _SINGLE_WRITES and self._is_meant(call.document["TableName"]):
            return self._single(call, forward)
        if call.operation == "TransactWriteItems":
            tables = [next(iter(entry.values()))["TableName"] for entry in call.document["TransactItems"]]
            return self._transaction(call, forward, [self._is_meant(table) for table in tables])
        if call.operation == "BatchWriteItem":
            return self._batch(call, forward)
        return forward(call)

    def _is_meant(self, table: str) -> bool:
        return self._table in ("", table)

    def _single(self, call: Call, forward: Forward) -> Answer:
        if not self.admission.admits():
            return self._refuse(call)
        return self._charged(call, forward, write_units(item_bytes(call.document.get("Item", {}))))

    def _transaction(self, call: Call, forward: Forward, is_meant: list[bool]) -> Answer:
        if not any(is_meant) or self.admission.admits():
            return self._charged(call, forward, 2 * sum(is_meant))
        self.refused[call.operation] += 1
        reasons = [{"Code": _REASONS[self._code] if meant else "None"} for meant in is_meant]
        return json_error("TransactionCanceledException", "Transaction cancelled", CancellationReasons=reasons)

    def _batch(self, call: Call, forward: Forward) -> Answer:
        request = call.document
        admitted: dict[str, list[Any]] = {}
        rest: dict[str, list[Any]] = {}
        reserved = 0
        for table, writes in request["RequestItems"].items():
            for write in writes:
                if self._is_meant(table) and not self.admission.admits():
                    rest.setdefault(table, []).append(write)
                    continue
                admitted.setdefault(table, []).append(write)
                if self._is_meant(table):
                    units = write_units(item_bytes(write.get("PutRequest", {}).get("Item", {})))
                    self.admission.charge(units)
                    reserved += units
        if not rest:
            return self._charged(call, forward, reserved, is_reserved=True)
        self.refused[call.operation] += sum(map(len, rest.values()))
        if not admitted:
            return json_error(self._code, _MESSAGE)
        answer = self._charged(
            call.with_document({**request, "RequestItems": admitted}), forward, reserved, is_reserved=True
        )
        result = answer.document
        if answer.status == 200:
            for table, writes in result.get("UnprocessedItems", {}).items():
                rest.setdefault(table, []).extend(writes)
            result["UnprocessedItems"] = rest
        return answer.with_document(result)

    def _charged(self, call: Call, forward: Forward, reserved: float, is_reserved: bool = False) -> Answer:
        if not is_reserved:
            self.admission.charge(reserved)
        answer = forward(call)
        used = sum(units.write for units in call.units if self._is_meant(units.table))
        self.admission.charge(max(0.0, used - reserved))
        return answer

    def _refuse(self, call: Call) -> Answer:
        self.refused[call.operation] += 1
        return json_error(self._code, _MESSAGE)


class ThrottledReads:
    """Refuses reads of ``table`` (all, when empty) that ``admission`` does not admit; needs a ``UnitMeter`` behind."""

    def __init__(self, admission: Admission, table: str = "", code: str = EXCEEDED) -> None:
        self.admission = admission
        self.refused: Counter[str] = Counter()
        self._table = table
        self._code = code

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.service != "dynamodb" or call.operation not in _READS or not self._is_meant(call):
            return forward(call)
        if not self.admission.admits():
            self.refused[call.operation] += 1
            return json_error(self._code, _MESSAGE)
        answer = forward(call)
        self.admission.charge(sum(units.read for units in call.units))
        return answer

    def _is_meant(self, call: Call) -> bool:
        request = call.document
        tables = request.get("RequestItems", {request.get("TableName"): None})
        return not self._table or self._table in tables


class ThrottledCalls:
    """Refuses the named operations of any service that ``admission`` does not admit: a control plane's quota."""

    def __init__(self, admission: Admission, *operations: str, code: str = THROTTLING) -> None:
        self.admission = admission
        self.refused: Counter[str] = Counter()
        self._operations = operations
        self._code = code

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.operation not in self._operations:
            return forward(call)
        if not self.admission.admits():
            self.refused[call.operation] += 1
            return json_error(self._code, "Rate exceeded")
        self.admission.charge(1)
        return forward(call)


class Delays:
    """Holds calls back by the seconds of their operation, as ``Delays({"DescribeEndpoint": 0.1})``."""

    def __init__(self, seconds: Mapping[str, float], sleep: Callable[[float], None] = time.sleep) -> None:
        self.seconds = dict(seconds)
        self._sleep = sleep

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.operation in self.seconds:
            self._sleep(self.seconds[call.operation])
        return forward(call)
