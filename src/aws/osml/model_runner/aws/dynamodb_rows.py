"""Rows of DynamoDB, read without botocore's and boto3's walks through each value."""

import base64
from collections.abc import Mapping
from typing import Any

import orjson
from boto3.dynamodb.types import DYNAMODB_CONTEXT, TypeDeserializer
from botocore.exceptions import ResponseStreamingError

# Where the rows are in the answers: a list of them, a list for each table, or one.
_ROWS = {
    "Query": "Items",
    "Scan": "Items",
    "BatchGetItem": "Responses",
    "GetItem": "Item",
    "UpdateItem": "Attributes",
}
_READ = "RowsAsRead"
_boto3 = TypeDeserializer()


def read_rows_fast(client: Any) -> None:
    """Let a DynamoDB resource's client read the rows in answers by itself.

    botocore walks through each value of an answer by the service's model, and boto3 once more, and each feature of an
    image is a value. What callers get is the same. Signing, sending, trying again, errors and the rest of an answer
    stay with botocore. An answer that breaks off raises ResponseStreamingError.
    """
    for operation in _ROWS:
        client.meta.events.register(f"before-parse.dynamodb.{operation}", _take_rows)
    # After boto3, which listens here too, has converted what it found.
    client.meta.events.register_last("after-call", _put_rows)


def _take_rows(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Read an answer's rows, and leave the rest of it for botocore."""
    if response_dict["status_code"] != 200:
        return
    try:
        answer = orjson.loads(response_dict["body"])
    except orjson.JSONDecodeError as err:
        # botocore would take it for an answer without rows.
        raise ResponseStreamingError(error=f"the answer of DynamoDB is no JSON: {err.msg}") from err
    member = _ROWS[operation_model.name]
    found = answer.pop(member, None)
    if found is None:
        return
    customized_response_dict[_READ] = {member: _rows(found, is_by_table=operation_model.name == "BatchGetItem")}
    response_dict["body"] = orjson.dumps(answer)


def _put_rows(parsed: dict[str, Any], **_: Any) -> None:
    parsed |= parsed.pop(_READ, {})


def _rows(found: Any, is_by_table: bool) -> Any:
    if is_by_table:
        return {table: [_row(typed) for typed in rows] for table, rows in found.items()}
    return [_row(typed) for typed in found] if isinstance(found, list) else _row(found)


def _row(typed: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attribute_value(value) for name, value in typed.items()}


def attribute_value(typed: Mapping[str, Any]) -> Any:
    """Return a value in DynamoDB's wire form, ``{"S": "ship"}``, as boto3 would."""
    ((kind, value),) = typed.items()
    match kind:
        case "S":
            return value
        case "N":
            return DYNAMODB_CONTEXT.create_decimal(value)
        case "L":
            # Texts, features above all, without a call for each.
            return [inner["S"] if "S" in inner else attribute_value(inner) for inner in value]
        case "M":
            return {name: attribute_value(inner) for name, inner in value.items()}
        case "B":
            value = base64.b64decode(value)
        case "BS":
            value = [base64.b64decode(inner) for inner in value]
    return _boto3.deserialize({kind: value})  # type: ignore[misc]  # which kind it is, is not known before
