"""Reads JSON from strangers: limits are counted before anything is parsed, and every problem is told."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from aws.osml.model_runner.exceptions import Problem

from .problems import path_text, shortened

MAX_MESSAGE_BYTES = 256 * 1024
MAX_DEPTH = 32

# A string, closed or not, or a bracket outside of strings. Possessive, so that no text makes it look twice.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)

Step = str | int


def load_object(body: str | bytes) -> tuple[dict[str, Any], list[Problem]]:
    """Return the object in ``body`` and what is wrong with it as JSON.

    When it cannot be read at all, the object is empty and the problems say why. Problems that leave it readable are a
    key that is given twice, a number that is not finite and a string with half a character.
    """
    text, problem = _checked_text(body)
    if problem:
        return {}, [problem]
    repeated: Counter[str] = Counter()
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, repeated))
    except ValueError as err:  # a JSONDecodeError, or an integer of more digits than Python converts
        return {}, [Problem("body", _described(body), f"JSON that can be read: {err}")]
    if not isinstance(document, dict):
        return {}, [Problem("body", shortened(document), "a JSON object")]
    twice = [Problem(path_text([key]), "given more than once", "each key once") for key in repeated]
    return document, twice + value_problems(document)


def value_problems(document: Any) -> list[Problem]:
    """Return what no JSON from a friend holds: numbers that are not finite, broken characters, too many levels."""
    problems = []
    for steps, value in _values(document):
        if len(steps) > MAX_DEPTH:
            problems.append(_problem(steps[:2], value, f"at most {MAX_DEPTH} levels"))
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(_problem(steps, value, "a finite number"))
        elif isinstance(value, str) and _is_broken(value):
            problems.append(_problem(steps, value, "text without broken characters"))
    return problems


def _problem(steps: tuple[Step, ...], value: Any, expectation: str) -> Problem:
    return Problem(path_text(steps), shortened(value, str(steps[-1]) if steps else ""), expectation)


def _checked_text(body: str | bytes) -> tuple[str, Problem | None]:
    try:
        text = body.decode() if isinstance(body, bytes) else body
        size = len(text.encode())
    except UnicodeError:
        return "", Problem("body", _described(body), "UTF-8 text")
    if size > MAX_MESSAGE_BYTES:
        return "", Problem("body", f"{size} bytes", f"at most {MAX_MESSAGE_BYTES} bytes")
    if _depth(text) > MAX_DEPTH:
        return "", Problem("body", _described(body), f"JSON of at most {MAX_DEPTH} levels")
    return text, None


def _depth(text: str) -> int:
    """Return how deep the brackets of ``text`` are nested, in one pass and without recursion."""
    level = deepest = 0
    for token in _TOKEN.finditer(text):
        mark = token[0][0]
        if mark in "[{":
            level += 1
            deepest = max(deepest, level)
        elif mark in "]}":
            level -= 1
    return deepest


def _described(body: str | bytes) -> str:
    return f"{len(body)} {'bytes' if isinstance(body, bytes) else 'characters'}"


def _object(pairs: list[tuple[str, Any]], repeated: Counter[str]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated.update(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return result


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False


def _values(document: Any) -> Iterator[tuple[tuple[Step, ...], Any]]:
    """Yield every key and value of a document with its path, depth first, down to the deepest level allowed."""
    waiting: list[tuple[tuple[Step, ...], Any]] = [((), document)]
    while waiting:
        steps, value = waiting.pop()
        yield steps, value
        if len(steps) > MAX_DEPTH:
            continue
        if isinstance(value, dict):
            waiting.extend(((*steps, str(key)), item) for key, item in value.items())
            waiting.extend((steps, key) for key in value if isinstance(key, str) and not key.isascii())
        elif isinstance(value, list):
            waiting.extend(((*steps, index), item) for index, item in enumerate(value))
