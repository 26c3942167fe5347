"""Where features go, and when."""

from enum import StrEnum


class SinkMode(StrEnum):
    """AGGREGATE: once per image, after its last region. STREAMING: as they are found."""

    AGGREGATE = "AGGREGATE"
    STREAMING = "STREAMING"


class SinkType(StrEnum):
    """The kinds of outputs a request may name, spelled as requests spell them."""

    S3 = "S3"
    KINESIS = "Kinesis"


class OutputFormat(StrEnum):
    """The file formats of results in S3."""

    GEOJSON = "GEOJSON"
    GEOJSONSEQ = "GEOJSONSEQ"
    GEOPARQUET = "GEOPARQUET"


class OutputCompression(StrEnum):
    """How a result in S3 that is text may be compressed."""

    NONE = "NONE"
    GZIP = "GZIP"


VALID_SYNC_TYPES = [item.value for item in SinkType]
