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


VALID_SYNC_TYPES = [item.value for item in SinkType]
