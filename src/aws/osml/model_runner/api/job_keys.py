"""Keys of jobs' rows: readable, within DynamoDB's limits, and unique for each job.

A part that is ambiguous or too long is replaced by its hash.
"""

import hashlib
import re

# DynamoDB's limits. Other tables extend an image's id by a partition number or a prefix.
MAX_IMAGE_ID_BYTES = 2_048 - 64
MAX_SORT_KEY_BYTES = 1_024

_MARK = "#"
_HASH_LENGTH = 64
# A job id that contains the start of a URL, so that its end in an image id is ambiguous; or a hash.
_AMBIGUOUS = re.compile(r":(s3://|https?://|file://|/)|^#[0-9a-f]{64}$")
_KEY = re.compile(r"((?:[^#]|##)*)(?:#(?!#)|$)")


def image_id_of(job_id: str, url: str) -> str:
    """Return the id of an image of a job: ``<jobId>:<image URL>``, if it is short and unambiguous."""
    name = _MARK + _sha256(job_id) if _AMBIGUOUS.search(job_id) else job_id
    return bounded(f"{name}:{url}", MAX_IMAGE_ID_BYTES)


def request_key(job_id: str) -> str:
    """Return the key of a job's request in the table of images. It differs from image ids, which contain a URL."""
    return f"_request#{_sha256(job_id)}"


def open_job_key(job_id: str, url: str | None) -> str:
    """Return the sort key of an open job: the job id, and ``#<image URL>`` if the job has several images.

    A ``#`` in the job id is doubled.
    """
    name = job_id.replace(_MARK, 2 * _MARK)
    return name if url is None else bounded(f"{name}{_MARK}{url}", MAX_SORT_KEY_BYTES)


def job_id_of_key(key: str) -> str:
    """Return the job id in the sort key of an open job."""
    match = _KEY.match(key)
    return match[1].replace(2 * _MARK, _MARK) if match else key


def bounded(text: str, max_bytes: int) -> str:
    """Return ``text`` if it is short, else its beginning and its hash. Different texts stay different.

    A result with a hash is longer than any result without, so the two kinds cannot be equal.
    """
    longest_bytes = max_bytes - len(_MARK) - _HASH_LENGTH
    body = text.encode(errors="surrogatepass")
    if len(body) <= longest_bytes:
        return text
    return body[:longest_bytes].decode(errors="ignore") + _MARK + _sha256(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
