"""Open images of this process: each is opened once, lent to all regions that need it, and closed when idle."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.api.image_url import ImageLocation, parse_image_url
from aws.osml.model_runner.aws.clients import Role

from .area_reader import AreaFile, AreaReader
from .exceptions import ImageUnreachableError
from .handle_pool import AwsKeys
from .http_relay import HttpRelay
from .image_probe import ImageProbe
from .image_source import ImageSource, open_image
from .open import entity_tag
from .settings import RasterSettings

_IDLE_IMAGES = 4


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    source: ImageSource | None = None
    borrowers: int = 0
    last_used: float = 0.0


class OpenImages:
    """Opens images by URL and role, and keeps a few idle images open, because the next region may need them.

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
    ) -> None:
        self._settings = settings
        self._allowed_sources = allowed_sources
        self._credentials_for = credentials_for
        self._now = now
        self._relay = HttpRelay(settings)
        self._sleep = sleep
        self.probe = probe
        self._areas = AreaReader(settings, sleep)
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, Role], _Entry] = {}

    @contextmanager
    def lend(self, url: str, role: Role = None, is_new: bool = False) -> Iterator[ImageSource]:
        """Lend the image at ``url``, read as ``role``, for the length of a ``with`` block.

        ``is_new``: no worker has read the image for this job, so the probe reads it first.

        Raises:
            InvalidImageURLException: the URL is not valid, or ``allowed_sources`` does not allow it.
            ImageError: the image cannot be opened.
        """
        key = (url, role or None)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.borrowers += 1
        try:
            yield self._opened(entry, url, role, is_new)
        finally:
            with self._lock:
                entry.borrowers -= 1
                entry.last_used = self._now()
                closable = self._take_surplus()
            for source in closable:
                source.close()

    def read_area(self, url: str, role: Role = None) -> AreaFile:
        """Return the area of the file at ``url``, GeoJSON, GeoParquet or GeoPackage; see ``AreaReader.read``.

        Raises:
            InvalidImageURLException: the URL is not valid, or ``allowed_sources`` does not allow it.
            LoadImageException: the file cannot be read, or is not one of polygons.
        """
        location, keys = self._located(url, role)
        return self._areas.read(location.gdal_path, url, keys() if keys is not None else None)

    def close(self) -> None:
        """Close every image that is not lent, end the probe, and close the relay."""
        if self.probe is not None:
            self.probe.close()
        with self._lock:
            closable = self._take_surplus(keep=0)
        for source in closable:
            source.close()
        self._relay.close()

    def _opened(self, entry: _Entry, url: str, role: Role, is_new: bool) -> ImageSource:
        # The lock belongs to this image, so other images can be opened meanwhile.
        with entry.lock:
            if entry.source is not None and entry.borrowers == 1 and self._is_outdated(entry.source, role):
                entry.source.close()
                entry.source = None
            if entry.source is None:
                location, keys = self._located(url, role)
                if is_new and self.probe is not None:
                    self.probe.check(location.gdal_path, location.url, keys() if keys is not None else None)
                entry.source = open_image(location, self._settings, keys, self._sleep)
            return entry.source

    def _located(self, url: str, role: Role) -> tuple[ImageLocation, Callable[[], AwsKeys | None] | None]:
        """Return the location of a file that may be read, and the function that returns the keys to sign with."""
        location = parse_image_url(url, self._allowed_sources)
        if location.source == "http":
            location = replace(location, gdal_path=self._relay.gdal_path(url))
        return location, (lambda: self._keys(role)) if location.source == "s3" else None

    def _is_outdated(self, source: ImageSource, role: Role) -> bool:
        """Return True when the file of an idle image was replaced, so that the next job has to open it again."""
        path = source.location.gdal_path
        try:
            tag = entity_tag(path, source.location.url, self._keys(role) if path.startswith("/vsis3/") else None)
        except OSError:
            return True
        return None not in (tag, source.etag) and tag != source.etag

    def _keys(self, role: Role) -> AwsKeys | None:
        credentials = self._credentials_for(role)
        if credentials is None:
            return None
        try:
            keys = credentials.get_frozen_credentials()
        except (ClientError, BotoCoreError) as err:
            raise ImageUnreachableError(f"the credentials to read the image cannot be fetched: {err}") from err
        return AwsKeys(keys.access_key, keys.secret_key, keys.token)

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
