"""Parses the untrusted URL of an image.

Three forms exist: ``s3://bucket/key``, an absolute path of a local file (or ``file:///path``), and ``http(s)://host/path``.
All other text is refused before it reaches GDAL: its virtual paths (``/vsizip/…``), connection strings (``PG:…``), and
inline documents (``<VRTDataset>``). The worker's settings decide which forms are allowed.
"""

import hashlib
import ipaddress
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal
from urllib.parse import unquote, urlsplit

from aws.osml.model_runner.common.address_rule import is_forbidden
from aws.osml.model_runner.exceptions import InvalidImageURLException, Problem

from .problems import shortened

Source = Literal["s3", "file", "http"]
ALL_SOURCES: frozenset[str] = frozenset({"s3", "file", "http"})
# The image's id, "<jobId>:<url>", is a DynamoDB partition key with a suffix: 2,048 bytes at most.
MAX_URL_BYTES = 1_800
MAX_KEY_BYTES = 1_024

_FORMS = "s3://bucket/key, an absolute file path or http(s)://host/path"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


@dataclass(frozen=True)
class ImageLocation:
    """The location of an image: its URL, its source, and the path by which GDAL opens it.

    ``bucket`` and ``key`` are set only for images in S3.
    """

    url: str
    source: Source
    gdal_path: str
    bucket: str | None = None
    key: str | None = None


def parse_image_url(
    url: str, allowed_sources: Collection[str] = ALL_SOURCES, allowed_buckets: Sequence[str] = ()
) -> ImageLocation:
    """Return the location of the image at ``url``.

    Raises InvalidImageURLException if ``url`` is not valid, its source is not in ``allowed_sources``, or its bucket
    does not match ``allowed_buckets``; see ``is_among``.
    """
    if not isinstance(url, str) or not url:
        raise _refusal(url, _FORMS)
    if not url.isprintable():
        raise _refusal(url, f"{_FORMS}, without control characters")
    if len(url.encode()) > MAX_URL_BYTES:
        raise _refusal(url, f"at most {MAX_URL_BYTES} bytes")
    if url.startswith("s3://"):
        location = _s3_location(url)
    elif url.startswith(("http://", "https://")):
        location = _http_location(url)
    elif url.startswith(("/", "file://")):
        location = _file_location(url)
    else:
        raise _refusal(url, _FORMS)
    if location.source not in allowed_sources:
        allowed = ", ".join(sorted(allowed_sources)) or "none"
        raise _refusal(url, f"an image from one of the sources that IMAGE_SOURCES allows: {allowed}")
    if location.bucket is not None and not is_among(location.bucket, allowed_buckets):
        raise _refusal(url, "an image in a bucket that IMAGE_BUCKETS allows")
    return location


def is_among(name: str, patterns: Sequence[str]) -> bool:
    """Return True if ``name`` matches a pattern, in which ``*`` stands for any characters, or there are none."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def store_of(url: str) -> str:
    """Return the bucket or the host that serves an image. All local files share one store."""
    scheme, mark, path = url.partition("://")
    return f"{scheme}://{path.partition('/')[0]}" if mark else "file://"


def public_url(url: str) -> str:
    """Return an image's URL for ids, logs and features: without the query, which may contain a credential.

    A hash of the query follows as a fragment, so that two images have different ids. Image URLs have no fragment.
    """
    address, mark, query = url.partition("?")
    if not (mark and url.startswith(("http://", "https://"))):
        return url
    return f"{address}#{hashlib.sha256(query.encode()).hexdigest()[:16]}"


def is_bucket_name(name: str) -> bool:
    """Return True if ``name`` follows S3's rules for bucket names."""
    return _BUCKET.fullmatch(name) is not None and ".." not in name


def web_host(url: str) -> str | None:
    """Return the host of an ``http(s)://`` URL that may be called, or None.

    Refused are user information (it would be ignored and logged), blanks and control characters. Link-local and
    unspecified addresses are refused, and so are hosts that only some resolvers read as an address, as ``2852039166``.
    A name can still resolve to any address, so the connection has to check the address.
    """
    if not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_whole = parts.port is None or parts.port > 0
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or not is_whole:
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        last_label = host.rstrip(".").rpartition(".")[2]
        return host if _HOST.fullmatch(host) and not _NUMBER.fullmatch(last_label) else None
    inner = getattr(address, "ipv4_mapped", None) or address
    return None if is_forbidden(address) or inner.is_unspecified else host


def _s3_location(url: str) -> ImageLocation:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not is_bucket_name(bucket):
        raise _refusal(url, "s3://bucket/key with a bucket name of 3 to 63 letters, digits, dots and hyphens")
    if not key or key.endswith("/") or len(key.encode()) > MAX_KEY_BYTES:
        raise _refusal(url, f"s3://bucket/key with the key of an object, at most {MAX_KEY_BYTES} bytes")
    # HTTP clients resolve dot segments in a path, which could leave the bucket.
    if not {".", ".."}.isdisjoint(key.split("/")):
        raise _refusal(url, "s3://bucket/key without the segments . and ..")
    return ImageLocation(url, "s3", f"/vsis3/{bucket}/{key}", bucket, key)


def _http_location(url: str) -> ImageLocation:
    if web_host(url) is None:
        raise _refusal(url, "http(s)://host/path with a host that may be called, without user information")
    parts = urlsplit(url)
    if parts.path in ("", "/") or parts.fragment or not {".", ".."}.isdisjoint(parts.path.split("/")):
        raise _refusal(url, "http(s)://host/path with the path of a file, without fragment and dot segments")
    return ImageLocation(url, "http", f"/vsicurl/{url}")


def _file_location(url: str) -> ImageLocation:
    path = url
    if url.startswith("file://"):
        parts = urlsplit(url)
        path = unquote(parts.path) if not parts.netloc and not parts.query and not parts.fragment else ""
    segments = path.split("/")[1:]
    if not path.startswith("/") or not {"", ".", ".."}.isdisjoint(segments) or not path.isprintable():
        raise _refusal(url, "the absolute path of a file, without empty and dot segments")
    if segments[0].lower().startswith("vsi"):
        raise _refusal(url, "the path of a local file, not of a virtual file system of GDAL")
    return ImageLocation(url, "file", path)


def _refusal(url: object, expectation: str) -> InvalidImageURLException:
    return InvalidImageURLException("the image URL cannot be used", [Problem("imageUrls", shortened(url), expectation)])
