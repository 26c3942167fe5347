"""Queues of requests, on SQS."""

from aws.osml.model_runner.exceptions import QueueError

from .request_queue import QueueMessage, RequestQueue

__all__ = ["QueueError", "QueueMessage", "RequestQueue"]
