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
    """Cancel the jobs and print the result of each image.

    Returns 0 if every image was cancelled, and 1 if an image had ended before or could not be cancelled.
    """
    from aws.osml.model_runner.aws.clients import default_clients
    from aws.osml.model_runner.config import ServiceConfig
    from aws.osml.model_runner.database.job_table import JobTable
    from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
    from aws.osml.model_runner.exceptions import JobNotFoundError
    from aws.osml.model_runner.jobs.cancel import JobCanceller

    config = ServiceConfig.for_command(os.environ, _SETTINGS)
    dynamodb = default_clients().dynamodb_resource()
    jobs = JobTable(config.job_table, dynamodb, life_s=config.row_life_s)
    canceller = JobCanceller(jobs, OutstandingJobsTable(config.outstanding_jobs_table, jobs, dynamodb))
    exit_status = 0
    for job_id in arguments.job:
        try:
            report = canceller.cancel(job_id)
        except JobNotFoundError as err:
            # A job that fails does not keep the others from being cancelled.
            sys.stderr.write(f"model-runner: {err}\n")
            exit_status = 1
            continue
        for image_id in report.cancelled:
            sys.stdout.write(f"cancelled: {image_id}\n")
        for image_id, status in report.ended.items():
            sys.stdout.write(f"skipped:   {image_id}: its status is {status}\n")
        for image_id, reason in report.failed.items():
            sys.stderr.write(f"model-runner: {image_id} was not cancelled: {reason}\n")
        if report.ended or report.failed:
            exit_status = 1
    return exit_status
