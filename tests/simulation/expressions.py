"""DynamoDB's expressions, compiled to functions of an item: each text once, and strictly, as the service has them.

A compiled expression is a function of the item and of the values of its placeholders. An expression
outside this grammar is a ``SyntaxProblem``, so a new kind of expression in production code cannot pass unnoticed.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

Item = Mapping[str, Any]
Values = Mapping[str, Any]
Operand = Callable[[Item, Values], Any]

# Stands for an attribute that an item does not have; it compares with nothing.
MISSING = object()

_TOKEN = re.compile(r"\s*(?::\w+|[A-Za-z_]\w*|<>|<=|>=|[=<>(),+\-])")
_KEYWORDS = frozenset({"AND", "OR", "NOT", "IN", "BETWEEN", "SET", "REMOVE", "ADD", "DELETE"})
# DynamoDB's reserved words that could be names of attributes.
_WORDS = """
    ACTION ADD AGENT ALL AND ANY AS AT ATTRIBUTE ATTRIBUTES BATCH BEGIN BETWEEN BLOB BOOLEAN BOTH BUCKETS BY BYTES
    CACHE CALL CAPACITY CASE CLASS CLOSE CLUSTER COLLECTION COLUMN CONDITION CONNECTION COUNT COUNTER CREATE CURSOR
    DATA DATE DAY DEFAULT DELETE DESC DO DOMAIN DROP DURATION ELSE ENCODING END ERROR ERRORS EXISTS FILE FILTER
    FIRST FORMAT FROM FULL FUNCTION GROUP HASH HIDDEN HOUR IDENTIFIED IF IN INDEX INPUT INTERVAL ITEMS JOIN KEY KEYS
    LANGUAGE LAST LEFT LENGTH LEVEL LIMIT LINES LIST LOCAL LOCATION LOCK LOG MAP MAX MEMBER METRICS MIN MINUS MOD
    MODE NAME NAMES NEXT NO NONE NOT NULL NUMBER OBJECT OF OFFSET ON OPEN OPERATOR OPTION OR ORDER OUT OUTPUT OVER
    OWNER PARTIAL PARTITION PATH PERCENT PLACING POINT PREPARE PRIMARY PRIORITY QUEUE RANGE RATIO READ REGION
    RELEASE REPEAT REPLACE REQUEST RESET RESOURCE RESULT RETURN REVERSE ROLE ROW ROWS SAMPLE SCAN SEARCH SECTION
    SEGMENT SELECT SEQUENCE SESSION SET SIZE SOURCE SPACE START STATE STATUS STORAGE STORED STREAM STRING SUM TABLE
    TAG TEXT THEN TIME TIMESTAMP TO TOKEN TOTAL TRANSACTION TYPE UNIQUE UNIT UNTIL UPDATE URL USE USER UUID VALUE
    VALUES VIEW VIEWS WHEN WHERE WHILE WITH WORK ZONE
