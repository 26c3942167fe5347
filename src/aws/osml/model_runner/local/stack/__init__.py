"""The processes that stand in for AWS on one machine."""

from .local_stack import IMAGE_BUCKET, RESULT_BUCKET, LocalStack, ModelSettings, WorkerSettings

__all__ = ["IMAGE_BUCKET", "RESULT_BUCKET", "LocalStack", "ModelSettings", "WorkerSettings"]
