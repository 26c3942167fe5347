"""`model-runner plan REQUEST.json|IMAGE`: what a job would do and use, and each problem that would stop it."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aws.osml.model_runner.exceptions import ConfigurationError, InvalidRequestError

from .deployment_options import s3_output, width_of
from .local_commands import files_read
from .pixel_options import TILE_DEFAULTS, add_tile_options, request_members, whole_number
from .protocol_options import add_protocol_options, protocol_of

if TYPE_CHECKING:
    from aws.osml.model_runner.api.image_request import ImageRequest
    from aws.osml.model_runner.jobs.planning import ImagePlan
    from aws.osml.model_runner.jobs.prices import Prices
    from aws.osml.model_runner.jobs.quote import PlanDocument
    from aws.osml.model_runner.jobs.quoting import OnPlanned
    from aws.osml.model_runner.raster import ImageSource

_EXAMPLES = """\
examples:
  model-runner plan harbour.tif --tile-size 512 --calls-per-second 20
  model-runner plan harbour.tif --endpoint ships --output s3://results/harbour --map tiles.geojson
  env $(cat worker.env) model-runner plan request.json --calls-per-second 20 --prices prices.json
"""
STOPPED = 1
# Values of a request for an image alone, in place of an endpoint and outputs that were not given. They are not checked.
_NO_ENDPOINT = "http://127.0.0.1:1/"
_NO_OUTPUT = {"type": "S3", "bucket": "no-output-was-given"}


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "plan",
        help="show what a job would do and use, and what would stop it, before it is paid for",
        description=(
            "Plans a job as a worker does, without a call of the model. Prints tiles by region, calls, bytes, rows,"
            " minutes and cost, and every problem that would stop the job. Exits with 0 when there is none, and with 1"
            " when there is one. A request is planned with the settings of the environment, none of which is required."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "job",
        metavar="REQUEST|IMAGE",
        help="image request, a file that ends in .json; or an image: a file, or an s3:// or http(s):// URL",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--map", type=Path, metavar="FILE", help="write the tiles as GeoJSON to this file")
    parser.add_argument(
        "--calls-per-second", type=_rate, metavar="N", help="rate of the endpoint, for its minutes and their cost"
    )
    parser.add_argument("--prices", type=Path, metavar="FILE", help="dated file of prices, for the cost")
    parser.add_argument("--endpoint", metavar="NAME|URL", help="with an image: SageMaker endpoint or HTTP model")
    parser.add_argument("--output", metavar="S3_URL", help="with an image: s3://BUCKET/PREFIX of the result")
    add_tile_options(parser)
    add_protocol_options(parser)
    parser.add_argument(
        "--region-size",
        type=whole_number,
        metavar="PIXELS",
        help="largest side of a region (default: that of REGION_SIZE)",
    )
    parser.set_defaults(run=run)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of calls above 0")
    return rate


def run(arguments: argparse.Namespace) -> int:
    """Print the plan and return an exit status."""
    from aws.osml.model_runner.jobs.prices import Prices
    from aws.osml.model_runner.local.output_file import refuse_replacing

    from .plan_text import text_of

    if arguments.map:
        refuse_replacing(arguments.map, files_read(arguments, "map"), "--map")
    prices = None if arguments.prices is None else Prices.load(arguments.prices)
    environ = dict(os.environ)
    if arguments.region_size:
        environ["REGION_SIZE"] = f"({arguments.region_size}, {arguments.region_size})"
    body, left_out = _request(arguments, environ)
    with _silent_logs(), _tile_file(arguments.map) as write_tiles:
        document = _quoted(body, environ, left_out, arguments.calls_per_second, prices, write_tiles)
    if arguments.json:
        sys.stdout.write(document.model_dump_json(indent=1) + "\n")
    else:
        sys.stdout.write(text_of(document, width_of(sys.stdout)))
    return STOPPED if document.problems else 0


def _request(arguments: argparse.Namespace, environ: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return the body of the request to plan, and the fields of it that were not given, each with the reason.

    For an image alone, ``environ`` gets the source of that image, which the user named.
    """
    path = Path(arguments.job).expanduser()
    members = request_members(arguments)
    if path.suffix == ".json" and path.is_file():
        body = path.read_text(errors="replace")
        if "stac_version" not in body:
            if arguments.endpoint or arguments.output or protocol_of(arguments) or members != TILE_DEFAULTS:
                raise ConfigurationError(f"{arguments.job}: a request has its own endpoint, outputs and tiles")
            return body, {}
    image = arguments.job
    if "://" not in image:
        image = str(path.resolve())
        if not path.is_file():
            raise ConfigurationError(f"{image} does not exist, or is not a file")
    area = members.get("regionOfInterest")
    named = [image, area["url"]] if isinstance(area, dict) else [image]
    named += [rule["url"] for rule in members.get("skip", ()) if "url" in rule]
    sources = {url.partition("://")[0].replace("https", "http") if "://" in url else "file" for url in named}
    environ["IMAGE_SOURCES"] = ",".join(sorted(sources))
    options = {"imageProcessor": "--endpoint", "outputs": "--output"}
    given = {"imageProcessor": arguments.endpoint, "outputs": arguments.output}
    left_out = {field: f"not given ({options[field]})" for field, value in given.items() if not value}
    endpoint = arguments.endpoint or _NO_ENDPOINT
    document = {
        "jobId": "plan",
        "imageUrls": [image],
        "imageProcessor": {
            "name": endpoint,
            "type": "HTTP_ENDPOINT" if endpoint.startswith(("http://", "https://")) else "SM_ENDPOINT",
            **(protocol_of(arguments) or {}),
        },
        "outputs": [s3_output(arguments.output) if arguments.output else _NO_OUTPUT],
        **members,
    }
    return json.dumps(document), left_out


