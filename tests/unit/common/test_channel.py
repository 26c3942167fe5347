"""Threads that hand things to each other: all things, in order, a few at a time, and errors where they belong."""

import threading
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.channel import BrokenStreamError, Threads, read_ahead, spread
from examples import examples

THREADS = Threads.of_process()


def failing_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("the source is gone")


class Reader:
    """Reads all things; fails after some of them where ``most`` is set."""

    def __init__(self, most: int | None = None) -> None:
        self.read: list[int] = []
        self.most = most
        self.error: BaseException | None = None

    def __call__(self, things: Iterable[int]) -> None:
        try:
            for thing in things:
                if len(self.read) == self.most:
                    raise ValueError("full")
                self.read.append(thing)
        except BaseException as err:
            self.error = err
            raise


@examples(30)
@given(count=st.integers(0, 12), mosts=st.lists(st.none() | st.integers(0, 6), min_size=1, max_size=4))
def test_each_reader_gets_all_items_when_others_fail(count: int, mosts: list[int | None]) -> None:
    readers = [Reader(most) for most in mosts]
    errors = spread(iter(range(count)), readers, THREADS, capacity=2)
    for reader, error in zip(readers, errors, strict=True):
        is_full = reader.most is not None and reader.most < count
        assert isinstance(error, ValueError) == is_full
        assert reader.read == list(range(count))[: reader.most if is_full else None]


@pytest.mark.parametrize("readers", [1, 3])
def test_error_of_source_breaks_every_stream_and_is_raised(readers: int) -> None:
    found = [Reader() for _ in range(readers)]
    with pytest.raises(OSError, match="the source is gone"):
        spread(failing_after(3), found, THREADS, capacity=1)
    for reader in found:
        assert isinstance(reader.error, BrokenStreamError)
        assert reader.read == [0, 1, 2]


def test_rest_is_not_read_when_every_reader_has_failed() -> None:
    taken: list[int] = []
    source = (taken.append(number) or number for number in range(1_000))
    errors = spread(source, [Reader(1), Reader(2)], THREADS, capacity=1)
    assert all(isinstance(error, ValueError) for error in errors)
    assert len(taken) < 20


def test_reader_that_leaves_early_hides_no_error_of_source() -> None:
    with pytest.raises(OSError, match="gone"):
        spread(failing_after(2), [lambda _things: None], THREADS, capacity=1)
    with pytest.raises(OSError, match="gone"):
        spread(failing_after(2), [lambda _things: None, lambda _things: None], THREADS, capacity=1)


def test_without_readers_everything_is_read() -> None:
    with pytest.raises(OSError, match="gone"):
        spread(failing_after(2), [], THREADS, capacity=1)


def test_source_is_ended_before_spread_returns() -> None:
    ended = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(1_000)
        finally:
            ended.set()

    for readers in ([Reader(0)], [Reader(0), Reader(0)]):
        ended.clear()
        spread(source(), readers, THREADS, capacity=1)
        assert ended.is_set() or readers[0].read == []


@examples(20)
@given(count=st.integers(0, 8))
def test_read_ahead_gives_same_items(count: int) -> None:
    assert list(read_ahead(range(count), THREADS)) == list(range(count))
    found: list[int] = []
    with pytest.raises(OSError, match="gone"):
        found.extend(iter_into(found, read_ahead(failing_after(count), THREADS)))
    assert found == list(range(count))


def iter_into(found: list[int], things: Iterable[int]) -> list[int]:
    for thing in things:
        found.append(thing)
    return []


def test_no_more_than_one_thing_is_read_ahead() -> None:
    taken: list[int] = []
    source = (taken.append(number) or number for number in range(100))
    for number in read_ahead(source, THREADS):
        assert len(taken) <= number + 2
        if number == 10:
            break


def test_read_ahead_ends_with_its_reader() -> None:
    before = threading.active_count()
    things = read_ahead(range(100), THREADS)
    assert next(things) == 0
    things.close()
    assert threading.active_count() <= before + 1
