"""The Python client of a deployment: submits jobs, follows them, and reads their results."""

from .client import Client, Job
from .deployment import Deployment
from .reports import ImageReport, JobReport, QueueDepth, Refusal, Result

__all__ = ["Client", "Deployment", "ImageReport", "Job", "JobReport", "QueueDepth", "Refusal", "Result"]
