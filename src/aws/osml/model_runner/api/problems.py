"""Turns validation errors into problems for the author of a document: field, value, expectation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from aws.osml.model_runner.exceptions import Problem
from aws.osml.model_runner.telemetry.redaction import is_secret_name, redacted_beginning

ABSENT = "absent"
_MAX_VALUE_LENGTH = 80
_MAX_KEY_LENGTH = 64

# Expectations for pydantic's types of errors, without its terms; values for ``{…}`` come from the error.
_EXPECTATIONS = {
    "missing": "required",
    "bool_type": "true or false",
    "string_type": "a string",
    "string_too_short": "text of at least {min_length} characters",
    "string_unicode": "text without broken characters",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "enum": "one of {expected}",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "required",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "extra_forbidden": "absent: this key is unknown",
}


def shortened(value: Any, name: str = "") -> str:
    """Return ``value`` as JSON text of at most 80 characters, with control characters escaped, credentials redacted.

    Objects and lists are described only by their size, so that errors do not contain message bodies.
    """
    if isinstance(value, Mapping):
        return f"an object of {len(value)} keys"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} items"
    if is_secret_name(name):
        return '"[redacted]"'
    shown = redacted_beginning(value, _MAX_VALUE_LENGTH) if isinstance(value, str) else value
    text = json.dumps(shown, default=repr)
    return text if len(text) <= _MAX_VALUE_LENGTH else text[: _MAX_VALUE_LENGTH - 1] + "…"


def role_problem(field: str, role: str, code: str) -> Problem:
    """Return the problem of a role that STS refuses; ``code`` is the error code of STS."""
    return Problem(field, shortened(role), f"a role that the worker may assume ({code})")


def path_text(steps: Sequence[str | int]) -> str:
    """Return a path as text, such as ``outputs[0].bucket``; the path of the whole document is ``body``."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        # A key is untrusted, and the path goes to logs: printable, redacted and of limited length.
        key = redacted_beginning(step, _MAX_KEY_LENGTH)
        shown = key if key.isprintable() else json.dumps(key)[1:-1]
        text += "." + (shown if len(shown) <= _MAX_KEY_LENGTH else shown[: _MAX_KEY_LENGTH - 1] + "…")
    return text.removeprefix(".") or "body"


def problems_of(error: ValidationError, document: Any, model: type[BaseModel]) -> list[Problem]:
    """Return one problem for each error that pydantic found in ``document``, with paths in the document.

    pydantic reports an error in a default of ``model`` by the field's name; here it gets the field's alias.
    """
    names = {name: field.alias or name for name, field in model.model_fields.items()}
    found = []
    for details in error.errors(include_url=False):
        first, rest = details["loc"][:1], details["loc"][1:]
        details["loc"] = (*(names.get(str(step), step) for step in first), *rest)
        found.append(_problem(details, document))
    return found


def expectation_of(details: ErrorDetails) -> str:
    """Return the expectation for one of pydantic's errors."""
    template = _EXPECTATIONS.get(details["type"])
    return template.format(**details.get("ctx", {})) if template else details["msg"]


def _problem(details: ErrorDetails, document: Any) -> Problem:
    steps, value = _located(details, document)
    name = next((str(step) for step in reversed(steps) if isinstance(step, str)), "")
    shown = ABSENT if value is None else shortened(value, name)
    return Problem(path_text(steps), shown, expectation_of(details))


def _located(details: ErrorDetails, document: Any) -> tuple[list[str | int], Any]:
    """Return the steps of an error's location that exist in the document, and the value at the end.

    pydantic inserts the tag of a tagged union (``S3``) between an item and its field. So a step that is not in the
    document and is not the last step is such a tag. The location of an error in the tag itself lacks its last step.
    """
    location = list(details["loc"])
    if details["type"].startswith("union_tag"):
        location.append(details["ctx"]["discriminator"].strip("'"))
    steps: list[str | int] = []
    value = document
    for index, step in enumerate(location):
        is_present = (isinstance(value, dict) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        if is_present:
            value = value[step]
        elif index < len(location) - 1 or not isinstance(value, dict):
            continue
        else:
            value = None
        steps.append(step)
    return steps, value
