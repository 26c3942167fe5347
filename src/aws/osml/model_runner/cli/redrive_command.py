"""`model-runner redrive`: start PARTIAL and FAILED jobs again, and move dead letters back."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from aws.osml.model_runner.exceptions import ConfigurationError, Problem

if TYPE_CHECKING:
    from aws.osml.model_runner.config import ServiceConfig

_EXAMPLES = """\
examples:
  env $(cat worker.env) model-runner redrive harbour-7
  env $(cat worker.env) model-runner redrive harbour-7 --output s3://other-bucket/prefix/
  env $(cat worker.env) model-runner redrive --dead-letters
"""
_SETTINGS = ("aws_region", "job_table", "outstanding_jobs_table")


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "redrive",
        help="start a PARTIAL or FAILED job again, or move dead letters back to their queues",
        description=(
            "Starts jobs again: failed tiles are processed again, other tiles stay. A job of which only outputs failed"
            " is delivered again without a model call, for two days after its plan. A running worker continues the job"
            " within SWEEP_INTERVAL_S. Needs AWS_DEFAULT_REGION, JOB_TABLE and OUTSTANDING_JOBS_TABLE; with"
            " --dead-letters also IMAGE_QUEUE, REGION_QUEUE and a dead-letter queue."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument("job", nargs="*", metavar="JOB", help="id of a job that ended PARTIAL or FAILED")
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="URL",
        help="s3://BUCKET/PREFIX that replaces the outputs that failed; repeat the option for several",
    )
    parser.add_argument(
        "--outputs-only",
        action="store_true",
        help="deliver the features that are stored, and process no failed tile again",
    )
    parser.add_argument(
        "--dead-letters", action="store_true", help="move the messages of IMAGE_DLQ and REGION_DLQ back to their queues"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start the jobs again, move dead letters, and print the result of each image and queue.

    Returns 0 if every image was started again, else 1. Raises ConfigurationError for a missing option or setting.
    """
    from aws.osml.model_runner.aws.clients import default_clients
    from aws.osml.model_runner.config import ServiceConfig
    from aws.osml.model_runner.database.job_table import JobTable
    from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
    from aws.osml.model_runner.exceptions import InvalidImageRequestException, JobNotFoundError
    from aws.osml.model_runner.jobs.redrive import JobRedriver

    if not arguments.job and not arguments.dead_letters:
        raise ConfigurationError("name a job, or --dead-letters")
    if not arguments.job and (arguments.output or arguments.outputs_only):
        raise ConfigurationError("--output and --outputs-only need a job")
    queues = ("image_queue", "region_queue") if arguments.dead_letters else ()
    config = ServiceConfig.for_command(os.environ, (*_SETTINGS, *queues))
    dynamodb = default_clients().dynamodb_resource()
    jobs = JobTable(config.job_table, dynamodb, life_s=config.row_life_s)
    outstanding_jobs = OutstandingJobsTable(config.outstanding_jobs_table, jobs, dynamodb)
    redriver = JobRedriver(jobs, outstanding_jobs, config.policy.check)
    exit_status = 0
    for job_id in arguments.job:
        try:
            report = redriver.redrive(job_id, arguments.output, arguments.outputs_only)
        except (InvalidImageRequestException, JobNotFoundError) as err:
            sys.stderr.write(f"model-runner: {err}\n")
            exit_status = 1
            continue
        for image_id, work in report.begun.items():
            sys.stdout.write(f"started again: {image_id}: {work}\n")
        for image_id, reason in report.left.items():
            sys.stdout.write(f"skipped:       {image_id}: {reason}\n")
            exit_status = 1
    if arguments.dead_letters:
        _redrive_dead_letters(config)
    return exit_status


def _redrive_dead_letters(config: "ServiceConfig") -> None:
    from aws.osml.model_runner.jobs.redrive import redrive_dead_letters
    from aws.osml.model_runner.queue.request_queue import RequestQueue

    pairs = {
        "IMAGE_DLQ": (config.image_dlq, config.image_queue),
        "REGION_DLQ": (config.region_dlq, config.region_queue),
    }
    missing = [Problem(name, "unset", "URL of the dead-letter queue") for name, (dlq, _) in pairs.items() if not dlq]
    if len(missing) == len(pairs):
        raise ConfigurationError("neither IMAGE_DLQ nor REGION_DLQ is set", missing)
    for name, (dlq, queue) in pairs.items():
        if dlq:
            moved = redrive_dead_letters(RequestQueue(dlq, wait_seconds=1, num_messages=10), RequestQueue(queue))
            sys.stdout.write(f"{name}: {moved} messages moved back\n")
