"""An open image, from which several threads read windows."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from aws.osml.model_runner.api.image_url import ImageLocation
from aws.osml.model_runner.api.stac_item import ItemImage
from aws.osml.model_runner.exceptions import LoadImageException

from .band_stack import BandStack, check_one_grid
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


@dataclass(frozen=True)
class ImageFile:
    """A file of an image, and the function that returns the keys to read it; see ``open_image``."""

    location: ImageLocation
    credentials: Callable[[], AwsKeys | None] | None = None

    def keys(self) -> AwsKeys | None:
        """Return the keys that are valid now; None where GDAL's own chain signs, or nothing is signed."""
        keys = None if self.credentials is None else self.credentials()
        return None if keys is None else AwsKeys(*keys)

    def entity_tag(self, keys: AwsKeys | None) -> str | None:
        """Return an identifier of the file's version; see ``open.entity_tag``."""
        return entity_tag(self.location.gdal_path, self.location.url, keys)


class ImageSource:
    """An open image: fields of its header as attributes, and a pool of GDAL handles. ``open_image`` makes it.

    ``item`` is the STAC Item that the image comes from, with its assets in the order of ``files``. ``band_names`` are
    the names that the Item has for each band.
    """

    def __init__(
        self,
        location: ImageLocation,
        header: ImageHeader,
        settings: RasterSettings,
        pool: HandlePool,
        reads: PatientReads | None = None,
        files: Sequence[ImageFile] = (),
        item: ItemImage | None = None,
        band_names: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self.location = location
        self.files = tuple(files) or (ImageFile(location),)
        self.item = item
        self.band_names = band_names
        self.header = header
        self.width, self.height = header.width, header.height
        self.band_count, self.data_type = header.band_count, header.data_type
        self.driver_name, self.extension = header.driver_name, header.extension
        self.block_size, self.sensor_model, self.etag = header.block_size, header.sensor_model, header.etag
        self.settings = settings
        self.tiff_templates = TiffTemplates()
        self._pool = pool
        self._reads = reads or PatientReads(location.gdal_path, location.url, settings, check_store=lambda: None)

    def is_outdated(self) -> bool:
        """Return whether a file was replaced since it was opened, or may not be read any more; sends a request."""
        try:
            tag = _joined([file.entity_tag(file.keys()) for file in self.files])
        except OSError:
            return True
        return None not in (tag, self.etag) and tag != self.etag

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
        self._forget()

    def close(self) -> None:
        """Stop lending handles; lent handles are closed when they are returned. May be called again."""
        self._pool.close()
        self._forget()

    def _forget(self) -> None:
        for file in self.files:
            forget_remote(file.location.gdal_path)


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
    return open_files([ImageFile(location, credentials)], settings, sleep)


def open_files(
    files: Sequence[ImageFile],
    settings: RasterSettings,
    sleep: Callable[[float], object] = time.sleep,
    item: ItemImage | None = None,
) -> ImageSource:
    """Open an image whose bands lie in several files, in their order, on one grid; see ``open_image``."""
    paths, urls = zip(*((file.location.gdal_path, file.location.url) for file in files), strict=True)
    location, is_any_remote = files[0].location, any(map(is_remote, paths))
    headers: list[ImageHeader] = []

    def current_keys() -> tuple[AwsKeys | None, ...]:
        return tuple(file.keys() for file in files)

    def open_handle() -> ImageHandle:
        keys = current_keys()
        with watched_transfers() as transfers:
            datasets = [open_dataset(*names, settings) for names in zip(paths, urls, keys, strict=True)]
            transfers.check(is_header=True)
        dataset = datasets[0] if len(datasets) == 1 else BandStack(datasets)
        if headers and not is_same(dataset, headers[0]):
            raise IncompleteReadError(f"{location.url} was opened with another header than before")
        return ImageHandle(dataset, keys)

    def open_once(transfers: TransferWatch) -> ImageSource:
        for path in paths:
            forget_remote(path)
        pool = HandlePool(open_handle, lambda handle: handle.keys == current_keys(), settings.max_handles)
        try:
            with pool.lend() as handle:
                dataset = handle.dataset
                counts = _checked_counts(dataset, urls, settings)
                pool.narrow(handle_limit(dataset, is_any_remote, settings))
                tags = [file.entity_tag(keys) for file, keys in zip(files, handle.keys, strict=True)]
                header = read_header(dataset, _joined(tags), settings)
                transfers.check(is_header=True)
        except BaseException:
            pool.close()
            raise
        headers.append(header)
        return ImageSource(location, header, settings, pool, reads, files, item, _band_names(item, counts))

    def check_versions() -> None:
        _check_stores(files, headers[0].etag if headers else None)

    reads = PatientReads(paths[0], location.url, settings, check_versions, sleep, more_paths=paths[1:])
    try:
        source = reads.read(open_once)
    except UNREADABLE as err:
        raise LoadImageException(f"{location.url} cannot be read: {err}") from err
    grow_block_cache(source.header, settings, is_any_remote)
    if source.header.image_count > 1:
        reason = "the first image segment or page is processed, the others are not"
        logger.warning("image.first_of_several", image=location.url, images=source.header.image_count, reason=reason)
    return source


def _check_stores(files: Sequence[ImageFile], etag: str | None) -> None:
    """Check that the store of each file responds, and still has its version; see ``check_store``."""
    tags = [None] * len(files) if etag is None else etag.split(_TAG_MARK)
    for file, tag in zip(files, tags, strict=True):
        check_store(file.location.gdal_path, file.location.url, file.keys(), tag)


def _checked_counts(dataset: Any, urls: Sequence[str], settings: RasterSettings) -> list[int]:
    """Return the number of bands of each file; raises LoadImageException when a file or all together break a limit."""
    parts = dataset.datasets if isinstance(dataset, BandStack) else (dataset,)
    for part, url in zip(parts, urls, strict=True):
        check_limits(part, url, settings)
    if len(parts) > 1:
        check_one_grid(parts, urls)
        check_limits(dataset, urls[0], settings)
    return [part.RasterCount for part in parts]


def _band_names(item: ItemImage | None, counts: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the names that an Item has for each band of its assets' files, which have ``counts`` bands."""
    names: list[tuple[str, ...]] = []
    for asset, count in zip(() if item is None else item.assets, counts, strict=False):
        # The one name of an asset whose bands the Item does not list is that of the asset.
        known = asset.bands if len(asset.bands) in range(1 if count == 1 else 2, count + 1) else ()
        names += [*known, *[()] * (count - len(known))]
    return names


# Stands between the identifiers of several files; an ETag has no line breaks.
_TAG_MARK = "\n"


def _joined(tags: Sequence[str | None]) -> str | None:
    """Return one identifier for the versions of all files; None where one has none."""
    known = [tag for tag in tags if tag is not None]
    return _TAG_MARK.join(known) if len(known) == len(tags) else None
