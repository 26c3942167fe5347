"""Decisions after a failed model call: the table of the retry layer, line by line, and its loop."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.exceptions import (
    ModelBackPressureError,
    ModelCallError,
    ModelErrorClass,
    ModelTileError,
)
from aws.osml.model_runner.inference.call_errors import (
    ModelErrorCode,
    error_of_aws_response,
    error_of_model_status,
    retry_after_seconds,
)
from aws.osml.model_runner.inference.exceptions import ModelJobError
from aws.osml.model_runner.inference.retry import (
    ALONE_POLICY,
    DEFAULT_POLICY,
    Action,
    ModelResponse,
    RetryBudget,
    decide,
    invoke_with_retries,
    jittered_delay_s,
)

C = ModelErrorClass
RETRY, RELEASE, FAIL_TILE, FAIL_JOB = Action.RETRY, Action.RELEASE, Action.FAIL_TILE, Action.FAIL_JOB

NOW_S = 1_700_000_000.0


def error(error_class: ModelErrorClass, retry_after_s: float | None = None) -> ModelCallError:
    return ModelCallError("failed", error_class, "CODE", retry_after_s)


@pytest.mark.parametrize(
    ("error_class", "attempt", "has_budget", "has_refreshed", "expected"),
    [
        (C.THROTTLE, 1, True, False, RETRY),
        (C.THROTTLE, 3, True, False, RETRY),
        (C.THROTTLE, 4, True, False, RELEASE),
        (C.THROTTLE, 1, False, False, RELEASE),
        (C.TRANSIENT, 1, True, False, RETRY),
        (C.TRANSIENT, 3, True, False, RETRY),
        (C.TRANSIENT, 4, True, False, RELEASE),
        (C.TRANSIENT, 1, False, False, RELEASE),
        (C.SUSPICIOUS, 1, True, False, RETRY),
        (C.SUSPICIOUS, 2, False, False, RETRY),
        (C.SUSPICIOUS, 3, True, False, FAIL_TILE),
        (C.PERMANENT, 1, True, False, FAIL_TILE),
        (C.JOB, 1, True, False, FAIL_JOB),
        (C.CREDENTIAL, 1, True, False, RETRY),
        (C.CREDENTIAL, 4, False, False, RETRY),
        (C.CREDENTIAL, 1, True, True, RETRY),
        (C.CREDENTIAL, 4, True, True, RELEASE),
        (C.CREDENTIAL, 1, False, True, RELEASE),
    ],
)
def test_decision_table(
    error_class: ModelErrorClass, attempt: int, has_budget: bool, has_refreshed: bool, expected: Action
) -> None:
    decision = decide(error(error_class), attempt, random.Random(1), has_budget=has_budget, has_refreshed=has_refreshed)
    assert decision.action is expected
    assert decision.code == "CODE"
    assert decision.should_refresh == (error_class is C.CREDENTIAL and not has_refreshed)


@pytest.mark.parametrize(
    ("error_class", "retry_after_s", "action", "least_s", "most_s"),
    [
        (C.THROTTLE, 7.0, RETRY, 7.0, 7.0),
        (C.THROTTLE, 60.0, RETRY, 60.0, 60.0),
        (C.THROTTLE, 61.0, RELEASE, 61.0, 61.0),
        (C.TRANSIENT, 1e9, RELEASE, 300.0, 300.0),
        (C.SUSPICIOUS, 1e9, RETRY, 60.0, 60.0),
        (C.THROTTLE, 0.0, RETRY, 0.0, 0.5),
        (C.THROTTLE, None, RETRY, 0.0, 0.5),
    ],
)
def test_retry_after_is_honoured_up_to_a_minute(
    error_class: ModelErrorClass, retry_after_s: float | None, action: Action, least_s: float, most_s: float
) -> None:
    decision = decide(error(error_class, retry_after_s), 1, random.Random(3))
    assert decision.action is action
    assert least_s <= decision.delay_s <= most_s


@given(
    error_class=st.sampled_from(list(C)),
    attempt=st.integers(1, 50),
    seed=st.integers(),
    retry_after_s=st.none() | st.floats(0, 1e12),
    has_budget=st.booleans(),
    has_refreshed=st.booleans(),
)
def test_every_decision_is_bounded(
    error_class: ModelErrorClass,
    attempt: int,
    seed: int,
    retry_after_s: float | None,
    has_budget: bool,
    has_refreshed: bool,
) -> None:
    decision = decide(
        error(error_class, retry_after_s),
        attempt,
        random.Random(seed),
        has_budget=has_budget,
        has_refreshed=has_refreshed,
    )
    longest_s = {RETRY: DEFAULT_POLICY.max_retry_after_s, RELEASE: DEFAULT_POLICY.max_rest_s}.get(decision.action, 0)
    assert 0 <= decision.delay_s <= longest_s
    if attempt >= DEFAULT_POLICY.max_tries:
        assert decision.action is not RETRY or decision.should_refresh
    if error_class in (C.THROTTLE, C.TRANSIENT):
        assert decision.action in (RETRY, RELEASE), "a busy endpoint must fail no tile"


@given(attempt=st.integers(1, 12), seed=st.integers())
def test_wait_is_full_jitter_under_doubling_ceiling(attempt: int, seed: int) -> None:
    ceiling_s = min(20.0, 0.5 * 2 ** (attempt - 1))
    assert 0 <= jittered_delay_s(attempt, random.Random(seed)) <= ceiling_s


def test_jitter_fills_whole_range() -> None:
    rng = random.Random(11)
    waits = [jittered_delay_s(4, rng) for _ in range(2000)]
    assert min(waits) < 0.05
    assert max(waits) > 3.9
    assert sum(waits) / len(waits) == pytest.approx(2.0, abs=0.1)


class ScriptedModel:
    """Plays its script: raises an error, or returns bytes."""

    def __init__(self, *script: ModelCallError | bytes) -> None:
        self.script = list(script)
        self.refreshes = 0

    def invoke(self, tile: bytes) -> bytes:
        answer = self.script.pop(0)
        if isinstance(answer, bytes):
            return answer
        raise answer

    def refresh_credentials(self) -> None:
        self.refreshes += 1


def call(
    model: ScriptedModel, budget: RetryBudget | None = None, **options: object
) -> tuple[ModelResponse, list[float]]:
    waits: list[float] = []
    answer = invoke_with_retries(
        model, b"tile", sleep=waits.append, rng=random.Random(5), budget=budget or RetryBudget(), **options
    )
    return answer, waits


def test_response_counts_earlier_failures() -> None:
    model = ScriptedModel(error(C.THROTTLE), error(C.TRANSIENT), b"answer")
    answer, waits = call(model)
    assert answer == ModelResponse(b"answer", 2)
    assert len(waits) == 2


def test_tile_does_not_fail_for_one_crash_after_refusals() -> None:
    refusals, crash = [error(C.THROTTLE), error(C.TRANSIENT), error(C.THROTTLE)], error(C.SUSPICIOUS)
    answer, _ = call(ScriptedModel(*refusals, crash, crash, b"answer"))
    assert answer == ModelResponse(b"answer", 5)
    with pytest.raises(ModelTileError):
        call(ScriptedModel(*refusals, crash, crash, crash, b"answer"))
    with pytest.raises(ModelBackPressureError):
        call(ScriptedModel(crash, crash, *refusals, error(C.THROTTLE), b"answer"))


def test_credentials_are_refreshed_once_and_call_is_repeated_at_once() -> None:
    model = ScriptedModel(error(C.CREDENTIAL), b"answer")
    answer, waits = call(model)
    assert (answer.body, answer.retries, model.refreshes, waits) == (b"answer", 1, 1, [])


def test_credentials_that_stay_wrong_end_as_transient_error() -> None:
    model = ScriptedModel(*[error(C.CREDENTIAL)] * 5)
    with pytest.raises(ModelBackPressureError):
        call(model)
    assert (model.refreshes, model.script) == (1, [])


@pytest.mark.parametrize(
    ("error_class", "calls", "raised"),
    [
        (C.THROTTLE, 4, ModelBackPressureError),
        (C.TRANSIENT, 4, ModelBackPressureError),
        (C.SUSPICIOUS, 3, ModelTileError),
        (C.PERMANENT, 1, ModelTileError),
        (C.JOB, 1, ModelJobError),
    ],
)
def test_error_class_decides_tries_and_final_error(
    error_class: ModelErrorClass, calls: int, raised: type[Exception]
) -> None:
    model = ScriptedModel(*[error(error_class)] * 10)
    with pytest.raises(raised) as caught:
        call(model)
    assert 10 - len(model.script) == calls
    assert isinstance(caught.value.__cause__, ModelCallError)
    if raised is not ModelBackPressureError:
        assert caught.value.code == "CODE"


TIMED_OUT = ModelCallError("too late", C.TRANSIENT, ModelErrorCode.TIMEOUT)


def test_tile_does_not_fail_when_other_tiles_time_out_too() -> None:
    model = ScriptedModel(*[TIMED_OUT] * 10)
    with pytest.raises(ModelBackPressureError):
        call(model, RetryBudget(floor=100))
    assert len(model.script) == 6


def test_lone_tile_fails_after_three_time_outs() -> None:
    model = ScriptedModel(TIMED_OUT, TIMED_OUT, TIMED_OUT, b"never")
    with pytest.raises(ModelTileError) as caught:
        call(model, policy=ALONE_POLICY)
    assert (caught.value.code, model.script) == ("TIMEOUT", [b"never"])


def test_lone_tile_does_not_fail_for_other_errors() -> None:
    for failure in (error(C.THROTTLE), error(C.TRANSIENT)):
        model = ScriptedModel(TIMED_OUT, TIMED_OUT, failure, b"never")
        with pytest.raises(ModelBackPressureError):
            call(model, policy=ALONE_POLICY)
        assert model.script == [b"never"]


def test_time_outs_are_retried_within_budget() -> None:
    model = ScriptedModel(*[TIMED_OUT] * 10)
    with pytest.raises(ModelBackPressureError):
        call(model, RetryBudget(floor=1))
    assert len(model.script) == 8, "one retry was left"


def test_back_pressure_carries_retry_after() -> None:
    with pytest.raises(ModelBackPressureError) as caught:
        call(ScriptedModel(error(C.THROTTLE, 120.0)))
    assert caught.value.retry_after_s == 120.0


def test_stopping_ends_waits_at_once() -> None:
    model = ScriptedModel(error(C.THROTTLE), b"never asked for")
    waits: list[float] = []
    with pytest.raises(ModelBackPressureError):
        invoke_with_retries(model, b"tile", sleep=waits.append, rng=random.Random(5), should_stop=lambda: True)
    assert (waits, len(model.script)) == ([], 1)


def test_process_that_stops_during_wait_calls_no_more() -> None:
    model = ScriptedModel(error(C.THROTTLE), b"never asked for")
    waits: list[float] = []
    with pytest.raises(ModelBackPressureError):
        invoke_with_retries(
            model, b"tile", sleep=waits.append, rng=random.Random(5), should_stop=lambda: len(waits) > 0
        )
    assert len(model.script) == 1


def test_in_outage_retries_stay_within_budget() -> None:
    budget = RetryBudget(ratio=0.1, floor=10)
    calls = 0
    for _ in range(1000):
        model = ScriptedModel(*[error(C.TRANSIENT)] * 4)
        with pytest.raises(ModelBackPressureError):
            call(model, budget)
        calls += 4 - len(model.script)
    assert 1000 + 10 < calls <= 1000 + 10 + 100


def test_budget_grows_with_calls_up_to_its_ceiling() -> None:
    budget = RetryBudget(ratio=0.5, floor=0, ceiling=1)
    assert not budget.has_retry
    for _ in range(10):
        budget.earn()
    assert budget.has_retry
    budget.spend()
    assert not budget.has_retry


@pytest.mark.parametrize(
    ("status", "error_class", "code"),
    [
        (429, C.THROTTLE, "THROTTLED"),
        (502, C.THROTTLE, "THROTTLED"),
        (503, C.THROTTLE, "THROTTLED"),
        (504, C.TRANSIENT, "TIMEOUT"),
        (500, C.SUSPICIOUS, "MODEL_5XX"),
        (507, C.SUSPICIOUS, "MODEL_5XX"),
        (408, C.TRANSIENT, "TIMEOUT"),
        (400, C.PERMANENT, "MODEL_4XX"),
        (413, C.PERMANENT, "MODEL_4XX"),
        (415, C.PERMANENT, "MODEL_4XX"),
        (422, C.PERMANENT, "MODEL_4XX"),
        (418, C.PERMANENT, "MODEL_4XX"),
        (201, C.PERMANENT, "BAD_RESPONSE"),
        (302, C.PERMANENT, "BAD_RESPONSE"),
    ],
)
def test_classes_of_models_own_statuses(status: int, error_class: ModelErrorClass, code: str) -> None:
    result = error_of_model_status(status)
    assert (result.error_class, result.code) == (error_class, code)


@pytest.mark.parametrize(
    ("code", "status", "message", "extra", "error_class", "expected"),
    [
        ("ThrottlingException", 400, "Rate exceeded", {}, C.THROTTLE, ModelErrorCode.THROTTLED),
        ("ModelNotReadyException", 429, "", {}, C.THROTTLE, ModelErrorCode.THROTTLED),
        ("429", 429, "", {}, C.THROTTLE, ModelErrorCode.THROTTLED),
        ("ServiceUnavailable", 503, "", {}, C.THROTTLE, ModelErrorCode.THROTTLED),
        ("InternalFailure", 500, "", {}, C.TRANSIENT, ModelErrorCode.SERVICE_5XX),
        ("InternalDependencyException", 530, "", {}, C.TRANSIENT, ModelErrorCode.SERVICE_5XX),
        ("ModelError", 424, "", {"OriginalStatusCode": 503}, C.THROTTLE, ModelErrorCode.THROTTLED),
        ("ModelError", 424, "", {"OriginalStatusCode": 500}, C.SUSPICIOUS, ModelErrorCode.MODEL_5XX),
        ("ModelError", 424, "", {"OriginalStatusCode": 422}, C.PERMANENT, ModelErrorCode.MODEL_4XX),
        ("ModelError", 424, "", {"OriginalStatusCode": 504}, C.TRANSIENT, ModelErrorCode.TIMEOUT),
        ("ModelError", 424, "", {"OriginalStatusCode": 302}, C.PERMANENT, ModelErrorCode.BAD_RESPONSE),
        ("ModelError", 424, "", {}, C.TRANSIENT, ModelErrorCode.TIMEOUT),
        ("ModelError", 424, "", {"OriginalStatusCode": 0}, C.TRANSIENT, ModelErrorCode.TIMEOUT),
        ("ModelError", 424, "", {"OriginalStatusCode": -1}, C.TRANSIENT, ModelErrorCode.TIMEOUT),
        ("ModelError", 424, "", {"OriginalStatusCode": None}, C.TRANSIENT, ModelErrorCode.TIMEOUT),
        ("ValidationError", 400, "Endpoint x not found.", {}, C.JOB, ModelErrorCode.ENDPOINT_NOT_FOUND),
        ("ValidationError", 400, "ContentType is odd", {}, C.PERMANENT, ModelErrorCode.BAD_REQUEST),
        ("AccessDeniedException", 403, "", {}, C.JOB, ModelErrorCode.ACCESS_DENIED),
        ("ExpiredTokenException", 403, "", {}, C.CREDENTIAL, ModelErrorCode.CREDENTIALS),
        ("InvalidClientTokenId", 403, "", {}, C.CREDENTIAL, ModelErrorCode.CREDENTIALS),
        ("RequestExpired", 403, "", {}, C.CREDENTIAL, ModelErrorCode.CREDENTIALS),
        ("413", 413, "", {}, C.PERMANENT, ModelErrorCode.TILE_TOO_LARGE),
        ("SomethingNew", 500, "", {}, C.TRANSIENT, ModelErrorCode.SERVICE_5XX),
    ],
)
def test_classes_of_sagemakers_errors(
    code: str,
    status: int,
    message: str,
    extra: dict[str, int],
    error_class: ModelErrorClass,
    expected: ModelErrorCode,
) -> None:
    answer = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **extra,
    }
    result = error_of_aws_response(answer)
    assert (result.error_class, result.code) == (error_class, expected)


def test_response_without_any_field_is_transient() -> None:
    assert error_of_aws_response({}).error_class is C.TRANSIENT


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1e3", None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW_S) == seconds


@given(header=st.text(max_size=60))
def test_no_retry_after_header_breaks_parser(header: str) -> None:
    seconds = retry_after_seconds(header, NOW_S)
    assert seconds is None or seconds >= 0
