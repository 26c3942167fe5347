"""`model-runner cancel`: end jobs that nobody wants any more."""

import argparse
import os
import sys
from typing import Any


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "cancel",
        help="end a job that waits or runs",
        description=(
            "Ends jobs in the deployment that the environment names, as FAILED with the reason `cancelled`. Workers"
            " stop what they do of them within seconds. What they delivered before stays."
        ),
    )
    parser.add_argument("job", nargs="+", metavar="JOB", help="id of a job that waits or runs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 when every image of the jobs was cancelled, 1 when some had ended before."""
    from aws.osml.model_runner.app_config import ServiceConfig
    from aws.osml.model_runner.cancel import JobCanceller
    from aws.osml.model_runner.common.aws_clients import default_clients
    from aws.osml.model_runner.database.job_ledger import open_ledger
    from aws.osml.model_runner.database.job_table import JobTable

    config = ServiceConfig.from_environment(os.environ)
    dynamodb = default_clients().dynamodb_resource()
    jobs = JobTable(config.job_table, dynamodb, life_s=config.row_life_s)
    canceller = JobCanceller(jobs, open_ledger(config.outstanding_jobs_table, jobs, dynamodb))
    reports = [canceller.cancel(job_id) for job_id in arguments.job]
    for report in reports:
        for image_id in report.cancelled:
            sys.stdout.write(f"cancelled:  {image_id}\n")
        for image_id, status in report.ended.items():
            sys.stdout.write(f"left alone: {image_id}: its status is {status}\n")
    return 0 if not any(report.ended for report in reports) else 1
