"""How fast tiles pass, and what each costs: a real worker, on the embedded emulator, with a model that does nothing.

    .venv/bin/python benchmarks/pipeline.py                                    every row, our worker alone
    .venv/bin/python benchmarks/pipeline.py --peer PYTHON throughput small_images          two rows, beside 2.3.0
    .venv/bin/python benchmarks/pipeline.py --runs 3 --json results.json       medians of three runs

Worker, model and emulator share the machine, as they do in every run, so compare ratios of one run. CPU and memory are
the worker's own, from the submission to the end of the job. ``performance_page.py`` turns the JSON into the tables and
the plot of the documentation.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline_rows import ROWS, Row
from worker_bench import Bench

from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.raster import RasterSettings, configure_gdal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--peer", help="the Python of an environment with osml-model-runner==2.3.0")
    parser.add_argument("--runs", type=int, default=1, help="how often each row; the medians are printed")
    parser.add_argument("--json", type=Path, help="write the medians here, beside those of other rows in the file")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"{', '.join(sorted(unknown))}: the rows are {', '.join(ROWS)}")
    configure_gdal(RasterSettings(), {})
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Emulator(Path(name)) as emulator:
        bench = Bench(Path(name), emulator, arguments.peer)
        for row in arguments.rows or ROWS:
            found = medians([ROWS[row](bench) for _ in range(arguments.runs)])
            _print(row, found)
            if arguments.json:
                _keep(arguments.json, row, found | {"runs": arguments.runs})


def medians(runs: list[Row]) -> Row:
    """Return a row with the median of each figure over several runs; a text is the first run's."""
    return {label: _median([run[label] for run in runs]) for label in runs[0]}


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return medians(values)
    return statistics.median(values) if isinstance(values[0], int | float) else values[0]


def _print(name: str, found: Row) -> None:
    print(f"\n{name}: {ROWS[name].__doc__}")
    for label, value in found.items():
        text = ", ".join(f"{key} {figure}" for key, figure in value.items()) if isinstance(value, dict) else value
        print(f"  {label:28} {text}")
    sys.stdout.flush()


def _keep(path: Path, name: str, found: Row) -> None:
    """Put a row into the file at once: a run of all rows takes long, and may be ended before its time."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