def _quoted(
    body: str,
    environ: Mapping[str, str],
    left_out: Mapping[str, str],
    calls_per_second: float | None,
    prices: "Prices | None",
    on_planned: "OnPlanned",
) -> "PlanDocument":
    from aws.osml.model_runner.api.image_request import validated
    from aws.osml.model_runner.api.image_request_message import job_id_of, parse_image_request_message
    from aws.osml.model_runner.api.image_request_schema import unknown_keys
    from aws.osml.model_runner.api.json_document import load_object
    from aws.osml.model_runner.aws.role_session import describing_session
    from aws.osml.model_runner.config import ServiceConfig
    from aws.osml.model_runner.jobs.image_roi import lend_image, read_area
    from aws.osml.model_runner.jobs.model_endpoints import ModelEndpoints
    from aws.osml.model_runner.jobs.preflight import Preflight
    from aws.osml.model_runner.jobs.quote import PlanDocument
    from aws.osml.model_runner.jobs.quoting import JobQuoter, problems_of
    from aws.osml.model_runner.jobs.skipping import TileSkipping
    from aws.osml.model_runner.raster import configure_gdal
    from aws.osml.model_runner.tiling.strategy import VariableOverlapTilingStrategy
    from aws.osml.model_runner.worker.process import WorkerProcess

    # A plan makes no call of the model, so the number of calls at once, which a worker requires, has no effect.
    config = ServiceConfig.for_command({"WORKERS": "1", **environ}, ())
    try:
        requests = parse_image_request_message(body)
    except InvalidRequestError as err:
        return PlanDocument(job_id=job_id_of(body) or "unknown", problems=list(problems_of(err)))
    process = WorkerProcess.from_config(config, is_probing=True)
    clients = process.clients
    configure_gdal(process.raster_settings, environ)

    def describe(kind: str, name: str, role: str, is_new: bool = False) -> Mapping[str, Any]:  # noqa: ARG001 - always new
        sagemaker = clients.client("sagemaker", describing_session(role, name))
        described: Mapping[str, Any]
        if kind == "endpoint":
            described = sagemaker.describe_endpoint(EndpointName=name)
        else:
            described = sagemaker.describe_inference_component(InferenceComponentName=name)
        return described

    areas = partial(read_area, process.images)
    preflight = Preflight(
        config,
        ModelEndpoints(config, lambda _request: None, process.rng),
        describe,
        clients.credentials,
        partial(clients.client, "sagemaker-runtime"),
        process.make_sinks,
        areas,
    )
    images = partial(lend_image, process.images)
    skipping = TileSkipping(images, areas, process.new_invalid_tiles)
    quoter = JobQuoter(config, VariableOverlapTilingStrategy(), images, skipping, preflight, areas, left_out)
    try:
        document = quoter.quote(requests, calls_per_second, prices, on_planned)
        ignored = list(unknown_keys(validated(load_object(body)[0])))
        return document.model_copy(update={"ignored_keys": ignored})
    finally:
        process.close()


@contextmanager
def _silent_logs() -> Iterator[None]:
    """Keep the events of a worker out of the output; the document has what matters of them."""
    import structlog

    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def _tile_file(path: Path | None) -> "Iterator[OnPlanned]":
    """Write the tiles of each planned image to a GeoJSON file, which appears when it is complete."""
    if path is None:
        yield lambda _source, _request, _plan: None
        return
    from aws.osml.model_runner.jobs.quote import tile_features

    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("w") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            separator = "\n"

            def write(source: "ImageSource", request: "ImageRequest", plan: "ImagePlan") -> None:
                nonlocal separator
                for feature in tile_features(source, request, plan):
                    file.write(separator + json.dumps(feature))
                    separator = ",\n"

            yield write
            file.write("\n]}\n")
        unfinished.replace(path)
    except OSError as err:
        raise ConfigurationError(f"--map {path}: {err.strerror}") from err
    finally:
        unfinished.unlink(missing_ok=True)
