"""Sizes and capacity units against the examples of AWS's documentation."""

import pytest

from aws_proxy.units import item_bytes, number_bytes, read_units, value_bytes, write_units


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": "abc"}, 3),
        ({"S": "Zürich"}, 7),  # UTF-8, and ü takes two bytes
        ({"B": "AAECAw=="}, 4),  # the raw bytes
        ({"BOOL": True}, 1),
        ({"NULL": True}, 1),
        ({"SS": ["ab", "c"]}, 3),
        ({"NS": ["27", "-1"]}, 2 + 3),
        ({"BS": ["AAE=", "AA=="]}, 3),
        ({"L": []}, 3),
        ({"M": {}}, 3),
        ({"L": [{"S": "ab"}, {"BOOL": False}]}, 3 + (1 + 2) + (1 + 1)),
        ({"M": {"name": {"S": "ab"}}}, 3 + 1 + 4 + 2),
        ({"L": [{"M": {"k": {"L": []}}}]}, 3 + 1 + (3 + 1 + 1 + 3)),
    ],
)
def test_value_bytes_follow_documentation(value, size):
    assert value_bytes(value) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 1),
        ("7", 2),
        ("27", 2),
        ("270", 3),
        ("2700", 2),  # zeroes at both ends are trimmed
        ("0.0027", 2),
        ("1.5", 3),
        ("-27", 3),
        ("12345678901234567890123456789012345678", 20),
        ("1E+3", 2),
    ],
)
def test_number_bytes_follow_documentation(text, size):
    assert number_bytes(text) == size


def test_names_count_as_much_as_values():
    assert item_bytes({"id": {"S": "a"}, "größe": {"N": "27"}}) == (2 + 1) + (7 + 2)


@pytest.mark.parametrize(
    ("size", "is_transaction", "units"),
    [(0, False, 1), (1, False, 1), (1024, False, 1), (1025, False, 2), (3 * 1024, False, 3), (3 * 1024, True, 6)],
)
def test_write_units_count_kilobytes_and_double_in_transaction(size, is_transaction, units):
    assert write_units(size, is_transaction) == units


@pytest.mark.parametrize(
    ("size", "is_consistent", "is_transaction", "units"),
    [
        (3500, True, False, 1),
        (3500, False, False, 0.5),
        (10_000, True, False, 3),  # rounded up to 12 KB
        (8 * 1024, True, False, 2),
        (8 * 1024, False, False, 1),
        (8 * 1024, True, True, 4),
        (0, True, False, 1),  # of an item that is not there
    ],
)
def test_read_units_count_four_kilobytes(size, is_consistent, is_transaction, units):
    assert read_units(size, is_consistent, is_transaction) == units
