"""Blobs of features in the work bucket, for tiles whose blob is too large for a row."""

from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.aws.errors import error_code, error_status, may_pass
from aws.osml.model_runner.exceptions import TableBusyError

_NOT_FOUND = 404


class WorkBucket:
    """Blobs of all workers in an S3 bucket, whose lifecycle rule deletes them.

    A blob is written once and never changed. Each call raises TableBusyError when S3 is busy or does not respond.
    """

    def __init__(self, bucket: str, client: Any) -> None:
        self._bucket = bucket
        self._client = client

    def put(self, key: str, blob: bytes) -> None:
        """Store a blob under a key that the caller chooses. Storing the same blob again changes nothing."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=blob)
        except (ClientError, BotoCoreError) as err:
            raise self._busy_or(err) from err

    def get(self, key: str) -> bytes | None:
        """Return a blob; None when the key does not exist."""
        try:
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except ClientError as err:
            if error_status(err) == _NOT_FOUND and error_code(err) != "NoSuchBucket":
                return None
            raise self._busy_or(err) from err
        except BotoCoreError as err:
            raise self._busy_or(err) from err
        return body

    def _busy_or(self, err: ClientError | BotoCoreError) -> Exception:
        return TableBusyError(f"the work bucket {self._bucket}: {error_code(err)}") if may_pass(err) else err
