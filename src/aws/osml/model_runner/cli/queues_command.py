"""`model-runner queues`: what waits in the queues of a deployment, and what was refused."""

import argparse
import dataclasses
import sys
from typing import Any

from .deployment_options import add_deployment_options, camel, client_of, print_json, print_table

_EXAMPLES = """\
examples:
  model-runner queues --stack model-runner
  model-runner queues --stack model-runner --json
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "queues",
        help="show what waits in the queues, and what was refused",
        description=(
            "Shows the messages of each queue, and the refused requests with their reasons. They stay in the"
            " dead-letter queue; `redrive --dead-letters` sends them again. Needs --stack, or the environment variables"
            " of a worker."
        ),
        epilog=_EXAMPLES,
    )
    add_deployment_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the queues and the refused requests. Returns 1 if a request was refused, else 0."""
    client = client_of(arguments)
    depths, refusals = client.queue_depths(), client.refusals()
    if arguments.json:
        print_json(
            {
                "queues": [camel(dataclasses.asdict(depth)) for depth in depths],
                "refused": [camel(dataclasses.asdict(refusal)) for refusal in refusals],
            }
        )
        return int(bool(refusals))
    rows = [[depth.name, str(depth.waiting), str(depth.in_work), str(depth.delayed)] for depth in depths]
    print_table(["QUEUE", "WAITING", "IN WORK", "DELAYED"], rows, "no queue is known")
    if refusals:
        sys.stdout.write("\n")
        rows = [[refusal.job_id or "(no job id)", refusal.reason or "(no reason)"] for refusal in refusals]
        print_table(["REFUSED", "REASON"], rows, "")
    return int(bool(refusals))
