"""A fleet's turns in virtual time; `fleet_turns.py` prints the whole table."""

from collections.abc import Iterator

import pytest
import structlog

from scheduling.fleet_turns import starts, waiting


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def test_cold_fleet_starts_twenty_images_a_second():
    tally = starts(6.0, workers=80, endpoints=10)
    assert tally.per_s(tally.started) >= 20
    assert tally.control_calls == 2 * 10


def test_waiting_images_cost_two_load_snapshots_a_second():
    small, large = (waiting(10.0, 40.0, property_bytes, workers=40, images=200) for property_bytes in (0, 16_000))
    assert small.started == small.control_calls == 0
    assert 10 <= small.scans <= 2 * small.seconds
    assert large.read_units == pytest.approx(small.read_units, rel=0.1)
