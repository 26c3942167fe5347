"""Opens a file as an image, or says in a sentence fit for users why not."""

import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
from osgeo import gdal

from .crs_text import are_plain_citations, is_plain_gml
from .exceptions import ImageUnreachableError, LoadImageException, NotAnImageError
from .handle_pool import AwsKeys
from .jpeg2000 import Box, Codestream, ReadAt, boxes, codestreams
from .settings import RasterSettings
from .tiff_tags import CITATIONS, tiff_sizes, tiff_tags
from .transfers import watched_transfers

_MISSING = frozenset({gdal.CPLE_AWSBucketNotFound, gdal.CPLE_AWSObjectNotFound})
_FORBIDDEN = frozenset({gdal.CPLE_AWSAccessDenied, gdal.CPLE_AWSInvalidCredentials, gdal.CPLE_AWSSignatureDoesNotMatch})
# A failed request, and GDAL's number, which has no name, for all that S3 may answer besides the above: too many
# requests, an error within, a token that expired.
_UNREACHABLE = frozenset({gdal.CPLE_HttpResponse, gdal.CPLE_AWSSignatureDoesNotMatch + 1})
_REFUSED = re.compile(r"response code[^\n]{0,256}?: 40[13]\b|<Code>AccessDenied</Code>")
_ABSENT = re.compile(r"response code[^\n]{0,256}?: 404\b")
# A NITF of a thousand JPEG 2000 images has about 30,000 parts.
_MOST_READS = 100_000
# Kinds of metadata, each of which may be as large as one may be.
_MOST_METADATA = 4
# The name of a uuid box, before its content.
_UUID_BYTES = 16
_S3_PREFIX = "/vsis3/"
_REMOTE_PREFIXES = (_S3_PREFIX, "/vsicurl/")


@contextmanager
def signing_with(keys: AwsKeys | None) -> Iterator[None]:
    """Let this thread, and no other, sign what it opens with ``keys``; None is the process's own chain.

    /vsis3 copies the keys into a file handle when it opens it, so the options need not outlive the opening, and two
    jobs may read one object under different roles at the same time. GDAL's path-specific options cannot do that: they
    are matched by prefix, so those of ``/vsis3/b/a`` also sign for ``/vsis3/b/ab``, whoever asks.
    """
    if keys is None:
        yield
        return
    access_key, secret_key, token = keys
    # An empty token hides the process's own, which does not belong to these keys.
    options = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "AWS_SESSION_TOKEN": token or ""}
    for name, value in options.items():
        gdal.SetThreadLocalConfigOption(name, value)
    try:
        yield
    finally:
        for name in options:
            gdal.SetThreadLocalConfigOption(name, None)


def is_remote(path: str) -> bool:
    """Tell whether GDAL fetches what lies at ``path`` over the network."""
    return path.startswith(_REMOTE_PREFIXES)


def forget_remote(path: str) -> None:
    """Drop what GDAL remembers of a remote object: its size, its absence, its bytes.

    What one job fetched must not be served to another that may not read it, and an object may have been uploaded since.
    """
    if is_remote(path):
        gdal.VSICurlPartialClearCache(path)


def open_dataset(path: str, url: str, keys: AwsKeys | None, settings: RasterSettings) -> Any:
    """Open ``path`` with the allowed drivers only and return the GDAL dataset.

    Raises LoadImageException: missing, forbidden, no image of a supported format; ImageUnreachableError when its store
    did not answer. ``url`` is what messages call the image.
    """
    _refuse_odd_path(path, url, settings)
    with signing_with(keys):
        _refuse_greedy_header(path, url, settings)
        try:
            return _opened(path, url, settings)
        except _AbsentFromListingError:
            # Somebody listed the folder before the object was there, and GDAL goes by that without asking again.
            gdal.VSICurlPartialClearCache(posixpath.dirname(path))
            return _opened(path, url, settings)


class _AbsentFromListingError(LoadImageException):
    """GDAL says that an object does not exist, and did not necessarily ask."""


def _opened(path: str, url: str, settings: RasterSettings) -> Any:
    drivers = list(settings.allowed_drivers)
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_READONLY, allowed_drivers=drivers)
    except RuntimeError as err:
        # Asked for at once: the next call of GDAL in this thread forgets it.
        number = gdal.GetLastErrorNo()
        raise _explained(path, url, number, str(err), drivers) from err
    if dataset is None:
        raise NotAnImageError(f"{url} is not an image of a supported format")
    return dataset


