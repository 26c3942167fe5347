"""Reads errors of AWS's services: their code, their HTTP status, and whether to repeat the call."""

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

# The status without a response: the connection failed, or the call was never sent.
NO_RESPONSE = 0

# Codes of errors below 500 that are temporary: the service is busy, or the credentials are about to be renewed.
_TEMPORARY = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "SlowDown",
        "RequestTimeout",
        "RequestTimeoutException",
        "PriorRequestNotComplete",
        "TransactionConflictException",
        "TransactionInProgressException",
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestExpired",
    }
)
_FIRST_SERVER_ERROR = 500
# Codes with which STS refuses a role for a reason that only its owner or the sender of the request can correct. Errors
# of the caller's own credentials have other codes.
_ROLE_REFUSALS = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "MalformedPolicyDocument",
        "PackedPolicyTooLarge",
        "RegionDisabledException",
        "ValidationError",
    }
)

# Codes with which DynamoDB always refuses a write: a key or an item that is too large, a value of a wrong type.
_INVALID = frozenset({"ValidationException", "ValidationError", "ItemCollectionSizeLimitExceeded"})


def error_code(error: ClientError | BotoCoreError) -> str:
    """Return AWS's code of an error, or the name of botocore's class without a response."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "Unknown"))
    return type(error).__name__


def error_status(error: ClientError | BotoCoreError) -> int:
    """Return the HTTP status of an error; ``NO_RESPONSE`` without a response."""
    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", NO_RESPONSE))
    return NO_RESPONSE


def may_pass(error: ClientError | BotoCoreError) -> bool:
    """Return True when the same call may succeed later: throttling, the service's own errors, and the network."""
    if isinstance(error, ClientError):
        return error_status(error) >= _FIRST_SERVER_ERROR or error_code(error) in _TEMPORARY
    return not isinstance(error, ParamValidationError)


def is_invalid_write(err: ClientError) -> bool:
    """Return True when DynamoDB refuses a write because of its content, so that a repeated write fails too."""
    return error_code(err) in _INVALID or not _INVALID.isdisjoint(cancellation_codes(err))


def cancellation_codes(err: ClientError) -> set[str]:
    """Return the reasons why a transaction was cancelled, as codes of its writes; empty for other errors."""
    return {str(reason.get("Code")) for reason in err.response.get("CancellationReasons", [])}


def is_role_refusal(error: ClientError | BotoCoreError) -> bool:
    """Return True when STS refused to assume a role for any call that needs the role's credentials."""
    is_assuming = isinstance(error, ClientError) and error.operation_name == "AssumeRole"
    return is_assuming and error_code(error) in _ROLE_REFUSALS
