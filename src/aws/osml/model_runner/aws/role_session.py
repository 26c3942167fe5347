"""A session of a role that a request names: whose job it is for, and what it may do at most.

CloudTrail shows the session's name, so every call in it can be traced to its job. The session policy narrows the role
to the one bucket, stream or endpoint that the job needs: a role that may read many buckets reads one of them for it.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

DEFAULT_SESSION_NAME = "AWSOversightMLModelRunner"
_NAME_DIGITS = 16
# STS takes policies of 2,048 characters, and one of a prefix may become six of JSON.
_POLICY_PREFIX_CHARACTERS = 200


@dataclass(frozen=True)
class RoleSession:
    """A role's ARN, the name of the session, and the session policy as JSON, empty for none."""

    role_arn: str
    name: str = DEFAULT_SESSION_NAME
    policy: str = ""


def session_name(job_id: str) -> str:
    """Return ``osml-`` and a hash of the job's id, which may hold what a session's name may not."""
    return f"osml-{hashlib.sha256(job_id.encode(errors='surrogatepass')).hexdigest()[:_NAME_DIGITS]}"


def reading_session(role_arn: str | None, job_id: str, bucket: str | None) -> RoleSession | None:
    """Return a session that reads objects of ``bucket``; None without a role."""
    actions = ["s3:GetObject", "s3:GetObjectVersion"]
    return _session(
        role_arn,
        job_id,
        _statement(actions, f"s3:::{bucket}/*"),
        # Without it S3 calls a missing object forbidden.
        _statement(["s3:ListBucket"], f"s3:::{bucket}"),
        _statement(["kms:Decrypt"], "kms:*:*:key/*"),
    )


def calling_session(role_arn: str | None, job_id: str, endpoint: str) -> RoleSession | None:
    """Return a session that calls one SageMaker endpoint; None without a role."""
    names = [f"sagemaker:*:*:endpoint/{endpoint.lower()}", "sagemaker:*:*:inference-component/*"]
    return _session(role_arn, job_id, _statement(["sagemaker:InvokeEndpoint"], *names))


def describing_session(role_arn: str | None, name: str) -> RoleSession | None:
    """Return a session that describes one endpoint or component, for whichever job asks; None without a role."""
    actions = ["sagemaker:DescribeEndpoint", "sagemaker:ListTags", "sagemaker:DescribeInferenceComponent"]
    resources = [f"sagemaker:*:*:{kind}/{name.lower()}" for kind in ("endpoint", "inference-component")]
    return _session(
        role_arn,
        name,
        _statement(actions, *resources),
        _statement(["sagemaker:DescribeEndpointConfig"], "sagemaker:*:*:endpoint-config/*"),
    )


def writing_session(role_arn: str | None, job_id: str, bucket: str, prefix: str) -> RoleSession | None:
    """Return a session that writes objects of ``bucket`` whose key starts with ``prefix``; None without a role.

    It may read them too, to see whose result lies there.
    """
    actions = ["s3:PutObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload", "s3:GetObject"]
    return _session(
        role_arn,
        job_id,
        _statement(actions, f"s3:::{bucket}/{_literal(prefix[:_POLICY_PREFIX_CHARACTERS])}*"),
        _statement(["kms:GenerateDataKey", "kms:Decrypt"], "kms:*:*:key/*"),
    )


def streaming_session(role_arn: str | None, job_id: str, stream: str) -> RoleSession | None:
    """Return a session that puts records on one Kinesis stream; None without a role."""
    actions = ["kinesis:PutRecord", "kinesis:PutRecords", "kinesis:DescribeStreamSummary"]
    return _session(
        role_arn,
        job_id,
        _statement(actions, f"kinesis:*:*:stream/{stream}"),
        _statement(["kms:GenerateDataKey"], "kms:*:*:key/*"),
    )


def _session(role_arn: str | None, job_id: str, *statements: dict[str, Any]) -> RoleSession | None:
    if not role_arn:
        return None
    partition = role_arn.split(":")[1] if role_arn.count(":") > 1 else "aws"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {**statement, "Resource": [f"arn:{partition}:{name}" for name in statement["Resource"]]}
            for statement in statements
        ],
    }
    return RoleSession(role_arn, session_name(job_id), json.dumps(policy, separators=(",", ":")))


def _statement(actions: list[str], *resources: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": list(resources)}


def _literal(text: str) -> str:
    """Return ``text`` as a policy matches it by itself: ``*``, ``?`` and ``$`` mean more there."""
    return "".join(f"${{{character}}}" if character in "*?$" else character for character in text)
