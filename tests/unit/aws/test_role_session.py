"""Sessions of roles: named after their job, and narrowed to what it needs."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.aws.role_session import (
    RoleSession,
    calling_session,
    describing_session,
    reading_session,
    session_name,
    streaming_session,
    writing_session,
)

ROLE = "arn:aws-cn:iam::123456789012:role/team/reader"
# Names that STS takes: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
NAME = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)
MAX_POLICY_CHARACTERS = 2_048


def statements(session: RoleSession | None) -> dict[str, list[str]]:
    """Return the resources of each action that a session allows."""
    assert session is not None
    policy = json.loads(session.policy)
    assert {statement["Effect"] for statement in policy["Statement"]} == {"Allow"}
    return {action: statement["Resource"] for statement in policy["Statement"] for action in statement["Action"]}


@given(st.text(max_size=128))
def test_session_names_are_valid_and_distinct(job_id: str) -> None:
    assert NAME.fullmatch(session_name(job_id))
    assert session_name(job_id) != session_name(job_id + "x")


def test_without_role_there_is_no_session() -> None:
    for role in ("", None):
        assert reading_session(role, "job", "images") is None
        assert writing_session(role, "job", "results", "p") is None


def test_reader_reads_one_bucket() -> None:
    allowed = statements(reading_session(ROLE, "job", "images"))
    assert allowed["s3:GetObject"] == ["arn:aws-cn:s3:::images/*"]
    assert allowed["s3:ListBucket"] == ["arn:aws-cn:s3:::images"]
    assert not {"s3:PutObject", "s3:*", "*"} & allowed.keys()


def test_caller_calls_one_endpoint() -> None:
    allowed = statements(calling_session(ROLE, "job", "Ships-V2"))
    assert set(allowed) == {"sagemaker:InvokeEndpoint"}
    assert "arn:aws-cn:sagemaker:*:*:endpoint/ships-v2" in allowed["sagemaker:InvokeEndpoint"]


def test_session_that_describes_endpoint_has_no_other_permission() -> None:
    allowed = statements(describing_session(ROLE, "Ships-V2"))
    assert all(action.startswith(("sagemaker:Describe", "sagemaker:List")) for action in allowed)
    assert "arn:aws-cn:sagemaker:*:*:endpoint/ships-v2" in allowed["sagemaker:DescribeEndpoint"]
    assert describing_session("", "ships") is None


def test_writer_writes_below_one_prefix() -> None:
    assert statements(writing_session(ROLE, "job", "results", "a/b"))["s3:PutObject"] == [
        "arn:aws-cn:s3:::results/a/b*"
    ]


def test_streamer_puts_records_on_one_stream() -> None:
    allowed = statements(streaming_session(ROLE, "job", "found"))
    assert allowed["kinesis:PutRecords"] == ["arn:aws-cn:kinesis:*:*:stream/found"]


@pytest.mark.parametrize(("prefix", "resource"), [("a*", "a${*}*"), ("?", "${?}*"), ("$x", "${$}x*"), ("", "*")])
def test_prefix_means_itself_in_policy(prefix: str, resource: str) -> None:
    allowed = statements(writing_session(ROLE, "job", "results", prefix))
    assert allowed["s3:PutObject"] == [f"arn:aws-cn:s3:::results/{resource}"]


@pytest.mark.parametrize("character", ["*", "é", "a"])
def test_longest_policy_fits_limit_of_sts(character: str) -> None:
    session = writing_session(ROLE, "j" * 128, "b" * 63, character * 512)
    assert session is not None
    assert len(session.policy) <= MAX_POLICY_CHARACTERS
    assert session.policy.isascii()
