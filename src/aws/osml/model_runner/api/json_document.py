"""Parses untrusted JSON: checks limits before parsing, and returns every problem."""

import itertools
import json
import math
import re
from collections import Counter
from typing import Any

from aws.osml.model_runner.exceptions import Problem

from .problems import path_text, shortened

MAX_MESSAGE_BYTES = 256 * 1024
MAX_DEPTH = 32
# A document with more problems is not searched to its end.
_MAX_PROBLEMS = 100

# A string, closed or not, or a bracket outside strings. Possessive, so that no text makes it backtrack.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)

Step = str | int


def load_object(body: str | bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> tuple[dict[str, Any], list[Problem]]:
    """Return the object in ``body`` and its problems.

    If ``body`` cannot be parsed, the object is empty and there is a problem. Other problems leave the object readable:
    a repeated key, a number that is not finite, and a string with half of a surrogate pair.
    """
    described = f"{len(body)} {'bytes' if isinstance(body, bytes) else 'characters'}"
    try:
        text = body.decode() if isinstance(body, bytes) else body
        size = len(text.encode())
    except UnicodeError:
        return {}, [Problem("body", described, "UTF-8 text")]
    if size > max_bytes:
        return {}, [Problem("body", f"{size} bytes", f"at most {max_bytes} bytes")]
    if _depth(text) > MAX_DEPTH:
        return {}, [Problem("body", described, f"JSON of at most {MAX_DEPTH} levels")]
    repeated: Counter[str] = Counter()

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            repeated.update(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return result

    try:
        document = json.loads(text, object_pairs_hook=to_object)
    except ValueError as err:  # JSONDecodeError, or an integer with more digits than Python converts
        return {}, [Problem("body", described, f"valid JSON: {err}")]
    if not isinstance(document, dict):
        return {}, [Problem("body", shortened(document), "a JSON object")]
    twice = [
        Problem(path_text([key]), "given more than once", "each key once")
        for key in itertools.islice(repeated, _MAX_PROBLEMS)
    ]
    return document, twice + value_problems(document)


def value_problems(document: Any) -> list[Problem]:
    """Return problems with values: numbers that are not finite, lone surrogates, too many levels."""
    problems: list[Problem] = []
    # Values, and keys that are not ASCII, whose parents have been checked, each with its path.
    waiting: list[tuple[tuple[Step, ...], Any]] = [((), document)]
    while waiting and len(problems) < _MAX_PROBLEMS:
        steps, value = waiting.pop()
        if len(steps) > MAX_DEPTH:
            problems.append(_problem(steps[:2], value, f"at most {MAX_DEPTH} levels"))
        elif isinstance(value, dict):
            waiting.extend(((*steps, str(key)), item) for key, item in value.items())
            waiting.extend((steps, key) for key in value if isinstance(key, str) and not key.isascii())
        elif isinstance(value, list):
            waiting.extend(((*steps, index), item) for index, item in enumerate(value))
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(_problem(steps, value, "a finite number"))
        elif isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            problems.append(_problem(steps, value, "text without broken characters"))
    return problems


def _problem(steps: tuple[Step, ...], value: Any, expectation: str) -> Problem:
    return Problem(path_text(steps), shortened(value, str(steps[-1]) if steps else ""), expectation)


def _depth(text: str) -> int:
    """Return the nesting depth of the brackets of ``text``, in one pass and without recursion."""
    level = max_level = 0
    for token in _TOKEN.finditer(text):
        mark = token[0][0]
        if mark in "[{":
            level += 1
            max_level = max(max_level, level)
        elif mark in "]}":
            level -= 1
    return max_level
