"""Fails when lines or branches of the package, or of the packages that must be proved, are covered too little."""

import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from coverage import Coverage

PACKAGE = "*/aws/osml/model_runner/"


@dataclass(frozen=True)
class Threshold:
    """The least share, in percent, of the lines and of the branches of some files that the tests must run."""

    name: str
    patterns: tuple[str, ...]
    percent: float


THRESHOLDS = (
    Threshold("everything", ("*",), 90.0),
    Threshold("api", (PACKAGE + "api/*",), 97.0),
    Threshold("features", (PACKAGE + "features/*",), 97.0),
    Threshold("tiling strategies", (PACKAGE + "tiling/[asv]*.py",), 97.0),
)


def measured_files() -> dict[str, dict[str, int]]:
    """Return coverage's own summary of each file, by path, from the combined data of the last run."""
    coverage = Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "coverage.json")
        coverage.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    return {f"/{path}": entry["summary"] for path, entry in files.items()}


def percent_covered(summaries: Iterable[dict[str, int]], kind: str, total: str) -> float:
    """Return the share of lines (or branches) run, over several files; nothing to cover counts as covered."""
    rows = [(summary[f"covered_{kind}"], summary[total]) for summary in summaries]
    possible = sum(row[1] for row in rows)
    return 100.0 * sum(row[0] for row in rows) / possible if possible else 100.0


def main() -> int:
    """Print one line for each threshold, and for each file below its own; return 1 when a threshold is missed."""
    files = measured_files()
    is_missed = False
    for threshold in THRESHOLDS:
        chosen = {path: files[path] for path in files if any(fnmatch(path, pattern) for pattern in threshold.patterns)}
        shares = (
            percent_covered(chosen.values(), "lines", "num_statements"),
            percent_covered(chosen.values(), "branches", "num_branches"),
        )
        is_low = not chosen or min(shares) < threshold.percent
        is_missed |= is_low
        verdict = f"below {threshold.percent:g}" if is_low else f"at least {threshold.percent:g}"
        print(f"{threshold.name}: {shares[0]:.1f} % of lines, {shares[1]:.1f} % of branches, {verdict}")
        for path, summary in sorted(chosen.items()) if is_low else ():
            if summary["percent_covered"] < threshold.percent:
                print(f"    {summary['percent_covered']:5.1f} %  {path}")
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())
