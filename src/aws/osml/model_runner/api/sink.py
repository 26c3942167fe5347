"""Enumerations of outputs: type, mode, file format and compression."""

from enum import StrEnum


class SinkMode(StrEnum):
    """AGGREGATE: deliver once per image, after its last region. STREAMING: deliver features at once."""

    AGGREGATE = "AGGREGATE"
    STREAMING = "STREAMING"


class SinkType(StrEnum):
    """Types of outputs, spelled as in requests."""

    S3 = "S3"
    KINESIS = "Kinesis"


class OutputFormat(StrEnum):
    """The file formats of results in S3."""

    GEOJSON = "GEOJSON"
    GEOJSONSEQ = "GEOJSONSEQ"
    GEOPARQUET = "GEOPARQUET"


class OutputCompression(StrEnum):
    """Compression of text formats in S3."""

    NONE = "NONE"
    GZIP = "GZIP"


class OutputExtra(StrEnum):
    """Files that an output in S3 has beside its result."""

    COVERAGE = "COVERAGE"


VALID_SYNC_TYPES = [item.value for item in SinkType]