def entity_tag(path: str, url: str, keys: AwsKeys | None) -> str | None:
    """Return what tells two versions of a file apart: the ETag of an object, else time of change and size.

    Of an object in S3 this always asks S3. Raises LoadImageException when these keys may not read it: GDAL keeps what
    it fetched by URL, whoever signed for it, so an image that opens is no proof that its reader may have it.
    """
    if not is_remote(path):
        status = os.stat(path)
        return f"{status.st_mtime_ns}-{status.st_size}"
    with signing_with(keys):
        gdal.ErrorReset()
        headers = gdal.GetFileMetadata(path, "HEADERS") or {}
        number, message = gdal.GetLastErrorNo(), gdal.GetLastErrorMsg()
    tag = {name.lower(): value for name, value in headers.items()}.get("etag")
    if tag is None and path.startswith(_S3_PREFIX):
        raise _explained(path, url, number or gdal.CPLE_HttpResponse, message, ())
    return tag


def check_store(path: str, url: str, keys: AwsKeys | None, etag: str | None) -> None:
    """Raise ImageUnreachableError unless the store of a remote file answers, LoadImageException unless with ``etag``.

    ``etag`` is None where it is not known.
    """
    with watched_transfers() as transfers:
        tag = entity_tag(path, url, keys)
    if tag is None and transfers.fault:
        raise ImageUnreachableError(f"{url} cannot be reached: {transfers.fault}")
    if None not in (tag, etag) and tag != etag:
        raise LoadImageException(f"{url} was replaced while it was read")


def _refuse_odd_path(path: str, url: str, settings: RasterSettings) -> None:
    """Refuse what is no S3 object, no HTTP resource and no regular file in its place, before GDAL sees it."""
    if path.startswith("/vsicurl/"):
        _refuse_redirect(path.removeprefix("/vsicurl/"), url)
    elif not path.startswith(_S3_PREFIX):
        _refuse_no_file(path, url)
        _refuse_stray_file(path, url, settings.directories)


def _refuse_stray_file(path: str, url: str, directories: Sequence[str]) -> None:
    """Refuse a file outside the directories from which images may be read, wherever links on the way lead."""
    real = Path(path).resolve()
    if directories and not any(real.is_relative_to(Path(directory).resolve()) for directory in directories):
        raise LoadImageException(f"{url} is not in a directory that IMAGE_DIRECTORIES allows")


def _refuse_no_file(path: str, url: str) -> None:
    if path.startswith("/vsi"):
        raise LoadImageException(f"{url} is not a file")
    try:
        status = os.stat(path)
    except PermissionError as err:
        raise LoadImageException(f"{url} may not be read: permission denied") from err
    except (OSError, ValueError) as err:
        raise LoadImageException(f"{url} does not exist") from err
    if not stat.S_ISREG(status.st_mode):
        raise LoadImageException(f"{url} is not a regular file")
    if not os.access(path, os.R_OK):
        raise LoadImageException(f"{url} may not be read: permission denied")


def _refuse_greedy_header(path: str, url: str, settings: RasterSettings) -> None:
    """Refuse a file that would take too much memory or time to be opened, or whose opening leads to other files.

    Every other limit is checked on the open image.
    """
    file = gdal.VSIFOpenL(path, "rb")
    if file is None:
        forget_remote(path)  # and let the opening that follows find out why
        return

    def read_at(offset: int, count: int) -> bytes:
        if offset >= file_bytes:
            return b""
        gdal.VSIFSeekL(file, offset, os.SEEK_SET)
        return bytes(gdal.VSIFReadL(1, min(count, file_bytes - offset), file) or b"")

    try:
        gdal.VSIFSeekL(file, 0, os.SEEK_END)
        file_bytes = gdal.VSIFTellL(file)
        check_header(read_at, file_bytes, url, settings)
    finally:
        gdal.VSIFCloseL(file)


def check_header(read_at: ReadAt, file_bytes: int, url: str, settings: RasterSettings) -> None:
    """Raise LoadImageException for the header of a file that is no more to be opened than to be read to its end."""
    read_at = _counted(read_at, url, settings)
    _check_tiff(read_at, url, settings)
    for codestream in codestreams(read_at, file_bytes):
        _check_codestream(codestream, file_bytes, url, settings)
    for box in boxes(read_at, file_bytes):
        _check_box(read_at, box, url, settings)


