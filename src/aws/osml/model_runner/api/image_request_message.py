"""From the body of a queue message to image requests, or to all that is wrong with it."""

import re
from typing import Any

import structlog

from aws.osml.model_runner.exceptions import InvalidImageRequestException, Problem

from .image_request import ImageRequest, fingerprint, requests_of, validated
from .image_request_schema import unknown_keys
from .json_document import load_object
from .problems import shortened
from .rules import MAX_JOB_ID_LENGTH

logger = structlog.get_logger(__name__)

_JOB_ID = re.compile(r'"jobId"\s*:\s*"((?:[^"\\]|\\.){1,512})"')
_MOST_KEYS = 20
_INVALID = "the image request is not valid"


def parse_image_request_message(body: str | bytes) -> list[ImageRequest]:
    """Return one request for each image that a message names, in its order.

    Keys that nobody knows are logged and ignored. Raises InvalidImageRequestException, and nothing else, with every
    problem found: the field's path as the message has it, the value that stands there, and what was expected.
    """
    document, problems = load_object(body)
    if problems and not document:
        raise InvalidImageRequestException(_INVALID, problems)
    try:
        message = validated(document)
    except InvalidImageRequestException as err:
        raise InvalidImageRequestException(_INVALID, _each_field_once([*problems, *err.problems])) from err
    if problems:
        raise InvalidImageRequestException(_INVALID, problems)
    if unknown := list(unknown_keys(message)):
        shown = [shortened(key).strip('"') for key in unknown[:_MOST_KEYS]]
        logger.warning("image_request.unknown_keys", job_id=message.job_id, keys=shown, count=len(unknown))
    return requests_of(message, fingerprint(document))


def job_id_of(body: str | bytes) -> str | None:
    """Return the job id of a message as well as it can be told, or None; never raises.

    Meant for the status that says why a message was refused, so what comes back is printable and at most 128 characters
    long even when the id in the message is not.
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


def _each_field_once(problems: list[Problem]) -> list[Problem]:
    return list({problem.field: problem for problem in reversed(problems)}.values())[::-1]
