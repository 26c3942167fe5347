"""`model-runner view RESULT`: a result as one HTML file."""

import argparse
import sys
import webbrowser
from pathlib import Path
from typing import Any

_EXAMPLES = """\
examples:
  model-runner view ships.geojson --image harbour.tif
  model-runner view ships.geojson --image harbour.tif --output ships.html --no-open
  model-runner view merged.parquet --before unmerged.parquet
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "view",
        help="show a result in the browser, as one HTML file",
        description=(
            "Writes one HTML file that shows a result over its image: classes, scores, properties, coverage. The file"
            " works without a network and without this program."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("result", type=Path, metavar="RESULT", help="GeoJSON, GeoJSONSeq or GeoParquet file of a job")
    parser.add_argument(
        "--image", metavar="IMAGE", help="file or URL of the image (default: the file that RESULT names, if it exists)"
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
    parser.add_argument("--no-open", action="store_true", help="write the file without opening a browser")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, print its path, and open it in a browser."""
    from aws.osml.model_runner.local.output_file import OutputFile
    from aws.osml.model_runner.local.result_view import write_view

    result = arguments.result.expanduser()
    output = (arguments.output or page_path(result)).expanduser()
    given = (result, arguments.image, arguments.before, arguments.coverage)
    OutputFile.prepared(output, [str(path) for path in given if path is not None])
    for note in write_view(result, output, arguments.image, arguments.before, arguments.coverage):
        sys.stderr.write(f"model-runner: {note}\n")
    sys.stdout.write(f"{output}\n")
    if not arguments.no_open:
        webbrowser.open(output.resolve().as_uri())
    return 0


def page_path(result: Path) -> Path:
    """Return the default path of a result's page: beside the result, with .html as its suffix."""
    return result.with_name(f"{result.name.partition('.')[0]}.html")
