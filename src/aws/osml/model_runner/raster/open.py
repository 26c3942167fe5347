"""Opens a file as an image, or raises an error whose message is fit for users."""

import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import urllib3
from osgeo import gdal

from aws.osml.model_runner.exceptions import ImageUnreachableError, LoadImageException, NotAnImageError

from .crs_text import are_plain_citations, is_plain_gml
from .handle_pool import AwsKeys
from .jpeg2000 import ReadAt, boxes, codestreams
from .settings import RasterSettings
from .tiff_tags import CITATIONS, OddHeaderError, check_strips, metadata_sizes, tiff_sizes, tiff_tags
from .transfers import IncompleteReadError, watched_transfers

_MISSING = frozenset({gdal.CPLE_AWSBucketNotFound, gdal.CPLE_AWSObjectNotFound})
_FORBIDDEN = frozenset({gdal.CPLE_AWSAccessDenied, gdal.CPLE_AWSInvalidCredentials, gdal.CPLE_AWSSignatureDoesNotMatch})
# A failed request, and GDAL's unnamed number for all other errors of S3: throttling, internal error, expired token.
_UNREACHABLE = frozenset({gdal.CPLE_HttpResponse, gdal.CPLE_AWSSignatureDoesNotMatch + 1})
_REFUSED = re.compile(r"response code[^\n]{0,256}?: 40[13]\b|<Code>AccessDenied</Code>")
_ABSENT = re.compile(r"response code[^\n]{0,256}?: 404\b")
# A NITF of a thousand JPEG 2000 images has about 30,000 parts, each with a read.
_MAX_READS = 100_000
# Kinds of metadata in one file; each may have the size that the settings allow.
_MAX_METADATA_KINDS = 4
# Length of the identifier at the start of a uuid box.
_UUID_BYTES = 16
_S3_PREFIX = "/vsis3/"
_REMOTE_PREFIXES = (_S3_PREFIX, "/vsicurl/")


@contextmanager
def signing_with(keys: AwsKeys | None) -> Iterator[None]:
    """Sign with ``keys`` whatever this thread opens, and no other thread; None means the process's own chain.

    /vsis3 copies the keys into a file handle when it opens the file, so the options need not outlive the opening. So
    two jobs may read one object under different roles at the same time. GDAL's path-specific options cannot do that:
    they are matched by prefix, so the keys of ``/vsis3/b/a`` would also sign requests for ``/vsis3/b/ab``.
    """
    if keys is None:
        yield
        return
    access_key, secret_key, token, pays = keys
    options = {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        # An empty token overrides the process's own token, which does not belong to these keys.
        "AWS_SESSION_TOKEN": token or "",
        # Requests then have the header x-amz-request-payer. An empty option overrides that of the environment.
        "AWS_REQUEST_PAYER": "requester" if pays else "",
    }
    for name, value in options.items():
        gdal.SetThreadLocalConfigOption(name, value)
    try:
        yield
    finally:
        for name in options:
            gdal.SetThreadLocalConfigOption(name, None)


def is_remote(path: str) -> bool:
    """Return whether GDAL fetches ``path`` over the network."""
    return path.startswith(_REMOTE_PREFIXES)


def forget_remote(path: str) -> None:
    """Clear GDAL's cache of a remote object: its size, its absence, its bytes.

    Bytes that one job fetched must not reach a job without access. An object may also have been uploaded since.
    """
    if is_remote(path):
        gdal.VSICurlPartialClearCache(path)


def open_dataset(path: str, url: str, keys: AwsKeys | None, settings: RasterSettings) -> Any:
    """Open ``path`` with the allowed drivers only and return the GDAL dataset.

    Raises LoadImageException: missing, forbidden, or not an image of a supported format; ImageUnreachableError when
    its store did not respond. ``url`` names the image in messages.
    """
    refuse_odd_path(path, url, settings)
    with signing_with(keys):
        _check_header_of(path, url, settings)
        try:
            return _opened(path, url, settings)
        except _AbsentFromListingError:
            # GDAL relies on a listing of the folder that was cached before the object was uploaded.
            gdal.VSICurlPartialClearCache(posixpath.dirname(path))
            return _opened(path, url, settings)


class _AbsentFromListingError(LoadImageException):
    """A cached listing of the folder lacks the object; GDAL may not have requested the object itself."""


