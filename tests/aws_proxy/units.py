"""Sizes of DynamoDB items, and the capacity units that reads and writes of them consume, by AWS's published rules.

https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html and
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html
"""

import base64
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

WRITE_UNIT_BYTES = 1024
READ_UNIT_BYTES = 4096
# Bytes of a list or a map beside its elements, and for each of them.
_DOCUMENT_BYTES = 3
_ELEMENT_BYTES = 1


def item_bytes(item: Mapping[str, Any]) -> int:
    """Return the size of an item in wire form, ``{"name": {"S": "value"}}``: names and values."""
    return sum(len(name.encode()) + value_bytes(value) for name, value in item.items())


def value_bytes(value: Mapping[str, Any]) -> int:
    """Return the size of a value in wire form, ``{"S": "value"}``."""
    ((kind, content),) = value.items()
    return _SIZES[kind](content)


def number_bytes(text: str) -> int:
    """Return the size of a number: one byte, one for every two significant digits, and one for a minus sign."""
    sign, digits, exponent = Decimal(text).as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    trimmed = significant.rstrip("0")
    if not trimmed:
        return 1
    # Pairs of digits are aligned at the decimal point: 1.5 takes two pairs, 15 takes one.
    point = int(exponent) + len(significant) - len(trimmed)
    pairs = math.ceil((len(trimmed) + point % 2) / 2)
    return 1 + pairs + sign


def write_units(size_bytes: int, is_transaction: bool = False) -> int:
    """Return the units of writing an item: the larger of the old and the new size counts."""
    return max(1, math.ceil(size_bytes / WRITE_UNIT_BYTES)) * (2 if is_transaction else 1)


def read_units(size_bytes: int, is_consistent: bool, is_transaction: bool = False) -> float:
    """Return the units of reading so many bytes: of one item, or of all that a query or a scan went through."""
    blocks = max(1, math.ceil(size_bytes / READ_UNIT_BYTES))
    if is_transaction:
        return 2.0 * blocks
    return float(blocks) if is_consistent else blocks / 2


def _text_bytes(text: str) -> int:
    return len(text.encode())


def _binary_bytes(text: str) -> int:
    return len(base64.b64decode(text))


def _list_bytes(values: list[Mapping[str, Any]]) -> int:
    return _DOCUMENT_BYTES + sum(_ELEMENT_BYTES + value_bytes(value) for value in values)


def _map_bytes(values: Mapping[str, Mapping[str, Any]]) -> int:
    return _DOCUMENT_BYTES + _ELEMENT_BYTES * len(values) + item_bytes(values)


_SIZES = {
    "S": _text_bytes,
    "N": number_bytes,
    "B": _binary_bytes,
    "BOOL": lambda _: 1,
    "NULL": lambda _: 1,
    "SS": lambda texts: sum(map(_text_bytes, texts)),
    "NS": lambda numbers: sum(map(number_bytes, numbers)),
    "BS": lambda blobs: sum(map(_binary_bytes, blobs)),
    "L": _list_bytes,
    "M": _map_bytes,
}
