"""`model-runner submit`: send an image request to a deployment."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from aws.osml.model_runner.exceptions import ConfigurationError

from .deployment_options import EXIT_STATUS, add_deployment_options, client_of, print_json, s3_output
from .status_command import follow

_EXAMPLES = """\
examples:
  model-runner submit request.json --stack model-runner
  model-runner submit s3://my-images/harbour.tif --endpoint ships --output s3://my-results/harbour --stack model-runner
  model-runner submit request.json --stack model-runner --follow
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "submit",
        help="send an image request to a deployment",
        description=(
            "Checks an image request, sends it to the image queue of a deployment, and prints the id of its job. Needs"
            " --stack, or IMAGE_QUEUE and AWS_DEFAULT_REGION; with --follow what `status` needs."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("request", metavar="REQUEST|IMAGE", help="a file with an image request, or the URL of an image")
    parser.add_argument(
        "--endpoint", metavar="NAME|URL", help="endpoint of IMAGE: a name on SageMaker, or an http(s) URL"
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="URL",
        help="s3://BUCKET/PREFIX for the result of IMAGE; repeat the option for several",
    )
    parser.add_argument("--job", metavar="ID", help="id of the job (default: that of the request, or a random one)")
    parser.add_argument("--follow", action="store_true", help="wait for the end, as `status --follow` does")
    add_deployment_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the request and print the id of its job."""
    request = _request_of(arguments)
    if arguments.job:
        request["jobId"] = arguments.job
    job = client_of(arguments).submit(request)
    if arguments.follow:
        sys.stderr.write(f"{job.job_id}\n")
        return follow(job, arguments.json)
    if arguments.json:
        print_json({"jobId": job.job_id})
    else:
        sys.stdout.write(f"{job.job_id}\n")
    return EXIT_STATUS["SUCCESS"]


def _request_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the request in a file, or a request for an image."""
    path = Path(arguments.request)
    if path.suffix == ".json" and "://" not in arguments.request:
        if arguments.endpoint or arguments.output:
            raise ConfigurationError("--endpoint and --output are for an image: a request has both")
        try:
            document = json.loads(path.read_text())
        except OSError as err:
            raise ConfigurationError(f"{path} cannot be read: {err.strerror}") from err
        except ValueError as err:
            raise ConfigurationError(f"{path} is not valid JSON: {err}") from err
        if not isinstance(document, dict):
            raise ConfigurationError(f"{path} is not an image request: it is not a JSON object")
        return document
    if not arguments.endpoint or not arguments.output:
        raise ConfigurationError("an image needs --endpoint and --output")
    kind = "HTTP_ENDPOINT" if arguments.endpoint.startswith(("http://", "https://")) else "SM_ENDPOINT"
    return {
        "imageUrls": [arguments.request],
        "imageProcessor": {"name": arguments.endpoint, "type": kind},
        "outputs": [s3_output(url) for url in arguments.output],
    }
