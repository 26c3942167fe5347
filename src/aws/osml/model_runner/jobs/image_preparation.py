"""The preparation of a job's tiles, as its row holds it."""

from aws.osml.model_runner.common.pixel_ratio import ONE, PixelRatio
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.raster import Preparation


def preparation_in(job: JobItem) -> Preparation | None:
    """Return the preparation of a planned job; None where tiles have the image's own pixels."""
    return Preparation.from_text(job.pixel_preparation) if job.pixel_preparation else None


def ratio_of(preparation: Preparation | None) -> PixelRatio:
    """Return the size of a model pixel in image pixels."""
    return ONE if preparation is None else preparation.ratio
