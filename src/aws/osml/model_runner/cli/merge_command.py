"""`model-runner merge JOB`: merge a job's stored features again, with other options."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aws.osml.model_runner.exceptions import ConfigurationError

if TYPE_CHECKING:
    from aws.osml.model_runner.app_config import ServiceConfig
    from aws.osml.model_runner.common.mr_post_processing import FeatureDistillationAlgorithm
    from aws.osml.model_runner.merge_again import JobMerger, MergedImage
    from aws.osml.model_runner.sink.s3_sink import S3Sink

ALGORITHMS = ("SEAM", "NMS", "SOFT_NMS", "NONE")
FORMATS = ("GEOJSON", "GEOJSONSEQ", "GEOPARQUET")


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "merge",
        help="merge the stored features of a job again, with other options",
        description=(
            "Merges the features that a finished job has stored, without calling the model, and writes the result"
            " beside, never over, what the job delivered. Works on the deployment that the environment names."
        ),
    )
    parser.add_argument("job", metavar="JOB", help="id of a job that has ended")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="SEAM", help="how features of one object are found")
    parser.add_argument("--threshold", type=float, help="overlap, a share in [0, 1], above which two features are one")
    parser.add_argument("--metric", choices=("IOS", "IOU"), help="overlap over the smaller area, or over the union")
    parser.add_argument("--class-agnostic", action="store_true", help="compare features of different classes too")
    parser.add_argument("--union", action="store_true", help="join the parts of what tiles have cut")
    parser.add_argument("--distance", type=float, help="pixels within which points, and lines, are one")
    parser.add_argument("--sigma", type=float, help="how slowly scores decay with SOFT_NMS")
    parser.add_argument("--skip", type=float, help="score up to which NMS and SOFT_NMS drop a feature")
    _add_output_options(parser)
    parser.set_defaults(run=run)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--output", default="merged", help="directory, or s3://BUCKET/PREFIX, for the result")
    output.add_argument("--format", choices=FORMATS, default="GEOJSON")
    output.add_argument("--gzip", action="store_true", help="compress GEOJSON or GEOJSONSEQ")


def run(arguments: argparse.Namespace) -> int:
    """Write the result of each of the job's images, and say where and how many features it has."""
    from aws.osml.model_runner.app_config import ServiceConfig

    if arguments.gzip and arguments.format == "GEOPARQUET":
        raise ConfigurationError("--gzip: GEOPARQUET is compressed in itself")
    options = _options(arguments)
    merger = _merger(ServiceConfig.from_environment(os.environ))
    for image in merger.merge(arguments.job, options):
        place = _write(image, arguments)
        sys.stdout.write(f"{len(image.features)} of {image.stored} features: {place}\n")
    return 0


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
    from aws.osml.model_runner.common.aws_clients import default_clients
    from aws.osml.model_runner.database.feature_table import FeatureTable
    from aws.osml.model_runner.database.job_table import JobItem, JobTable
    from aws.osml.model_runner.merge_again import JobMerger

    dynamodb = default_clients().dynamodb_resource()

    def features_of(job: JobItem) -> FeatureTable:
        return FeatureTable(config.feature_table, job.tile_dimensions, job.overlap_dimensions, client=dynamodb)

    return JobMerger(JobTable(config.job_table, dynamodb, life_s=config.row_life_s), features_of)


def _write(image: "MergedImage", arguments: argparse.Namespace) -> str:
    """Write a result and return its place. A file is there whole or not at all, as an object is."""
    from aws.osml.model_runner.api.sink import OutputCompression, OutputFormat
    from aws.osml.model_runner.sink.result_format import ResultFormat
    from aws.osml.model_runner.sink.result_key import result_key
    from aws.osml.model_runner.sink.s3_sink import S3Sink

    kind = OutputFormat(arguments.format), OutputCompression.GZIP if arguments.gzip else OutputCompression.NONE
    result_format = ResultFormat.of(*kind)
    delivery = image.features.delivery(image.job)
    if arguments.output.startswith("s3://"):
        bucket, _, prefix = arguments.output.removeprefix("s3://").partition("/")
        sink = S3Sink(bucket, prefix, result_format=kind[0], compression=kind[1])
        _check_is_free(image, sink)
        sink.deliver(delivery)
        return f"s3://{bucket}/{sink.key_of(delivery)}"
    path = Path(arguments.output) / result_key("", delivery.job_id, delivery.result_name, result_format.extension)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.writelines(result_format.pieces(delivery))
    unfinished.replace(path)
    return str(path)


def _check_is_free(image: "MergedImage", sink: "S3Sink") -> None:
    """Raise ConfigurationError where the job itself has delivered its result."""
    from aws.osml.model_runner.sink.s3_sink import S3Sink
    from aws.osml.model_runner.sink.sink_factory import SinkFactory

    delivery = image.features.delivery(image.job)
    key = sink.key_of(delivery)
    for own in SinkFactory.outputs_to_sinks(json.loads(image.job.outputs or "[]")):
        if isinstance(own, S3Sink) and (own.bucket, own.key_of(delivery)) == (sink.bucket, key):
            raise ConfigurationError(f"--output s3://{sink.bucket}/{key}: the job has delivered its result there")
