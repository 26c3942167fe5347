"""Parses the body of a queue message into image requests, or raises an error with all its problems."""

import re
from typing import Any

import structlog

from aws.osml.model_runner.exceptions import InvalidImageRequestException

from .image_request import ImageRequest, fingerprint, requests_of, validated
from .image_request_schema import unknown_keys
from .json_document import load_object
from .problems import shortened
from .rules import MAX_JOB_ID_LENGTH

logger = structlog.get_logger(__name__)

_JOB_ID = re.compile(r'"jobId"\s*:\s*"((?:[^"\\]|\\.){1,512})"')
_MAX_KEYS = 20
_INVALID = "the image request is not valid"


def parse_image_request_message(body: str | bytes) -> list[ImageRequest]:
    """Return one request for each image that a message names, in its order.

    Unknown keys are logged and ignored. Raises only InvalidImageRequestException, with every problem found: the path of
    the field in the message, its value, and the expectation.
    """
    document, problems = load_object(body)
    if problems and not document:
        raise InvalidImageRequestException(_INVALID, problems)
    try:
        message = validated(document)
    except InvalidImageRequestException as err:
        # Keep the first problem of each field.
        by_field = {problem.field: problem for problem in reversed([*problems, *err.problems])}
        raise InvalidImageRequestException(_INVALID, list(by_field.values())[::-1]) from err
    if problems:
        raise InvalidImageRequestException(_INVALID, problems)
    if unknown := list(unknown_keys(message)):
        shown = [shortened(key).strip('"') for key in unknown[:_MAX_KEYS]]
        logger.warning("image_request.unknown_keys", job_id=message.job_id, keys=shown, count=len(unknown))
    return requests_of(message, fingerprint(document))


def job_id_of(body: str | bytes) -> str | None:
    """Return the job id of a message if it can be found, or None; never raises.

    The status of a rejected message contains it. So the result is printable and has at most 128 characters, even if the
    id in the message does not.
    """
    document, _ = load_object(body)
    found: Any = document.get("jobId")
    if not document:
        match = _JOB_ID.search(body.decode(errors="replace") if isinstance(body, bytes) else body)
        found = match[1] if match else None
    if not isinstance(found, str):
        return None
    printable = "".join(character if character.isprintable() else "?" for character in found)
    return printable[:MAX_JOB_ID_LENGTH].strip() or None
