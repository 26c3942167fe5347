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


def test_there_is_corpus_for_every_target() -> None:
    assert {path.parent.name for path in KEPT} | {name for name in TARGETS if seeds(name)} == set(TARGETS)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name[:12]}")
def test_kept_input_breaks_no_parser(path: Path) -> None:
    for check in TARGETS.values():
        check(path.read_bytes())


@pytest.mark.parametrize("target", [name for name in TARGETS if seeds(name)])
def test_parser_accepts_or_refuses_when_seed_is_damaged(target: str) -> None:
    for body in [*seeds(target), *damaged_seeds(target, 500)]:
        TARGETS[target](body)


def test_header_is_refused_when_it_repeats_its_parts() -> None:
    text = b"x" * 10_000
    for body in (of_tags([(270, text)] * 4_000), of_tags([(34737, text)] * 4_000), of_many_segments(999)):
        TARGETS["headers"](body)


def test_parser_survives_ten_thousand_damaged_messages() -> None:
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
