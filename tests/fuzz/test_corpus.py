"""Inputs that a fuzzer found, and known hostile inputs, against every target."""

import json
import random
from pathlib import Path

import pytest

from fuzz.seeds import damaged_seeds, of_many_segments, of_tags, seeds
from fuzz.targets import TARGETS
from malformed_requests import GOOD, MALFORMED

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file())
MUTATIONS = 10_000


def test_there_is_a_corpus_for_every_target() -> None:
    assert {path.parent.name for path in KEPT} | {name for name in TARGETS if seeds(name)} == set(TARGETS)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name[:12]}")
def test_a_kept_input_breaks_no_parser(path: Path) -> None:
    for check in TARGETS.values():
        check(path.read_bytes())


@pytest.mark.parametrize("target", [name for name in TARGETS if seeds(name)])
def test_seeds_and_what_is_damaged_of_them_break_nothing(target: str) -> None:
    for body in [*seeds(target), *damaged_seeds(target, 500)]:
        TARGETS[target](body)


def test_a_header_that_names_its_parts_again_and_again_is_refused() -> None:
    text = b"x" * 10_000
    for body in (of_tags([(270, text)] * 4_000), of_tags([(34737, text)] * 4_000), of_many_segments(999)):
        TARGETS["headers"](body)


def test_ten_thousand_damaged_messages_break_nothing() -> None:
    rng = random.Random(1)
    bodies = [json.dumps(GOOD).encode(), *(body.encode("utf-8", "replace") for _, body, _ in MALFORMED)]
    bodies = [body for body in bodies if 2 < len(body) < 5_000]
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b"null",
        b"NaN",
        b"1e999",
        b"-0",
        b"\xff",
        b"\x00",
        b"\\ud800",
        b"[" * 40,
    ]
    for _ in range(MUTATIONS):
        body = bytearray(rng.choice(bodies))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            body[at : at + rng.randint(0, 6)] = rng.choice(pieces)
        TARGETS["requests"](bytes(body))
