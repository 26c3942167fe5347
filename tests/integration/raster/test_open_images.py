"""The images that a process has open: opened once, shared, and closed after their last use."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from aws.osml.model_runner.exceptions import InvalidImageURLException, LoadImageException
from aws.osml.model_runner.raster import RasterSettings
from aws.osml.model_runner.raster import open_images as module
from aws.osml.model_runner.raster.open_images import OpenImages
from raster_files import pattern, write_image


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


class Opener:
    """Opens for real, and notes what was opened and closed; an entry in ``faults`` is raised instead."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.keys: list[object] = []
        self.faults: list[Exception] = []
        self.delay_s = 0.0
        self._open = module.open_image

    def __call__(self, location, settings, credentials=None, sleep=None):
        time.sleep(self.delay_s)
        if self.faults:
            raise self.faults.pop()
        self.keys.append(None if credentials is None else credentials())
        source = self._open(location, settings, None)
        self.opened.append(location.url)
        close = source.close

        def noted() -> None:
            self.closed.append(location.url)
            close()

        source.close = noted
        return source


@pytest.fixture
def opener(monkeypatch) -> Opener:
    made = Opener()
    monkeypatch.setattr(module, "open_image", made)
    return made


@pytest.fixture
def images() -> Iterator[OpenImages]:
    made = OpenImages(RasterSettings(), {"file", "s3"}, lambda role: None, Clock())
    yield made
    made.close()


@pytest.fixture
def urls(tmp_path) -> list[str]:
    return [f"file://{write_image(tmp_path / f'{n}.tif', pattern(1, 40, 30 + n))}" for n in range(8)]


def test_image_is_lent_open(images, opener, urls):
    with images.lend(urls[3]) as source:
        assert (source.width, source.height, source.extension) == (33, 40, "TIFF")
        with source.dataset() as dataset:
            assert dataset.RasterCount == 1


def test_image_is_opened_once_when_threads_request_it_at_once(images, opener, urls):
    opener.delay_s = 0.05
    together = threading.Barrier(8, timeout=5)

    def borrow(_: int) -> int:
        together.wait()
        with images.lend(urls[0]) as source:
            return id(source)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(borrow, range(8)))) == 1
    assert opener.opened == [urls[0]]
    assert opener.closed == []


def test_slow_open_does_not_delay_other_images(images, opener, urls):
    began, release = threading.Event(), threading.Event()
    plain_open = opener._open

    def slow(location, settings, credentials):
        if location.url == urls[0]:
            began.set()
            assert release.wait(5)
        return plain_open(location, settings, credentials)

    opener._open = slow

    def borrow() -> None:
        with images.lend(urls[0]):
            pass

    thread = threading.Thread(target=borrow)
    thread.start()
    assert began.wait(5)
    with images.lend(urls[1]) as source:
        assert source.width == 31
    release.set()
    thread.join(5)


def test_image_stays_open_for_next_borrower(images, opener, urls):
    for _ in range(3):
        with images.lend(urls[0]):
            pass
    assert opener.opened == [urls[0]]


def test_recently_used_idle_images_are_kept(images, opener, urls):
    for url in urls[:4]:
        with images.lend(url):
            pass
    with images.lend(urls[0]):
        pass
    with images.lend(urls[4]):
        assert opener.closed == []
    assert opener.closed == [urls[1]]
    with images.lend(urls[0]):
        pass
    assert opener.opened.count(urls[0]) == 1


def test_idle_image_is_opened_again_when_file_was_replaced(images, opener, tmp_path, urls):
    with images.lend(urls[0]) as source:
        assert source.width == 30
        write_image(tmp_path / "0.new", pattern(1, 50, 60)).replace(tmp_path / "0.tif")
        with images.lend(urls[0]) as same:
            assert same is source, "whoever works on it goes on with what it began with"
    with images.lend(urls[0]) as source:
        assert (source.width, source.height) == (60, 50)
    assert opener.closed == [urls[0]]
    (tmp_path / "0.tif").unlink()
    with pytest.raises(LoadImageException), images.lend(urls[0]):
        pass


def test_image_in_use_is_never_closed(images, opener, urls):
    with images.lend(urls[0]) as source:
        for url in urls[1:]:
            with images.lend(url):
                pass
        images.close()
        assert urls[0] not in opener.closed
        with source.dataset() as dataset:
            assert dataset.RasterXSize == 30
    images.close()
    assert sorted(opener.closed) == sorted(urls)


def test_open_can_succeed_after_failed_open(images, opener, urls):
    opener.faults.append(LoadImageException("unreachable"))
    with pytest.raises(LoadImageException), images.lend(urls[0]):
        pass
    assert images._entries == {}
    with images.lend(urls[0]) as source:
        assert source.width == 30


def test_waiting_thread_tries_again_when_open_failed(images, opener, urls):
    opener.delay_s = 0.05
    opener.faults.append(LoadImageException("unreachable"))
    together = threading.Barrier(4, timeout=5)

    def borrow(_: int) -> bool:
        together.wait()
        try:
            with images.lend(urls[0]):
                return True
        except LoadImageException:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(borrow, range(4))) == [False, True, True, True]
    assert opener.opened == [urls[0]]


def test_image_is_returned_when_borrower_raises(images, opener, urls):
    with pytest.raises(RuntimeError), images.lend(urls[0]):
        raise RuntimeError("the work failed")
    images.close()
    assert opener.closed == [urls[0]]


@pytest.mark.parametrize("url", ["http://example.com/a.tif", "ftp://example.com/a.tif", "s3://b", "no url"])
def test_image_is_refused_when_policy_does_not_allow_it(images, url):
    with pytest.raises(InvalidImageURLException), images.lend(url):
        pass
    assert images._entries == {}


def test_missing_file_is_image_error(images, tmp_path):
    with pytest.raises(LoadImageException), images.lend(f"file://{tmp_path / 'none.tif'}"):
        pass


def test_same_url_under_another_role_is_another_image(images, opener, urls):
    with images.lend(urls[0], "arn:a") as one, images.lend(urls[0], "arn:b") as other, images.lend(urls[0]) as own:
        assert len({id(one), id(other), id(own)}) == 3


def test_objects_are_read_with_roles_keys_of_that_time(opener, urls, monkeypatch, tmp_path):
    asked: list[str | None] = []
    frozen = SimpleNamespace(access_key="AK", secret_key="SK", token="T")

    def credentials_for(role: str | None) -> object:
        asked.append(role)
        return SimpleNamespace(get_frozen_credentials=lambda: frozen) if role else None

    opener._open = lambda location, settings, credentials: SimpleNamespace(
        close=lambda: None, etag=None, place=SimpleNamespace(gdal_path=location.gdal_path)
    )
    images = OpenImages(RasterSettings(), {"file", "s3"}, credentials_for, Clock())
    with images.lend("s3://bucket/key.tif", "arn:role"), images.lend("s3://bucket/key.tif"), images.lend(urls[0]):
        pass
    assert opener.keys == [("AK", "SK", "T", False), None, None]
    assert asked == ["arn:role", None]
    images.close()
