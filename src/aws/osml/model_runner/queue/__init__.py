"""Queues of requests, on SQS."""

from .exceptions import QueueError
from .request_queue import QueueMessage, RequestQueue

__all__ = ["QueueError", "QueueMessage", "RequestQueue"]
