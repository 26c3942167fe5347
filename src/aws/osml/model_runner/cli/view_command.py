"""`model-runner view RESULT`: a result as one HTML file."""

import argparse
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aws.osml.model_runner.exceptions import ConfigurationError

from .deployment_options import client_of
from .local_commands import files_read

if TYPE_CHECKING:
    from aws.osml.model_runner.client import Result

_EXAMPLES = """\
examples:
  model-runner view ships.geojson --image harbour.tif
  model-runner view ships.geojson --image harbour.tif --output ships.html --no-open
  model-runner view merged.parquet --before unmerged.parquet
  model-runner view harbour-7 --stack model-runner --image harbour.tif
"""
_SUFFIXES = (".geojson", ".geojsonl", ".json", ".parquet", ".gz")


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "view",
        help="show a result in the browser, as one HTML file",
        description=(
            "Writes one HTML file that shows a result over its image: classes, scores, properties, coverage. The file"
            " works without a network and without this program. A job's result is downloaded first; that needs --stack,"
            " or the environment variables of a worker."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "result", metavar="RESULT|JOB", help="GeoJSON, GeoJSONSeq or GeoParquet file of a job, or the id of a job"
    )
    parser.add_argument(
        "--image",
        metavar="IMAGE",
        help="file or URL of the image (default: the file that RESULT names, if it exists)",
    )
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="result of the same job by `merge --algorithm NONE`"
    )
    parser.add_argument(
        "--coverage", type=Path, metavar="FILE", help="coverage file (default: the one beside RESULT, if it exists)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="HTML file to write (default: RESULT with .html as its suffix)"
    )
    parser.add_argument("--stack", metavar="NAME", help="stack of deploy/data-plane.yaml that has run JOB")
    parser.add_argument("--no-open", action="store_true", help="write the file without opening a browser")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, print its path, and open it in a browser."""
    from aws.osml.model_runner.local.output_file import COVERAGE_SUFFIX, OutputFile, beside
    from aws.osml.model_runner.local.result_view import write_view

    path = Path(arguments.result).expanduser()
    is_file = path.exists() or path.name.endswith(_SUFFIXES)
    for result in [path] if is_file else _downloaded(arguments):
        output = (arguments.output or beside(result, ".html")).expanduser()
        usual = beside(result, COVERAGE_SUFFIX)
        coverage = arguments.coverage or (usual if usual.is_file() else None)
        OutputFile.prepared(output, [str(result), str(usual), *files_read(arguments, "output")])
        for note in write_view(result, output, arguments.image, arguments.before, coverage):
            sys.stderr.write(f"model-runner: {note}\n")
        sys.stdout.write(f"{output}\n")
        if not arguments.no_open:
            webbrowser.open(output.resolve().as_uri())
    return 0


def _downloaded(arguments: argparse.Namespace) -> list[Path]:
    """Download the first result of each image of a job into the current directory, and return the files."""
    from aws.osml.model_runner.local.output_file import OutputFile

    job = client_of(arguments).job(arguments.result)
    first: dict[str, Result] = {}
    for result in job.results():
        first.setdefault(result.image_url, result)
    if not first:
        raise ConfigurationError(f"no output of job {arguments.result} is in S3")
    if arguments.output and len(first) > 1:
        raise ConfigurationError(f"--output: job {arguments.result} has {len(first)} images, and each has a page")
    paths = []
    for result in first.values():
        path = Path(result.key.rpartition("/")[2])
        try:
            body = job.download(result)
        except FileNotFoundError as err:
            raise ConfigurationError(f"{result.url} does not exist: has the job delivered it?") from err
        OutputFile.prepared(path, files_read(arguments, "output")).write(body)
        paths.append(path)
    return paths
