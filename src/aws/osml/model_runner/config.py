"""The configuration of a worker, from environment variables; each setting has its description."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

import structlog
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .api.inference import MAX_ANSWER_BYTES, MAX_SAGEMAKER_BODY_BYTES
from .api.policy import RequestPolicy
from .api.problems import expectation_of, path_text, shortened
from .api.rules import broken_rule, must
from .aws.secret_values import HostCredential
from .common.typing import ImageDimensions
from .exceptions import ConfigurationError, Problem

logger = structlog.get_logger(__name__)

_MIB = 1024 * 1024
_DAY_S = 86_400
# Rows expire this long after the limits of a job, so that a late worker still finds them.
_ROW_MARGIN_S = 2 * _DAY_S
_REGION_SIZE = re.compile(r"\s*\(\s*([0-9]{1,7})\s*,\s*([0-9]{1,7})\s*\)\s*")


class Setting(NamedTuple):
    """A row of the reference: names of the variables, the default as text ("" when required), the description."""

    names: tuple[str, ...]
    field: str
    default: str
    description: str


def _is_queue_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and bool(parts.path.strip("/"))


def _credentials(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        content = text if text.lstrip().startswith("[") else Path(text).read_text(encoding="utf-8")
        return TypeAdapter(tuple[HostCredential, ...]).validate_json(content)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = path_text(first["loc"])
        raise broken_rule(f"a JSON list of host, header, value and prefix; {where}: {first['msg']}") from err
    except (OSError, ValueError) as err:
        raise broken_rule("a JSON list, or the path of a file that holds one") from err


def _region_size(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    match = _REGION_SIZE.fullmatch(text)
    if match is None or not min(int(match[1]), int(match[2])) > 0:
        raise broken_rule("(width, height) in pixels, two whole numbers above 0 in parentheses")
    return ImageDimensions(int(match[1]), int(match[2]))


def _words(text: Any) -> Any:
    return [word.strip() for word in text.split(",") if word.strip()] if isinstance(text, str) else text


def _above(least: float, otherwise: float) -> AfterValidator:
    """Replace a number below ``least`` by ``otherwise``: existing deployments rely on a worker that still starts."""

    def checked(value: Any) -> Any:
        if value >= least:
            return value
        logger.warning("configuration.value_replaced", value=value, least=least, replacement=otherwise)
        return otherwise

    return AfterValidator(checked)


QueueUrl = Annotated[str, must("the URL of a queue, http(s)://host/path", _is_queue_url)]
TopicArn = Annotated[str, must("the ARN of a topic, which starts with arn:", lambda text: text.startswith("arn:"))]
# Only "True" and "true" mean True, for compatibility; every other text means False.
Switch = Annotated[bool, BeforeValidator(lambda text: text in ("True", "true") if isinstance(text, str) else text)]
Sources = Annotated[
    frozenset[Literal["s3", "file", "http"]],
    BeforeValidator(_words),
    must("at least one of s3, file and http, separated by commas", bool),
]
Hosts = Annotated[
    tuple[str, ...],
    BeforeValidator(_words),
    must(
        "host names, separated by commas",
        lambda hosts: all(re.fullmatch(r"[A-Za-z0-9.:_*\[\]-]+", host) for host in hosts),
    ),
    AfterValidator(lambda hosts: tuple(host.lower() for host in hosts)),
]
Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(_words),
    must(
        "names without spaces, in which * stands for any characters, separated by commas",
        lambda patterns: all(pattern.isprintable() and " " not in pattern for pattern in patterns),
    ),
]
Directories = Annotated[
    tuple[str, ...],
    BeforeValidator(_words),
    must(
        "absolute paths of directories, separated by commas",
        lambda directories: all(directory.startswith("/") for directory in directories),
    ),
]
Credentials = Annotated[tuple[HostCredential, ...], BeforeValidator(_credentials)]
RegionSize = Annotated[ImageDimensions, BeforeValidator(_region_size)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(lambda text: text.upper() if text else text)
]
ExternalId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@:/-]+$", min_length=2, max_length=1_224)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, Field(ge=_MIB, le=2**40)]
Seconds = Annotated[float, Field(gt=0, le=30 * _DAY_S, allow_inf_nan=False)]


def _setting(*names: str, description: str, default: Any = PydanticUndefined) -> Any:
    return Field(default, validation_alias=AliasChoices(*names), description=description)


class ServiceConfig(BaseModel):
    """The settings of one worker process. Optional tables, queues and topics are None when they are not set."""

    model_config = ConfigDict(frozen=True, extra="ignore", loc_by_alias=False)

    # Limits of services, for older code that reads them from this class.
    ddb_max_item_size: ClassVar[int] = 200_000
    kinesis_max_record_per_batch: ClassVar[int] = 500
    kinesis_max_record_size: ClassVar[int] = 1_048_576
    kinesis_max_record_size_batch: ClassVar[int] = 5_242_880

    aws_region: Annotated[str, Field(pattern=r"^[a-z0-9-]{2,32}$")] = _setting(
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        description="The AWS region of the worker's queues, tables and topics.",
    )
    job_table: str = _setting(
        "JOB_TABLE",
        "IMAGE_REQUEST_TABLE",
        description="DynamoDB table with one row per image: its status, counters and result. Partition key `image_id`.",
    )
    region_request_table: str = _setting(
        "REGION_REQUEST_TABLE",
        description="DynamoDB table with one row per region. Keys `image_id` and `region_id`.",
    )
    feature_table: str = _setting(
        "FEATURE_TABLE",
        description="DynamoDB table with the features of each tile until its image is finished."
        " Keys `hash_key` and `range_key`.",
    )
    work_bucket: str | None = _setting(
        "WORK_BUCKET",
        default=None,
        description="S3 bucket for the features of tiles that do not fit in one row. Its objects must not expire before"
        " the deadline and three days. Without it such features are stored in further rows of `FEATURE_TABLE`, at about"
        " ten times the cost.",
    )
    outstanding_jobs_table: str = _setting(
        "OUTSTANDING_JOBS_TABLE",
        "OUTSTANDING_IMAGE_REQUEST_TABLE",
        description="DynamoDB table with one row per image that has not ended. Keys `endpoint_id` and `job_id`."
        " `deploy/data-plane.yaml` makes it; the stack's output `OUTSTANDINGJOBSTABLE` has its name.",
    )
    endpoint_statistics_table: str | None = _setting(
        "ENDPOINT_TABLE",
        default=None,
        description="DynamoDB table with the regions in progress per endpoint. Key `endpoint`."
        " Needed only where `SM_SELF_THROTTLING` is on.",
    )
    image_queue: QueueUrl = _setting("IMAGE_QUEUE", description="URL of the SQS queue on which image requests arrive.")
    image_dlq: QueueUrl | None = _setting(
        "IMAGE_DLQ",
        default=None,
        description="URL of the SQS queue that gets every refused image request, verbatim."
        " Without it, it is the queue to which the image queue's own redrive policy points.",
    )
    region_queue: QueueUrl = _setting(
        "REGION_QUEUE", description="URL of the SQS queue by which workers share an image's regions."
    )
    region_dlq: QueueUrl | None = _setting(
        "REGION_DLQ",
        default=None,
        description="URL of the SQS queue that gets every region message that cannot be read, verbatim.",
    )
    image_status_topic: TopicArn | None = _setting(
        "IMAGE_STATUS_TOPIC",
        default=None,
        description="ARN of the SNS topic for the status of images. Without it nothing is published.",
    )
    region_status_topic: TopicArn | None = _setting(
        "REGION_STATUS_TOPIC",
        default=None,
        description="ARN of the SNS topic for the status of regions. Without it nothing is published.",
    )
    workers: Annotated[int, Field(ge=1, le=1_000)] = _setting(
        "WORKERS",
        default=8,
        description="The most model calls that one worker process has in flight to one endpoint. To all endpoints"
        " together it has at most twice as many; an endpoint gets as many as the others leave free.",
    )
    workers_per_cpu: Annotated[float, Field(gt=0, le=1_000)] = _setting(
        "WORKERS_PER_CPU",
        default=1,
        description="Divisor in the most regions in progress that self-throttling allows an endpoint: the number of"
        " workers per vCPU of its instances.",
    )
    region_size: RegionSize = _setting(
        "REGION_SIZE",
        default=ImageDimensions(10240, 10240),
        description="Size `(width, height)` in pixels of the regions into which an image is divided."
        " A job keeps the size with which it was planned.",
    )
    regions_in_progress: Annotated[int, Field(ge=1, le=64)] = _setting(
        "REGIONS_IN_PROGRESS",
        default=2,
        description="How many regions a worker cuts at once. It may hold up to `WORKERS` regions, if few of their tiles"
        " are left to cut, or their tiles wait for their endpoint.",
    )
    tile_queue_bytes: Bytes = _setting(
        "TILE_QUEUE_BYTES",
        default=128 * _MIB,
        description="The most bytes of encoded tiles that wait for a model call. Never more than an eighth of the"
        " container's memory.",
    )
    aggregation_memory_bytes: Bytes = _setting(
        "AGGREGATION_MEMORY_BYTES",
        default=4096 * _MIB,
        description="The most bytes of features that a process holds while it merges and delivers images, all images"
        " together. Never more than half of the container's memory. An image fails if features that have to be merged"
        " together take more.",
    )
    gdal_cache_bytes: Bytes = _setting(
        "GDAL_CACHE_BYTES",
        default=256 * _MIB,
        description="The most bytes of GDAL's cache of decoded image blocks, which grows as the images require. Never"
        " more than an eighth of the container's memory.",
    )
    image_sources: Sources = _setting(
        "IMAGE_SOURCES",
        default=frozenset({"s3"}),
        description="Where images may come from: any of `s3`, `file` and `http`, separated by commas.",
    )
    image_buckets: Patterns = _setting(
        "IMAGE_BUCKETS",
        default=(),
        description="The buckets from which images may be read, separated by commas; `*` stands for any characters."
        " Unset: any bucket.",
    )
    image_directories: Directories = _setting(
        "IMAGE_DIRECTORIES",
        default=(),
        description="The directories in and below which image files may be, after links are resolved, separated by"
        " commas. Unset: any directory, if `IMAGE_SOURCES` allows files.",
    )
    allow_requester_pays: Switch = _setting(
        "ALLOW_REQUESTER_PAYS",
        default=False,
        description="`True` allows requests with `requesterPays`: the account that reads an image then pays for reads"
        " of a bucket whose owner does not. With any other text such a request is refused.",
    )
    output_buckets: Patterns = _setting(
        "OUTPUT_BUCKETS",
        default=(),
        description="The buckets to which a request may send its features, separated by commas; `*` stands for any"
        " characters. Unset: any bucket.",
    )
    output_bucket_owner: Annotated[str, Field(pattern=r"^[0-9]{12}$")] | None = _setting(
        "OUTPUT_BUCKET_OWNER",
        default=None,
        description="The AWS account, twelve digits, that has to own every output bucket. Unset: any account.",
    )
    output_streams: Patterns = _setting(
        "OUTPUT_STREAMS",
        default=(),
        description="The Kinesis streams to which a request may send its features, separated by commas; `*` stands for"
        " any characters. Unset: any stream.",
    )
    assumable_roles: Patterns = _setting(
        "ASSUMABLE_ROLES",
        default=(),
        description="The roles that a request may name, by ARN, separated by commas; `*` stands for any characters, as"
        " in `arn:aws:iam::123456789012:role/osml/*`. Unset: any role.",
    )
    role_external_id: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@:/-]+$", min_length=2, max_length=1_224)] | None
    ) = _setting(
        "ROLE_EXTERNAL_ID",
        default=None,
        description="The external id for assuming roles, where a trust policy requires it.",
    )
    role_session_policies: Switch = _setting(
        "ROLE_SESSION_POLICIES",
        default=True,
        description="`True` narrows each session of a role to the bucket, stream or endpoint that its job needs. With"
        " any other text a session has all permissions of the role.",
    )
    max_image_side_px: Annotated[int, Field(ge=1, le=2**31 - 1)] = _setting(
        "MAX_IMAGE_SIDE", default=2**20, description="The most pixels that an image may have on a side."
    )
    max_image_pixels: Annotated[int, Field(ge=1, le=2**62)] = _setting(
        "MAX_IMAGE_PIXELS", default=10**12, description="The most pixels that an image may have."
    )
    max_image_bands: Annotated[int, Field(ge=1, le=65_535)] = _setting(
        "MAX_IMAGE_BANDS", default=64, description="The most bands that an image may have."
    )
    max_block_bytes: Bytes = _setting(
        "MAX_BLOCK_BYTES",
        default=256 * _MIB,
        description="The most bytes of memory that decoding one block of an image may take.",
    )
    max_http_copy_bytes: Annotated[int, Field(ge=0)] = _setting(
        "MAX_HTTP_COPY_BYTES",
        default=256 * _MIB,
        description="The most bytes of an image whose web server does not serve ranges. The worker copies such an image"
        " to a temporary file, and keeps four copies. 0: images of such servers fail.",
    )
    image_open_timeout_s: Annotated[int, Field(ge=0, le=3600)] = _setting(
        "IMAGE_OPEN_TIMEOUT_S",
        default=60,
        description="How many seconds a child process may take to open an image before it is planned. An image fails"
        " after three children that crashed or exceeded this time. 0: images are opened without a child.",
    )
    max_tile_bytes: Bytes = _setting(
        "MAX_TILE_BYTES",
        default=256 * _MIB,
        description="The most bytes of pixels, all bands of them, that one tile may have.",
    )
    max_regions: Count = _setting(
        "MAX_REGIONS", default=10_000, description="The most regions into which an image may be divided."
    )
    max_tiles_per_region: Count = _setting(
        "MAX_TILES_PER_REGION", default=20_000, description="The most tiles into which a region may be divided."
    )
    max_tiles_per_image: Annotated[int, Field(ge=1, le=200_000_000)] = _setting(
        "MAX_TILES_PER_IMAGE",
        default=5_000_000,
        description="The most tiles that an image may have. With a region of interest, tiles of the regions that it"
        " touches count.",
    )
    memory_limit_bytes: Annotated[int, Field(ge=256 * _MIB, le=2**50)] | None = _setting(
        "MEMORY_LIMIT_BYTES",
        default=None,
        description="The most bytes of memory that the process may allocate. A larger allocation fails, and the"
        " container is not killed. Unset: seven eighths of the container's memory, or of the machine's.",
    )
    http_endpoint_hosts: Hosts = _setting(
        "HTTP_ENDPOINT_HOSTS",
        default=(),
        description="The hosts that a request may name as an HTTP model, separated by commas."
        " Unset: any host that is not a link-local address.",
    )
    model_credentials: Credentials = _setting(
        "MODEL_CREDENTIALS",
        default=(),
        description="The headers that HTTP models of a host get: a JSON list, or the path of a file that holds one, of"
        ' `{"host": "api.example.com", "header": "Authorization", "prefix": "Bearer ", "value": {"secretsmanager":'
        ' "arn:…"}}`. Other values are `{"ssm": "/name"}` and `{"env": "NAME"}`. A host without a port covers every'
        " port. A value is fetched for the first call, and once more when a model returns 401. It is sent only over"
        " https or to this machine.",
    )
    http_endpoint_timeout_s: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = _setting(
        "HTTP_ENDPOINT_TIMEOUT_S",
        default=70.0,
        description="Seconds that an HTTP model may take for a tile, from request to last byte of the response.",
    )
    max_answer_bytes: Annotated[int, Field(ge=1_024, le=MAX_ANSWER_BYTES)] = _setting(
        "MAX_ANSWER_BYTES",
        default=MAX_ANSWER_BYTES,
        description="The most bytes of a model's response for one tile; the default is the maximum.",
    )
    max_parsed_answer_bytes: Bytes = _setting(
        "MAX_PARSED_ANSWER_BYTES",
        default=128 * _MIB,
        description="The most bytes of memory that a response may take when it is parsed, as estimated before. The"
        " features made of it take several times as much.",
    )
    sm_max_body_bytes: Annotated[int, Field(ge=1, le=2**31)] = _setting(
        "SM_MAX_BODY",
        default=MAX_SAGEMAKER_BODY_BYTES,
        description="The most bytes of a tile for a SageMaker endpoint; larger tiles fail and are not sent.",
    )
    elevation_data_location: str | None = _setting(
        "ELEVATION_DATA_LOCATION",
        default=None,
        description="Directory or `s3://` prefix with elevation tiles. Unset: features are located at height 0 above"
        " the ellipsoid, unless the image has a height of its own.",
    )
    elevation_data_extension: str = _setting(
        "ELEVATION_DATA_EXTENSION", default=".tif", description="File name extension of the elevation tiles."
    )
    elevation_data_version: str = _setting(
        "ELEVATION_DATA_VERSION",
        default="1arc_v3",
        description="Version in the elevation tiles' names, as in `n47_e034_1arc_v3.tif`.",
    )
    job_deadline_s: Seconds = _setting(
        "JOB_DEADLINE_S",
        default=float(_DAY_S),
        description="Seconds after the first attempt to plan a job after which the job ends with the tiles that it has;"
        " missing tiles count as failed.",
    )
    job_wait_limit_s: Seconds = _setting(
        "JOB_WAIT_LIMIT_S",
        default=7.0 * _DAY_S,
        description="Seconds that an image may wait for capacity of its endpoint; then its job fails.",
    )
    ddb_ttl_in_days: Annotated[int, Field(ge=1, le=3_650)] = _setting(
        "DDB_TTL_IN_DAYS",
        default=16,
        description="Days after which rows of images and regions expire. Never less than the sum of"
        " `JOB_WAIT_LIMIT_S`, twice `JOB_DEADLINE_S` and two days.",
    )
    max_region_attempts: Count = _setting(
        "MAX_REGION_ATTEMPTS",
        default=6,
        description="How often workers may die in a region without progress before its missing tiles count as failed."
        " Ten minutes must also have passed since the first death.",
    )
    max_aggregation_attempts: Count = _setting(
        "MAX_AGGREGATION_ATTEMPTS",
        default=6,
        description="How often workers may die while they deliver an image without progress before the image fails.",
    )
    region_lease_s: Seconds = _setting(
        "REGION_LEASE_S",
        default=60.0,
        description="Seconds after which another worker may claim the region of a worker that does not renew it.",
    )
    aggregation_lease_s: Seconds = _setting(
        "AGGREGATION_LEASE_S",
        default=120.0,
        description="Seconds after which another worker may claim the delivery of a worker that does not renew it.",
    )
    tile_stall_s: Seconds = _setting(
        "TILE_STALL_S",
        default=600.0,
        description="Seconds without a sign of life from a thread that works on a tile, a region or a result. Then the"
        " worker releases its work and exits with status 70, to be restarted. Waits for an endpoint do not count.",
    )
    sweep_interval_s: Seconds = _setting(
        "SWEEP_INTERVAL_S",
        default=30.0,
        description="Seconds between two searches for jobs that no worker processes.",
    )
    queue_wait_s: Annotated[int, Field(ge=0, le=20)] = _setting(
        "QUEUE_WAIT_S",
        default=20,
        description="Seconds for which one receive call waits for a message.",
    )
    shutdown_budget_s: Seconds = _setting(
        "SHUTDOWN_BUDGET_S",
        default=25.0,
        description="Seconds within which a worker releases its work and exits after SIGTERM.",
    )
    health_file: str | None = _setting(
        "HEALTH_FILE",
        default=None,
        description="File that the worker writes when it makes progress or polls its queues; `model-runner health`"
        " checks its age. A worker that cannot write it does not start.",
    )
    log_level: LogLevel = _setting(
        "LOG_LEVEL",
        default="INFO",
        description="The lowest level that is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`.",
    )
    metrics_namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.#:/-]+$", max_length=255)] = _setting(
        "METRICS_NAMESPACE",
        default="OSML/ModelRunner",
        description="CloudWatch namespace of the metrics. Deployments in one account need different ones.",
    )
    self_throttling: Switch = _setting(
        "SM_SELF_THROTTLING",
        default=False,
        description="`True` limits the regions in progress per SageMaker endpoint; any other text does not.",
    )
    throttling_scale_factor: Annotated[float, Field(gt=0, le=1_000_000)] = _setting(
        "THROTTLING_SCALE_FACTOR",
        default=10,
        description="Factor on the vCPUs of an endpoint in the most regions that self-throttling allows.",
    )
    throttling_retry_timeout: Annotated[int, Field(ge=0, le=43_200)] = _setting(
        "THROTTLING_RETRY_TIMEOUT",
        default=10,
        description="Seconds after which a region that self-throttling held back is retried;"
        " doubles with each retry, up to three times.",
    )
    scheduler_throttling_enabled: Switch = _setting(
        "SCHEDULER_THROTTLING_ENABLED",
        default=True,
        description="`True` starts an image only when its endpoint has capacity left; any other text does not.",
    )
    image_scheduler: Annotated[Literal["load", "fifo"], BeforeValidator(str.lower)] = _setting(
        "IMAGE_SCHEDULER",
        default="load",
        description="Which image starts next: `load` starts the first image of the least loaded endpoint, `fifo` the"
        " first of all images, without regard to the load of its endpoint.",
    )
    image_look_ahead: Annotated[int, Field(ge=1, le=10_000)] = _setting(
        "IMAGE_LOOK_AHEAD",
        default=500,
        description="How many images may wait in the table of open jobs. Endpoints share this number: a single endpoint"
        " gets half, and messages of a full endpoint are released to the queue. A decision reads all rows: 10,000 rows"
        " take two seconds.",
    )
    default_instance_concurrency: Annotated[int, _above(1, 2)] = _setting(
        "DEFAULT_INSTANCE_CONCURRENCY",
        default=2,
        description="Concurrent calls that an instance of a SageMaker endpoint takes, if its tags do not set a number."
        " Less than 1 means 2.",
    )
    default_http_endpoint_concurrency: Count = _setting(
        "DEFAULT_HTTP_ENDPOINT_CONCURRENCY", default=10, description="Concurrent calls that an HTTP model takes."
    )
    tile_workers_per_instance: Annotated[int, _above(1, 4)] = _setting(
        "TILE_WORKERS_PER_INSTANCE",
        default=4,
        description="Concurrent calls that one region is expected to make, for estimates of load. Less than 1 means 4.",
    )
    capacity_target_percentage: Annotated[float, Field(allow_inf_nan=False), _above(1e-9, 1.0)] = _setting(
        "CAPACITY_TARGET_PERCENTAGE",
        default=1.0,
        description="Share of an endpoint's capacity that the scheduler fills; above 1 it overcommits."
        " 0 and less mean 1.",
    )
    cp_api_endpoint: str | None = _setting(
        "API_ENDPOINT", default=None, description="Accepted from older deployments; nothing uses it."
    )
    codeguru_profiling_group: str | None = _setting(
        "CODEGURU_PROFILING_GROUP", default=None, description="Accepted from older deployments; nothing uses it."
    )

    @classmethod
    def for_command(cls, environ: Mapping[str, str], needed: Collection[str]) -> "ServiceConfig":
        """Return the configuration of a command that reads only some of the required settings.

        A required setting outside ``needed`` may be unset, and is None then. Raises as ``from_environment`` does.
        """
        optional: dict[str, Any] = {
            name: (info.annotation, Field(default=None, validation_alias=info.validation_alias))
            for name, info in cls.model_fields.items()
            if info.is_required() and name not in needed
        }
        return create_model("CommandConfig", __base__=cls, **optional).from_environment(environ)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "ServiceConfig":
        """Return the configuration from environment variables. An empty variable counts as unset.

        Raises ConfigurationError with all problems, each under the name of its variable.
        """
        present = {name: value for name, value in environ.items() if value.strip()}
        try:
            return cls.model_validate(present)
        except ValidationError as err:
            problems = []
            for details in err.errors(include_url=False):
                field = cls.model_fields[str(details["loc"][0])]
                names = _names(field)
                name = next((name for name in names if name in present), None)
                if name is None:
                    problems.append(Problem(" or ".join(names), "unset", f"required. {field.description}"))
                else:
                    problems.append(Problem(name, shortened(present[name], name), expectation_of(details)))
            raise ConfigurationError("the environment does not describe a worker", problems) from err

    @property
    def policy(self) -> RequestPolicy:
        """The image sources, buckets, streams and roles that requests may name."""
        return RequestPolicy(
            image_sources=self.image_sources,
            image_buckets=self.image_buckets,
            output_buckets=self.output_buckets,
            output_streams=self.output_streams,
            roles=self.assumable_roles,
            allows_requester_pays=self.allow_requester_pays,
        )

    @property
    def image_request_table(self) -> str:
        """The job table under its newer name."""
        return self.job_table

    @property
    def row_life_s(self) -> float:
        """Seconds for which rows of images and regions are kept: ``ddb_ttl_in_days``, or more if a job may need it."""
        # The last tile may be stored at the deadline, and its row is kept for another deadline. The row of an image is
        # kept longer, because it prevents that the id of its job is used again.
        longest_s = self.job_wait_limit_s + 2 * self.job_deadline_s
        return max(self.ddb_ttl_in_days * _DAY_S, longest_s + _ROW_MARGIN_S)


def documented_settings() -> list[Setting]:
    """Return every setting in the order of the reference."""
    return [
        Setting(_names(info), name, _default_text(info), info.description or "")
        for name, info in ServiceConfig.model_fields.items()
    ]


def _names(info: FieldInfo) -> tuple[str, ...]:
    alias = info.validation_alias
    return tuple(str(choice) for choice in alias.choices) if isinstance(alias, AliasChoices) else ()


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    if info.default is None:
        return "unset"
    if isinstance(info.default, ImageDimensions):
        return f"({info.default.width}, {info.default.height})"
    if isinstance(info.default, (frozenset, tuple)):
        return ",".join(sorted(info.default)) or "unset"
    return f"{info.default:g}" if isinstance(info.default, float) and info.default != 1.0 else str(info.default)