"""
_RESERVED = frozenset(_WORDS.split())


class SyntaxProblem(Exception):
    """A text that is not an expression."""


class Condition(NamedTuple):
    """A condition, filter or key condition, and the placeholders that it names."""

    holds: Callable[[Item, Values], bool]
    placeholders: frozenset[str]


class Update(NamedTuple):
    """An update: a function that returns the new item and leaves the old one alone; and what it names."""

    apply: Callable[[Item, Values], dict[str, Any]]
    placeholders: frozenset[str]
    names: frozenset[str]


class _Tokens:
    def __init__(self, text: str) -> None:
        self.tokens = list(_tokens(text))
        self.at = 0
        self.placeholders: set[str] = set()

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next
        self.at += 1
        return token

    def is_word(self, word: str) -> bool:
        return self.next.upper() == word

    def accept(self, token: str) -> bool:
        if self.next.upper() != token:
            return False
        self.at += 1
        return True

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise SyntaxProblem(f"{token!r} expected, not {self.next!r}")


def _tokens(text: str) -> Iterator[str]:
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise SyntaxProblem(f"no token at {text[at : at + 10]!r}")
        yield match[0].strip()
        at = match.end()


# Operands ---------------------------------------------------------------------------------------------------------


def _name(tokens: _Tokens) -> str:
    name = tokens.take()
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.upper() in _KEYWORDS:
        raise SyntaxProblem(f"{name!r} is not the name of an attribute")
    if name.upper() in _RESERVED:
        raise SyntaxProblem(f"{name} is a reserved word")
    return name


def _placeholder(tokens: _Tokens) -> str:
    name = tokens.take()
    if not name.startswith(":"):
        raise SyntaxProblem(f"{name!r} is no value")
    tokens.placeholders.add(name)
    return name


def _operand(tokens: _Tokens) -> Operand:
    if tokens.next.startswith(":"):
        placeholder = _placeholder(tokens)
        return lambda _item, values: values[placeholder]
    if tokens.is_word("SIZE"):
        tokens.take()
        tokens.expect("(")
        inner = _operand(tokens)
        tokens.expect(")")
        return lambda item, values: _size(inner(item, values))
    name = _name(tokens)
    return lambda item, _values: item.get(name, MISSING)


def _size(value: Any) -> Any:
    return Decimal(len(value)) if isinstance(value, str | bytes | list | dict | frozenset) else MISSING


# Conditions -------------------------------------------------------------------------------------------------------

_Test = Callable[[Item, Values], bool]


def _either(tokens: _Tokens) -> _Test:
    tests = [_both(tokens)]
    while tokens.accept("OR"):
        tests.append(_both(tokens))
    return tests[0] if len(tests) == 1 else lambda item, values: any(test(item, values) for test in tests)


def _both(tokens: _Tokens) -> _Test:
    tests = [_negated(tokens)]
    while tokens.accept("AND"):
        tests.append(_negated(tokens))
    return tests[0] if len(tests) == 1 else lambda item, values: all(test(item, values) for test in tests)


def _negated(tokens: _Tokens) -> _Test:
    if tokens.accept("NOT"):
        test = _negated(tokens)
        return lambda item, values: not test(item, values)
    if tokens.accept("("):
        test = _either(tokens)
        tokens.expect(")")
        return test
    word = tokens.next
    if word in ("attribute_exists", "attribute_not_exists"):
        return _existence(tokens, is_wanted=tokens.take() == "attribute_exists")
    if word in ("begins_with", "contains"):
        return _text_function(tokens, tokens.take())
    return _comparison(tokens)


def _existence(tokens: _Tokens, is_wanted: bool) -> _Test:
    tokens.expect("(")
    name = _name(tokens)
    tokens.expect(")")
    return lambda item, _values: (name in item) is is_wanted


def _text_function(tokens: _Tokens, function: str) -> _Test:
    tokens.expect("(")
    first = _operand(tokens)
    tokens.expect(",")
    second = _operand(tokens)
    tokens.expect(")")
    if function == "contains":
        return lambda item, values: (left := first(item, values)) is not MISSING and second(item, values) in left

    def begins(item: Item, values: Values) -> bool:
        left, right = first(item, values), second(item, values)
        return isinstance(left, str) and isinstance(right, str) and left.startswith(right)

    return begins


def _comparison(tokens: _Tokens) -> _Test:
    left = _operand(tokens)
    if tokens.accept("IN"):
        tokens.expect("(")
        options = [_operand(tokens)]
        while tokens.accept(","):
            options.append(_operand(tokens))
        tokens.expect(")")
        return lambda item, values: any(_equal(left(item, values), option(item, values)) for option in options)
    if tokens.accept("BETWEEN"):
        low = _operand(tokens)
        tokens.expect("AND")
        high = _operand(tokens)
        return lambda item, values: (
            _compare(">=", left(item, values), low(item, values))
            and _compare("<=", left(item, values), high(item, values))
        )
    sign = tokens.take()
    if sign not in ("=", "<>", "<", "<=", ">", ">="):
        raise SyntaxProblem(f"{sign!r} compares nothing")
    right = _operand(tokens)
    if sign == "=":
        return lambda item, values: _equal(left(item, values), right(item, values))
    if sign == "<>":
        return lambda item, values: not _equal(left(item, values), right(item, values))
    return lambda item, values: _compare(sign, left(item, values), right(item, values))


def _equal(left: Any, right: Any) -> bool:
    return left is not MISSING and type(left) is type(right) and bool(left == right)


def _compare(sign: str, left: Any, right: Any) -> bool:
    if type(left) is not type(right) or not isinstance(left, Decimal | str | bytes):
        return False
    match sign:
        case "<":
            return bool(left < right)  # type: ignore[operator]
        case "<=":
            return bool(left <= right)  # type: ignore[operator]
        case ">":
            return bool(left > right)  # type: ignore[operator]
    return bool(left >= right)  # type: ignore[operator]


@functools.cache
def condition(text: str) -> Condition:
    """Compile a ConditionExpression, FilterExpression or KeyConditionExpression."""
    tokens = _Tokens(text)
    test = _either(tokens)
    if tokens.next:
        raise SyntaxProblem(f"{tokens.next!r} is too much")
    return Condition(test, frozenset(tokens.placeholders))


@functools.cache
def projection(text: str) -> tuple[str, ...]:
    """Compile a ProjectionExpression of attributes at the top level."""
    tokens = _Tokens(text)
    names = [_name(tokens)]
    while tokens.accept(","):
        names.append(_name(tokens))
    if tokens.next:
        raise SyntaxProblem(f"{tokens.next!r} is too much")
    return tuple(names)


# Updates ----------------------------------------------------------------------------------------------------------

_Change = Callable[[Item, Values, dict[str, Any]], None]


def _value(tokens: _Tokens) -> Operand:
    first = _term(tokens)
    if tokens.next not in ("+", "-"):
        return first
    sign = 1 if tokens.take() == "+" else -1
    second = _term(tokens)
    return lambda item, values: first(item, values) + sign * second(item, values)


def _term(tokens: _Tokens) -> Operand:
    word = tokens.next
    if word not in ("if_not_exists", "list_append"):
        return _present(_operand(tokens), word)
    tokens.take()
    tokens.expect("(")
    if word == "if_not_exists":
        name = _name(tokens)
        tokens.expect(",")
        otherwise = _value(tokens)
        tokens.expect(")")
        return lambda item, values: item[name] if name in item else otherwise(item, values)
    first = _value(tokens)
    tokens.expect(",")
    second = _value(tokens)
    tokens.expect(")")
    return lambda item, values: [*first(item, values), *second(item, values)]


def _present(operand: Operand, text: str) -> Operand:
    def found(item: Item, values: Values) -> Any:
        value = operand(item, values)
        if value is MISSING:
            raise SyntaxProblem(f"the item has no attribute {text}")
        return value

    return found


def _set(tokens: _Tokens, names: list[str]) -> _Change:
    name = _name(tokens)
    names.append(name)
    tokens.expect("=")
    value = _value(tokens)

    def change(item: Item, values: Values, new: dict[str, Any]) -> None:
        new[name] = value(item, values)

    return change


def _remove(tokens: _Tokens, names: list[str]) -> _Change:
    name = _name(tokens)
    names.append(name)
    return lambda _item, _values, new: new.pop(name, None)


def _add(tokens: _Tokens, names: list[str]) -> _Change:
    name = _name(tokens)
    names.append(name)
    placeholder = _placeholder(tokens)

    def change(item: Item, values: Values, new: dict[str, Any]) -> None:
        more = values[placeholder]
        if not isinstance(more, Decimal | frozenset) or type(item.get(name, more)) is not type(more):
            raise SyntaxProblem(f"ADD takes numbers and sets, and {name} is neither, or another kind")
        if name in item:
            new[name] = item[name] + more if isinstance(more, Decimal) else item[name] | more
        else:
            new[name] = more

    return change


def _delete(tokens: _Tokens, names: list[str]) -> _Change:
    name = _name(tokens)
    names.append(name)
    placeholder = _placeholder(tokens)

    def change(item: Item, values: Values, new: dict[str, Any]) -> None:
        if rest := item.get(name, frozenset()) - values[placeholder]:
            new[name] = rest
        else:
            new.pop(name, None)

    return change


_CLAUSES = {"SET": _set, "REMOVE": _remove, "ADD": _add, "DELETE": _delete}


@functools.cache
def update(text: str) -> Update:
    """Compile an UpdateExpression; the right sides all see the item as it was before."""
    tokens = _Tokens(text)
    changes: list[_Change] = []
    names: list[str] = []
    seen: set[str] = set()
    while tokens.next:
        clause = tokens.take().upper()
        if clause not in _CLAUSES or clause in seen:
            raise SyntaxProblem(f"{clause!r} begins no clause, or begins it again")
        seen.add(clause)
        changes.append(_CLAUSES[clause](tokens, names))
        while tokens.accept(","):
            changes.append(_CLAUSES[clause](tokens, names))
    if len(set(names)) < len(names) or not names:
        raise SyntaxProblem("an attribute is changed twice, or none is")

    def apply(item: Item, values: Values) -> dict[str, Any]:
        new = dict(item)
        for change in changes:
            change(item, values, new)
        return new

    return Update(apply, frozenset(tokens.placeholders), frozenset(names))
