"""What botocore's errors say, in one form for answers of AWS and for calls that got none."""

from botocore.exceptions import BotoCoreError, ClientError

NO_ANSWER = 0


def error_code(error: ClientError | BotoCoreError) -> str:
    """Return AWS's word for an error, or the name of botocore's where no answer came."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else type(error).__name__


def error_status(error: ClientError | BotoCoreError) -> int:
    """Return the HTTP status of an error; ``NO_ANSWER`` where there is none."""
    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", NO_ANSWER))
    return NO_ANSWER
