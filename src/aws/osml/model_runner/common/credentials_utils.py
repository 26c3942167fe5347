"""Credentials of a role, under the published path."""

from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.aws.role_session import DEFAULT_SESSION_NAME
from aws.osml.model_runner.exceptions import InvalidAssumedRoleException


def get_credentials_for_assumed_role(assumed_role: str) -> dict[str, str]:
    """Assume a role and return its ``AccessKeyId``, ``SecretAccessKey`` and ``SessionToken``, valid for an hour.

    For longer work use a client of ``AwsClients`` for the role, which refreshes its credentials.

    Raises:
        InvalidAssumedRoleException: STS refused the role, or could not be reached.
    """
    try:
        sts = default_clients().client("sts")
        response = sts.assume_role(RoleArn=assumed_role, RoleSessionName=DEFAULT_SESSION_NAME)
    except (ClientError, BotoCoreError) as err:
        raise InvalidAssumedRoleException(f"cannot assume {assumed_role}: {type(err).__name__}") from err
    keys = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    return {key: str(response["Credentials"][key]) for key in keys}
