"""Runs every regular expression of the package, or its redaction, over texts that make patterns backtrack.

``python linear_patterns.py patterns|functions LENGTH short|long`` prints the name and the unit of each text before it
runs, and the number of names at the end. SIGVTALRM ends the process when one text takes more processor time than its
budget. Quadratic work at these lengths takes several times the budget, linear work a hundredth of it.
"""

import ast
import importlib
import itertools
import pkgutil
import re
import re._parser as _parser
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import aws.osml.model_runner as package
from aws.osml.model_runner.api.image_request_message import job_id_of, parse_image_request_message
from aws.osml.model_runner.api.json_document import load_object
from aws.osml.model_runner.api.problems import path_text, shortened
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from aws.osml.model_runner.telemetry.redaction import is_secret_name, redact, redact_text, safe_text

# Processor time for 32 KiB, so a machine under load changes nothing.
_BUDGET_S, _BUDGET_BYTES = 0.5, 32 * 1024
_METHODS = ("search", "match", "fullmatch", "findall", "finditer", "sub", "split")
# A character of each class that patterns distinguish, and the characters that they name.
_ALPHABET = "aZ0-_.:/ \n\"'\\<>=?@(,+"
_SHORT_ALPHABET = "a-_./: "
# Bounds on what is tried behind the beginnings of a pattern's matches.
_MOST_MATCHES, _MOST_BEGINNING = 4, 24
_WORD = re.compile(r"[A-Za-z0-9:/<&\"_ -]{3,40}")

Try = Callable[[str], object]


class Attempt(NamedTuple):
    """A call with a text; texts are units repeated behind each of ``beginnings``."""

    name: str
    run: Try
    words: list[str]
    beginnings: list[str]