def _counted(read_at: ReadAt, url: str, settings: RasterSettings) -> ReadAt:
    """Return reads that end where a header has too many parts: parts of some formats may be named again and again."""
    reads = read_bytes = 0

    def counted(offset: int, count: int) -> bytes:
        nonlocal reads, read_bytes
        body = read_at(offset, count)
        reads, read_bytes = reads + 1, read_bytes + len(body)
        refuse_excess(url, "number of parts of its header", reads, _MOST_READS)
        refuse_excess(url, "header in bytes", read_bytes, _MOST_METADATA * settings.max_xml_bytes)
        return body

    return counted


def _check_tiff(read_at: ReadAt, url: str, settings: RasterSettings) -> None:
    for tag in tiff_tags(read_at):
        for name, value, limit in tiff_sizes(read_at, tag, settings.max_xml_bytes):
            refuse_excess(url, name, value, limit)
        if tag.number == CITATIONS and not are_plain_citations(read_at(tag.offset, tag.size_bytes)):
            raise _odd_crs(url)


def _check_box(read_at: ReadAt, box: Box, url: str, settings: RasterSettings) -> None:
    """Check the boxes that say where a JPEG 2000 lies: GeoJP2, which is a TIFF, and GML."""
    if box.kind == b"uuid":
        content = box.offset + _UUID_BYTES
        _check_tiff(lambda offset, count: read_at(content + offset, count), url, settings)
    elif box.kind == b"asoc":
        refuse_excess(url, "metadata in bytes (box asoc)", box.size_bytes, settings.max_xml_bytes)
        if not is_plain_gml(read_at(box.offset, box.size_bytes)):
            raise _odd_crs(url)


def _odd_crs(url: str) -> LoadImageException:
    return LoadImageException(
        f"{url} has a coordinate system that names grids, files or transformations, which are never read:"
        " store it as an EPSG code, or by the parameters of its projection"
    )


def _check_codestream(codestream: Codestream, file_bytes: int, url: str, settings: RasterSettings) -> None:
    decoder_bytes = codestream.decoder_bytes(file_bytes)
    for name, value, limit, setting in (
        ("number of bands", codestream.component_count, settings.max_bands, "MAX_IMAGE_BANDS"),
        ("memory in bytes to decode a piece", decoder_bytes, settings.max_block_bytes, "MAX_BLOCK_BYTES"),
    ):
        refuse_excess(url, name, value, limit, setting)


def refuse_excess(url: str, name: str, value: int, limit: int, setting: str = "") -> None:
    """Raise LoadImageException, which names the limit and the setting that changes it, when ``value`` is above it."""
    if value > limit:
        changed_by = f" ({setting})" if setting else ""
        raise LoadImageException(f"{url} is too large: its {name} is {value}, the limit is {limit}{changed_by}")


def _refuse_redirect(http_url: str, url: str) -> None:
    """Refuse a location that sends readers elsewhere: GDAL would follow, to a host that nobody allowed."""
    if not http_url.startswith(("http://", "https://")):
        raise LoadImageException(f"{url} is not an http or https URL")
    try:
        response = urllib3.request("HEAD", http_url, redirect=False, retries=2, timeout=urllib3.Timeout(10.0))
    except urllib3.exceptions.HTTPError as err:
        raise ImageUnreachableError(f"{url} cannot be reached: {type(err).__name__}") from err
    if 300 <= response.status < 400:
        raise LoadImageException(f"{url} redirects to another place; give the image's own URL")


def _explained(path: str, url: str, number: int, message: str, drivers: Sequence[str]) -> LoadImageException:
    """Return the error that says what a failed open means. The order matters: specific numbers before wording."""
    if number in _FORBIDDEN or _REFUSED.search(message):
        return LoadImageException(f"{url} may not be read with the credentials of this job: {message}")
    if number in _MISSING or _ABSENT.search(message):
        return LoadImageException(f"{url} does not exist: {message}")
    if is_remote(path) and "does not exist in the file system" in message:
        return _AbsentFromListingError(f"{url} does not exist")
    if is_remote(path) and (number in _UNREACHABLE or "response code" in message):
        return ImageUnreachableError(f"{url} cannot be reached: {message}")
    if _looks_like_vrt(path):
        return LoadImageException(f"{url} is a GDAL VRT, which may name other files and is never read")
    supported = ", ".join(drivers)
    return NotAnImageError(f"{url} is not a readable image of a supported format ({supported}): {message}")


def _looks_like_vrt(path: str) -> bool:
    if is_remote(path):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(256).lstrip().startswith(b"<VRTDataset")
    except OSError:
        return False
