"""An open image, from which several threads read windows."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import structlog

from aws.osml.model_runner.api.image_url import ImageLocation

from .exceptions import LoadImageException
from .handle_pool import AwsKeys, HandlePool, ImageHandle
from .image_header import ImageHeader, check_limits, grow_block_cache, handle_limit, is_same, read_header
from .open import check_store, entity_tag, forget_remote, is_remote, open_dataset
from .patient_reads import PatientReads
from .sensor_model import UNREADABLE
from .settings import RasterSettings
from .tiff_templates import TiffTemplates
from .transfers import IncompleteReadError, TransferWatch, watched_transfers

T = TypeVar("T")

logger = structlog.get_logger(__name__)


class ImageSource:
    """An open image: fields of its header as attributes, and a pool of GDAL handles. Made by ``open_image``."""

    def __init__(
        self,
        location: ImageLocation,
        header: ImageHeader,
        settings: RasterSettings,
        pool: HandlePool,
        reads: PatientReads | None = None,
    ) -> None:
        self.location = location
        self.header = header
        self.width, self.height = header.width, header.height
        self.band_count, self.data_type = header.band_count, header.data_type
        self.driver_name, self.extension = header.driver_name, header.extension
        self.block_size, self.sensor_model, self.etag = header.block_size, header.sensor_model, header.etag
        self.settings = settings
        self.tiff_templates = TiffTemplates()
        self._pool = pool
        self._reads = reads or PatientReads(location.gdal_path, location.url, settings, check_store=lambda: None)

    def read(self, take: Callable[[ImageHandle], T]) -> T:
        """Return the result of ``take``, which is called again with a new handle after a broken transfer.

        Raises ImageUnreachableError when the store is at fault, else the error of ``take``; see ``patient_reads``.
        """

        def attempt(transfers: TransferWatch) -> T:
            with self._pool.lend() as handle:
                taken = take(handle)
                transfers.check()
            return taken

        return self._reads.read(attempt)

    @contextmanager
    def dataset(self) -> Iterator[Any]:
        """Lend this thread a GDAL dataset for the length of a ``with`` block; see ``handle``."""
        with self.handle() as handle:
            yield handle.dataset

    def handle(self) -> AbstractContextManager[ImageHandle]:
        """Lend this thread a handle; waits while all are lent, so a thread must not hold two.

        A handle with outdated keys is replaced by a new handle.
        """
        return self._pool.lend()

    def open_dataset(self) -> Any:
        """Return a new GDAL dataset of the image that only the caller uses."""
        return self._reads.read(lambda _transfers: self._pool.open().dataset)

    def refresh_credentials(self) -> None:
        """Close idle handles, so that handles that are opened from now on use the current credentials."""
        self._pool.drop_idle()
        forget_remote(self.location.gdal_path)

    def close(self) -> None:
        """Stop lending handles; lent handles are closed when they are returned. May be called again."""
        self._pool.close()
        forget_remote(self.location.gdal_path)


def open_image(
    location: ImageLocation,
    settings: RasterSettings,
    credentials: Callable[[], AwsKeys | None] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> ImageSource:
    """Open an image and read its header; the caller closes it.

    ``credentials`` returns (access key, secret key, token or None) that are valid now, for this image only. It is
    called whenever a handle is lent, so it should return from memory. Without it, or when it returns None, GDAL's own
    chain signs: the environment, a container's or an instance's role. ``sleep`` waits between attempts after a broken
    transfer. Raises LoadImageException with a message fit for users.
    """
    path, url = location.gdal_path, location.url
    headers: list[ImageHeader] = []

    def current_keys() -> AwsKeys | None:
        keys = None if credentials is None else credentials()
        return None if keys is None else AwsKeys(*keys)

    def open_handle() -> ImageHandle:
        keys = current_keys()
        with watched_transfers() as transfers:
            dataset = open_dataset(path, url, keys, settings)
            transfers.check(is_header=True)
        if headers and not is_same(dataset, headers[0]):
            raise IncompleteReadError(f"{url} was opened with another header than before")
        return ImageHandle(dataset, keys)

    def open_once(transfers: TransferWatch) -> ImageSource:
        forget_remote(path)
        pool = HandlePool(open_handle, lambda handle: handle.keys == current_keys(), settings.max_handles)
        try:
            with pool.lend() as handle:
                check_limits(handle.dataset, url, settings)
                pool.narrow(handle_limit(handle.dataset, is_remote(path), settings))
                header = read_header(handle.dataset, entity_tag(path, url, handle.keys), settings)
                transfers.check(is_header=True)
        except BaseException:
            pool.close()
            raise
        headers.append(header)
        return ImageSource(location, header, settings, pool, reads)

    def check_version() -> None:
        check_store(path, url, current_keys(), headers[0].etag if headers else None)

    reads = PatientReads(path, url, settings, check_version, sleep)
    try:
        source = reads.read(open_once)
    except UNREADABLE as err:
        raise LoadImageException(f"{url} cannot be read: {err}") from err
    grow_block_cache(source.header, settings, is_remote(path))
    if source.header.image_count > 1:
        reason = "the first image segment or page is processed, the others are not"
        logger.warning("image.first_of_several", image=url, images=source.header.image_count, reason=reason)
    return source