def modules() -> Iterator[ModuleType]:
    """Yield every module of the package that can be imported here."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def patterns_of(module: ModuleType) -> Iterator[tuple[str, re.Pattern[Any], list[str]]]:
    """Yield the patterns of a module with their names and the methods by which the module uses them."""
    source = Path(str(module.__file__)).read_text()
    for name, value in vars(module).items():
        used = re.findall(rf"\b{re.escape(name)}\.({'|'.join(_METHODS)})\(", source)
        for number, pattern in enumerate(_patterns_in(value)):
            yield f"{module.__name__}.{name}[{number}]", pattern, sorted(set(used)) or ["search"]
    tree = ast.parse(source)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (method := _method_of_re(call)) in _METHODS:
            assert isinstance(call.args[0], ast.Constant), f"{module.__name__}:{call.lineno}: a pattern out of sight"
            yield f"{module.__name__}:{call.lineno}", re.compile(call.args[0].value), [method]
    for body in ast.walk(tree):
        if isinstance(body, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            calls = [call for call in ast.walk(body) if isinstance(call, ast.Call) and _method_of_re(call) == "compile"]
            assert not calls, f"{module.__name__}:{calls[0].lineno}: a pattern out of sight"


def _patterns_in(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _patterns_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _patterns_in(item)


def _method_of_re(call: ast.Call) -> str | None:
    """Return the name of the function of ``re`` that is called."""
    function = call.func
    is_of_re = (
        isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "re"
    )
    return function.attr if is_of_re else None


def _by(pattern: re.Pattern[Any], method: str) -> Try:
    is_bytes = isinstance(pattern.pattern, bytes)
    run = getattr(pattern, method)

    def attempt(text: str) -> object:
        given = text.encode() if is_bytes else text
        if method == "sub":
            return run(b"" if is_bytes else "", given)
        return sum(1 for _ in run(given)) if method == "finditer" else run(given)

    return attempt


def _tries_of_patterns() -> Iterator[Attempt]:
    for module in modules():
        for name, pattern, methods in patterns_of(module):
            source = _source_of(pattern)
            for method in methods:
                yield Attempt(f"{name}.{method}", _by(pattern, method), _words_of(source), _beginnings_of(source))


def _source_of(pattern: re.Pattern[Any]) -> str:
    return pattern.pattern.decode() if isinstance(pattern.pattern, bytes) else str(pattern.pattern)


def _beginnings_of(pattern: str) -> list[str]:
    """Return the beginnings of short matches: a pattern may back up only behind what it requires before."""
    matches = {"".join(parts) for parts in itertools.islice(_matches(_parser.parse(pattern)), _MOST_MATCHES)}
    return sorted({match[:end] for match in matches for end in range(1, min(len(match), _MOST_BEGINNING) + 1)})


def _matches(parsed: Any) -> Iterator[list[str]]:
    """Yield texts of a parsed pattern, one for each combination of its branches, with few repetitions."""
    choices = [_texts_of(str(kind), argument) for kind, argument in parsed]
    for chosen in itertools.product(*choices):
        yield list(chosen)


def _texts_of(kind: str, argument: Any) -> list[str]:
    if kind == "LITERAL":
        return [chr(argument)]
    if kind == "IN":
        return [_member_of(argument)]
    if kind == "BRANCH":
        return ["".join(text) for branch in argument[1] for text in itertools.islice(_matches(branch), 1)]
    if kind in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
        text = "".join(next(_matches(argument[2])))
        return [text * argument[0]] if argument[0] or not text else ["", text]
    if kind in {"SUBPATTERN", "ATOMIC_GROUP"}:
        inner = argument[-1] if kind == "SUBPATTERN" else argument
        return ["".join(text) for text in itertools.islice(_matches(inner), _MOST_MATCHES)]
    return ["a"] if kind in {"ANY", "NOT_LITERAL"} else [""]


def _member_of(members: Any) -> str:
    """Return a character of a set."""
    for kind, argument in members:
        if str(kind) == "LITERAL":
            return chr(argument)
        if str(kind) == "RANGE":
            return chr(argument[0])
        if str(kind) == "CATEGORY":
            return " " if "SPACE" in str(argument) else "0"
    return "a"


def _words_of(source: str) -> list[str]:
    """Return units out of the words in a pattern, each alone and beside what may repeat around it."""
    words = sorted(set(_WORD.findall(source)))
    return [unit for word in words for unit in (word, f"{word} ", f"-{word}", f"{word}a", f"/{word}/")]


def _refused(body: str) -> object:
    try:
        return parse_image_request_message(body)
    except InvalidImageRequestException as err:
        return err.problems


def _tries_of_functions() -> Iterator[Attempt]:
    words = [
        "://",
        "a://",
        "secret",
        "-token",
        "_key",
        "api_key=",
        "<token",
        "authorization:",
        "Bearer ",
        "eyJ",
        "-eyJ",
    ]
    words += ["AKIA", "/token/", "://a?", "://a:a@", "sig=", "aB3", "/aB3", "password:\n", "key "]
    named: dict[str, Try] = {
        "redact_text": redact_text,
        "redact": lambda text: redact({"event": [text], "key": {"name": text}}),
        "is_secret_name": is_secret_name,
        "safe_text": safe_text,
        "shortened": shortened,
        "shortened by name": lambda text: shortened("", text),
        "path_text": lambda text: path_text([text]),
        "load_object": load_object,
        "job_id_of": job_id_of,
        "job_id_of an object": lambda text: job_id_of(f'{{"jobId": {_quoted(text)}}}'),
        "parse jobId": lambda text: _refused(f'{{"jobId": {_quoted(text)}}}'),
        "parse key": lambda text: _refused(f'{{{_quoted(text)}: 1, "tileSize": {_quoted(text)}}}'),
        "parse outputs": lambda text: _refused(f'{{"outputs": [{{"type": "S3", "bucket": {_quoted(text)}}}]}}'),
        "parse urls": lambda text: _refused(f'{{"imageUrls": [{_quoted(text)}, "s3://a/b"]}}'),
        "parse region": lambda text: _refused(f'{{"regionOfInterest": {_quoted(text)}}}'),
        "parse region after": lambda text: _refused(f'{{"regionOfInterest": {_quoted("POLYGON ((" + text)}}}'),
    }
    for name, attempt in named.items():
        yield Attempt(name, attempt, words, [])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def main(what: str, length: int, form: str = "short") -> None:
    """Try every text with every pattern or function; the long form joins more characters to pairs."""
    of_pairs = _ALPHABET if form == "long" else _SHORT_ALPHABET
    units = [*_ALPHABET, *("".join(pair) for pair in itertools.permutations(of_pairs, 2))]
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    names = set()
    for attempt in {"patterns": _tries_of_patterns, "functions": _tries_of_functions}[what]():
        names.add(attempt.name)
        texts = [("a", unit) for unit in [*units, *attempt.words]]
        texts += itertools.product(attempt.beginnings, _ALPHABET if form == "long" else _SHORT_ALPHABET)
        for beginning, unit in texts:
            print(f"{attempt.name} {beginning!r} {unit!r}", flush=True)
            text = (unit * (length // len(unit) + 1))[:length]
            signal.setitimer(signal.ITIMER_VIRTUAL, _BUDGET_S * length / _BUDGET_BYTES)
            attempt.run(f"{beginning}{text}\x00")
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(len(names))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
