"""Reads rows of DynamoDB without botocore's and boto3's walks through each value."""

import base64
from collections.abc import Mapping
from typing import Any

import orjson
from boto3.dynamodb.types import DYNAMODB_CONTEXT, TypeDeserializer
from botocore.exceptions import ResponseStreamingError

# The member of a response that holds the rows: a list of rows, a list for each table, or one row.
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
    """Make the client of a DynamoDB resource parse the rows in responses with ``attribute_value``.

    botocore and boto3 each walk through all values of a response by the service's model, and each feature of an image
    is a value. Callers get the same values. botocore still does the rest: signing, sending, retries, errors and the
    other members of a response. A response that breaks off raises ResponseStreamingError.
    """
    for operation in _ROWS:
        client.meta.events.register(f"before-parse.dynamodb.{operation}", _take_rows)
    # boto3 has a hook here too, and has to convert the response first.
    client.meta.events.register_last("after-call", lambda parsed, **_: parsed.update(parsed.pop(_READ, {})))


def _take_rows(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Parse the rows of a response, and leave its other members to botocore."""
    if response_dict["status_code"] != 200:
        return
    try:
        response = orjson.loads(response_dict["body"])
    except orjson.JSONDecodeError as err:
        # botocore would treat it as a response without rows.
        raise ResponseStreamingError(error=f"the response of DynamoDB is not valid JSON: {err.msg}") from err
    member = _ROWS[operation_model.name]
    found = response.pop(member, None)
    if found is None:
        return
    customized_response_dict[_READ] = {member: _rows(found, is_by_table=operation_model.name == "BatchGetItem")}
    response_dict["body"] = orjson.dumps(response)


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
            # A list of texts, such as features, needs no call per text.
            return [inner["S"] if "S" in inner else attribute_value(inner) for inner in value]
        case "M":
            return {name: attribute_value(inner) for name, inner in value.items()}
        case "B":
            value = base64.b64decode(value)
        case "BS":
            value = [base64.b64decode(inner) for inner in value]
    return _boto3.deserialize({kind: value})  # type: ignore[misc]  # the kind is only known at run time
