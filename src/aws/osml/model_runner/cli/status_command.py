"""`model-runner status`, `list` and `describe`: the jobs of a deployment."""

import argparse
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aws.osml.model_runner.exceptions import JobRefusedError

from .deployment_options import EXIT_STATUS, add_deployment_options, client_of, job_document, print_json, print_table

if TYPE_CHECKING:
    from aws.osml.model_runner.client import ImageReport, Job, JobReport

_STATES = ("ACCEPTED", "IN_PROGRESS")
_NEEDS = "Needs --stack, or the environment variables of a worker."

_STATUS_EXAMPLES = """\
examples:
  model-runner status harbour-7 --stack model-runner
  model-runner status harbour-7 --stack model-runner --follow
"""
_LIST_EXAMPLES = """\
examples:
  model-runner list --stack model-runner
  model-runner list --stack model-runner --endpoint ships --json
"""
_DESCRIBE_EXAMPLES = """\
example:
  model-runner describe harbour-7 --stack model-runner
"""


def add_parser(commands: Any) -> None:
    """Add these commands to the command line."""
    status = commands.add_parser(
        "status",
        help="show how far a job is",
        description=(
            f"Shows status and progress of a job. Exits with 0, or with 3 for PARTIAL and 1 for FAILED. {_NEEDS}"
        ),
        epilog=_STATUS_EXAMPLES,
    )
    status.add_argument("job", metavar="JOB", help="id of a job")
    status.add_argument("--follow", action="store_true", help="print each change, until the job ends")
    add_deployment_options(status)
    status.set_defaults(run=run_status)
    listing = commands.add_parser(
        "list",
        help="list the jobs that wait or run",
        description=f"Lists the jobs that wait or run, the oldest first. {_NEEDS}",
        epilog=_LIST_EXAMPLES,
    )
    listing.add_argument("--state", choices=_STATES, help="only jobs in this state")
    listing.add_argument("--endpoint", metavar="NAME|URL", help="only jobs of this endpoint")
    add_deployment_options(listing)
    listing.set_defaults(run=run_list)
    describe = commands.add_parser(
        "describe",
        help="show why a job is in its state",
        description=f"Shows each image of a job: times, tiles, failures by code, and outputs. {_NEEDS}",
        epilog=_DESCRIBE_EXAMPLES,
    )
    describe.add_argument("job", metavar="JOB", help="id of a job")
    add_deployment_options(describe)
    describe.set_defaults(run=run_describe)


def run_status(arguments: argparse.Namespace) -> int:
    """Print the status of a job, or follow it to its end."""
    job = client_of(arguments).job(arguments.job)
    if arguments.follow:
        return follow(job, arguments.json)
    report = job.report()
    if arguments.json:
        print_json(job_document(report))
    else:
        sys.stdout.write(f"{_line(report, time.time())}\n")
    return EXIT_STATUS.get(report.status, 0)


def follow(job: "Job", as_json: bool) -> int:
    """Print each change of a job until it ends; return the exit status."""
    printed = ""

    def show(report: "JobReport") -> None:
        nonlocal printed
        line = _line(report, time.time())
        key = f"{report.status} {report.percent}"
        if key != printed:
            printed = key
            (sys.stderr if as_json else sys.stdout).write(f"{line}\n")
            sys.stdout.flush()

    try:
        report = job.wait(show)
    except JobRefusedError as err:
        sys.stderr.write(f"model-runner: {err}\n")
        return EXIT_STATUS["FAILED"]
    if as_json:
        print_json(job_document(report))
    return EXIT_STATUS.get(report.status, 0)


def run_list(arguments: argparse.Namespace) -> int:
    """Print the open jobs."""
    reports = []
    for report in client_of(arguments).open_jobs():
        endpoints = {image.endpoint for image in report.images}
        if arguments.state in (None, report.status) and (not arguments.endpoint or arguments.endpoint in endpoints):
            reports.append(report)
    if arguments.json:
        print_json([job_document(report) for report in reports])
        return 0
    now_s = time.time()
    rows = [
        [
            report.job_id,
            report.status,
            _percent(report),
            _age(min((image.accepted_s or now_s for image in report.images), default=now_s), now_s),
            ", ".join(sorted({image.endpoint for image in report.images})),
        ]
        for report in reports
    ]
    print_table(["JOB", "STATUS", "DONE", "AGE", "ENDPOINT"], rows, "no job waits or runs")
    return 0


def run_describe(arguments: argparse.Namespace) -> int:
    """Print everything that explains the state of a job."""
    job = client_of(arguments).job(arguments.job)
    report, results = job.report(), job.results()
    if arguments.json:
        print_json(job_document(report) | {"results": [result.url for result in results]})
        return 0
    sys.stdout.write(f"{_line(report, time.time())}\n")
    for image in report.images:
        sys.stdout.write(f"\n{image.image_url}\n")
        for name, text in _facts(image):
            sys.stdout.write(f"  {name:<10}{text}\n")
        for result in results:
            if result.image_url == image.image_url:
                sys.stdout.write(f"  {'output':<10}{result.url}\n")
    return 0


def _facts(image: "ImageReport") -> list[tuple[str, str]]:
    facts = [("status", f"{image.status}{f': {image.message}' if image.message else ''}"), ("endpoint", image.endpoint)]
    moments = (("accepted", image.accepted_s), ("started", image.started_s), ("ended", image.ended_s))
    facts += [(name, _moment(time_s)) for name, time_s in moments if time_s is not None]
    if image.tiles is not None:
        facts.append(("tiles", f"{image.tiles_done} of {image.tiles} done, {image.tiles_failed} failed"))
    if image.features is not None:
        facts.append(("features", str(image.features)))
    facts += [("failed", f"{count} tiles: {code}") for code, count in sorted(image.failures.items())]
    if image.first_failure:
        facts.append(("example", image.first_failure))
    return facts + [("output", f"{name} failed: {reason}") for name, reason in sorted(image.failed_outputs.items())]


def _line(report: "JobReport", now_s: float) -> str:
    """Return a job as one line: status, tiles, rate and remaining time where they are known."""
    if not report.images:
        return f"{report.job_id}  not accepted yet"
    parts = [f"{report.job_id}  {report.status}"]
    planned = sum(image.tiles or 0 for image in report.images)
    done = sum(image.tiles_done for image in report.images)
    failed = sum(image.tiles_failed for image in report.images)
    if planned:
        parts.append(f"{_percent(report)}  {done} of {planned} tiles" + (f", {failed} failed" if failed else ""))
    started = [image.started_s for image in report.images if image.started_s is not None]
    if not report.has_ended and done and started:
        rate = done / max(now_s - min(started), 1.0)
        parts.append(f"{rate:.1f} per s, about {_age(now_s - (planned - done) / rate, now_s)} left")
    if report.has_ended:
        parts.append("; ".join(sorted({image.message for image in report.images if image.message})))
    return "  ".join(parts)


def _percent(report: "JobReport") -> str:
    return "" if report.percent is None else f"{report.percent:.0f} %"


def _age(since_s: float, now_s: float) -> str:
    seconds = max(0, round(now_s - since_s))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