def _opened(path: str, url: str, settings: RasterSettings) -> Any:
    drivers = list(settings.allowed_drivers)
    try:
        dataset = gdal.OpenEx(path, gdal.OF_RASTER | gdal.OF_READONLY, allowed_drivers=drivers)
    except RuntimeError as err:
        # Read the number first: the next call of GDAL in this thread resets it.
        number = gdal.GetLastErrorNo()
        raise _explained(path, url, number, str(err), drivers) from err
    if dataset is None:
        raise NotAnImageError(f"{url} is not an image of a supported format")
    return dataset


def entity_tag(path: str, url: str, keys: AwsKeys | None) -> str | None:
    """Return an identifier of a file's version: the ETag of a remote object, else time of change and size.

    For an object in S3 this always sends a request. Raises LoadImageException when these keys may not read it. A
    successful opening does not prove access: GDAL caches by URL, regardless of the keys that signed.
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


def read_file(path: str, url: str, keys: AwsKeys | None, settings: RasterSettings, max_bytes: int) -> bytes:
    """Return the bytes of a small file, of S3 or of the file system, by the same rules as those of an image.

    Raises LoadImageException: missing, forbidden, or more than ``max_bytes``; ImageUnreachableError when its store did
    not respond.
    """
    refuse_odd_path(path, url, settings)
    forget_remote(path)
    with watched_transfers() as transfers:
        entity_tag(path, url, keys)
        with signing_with(keys):
            file = gdal.VSIFOpenL(path, "rb")
        if file is None:
            raise ImageUnreachableError(f"{url} cannot be reached: {transfers.fault or 'it cannot be opened'}")
        try:
            body = bytes(gdal.VSIFReadL(1, max_bytes + 1, file) or b"")
        finally:
            gdal.VSIFCloseL(file)
            forget_remote(path)
        try:
            transfers.check(is_header=True)
        except IncompleteReadError as err:
            raise ImageUnreachableError(f"{url} cannot be reached: {err}") from err
    if len(body) > max_bytes:
        raise LoadImageException(f"{url} is too large: it has more than {max_bytes} bytes")
    return body


def check_store(path: str, url: str, keys: AwsKeys | None, etag: str | None) -> None:
    """Check that the store of a remote file responds, and still has the version ``etag``, where that is known.

    Raises ImageUnreachableError when the store does not respond, LoadImageException for another version.
    """
    with watched_transfers() as transfers:
        tag = entity_tag(path, url, keys)
    if tag is None and transfers.fault:
        raise ImageUnreachableError(f"{url} cannot be reached: {transfers.fault}")
    if None not in (tag, etag) and tag != etag:
        raise LoadImageException(f"{url} was replaced while it was read")


def refuse_odd_path(path: str, url: str, settings: RasterSettings) -> None:
    """Refuse a path that is not an S3 object, an HTTP resource or an allowed regular file, before GDAL opens it."""
    if path.startswith(_S3_PREFIX):
        return
    if path.startswith("/vsicurl/"):
        _refuse_redirect(path.removeprefix("/vsicurl/"), url)
        return
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
    real = Path(path).resolve()  # all symbolic links are resolved
    directories = settings.directories
    if directories and not any(real.is_relative_to(Path(directory).resolve()) for directory in directories):
        raise LoadImageException(f"{url} is not in a directory that IMAGE_DIRECTORIES allows")


def _check_header_of(path: str, url: str, settings: RasterSettings) -> None:
    """Refuse a file whose opening would take too much memory or time, or would open other files.

    All other limits are checked on the open image.
    """
    file = gdal.VSIFOpenL(path, "rb")
    if file is None:
        forget_remote(path)  # so that the opening that follows reports the reason
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
    """Raise LoadImageException for a header with too many or too large parts, or that cannot be checked."""
    read_at = _counted(read_at, url, settings)
    try:
        _check_tiff(read_at, url, settings, start=0)
        _check_jpeg2000(read_at, file_bytes, url, settings)
    except OddHeaderError as err:
        raise LoadImageException(f"{url} cannot be checked before it is opened: {err}") from err


def _check_jpeg2000(read_at: ReadAt, file_bytes: int, url: str, settings: RasterSettings) -> None:
    for codestream in codestreams(read_at, file_bytes):
        for name, value, limit, setting in (
            ("number of bands", codestream.component_count, settings.max_bands, "MAX_IMAGE_BANDS"),
            (
                "memory in bytes to decode a piece",
                codestream.decoder_bytes(file_bytes),
                settings.max_block_bytes,
                "MAX_BLOCK_BYTES",
            ),
        ):
            refuse_excess(url, name, value, limit, setting)
    # GDAL parses three kinds of boxes: GeoJP2, which is a TIFF, GML, and XML, which may be GDAL's own metadata.
    for box in boxes(read_at, file_bytes):
        if box.kind == b"uuid":
            _check_tiff(read_at, url, settings, start=box.offset + _UUID_BYTES)
        elif box.kind == b"asoc":
            refuse_excess(url, "metadata in bytes (box asoc)", box.size_bytes, settings.max_xml_bytes)
            if not is_plain_gml(read_at(box.offset, box.size_bytes)):
                raise _odd_crs(url)
        elif box.kind == b"xml ":
            refuse_excess(url, "metadata in bytes (box xml)", box.size_bytes, settings.max_xml_bytes)
            for name, value, limit in metadata_sizes(read_at(box.offset, box.size_bytes)):
                refuse_excess(url, name, value, limit)


def _counted(read_at: ReadAt, url: str, settings: RasterSettings) -> ReadAt:
    """Return ``read_at`` with a limit on reads and bytes: some formats may refer to one part again and again."""
    reads = read_bytes = 0

    def counted(offset: int, count: int) -> bytes:
        nonlocal reads, read_bytes
        body = read_at(offset, count)
        reads, read_bytes = reads + 1, read_bytes + len(body)
        refuse_excess(url, "number of parts of its header", reads, _MAX_READS)
        refuse_excess(url, "header in bytes", read_bytes, _MAX_METADATA_KINDS * settings.max_xml_bytes)
        return body

    return counted


def _check_tiff(read_at: ReadAt, url: str, settings: RasterSettings, start: int) -> None:
    """Check the tags of a TIFF that begins at ``start`` in the file."""

    def read_tiff(offset: int, count: int) -> bytes:
        return read_at(start + offset, count)

    tags = list(tiff_tags(read_tiff))
    check_strips(read_tiff, tags)
    for tag in tags:
        for name, value, limit in tiff_sizes(read_tiff, tag, settings.max_xml_bytes):
            refuse_excess(url, name, value, limit)
        if tag.number == CITATIONS and not are_plain_citations(read_tiff(tag.offset, tag.size_bytes)):
            raise _odd_crs(url)


def _odd_crs(url: str) -> LoadImageException:
    return LoadImageException(
        f"{url} has a coordinate system that names grids, files or transformations; these are never read."
        " Store it as an EPSG code, or by the parameters of its projection"
    )


def refuse_excess(url: str, name: str, value: int, limit: int, setting: str = "") -> None:
    """Raise LoadImageException, which names the limit and the setting that changes it, when ``value`` is above it."""
    if value > limit:
        changed_by = f" ({setting})" if setting else ""
        raise LoadImageException(f"{url} is too large: its {name} is {value}, the limit is {limit}{changed_by}")


def _refuse_redirect(http_url: str, url: str) -> None:
    """Refuse a URL that redirects: GDAL would follow, to a host that the settings do not allow."""
    if not http_url.startswith(("http://", "https://")):
        raise LoadImageException(f"{url} is not an http or https URL")
    try:
        response = urllib3.request("HEAD", http_url, redirect=False, retries=2, timeout=urllib3.Timeout(10.0))
    except urllib3.exceptions.HTTPError as err:
        raise ImageUnreachableError(f"{url} cannot be reached: {type(err).__name__}") from err
    if 300 <= response.status < 400:
        raise LoadImageException(f"{url} redirects to another URL; give the image's own URL")


def _explained(path: str, url: str, number: int, message: str, drivers: Sequence[str]) -> LoadImageException:
    """Return the error for a failed open. The order matters: specific numbers come before wording."""
    if number in _FORBIDDEN or _REFUSED.search(message):
        return LoadImageException(f"{url} may not be read with the credentials of this job: {message}")
    if number in _MISSING or _ABSENT.search(message):
        return LoadImageException(f"{url} does not exist: {message}")
    if is_remote(path) and "does not exist in the file system" in message:
        return _AbsentFromListingError(f"{url} does not exist")
    if is_remote(path) and (number in _UNREACHABLE or "response code" in message):
        return ImageUnreachableError(f"{url} cannot be reached: {message}")
    if not is_remote(path):
        with suppress(OSError), open(path, "rb") as file:
            if file.read(256).lstrip().startswith(b"<VRTDataset"):
                return LoadImageException(
                    f"{url} is a GDAL VRT, which may name other files and is never read;"
                    " convert it first: gdal_translate -of COG IN.vrt OUT.tif"
                )
    supported = ", ".join(drivers)
    return NotAnImageError(f"{url} is not a readable image of a supported format ({supported}): {message}")
