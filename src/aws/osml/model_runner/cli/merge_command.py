"""`model-runner merge JOB`: merge a job's stored features again, with other options."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aws.osml.model_runner.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aws.osml.model_runner.api.post_processing import FeatureDistillationAlgorithm
    from aws.osml.model_runner.config import ServiceConfig
    from aws.osml.model_runner.jobs.merge_again import JobMerger
    from aws.osml.model_runner.jobs.merging import MergedImage
    from aws.osml.model_runner.sink.delivery import Delivery, FeatureBatch

ALGORITHMS = ("SEAM", "NMS", "SOFT_NMS", "NONE")
FORMATS = ("GEOJSON", "GEOJSONSEQ", "GEOPARQUET")

_EXAMPLES = """\
examples:
  env $(cat worker.env) model-runner merge harbour-7 --union --format GEOPARQUET
  env $(cat worker.env) model-runner merge harbour-7 --algorithm NMS --threshold 0.5 --output s3://results/again
"""
_SETTINGS = ("aws_region", "job_table", "feature_table")


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "merge",
        help="merge the stored features of a job again, with other options",
        description=(
            "Merges the stored features of a finished job again, without calling the model. The result never replaces"
            " an output of the job. Needs AWS_DEFAULT_REGION, JOB_TABLE, FEATURE_TABLE, and WORK_BUCKET where the"
            " deployment has one."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("job", metavar="JOB", help="id of a job that has ended")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="SEAM", help="how duplicate features are found")
    parser.add_argument(
        "--threshold",
        type=float,
        help="overlap in [0, 1] above which two features are one object (default: 0.5 for SEAM, 0.75 for NMS)",
    )
    parser.add_argument(
        "--metric",
        choices=("IOS", "IOU"),
        help="area that SEAM divides an overlap by: IOS the smaller one, IOU the union (default: IOS)",
    )
    parser.add_argument("--class-agnostic", action="store_true", help="SEAM: compare features of different classes too")
    parser.add_argument("--union", action="store_true", help="SEAM: join the parts of an object that tile edges cut")
    parser.add_argument(
        "--distance",
        type=float,
        help="SEAM: pixels within which two points, or two lines, are one object (default: a sixteenth of the overlap)",
    )
    parser.add_argument("--sigma", type=float, help="SOFT_NMS: a larger value lowers scores less (default: 0.1)")
    parser.add_argument(
        "--skip",
        type=float,
        help="NMS, SOFT_NMS: drop features up to this score (default: none; 0.0001 for SOFT_NMS)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output", default="merged", help="directory, or s3://BUCKET/PREFIX, for the result")
    output.add_argument("--format", choices=FORMATS, default="GEOJSON", help="file format of the result")
    output.add_argument("--gzip", action="store_true", help="compress GEOJSON or GEOJSONSEQ")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the result of each of the job's images; print its location and its number of features."""
    from aws.osml.model_runner.config import ServiceConfig

    if arguments.gzip and arguments.format == "GEOPARQUET":
        raise ConfigurationError("--gzip: GEOPARQUET is compressed in itself")
    options = _options(arguments)
    merger = _merger(ServiceConfig.for_command(os.environ, _SETTINGS))
    exit_status = 0
    for job in merger.images_of(arguments.job):
        try:
            with merger.merged(job, options) as image:
                location = _write(image, arguments)
        except ConfigurationError:  # the same option holds for every image
            raise
        except Exception as err:  # noqa: BLE001 - an image that fails does not keep the others from being merged
            sys.stderr.write(f"model-runner: {err or type(err).__name__}\n")
            exit_status = 1
        else:
            sys.stdout.write(f"{image.kept} of {image.stored} features: {location}\n")
    return exit_status


