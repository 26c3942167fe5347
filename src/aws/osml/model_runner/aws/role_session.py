"""Sessions of roles that a request names: their names and their session policies.

CloudTrail shows the session's name, so every call can be traced to its job. The session policy narrows the role to the
bucket, stream or endpoint that the job needs. So a role that may read many buckets can read only one of them.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

DEFAULT_SESSION_NAME = "AWSOversightMLModelRunner"
_NAME_DIGITS = 16
# STS accepts policies of 2,048 characters, and JSON may need six characters for a character of a prefix.
_PREFIX_LENGTH = 200


@dataclass(frozen=True)
class RoleSession:
    """A role's ARN, the name of the session, and the session policy as JSON; an empty policy does not narrow."""

    role_arn: str
    name: str = DEFAULT_SESSION_NAME
    policy: str = ""


def session_name(job_id: str) -> str:
    """Return ``osml-`` and a hash of the job's id, because the id may have characters that a name may not have."""
    return f"osml-{hashlib.sha256(job_id.encode(errors='surrogatepass')).hexdigest()[:_NAME_DIGITS]}"


def reading_session(role_arn: str | None, job_id: str, bucket: str | None) -> RoleSession | None:
    """Return a session that reads objects of ``bucket``; None without a role."""
    actions = ["s3:GetObject", "s3:GetObjectVersion"]
    return _session(
        role_arn,
        job_id,
        _statement(actions, f"s3:::{bucket}/*"),
        # Without this permission S3 reports a missing object as forbidden.
        _statement(["s3:ListBucket"], f"s3:::{bucket}"),
        _statement(["kms:Decrypt"], "kms:*:*:key/*"),
    )


def calling_session(role_arn: str | None, job_id: str, endpoint: str) -> RoleSession | None:
    """Return a session that calls one SageMaker endpoint; None without a role."""
    names = [f"sagemaker:*:*:endpoint/{endpoint.lower()}", "sagemaker:*:*:inference-component/*"]
    return _session(role_arn, job_id, _statement(["sagemaker:InvokeEndpoint"], *names))


def describing_session(role_arn: str | None, name: str) -> RoleSession | None:
    """Return a session that may describe one endpoint or component, and every endpoint config; None without a role.

    It is named after the endpoint, not after a job, because jobs share it.
    """
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

    The session may also read them, to find out whose result is stored there.
    """
    # A policy gives ``*``, ``?`` and ``$`` a meaning, so they are escaped.
    literal = "".join(f"${{{character}}}" if character in "*?$" else character for character in prefix[:_PREFIX_LENGTH])
    actions = ["s3:PutObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload", "s3:GetObject"]
    return _session(
        role_arn,
        job_id,
        _statement(actions, f"s3:::{bucket}/{literal}*"),
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
