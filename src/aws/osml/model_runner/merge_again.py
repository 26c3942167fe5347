"""Merges the stored features of jobs that have ended once more, with other options and without calling a model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .aggregation import ImageFeatures, MergedFeatures, stamp_of
from .common.mr_post_processing import FeatureDistillationAlgorithm
from .database.feature_table import FeatureTable
from .database.job_table import JobItem, JobTable
from .exceptions import AggregateFeaturesException, ConservationError, InvalidImageRequestException


@dataclass(frozen=True)
class MergedImage:
    """An image of a job, how many features are stored of it, and those that are left of them."""

    job: JobItem
    stored: int
    features: MergedFeatures


class JobMerger:
    """Merges jobs again. Nothing of a job changes: neither its rows nor what it has delivered."""

    def __init__(self, job_table: JobTable, feature_table: Callable[[JobItem], FeatureTable]) -> None:
        self._job_table = job_table
        self._feature_table = feature_table

    def merge(self, job_id: str, options: FeatureDistillationAlgorithm) -> Iterator[MergedImage]:
        """Yield each image of a job with its features merged in this way.

        Raises:
            InvalidImageRequestException: there is no such job, or it has not ended.
            AggregateFeaturesException: its features are not all there any more.
        """
        images = list(self._job_table.images_of(job_id))
        if not images:
            raise InvalidImageRequestException(f"there is no job {job_id}")
        open_images = [image.image_id for image in images if not image.is_terminal]
        if open_images:
            raise InvalidImageRequestException(f"the job {job_id} has not ended: {', '.join(open_images)}")
        for image in images:
            try:
                features = ImageFeatures.collect(image, self._feature_table(image))
            except ConservationError as err:
                reason = f"{image.image_id}: {err}; features expire some time after their job"
                raise AggregateFeaturesException(reason) from err
            yield MergedImage(image, len(features), MergedFeatures(features, options, stamp_of(image)))
