"""`model-runner cancel`: end jobs before they are finished."""

import argparse
import os
import sys
from typing import Any

_EXAMPLES = """\
example:
  env $(cat worker.env) model-runner cancel harbour-7
"""
_SETTINGS = ("aws_region", "job_table", "outstanding_jobs_table")


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "cancel",
        help="end a job that waits or runs",
        description=(
            "Ends jobs as FAILED with the reason `cancelled`. Workers stop their tiles within seconds. Features that"
            " were delivered before stay. Needs AWS_DEFAULT_REGION, JOB_TABLE and OUTSTANDING_JOBS_TABLE."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("job", nargs="+", metavar="JOB", help="id of a job that waits or runs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 when every image of the jobs was cancelled, 1 when some had ended before or could not be cancelled."""
    from aws.osml.model_runner.aws.clients import default_clients
    from aws.osml.model_runner.config import ServiceConfig
    from aws.osml.model_runner.database.job_table import JobTable
    from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
    from aws.osml.model_runner.jobs.cancel import JobCanceller

    config = ServiceConfig.for_command(os.environ, _SETTINGS)
    dynamodb = default_clients().dynamodb_resource()
    jobs = JobTable(config.job_table, dynamodb, life_s=config.row_life_s)
    canceller = JobCanceller(jobs, OutstandingJobsTable(config.outstanding_jobs_table, jobs, dynamodb))
    # The whole list first: one job that fails keeps no other from being cancelled.
    are_cancelled = [_cancel(canceller, job_id) for job_id in arguments.job]
    return 0 if all(are_cancelled) else 1


def _cancel(canceller: Any, job_id: str) -> bool:
    """Cancel a job and print what became of its images; return True when every one was cancelled."""
    from aws.osml.model_runner.exceptions import JobNotFoundError

    try:
        report = canceller.cancel(job_id)
    except JobNotFoundError as err:
        sys.stderr.write(f"model-runner: {err}\n")
        return False
    for image_id in report.cancelled:
        sys.stdout.write(f"cancelled:  {image_id}\n")
    for image_id, status in report.ended.items():
        sys.stdout.write(f"left alone: {image_id}: its status is {status}\n")
    for image_id, reason in report.failed.items():
        sys.stderr.write(f"model-runner: {image_id} was not cancelled: {reason}\n")
    return not report.ended and not report.failed
