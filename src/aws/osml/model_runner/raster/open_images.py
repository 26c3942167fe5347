"""Open images of this process: each is opened once, lent to all regions that need it, and closed when idle."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.api.image_url import ImageLocation, parse_image_url, public_url
from aws.osml.model_runner.api.stac_item import ItemImage
from aws.osml.model_runner.aws.clients import Role
from aws.osml.model_runner.exceptions import ImageUnreachableError

from .area_reader import AreaFile, AreaReader
from .handle_pool import AwsKeys
from .http_relay import HttpRelay
from .image_probe import ImageProbe
from .image_source import ImageFile, ImageSource, open_files, open_image
from .open import read_file
from .settings import RasterSettings

_IDLE_IMAGES = 4


class Access(NamedTuple):
    """How a file is read: as ``role``, or as the worker itself; and whether that account pays for the read."""

    role: Role = None
    pays: bool = False


_PLAIN = Access()


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    source: ImageSource | None = None
    borrowers: int = 0
    last_used: float = 0.0


class OpenImages:
    """Opens images by URL and access, and keeps a few idle images open, because the next region may need them.

    ``allowed_buckets`` are patterns of bucket names, and an empty sequence allows any.
    ``sleep`` waits between two attempts after a broken transfer. ``probe`` reads each new image first in a child
    process; without a probe, the image is opened directly.
    """

    def __init__(
        self,
        settings: RasterSettings,
        allowed_sources: Collection[str],
        credentials_for: Callable[[Role], Any],
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        probe: ImageProbe | None = None,
        allowed_buckets: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._allowed_sources = allowed_sources
        self._allowed_buckets = allowed_buckets
        self._credentials_for = credentials_for
        self._now = now
        self._relay = HttpRelay(settings)
        self._sleep = sleep
        self.probe = probe
        self._areas = AreaReader(settings, sleep)
        self._lock = threading.Lock()
        self._entries: dict[tuple[tuple[tuple[str, Access], ...], ItemImage | None], _Entry] = {}

    def allow(self, url: str) -> ImageLocation:
        """Return the location of an image; raises InvalidImageURLException unless it may be read."""
        return parse_image_url(url, self._allowed_sources, self._allowed_buckets)

    def read_file(self, url: str, max_bytes: int, access: Access = _PLAIN) -> bytes:
        """Return a small file that belongs to a request, by the rules for images.

        Raises:
            InvalidImageURLException: the URL is not valid, or is not allowed.
            LoadImageException: the file is missing, forbidden, or has more than ``max_bytes``.
            ImageUnreachableError: its store does not respond.
        """
        location = self.allow(url)
        if location.source == "http":
            return self._relay.fetch(url, max_bytes)
        keys = self._keys(access) if location.source == "s3" else None
        return read_file(location.gdal_path, location.url, keys, self._settings, max_bytes)

    def lend(
        self, url: str, role: Role = None, is_new: bool = False, *, pays: bool = False
    ) -> AbstractContextManager[ImageSource]:
        """Lend the image at ``url``, read as ``role``, for the length of a ``with`` block.

        ``is_new``: no worker has read the image for this job, so the probe reads it first. ``pays``: the account that
        reads pays for it.

        Raises:
            InvalidImageURLException: the URL is not valid, or is not allowed.
            ImageError: the image cannot be opened.
        """
        return self._lend(((url, Access(role or None, pays)),), None, is_new)

    def lend_item(
        self, item: ItemImage, access: Callable[[str | None], Access], is_new: bool = False
    ) -> AbstractContextManager[ImageSource]:
        """Lend the image of a STAC Item; see ``lend``. ``access`` returns how files of a bucket are read."""
        parts = tuple((asset.url, access(parse_image_url(asset.url).bucket)) for asset in item.assets)
        return self._lend(parts, item, is_new)

    @contextmanager
    def _lend(
        self, parts: tuple[tuple[str, Access], ...], item: ItemImage | None, is_new: bool
    ) -> Iterator[ImageSource]:
        key = (parts, item)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.borrowers += 1
        try:
            # The lock belongs to this image, so other images can be opened meanwhile.
            with entry.lock:
                if entry.source is not None and entry.borrowers == 1 and entry.source.is_outdated():
                    entry.source.close()
                    entry.source = None
                if entry.source is None:
                    entry.source = self._opened(parts, item, is_new)
            yield entry.source
        finally:
            with self._lock:
                entry.borrowers -= 1
                entry.last_used = self._now()
                closable = self._take_surplus()
            for source in closable:
                source.close()

    def read_area(self, url: str, role: Role = None, pays: bool = False) -> AreaFile:
        """Return the area of the file at ``url``, GeoJSON, GeoParquet or GeoPackage; see ``AreaReader.read``.

        Raises:
            InvalidImageURLException: the URL is not valid, or is not allowed.
            LoadImageException: the file cannot be read, or is not one of polygons.
        """
        file = self._file(url, Access(role, pays))
        return self._areas.read(file.location.gdal_path, url, file.keys())

    def close(self) -> None:
        """Close every image that is not lent, end the probe, and close the relay."""
        if self.probe is not None:
            self.probe.close()
        with self._lock:
            closable = self._take_surplus(keep=0)
        for source in closable:
            source.close()
        self._relay.close()

    def _opened(self, parts: tuple[tuple[str, Access], ...], item: ItemImage | None, is_new: bool) -> ImageSource:
        names = [None] if item is None else [f"{asset.key} ({public_url(asset.url)})" for asset in item.assets]
        files = [self._file(url, access, name) for (url, access), name in zip(parts, names, strict=True)]
        if is_new and self.probe is not None:
            for file in files:
                self.probe.check(file.location.gdal_path, file.location.url, file.keys())
        if item is not None:
            return open_files(files, self._settings, self._sleep, item)
        return open_image(files[0].location, self._settings, files[0].credentials, self._sleep)

    def _file(self, url: str, access: Access, name: str | None = None) -> ImageFile:
        """Return a file that may be read, with ``name`` instead of its URL in messages."""
        location = self.allow(url)
        if location.source == "http":
            location = replace(location, gdal_path=self._relay.gdal_path(url))
        keys = (lambda: self._keys(access)) if location.source == "s3" else None
        return ImageFile(replace(location, url=name or location.url), keys)

    def _keys(self, access: Access) -> AwsKeys | None:
        credentials = self._credentials_for(access.role)
        if credentials is None:
            return None
        try:
            keys = credentials.get_frozen_credentials()
        except (ClientError, BotoCoreError) as err:
            raise ImageUnreachableError(f"the credentials to read the image cannot be fetched: {err}") from err
        return AwsKeys(keys.access_key, keys.secret_key, keys.token, access.pays)

    def _take_surplus(self, keep: int = _IDLE_IMAGES) -> list[ImageSource]:
        """Remove idle images, except the ``keep`` used last, and failed openings; return the images to close."""
        idle = [(key, entry) for key, entry in self._entries.items() if entry.borrowers == 0]
        idle.sort(key=lambda pair: pair[1].last_used, reverse=True)
        opened = [pair for pair in idle if pair[1].source is not None]
        for key, entry in idle:
            if entry.source is None:
                del self._entries[key]
        for key, _ in opened[keep:]:
            del self._entries[key]
        return [entry.source for _, entry in opened[keep:] if entry.source is not None]