def _options(arguments: argparse.Namespace) -> "FeatureDistillationAlgorithm":
    from aws.osml.model_runner.api.image_request import distillation_from

    message = {
        "algorithmType": arguments.algorithm,
        "threshold": arguments.threshold,
        "metric": arguments.metric,
        "classAgnostic": arguments.class_agnostic or None,
        "merge": "UNION" if arguments.union else None,
        "distance": arguments.distance,
        "sigma": arguments.sigma,
        "skipBoxThreshold": arguments.skip,
    }
    return distillation_from({name: value for name, value in message.items() if value is not None})


def _merger(config: "ServiceConfig") -> "JobMerger":
    from aws.osml.model_runner.aws.clients import default_clients
    from aws.osml.model_runner.database.blob_store import WorkBucket
    from aws.osml.model_runner.database.feature_table import FeatureTable
    from aws.osml.model_runner.database.job_table import JobItem, JobTable
    from aws.osml.model_runner.jobs.merge_again import JobMerger
    from aws.osml.model_runner.jobs.merging import aggregation_memory
    from aws.osml.model_runner.tiling.strategy import VariableOverlapTilingStrategy

    clients = default_clients()
    dynamodb = clients.dynamodb_resource()
    blobs = WorkBucket(config.work_bucket, clients.client("s3")) if config.work_bucket else None

    def features_of(job: JobItem) -> FeatureTable:
        sizes = job.tile_dimensions, job.overlap_dimensions
        return FeatureTable(config.feature_table, *sizes, client=dynamodb, blobs=blobs)

    return JobMerger(
        JobTable(config.job_table, dynamodb, life_s=config.row_life_s),
        features_of,
        VariableOverlapTilingStrategy(),
        aggregation_memory(config, time.monotonic, time.sleep),
    )


def _write(image: "MergedImage", arguments: argparse.Namespace) -> str:
    """Write a result and return its location. A file appears only when it is complete, as an object does."""
    from aws.osml.model_runner.api.sink import OutputCompression, OutputFormat
    from aws.osml.model_runner.sink.result_format import ResultFormat
    from aws.osml.model_runner.sink.result_key import result_key
    from aws.osml.model_runner.sink.s3_sink import S3Sink
    from aws.osml.model_runner.sink.sink_factory import SinkFactory

    compression = OutputCompression.GZIP if arguments.gzip else OutputCompression.NONE
    result_format = ResultFormat.of(OutputFormat(arguments.format), compression)
    job_id, result_name = str(image.job.job_id), image.job.result_name or ""
    if arguments.output.startswith("s3://"):
        bucket, _, prefix = arguments.output.removeprefix("s3://").partition("/")
        key = result_key(prefix, job_id, result_name, result_format.extension)
        for own in SinkFactory.outputs_to_sinks(json.loads(image.job.outputs or "[]")):
            if isinstance(own, S3Sink) and own.bucket == bucket:
                own_key = result_key(own.prefix, job_id, result_name, own.format.extension)
                if own_key == key:
                    raise ConfigurationError(f"--output s3://{bucket}/{key}: the job has delivered its result there")
        sink = S3Sink(bucket, prefix, result_format=OutputFormat(arguments.format), compression=compression)
        _deliver(image, sink.deliver)
        return f"s3://{bucket}/{key}"
    path = Path(arguments.output) / result_key("", job_id, result_name, result_format.extension)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            _deliver(image, lambda delivery: file.writelines(result_format.pieces(delivery)))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return str(path)


def _deliver(image: "MergedImage", write: "Callable[[Delivery], None]") -> None:
    """Write a result. An error of the features is raised as it is, not as an error of the output."""
    from aws.osml.model_runner.common.channel import Threads, spread
    from aws.osml.model_runner.sink.delivery import Delivery

    def deliver(batches: "Iterable[FeatureBatch]") -> None:
        write(Delivery(str(image.job.job_id), image.job.result_name or "", batches, members=image.members))

    for error in spread(image, [deliver], Threads.of_process(), capacity=1):
        if error is not None:
            raise error
