"""Merges the stored features of ended jobs again, with other options and without calling a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aws.osml.model_runner.api.post_processing import FeatureDistillationAlgorithm
from aws.osml.model_runner.common.channel import Threads
from aws.osml.model_runner.common.memory_budget import MemoryBudget
from aws.osml.model_runner.database.feature_table import FeatureTable
from aws.osml.model_runner.database.job_table import JobItem, JobTable
from aws.osml.model_runner.exceptions import (
    AggregateFeaturesException,
    ConservationError,
    JobNotFinishedError,
    JobNotFoundError,
)
from aws.osml.model_runner.tiling.strategy import TilingStrategy

from .merging import MergedImage
from .tile_reader import ImageTiles, ignore


@dataclass(frozen=True)
class JobMerger:
    """Merges jobs again. Neither the rows of a job nor its delivered outputs change.

    ``strategy`` must be the strategy by which the workers planned the job.
    """

    job_table: JobTable
    feature_table: Callable[[JobItem], FeatureTable]
    strategy: TilingStrategy
    memory: MemoryBudget

    def images_of(self, job_id: str) -> list[JobItem]:
        """Return the images of a job.

        Raises:
            JobNotFoundError: the job does not exist.
            JobNotFinishedError: one of its images has not ended.
        """
        images = list(self.job_table.images_of(job_id))
        if not images:
            raise JobNotFoundError(f"there is no job {job_id}")
        open_images = [image.image_id for image in images if not image.is_terminal]
        if open_images:
            raise JobNotFinishedError(f"the job {job_id} has not ended: {', '.join(open_images)}")
        return images

    @contextmanager
    def merged(self, job: JobItem, options: FeatureDistillationAlgorithm) -> Iterator[MergedImage]:
        """Yield the features of an image, merged with ``options``; they can be read inside the ``with`` block.

        Raises:
            AggregateFeaturesException: some stored features have expired.
        """
        try:
            table = self.feature_table(job)
            tiles = ImageTiles.of(job, self.strategy, table)
            with self.memory.share(ignore) as memory:
                yield MergedImage(job, tiles, options, table.read_tiles, memory, Threads.of_process())
        except ConservationError as err:
            reason = f"{job.image_id}: {err}; features expire some time after their job"
            raise AggregateFeaturesException(reason) from err
