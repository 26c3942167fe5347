"""A queue of requests over a real SQS: nothing is lost, and another worker's message is not an error."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.queue import QueueError, QueueMessage, RequestQueue
from aws.osml.model_runner.queue.request_queue import MAX_BATCH_BYTES, batches_of_bodies, parse_request
from aws_faults import answering, json_error, never_sending, single_try_client

queue_numbers = itertools.count()


@pytest.fixture(scope="module")
def sqs(emulator: Any) -> Iterator[Any]:
    client = single_try_client(emulator, "sqs")
    yield client
    client.close()


@pytest.fixture
def url(sqs: Any) -> str:
    name = f"request-queue-{next(queue_numbers)}"
    return sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "45"})["QueueUrl"]


@pytest.fixture
def queue(sqs: Any, url: str) -> RequestQueue:
    return RequestQueue(url, wait_seconds=0, num_messages=10, client=sqs, sleep=lambda _s: None)


def drain(queue: RequestQueue) -> list[QueueMessage]:
    messages: list[QueueMessage] = []
    while received := queue.receive():
        messages += received
    return messages


def test_request_is_received_unchanged(queue: RequestQueue) -> None:
    queue.send_request({"jobId": "é", "n": [1, 2.5, None]})
    (message,) = queue.receive()
    assert json.loads(message.body) == {"jobId": "é", "n": [1, 2.5, None]}
    assert message.receive_count == 1
    assert queue.receive() == [], "it is hidden while it is worked on"


def test_body_is_sent_verbatim(queue: RequestQueue) -> None:
    queue.send_body('{ "a" :1 }  not json\n')
    assert queue.receive()[0].body == '{ "a" :1 }  not json\n'


def test_finished_request_is_gone(queue: RequestQueue) -> None:
    queue.send_request({"n": 1})
    (message,) = queue.receive()
    queue.reset_request(message.receipt_handle)
    (message,) = queue.receive()
    queue.finish_request(message.receipt_handle)
    assert drain(queue) == []


def test_released_request_is_received_again(queue: RequestQueue) -> None:
    queue.send_request({"n": 1})
    for count in (1, 2, 3):
        (message,) = queue.receive()
        assert message.receive_count == count
        queue.reset_request(message.receipt_handle)


def test_request_may_be_hidden_for_longer(queue: RequestQueue) -> None:
    queue.send_request({"n": 1})
    (message,) = queue.receive()
    queue.reset_request(message.receipt_handle, visibility_timeout=1)
    assert queue.receive() == []
    time.sleep(1.2)
    assert len(queue.receive()) == 1


def test_no_longer_than_sqs_allows(queue: RequestQueue) -> None:
    queue.send_request({"n": 1})
    (message,) = queue.receive()
    queue.reset_request(message.receipt_handle, visibility_timeout=10**9)


def test_queue_reports_how_long_messages_stay_hidden(queue: RequestQueue, sqs: Any) -> None:
    assert queue.visibility_timeout_s() == 45
    with answering(sqs, "GetQueueAttributes", json_error("InternalError", 500)):
        assert queue.visibility_timeout_s() == 45, "it is asked once"


def test_many_requests_are_sent_in_batches(queue: RequestQueue, sqs: Any) -> None:
    requests = [{"n": n} for n in range(37)]
    with answering(sqs, "SendMessageBatch", None) as calls:
        queue.send_requests(requests)
    assert len(calls) == 4
    assert sorted(json.loads(message.body)["n"] for message in drain(queue)) == list(range(37))


def test_no_requests_are_no_call(queue: RequestQueue, sqs: Any) -> None:
    with answering(sqs, "SendMessageBatch", None) as calls:
        queue.send_requests([])
    assert calls == []


def batch_answer(failed: dict[str, bool], done: list[str]) -> tuple[int, dict[str, str], bytes]:
    body = {
        "Failed": [{"Id": key, "Code": "InternalError", "SenderFault": fault} for key, fault in failed.items()],
        "Successful": [{"Id": key, "MessageId": key, "MD5OfMessageBody": "x"} for key in done],
    }
    return 200, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(body).encode()


def test_failed_entries_of_batch_are_sent_again(queue: RequestQueue, sqs: Any) -> None:
    with answering(sqs, "SendMessageBatch", batch_answer({"1": False, "3": False}, ["0", "2"]), None) as calls:
        queue.send_requests([{"n": n} for n in range(4)])
    assert len(calls) == 2
    assert sorted(json.loads(message.body)["n"] for message in drain(queue)) == [1, 3]


def test_batch_that_is_never_taken_is_error(queue: RequestQueue, sqs: Any) -> None:
    with answering(sqs, "SendMessageBatch", batch_answer({"0": False}, [])) as calls, pytest.raises(QueueError):
        queue.send_requests([{"n": 1}])
    assert len(calls) == 5


def test_message_that_sqs_refuses_is_not_sent_again(queue: RequestQueue, sqs: Any) -> None:
    with answering(sqs, "SendMessageBatch", batch_answer({"0": True}, [])) as calls, pytest.raises(QueueError):
        queue.send_requests([{"n": 1}])
    assert len(calls) == 1


@pytest.mark.parametrize("code", ["ReceiptHandleIsInvalid", "AWS.SimpleQueueService.MessageNotInflight"])
def test_stale_handle_is_no_error(queue: RequestQueue, sqs: Any, code: str) -> None:
    with (
        answering(sqs, "DeleteMessage", json_error(code)) as deletes,
        answering(sqs, "ChangeMessageVisibility", json_error(code)) as changes,
    ):
        queue.finish_request("handle")
        queue.reset_request("handle", 5)
    assert len(deletes) == len(changes) == 1


def test_handle_that_was_never_one_is_no_error(queue: RequestQueue) -> None:
    queue.finish_request("nonsense")
    queue.reset_request("nonsense")


def test_service_that_is_away_is_error_that_may_pass(queue: RequestQueue, sqs: Any) -> None:
    operations = {
        "ReceiveMessage": queue.receive,
        "SendMessage": lambda: queue.send_request({}),
        "DeleteMessage": lambda: queue.finish_request("h"),
        "ChangeMessageVisibility": lambda: queue.reset_request("h"),
        "GetQueueAttributes": queue.visibility_timeout_s,
    }
    for operation, call in operations.items():
        with never_sending(sqs, operation), pytest.raises(QueueError) as caught:
            call()
        assert caught.value.can_retry


def test_iterating_yields_requests_and_pauses(queue: RequestQueue, sqs: Any) -> None:
    requests = iter(queue)
    assert next(requests) == (None, None)
    queue.send_request({"n": 1})
    handle, request = next(requests)
    assert request == {"n": 1}
    queue.finish_request(handle)
    queue.send_body("no json")
    assert next(requests) == (None, None), "a message that is not a request is skipped"
    with answering(sqs, "ReceiveMessage", json_error("InternalError", 500)):
        assert next(requests) == (None, None), "SQS being away ends no loop"


def test_missing_queue_is_error(sqs: Any, url: str) -> None:
    with pytest.raises(QueueError):
        RequestQueue(url + "-that-is-missing", client=sqs).receive()


def test_defaults_and_processs_own_client(
    emulator: Any, queue: RequestQueue, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    default_clients.cache_clear()
    own = RequestQueue(url)
    assert (own.queue_url, own.wait_seconds, own.num_messages, own.sqs_client) == (url, 20, 1, None)
    own.send_request({"n": 1})
    assert len(own.receive()) == 1
    default_clients.cache_clear()


@pytest.mark.parametrize("body", ["", "null", "[]", '"text"', "{", "[" * 100_000, "7"])
def test_invalid_request_is_refused(body: str) -> None:
    assert parse_request(body) is None


@given(sizes=st.lists(st.integers(0, 90_000), max_size=40))
def test_batches_of_bodies_respect_both_limits(sizes: list[int]) -> None:
    bodies = ["x" * size for size in sizes]
    batches = list(batches_of_bodies(bodies))
    assert [body for batch in batches for body in batch] == bodies
    for batch in batches:
        assert 1 <= len(batch) <= 10
        assert len(batch) == 1 or sum(map(len, batch)) <= MAX_BATCH_BYTES
