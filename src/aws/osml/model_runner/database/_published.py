"""Methods of the published interface of osml-model-runner 2.3.0 that the worker does not call, for each table.

Callers have to prevent double counts and lost updates themselves. The worker uses the tables' conditional writes, which
carry letters.
"""

import dataclasses
import hashlib
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import geojson
from aws_embedded_metrics import MetricsLogger
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion, RequestStatus, TileState
from aws.osml.model_runner.exceptions import (
    AddFeaturesException,
    CompleteRegionException,
    ConditionNotMetError,
    EndImageException,
    StartImageException,
    TableError,
    UpdateRegionException,
)
from aws.osml.model_runner.features.encoding import decode_feature, encode_feature
from aws.osml.model_runner.features.image_geometry import feature_image_bounds
from aws.osml.model_runner.features.properties import IMAGE_ID, INFERENCE_TIME, TILE

from .ddb_helper import DDBHelper, DDBItem, Item
from .feature_item import MAX_CHUNK_BYTES, FeatureItem, StoredTile
from .job_item import JobItem
from .region_item import RegionRequestItem


class PublishedJobTable(DDBHelper):
    """Published methods of ``JobTable``."""

    life_s: float

    def start_image_request(self, image_request_item: JobItem) -> JobItem:
        """Write the first row of an image, with its start time and every counter at zero.

        Raises:
            StartImageException: the image has a row already; a second start would reset its counters.
        """
        now_s = self._now()
        item = dataclasses.replace(image_request_item)
        item.image_status = item.image_status or "ACCEPTED"
        item.start_time, item.expire_time = int(now_s * 1000), int(now_s + self.life_s)
        item.processing_duration = item.region_success = item.region_error = item.generation = 0
        try:
            self.put(item.to_put(), "attribute_not_exists(image_id)")
        except ConditionNotMetError as err:
            raise StartImageException(f"the image {item.image_id} has a row already") from err
        return item

    def complete_region_request(self, image_id: str, error: bool) -> JobItem:
        """Count one region as succeeded or failed and return the updated row.

        The worker itself counts a region in the transaction that ends the region's row (R3). So a region whose message
        is delivered twice is counted once. Callers of this method have to prevent a second count themselves.
        """
        counter = "region_error" if error else "region_success"
        row = self.update({"image_id": image_id}, f"ADD {counter} :one", {":one": 1}, "attribute_exists(image_id)")
        return JobItem.from_row(row)

    def end_image_request(self, image_id: str) -> JobItem:
        """Record the time at which an image ended and return its row.

        Raises:
            EndImageException: the image has no row.
        """
        now_ms = int(self._now() * 1000)
        try:
            row = self.update(
                {"image_id": image_id}, "SET end_time = :now", {":now": now_ms}, "attribute_exists(image_id)"
            )
        except ConditionNotMetError as err:
            raise EndImageException(f"the image {image_id} has no row") from err
        return JobItem.from_row(row)

    def update_image_request(self, image_request_item: JobItem) -> JobItem:
        """Set every attribute of the row that has a value in ``image_request_item``, and return the whole row."""
        item = dataclasses.replace(image_request_item)
        if item.start_time is not None:
            item.processing_duration = self.get_processing_duration(item.start_time)
        return JobItem.from_row(self.update_ddb_item(item))

    @staticmethod
    def get_processing_duration(start_time: int) -> int:
        """Return the whole seconds since ``start_time``, which is in epoch milliseconds."""
        return int((time.time() * 1000 - start_time) / 1000)


class PublishedRegionRequestTable(DDBHelper):
    """Published methods of ``RegionRequestTable``."""

    def complete_region_request(
        self, region_request_item: RegionRequestItem, region_status: RequestStatus
    ) -> RegionRequestItem:
        """Write a region's end, with every attribute that has a value, and return the updated row.

        The worker itself ends a region by ``end_region``, which also counts the region on its image's row.

        Raises:
            CompleteRegionException: the region has no row.
        """
        item = self._touched(region_request_item)
        item.region_status, item.end_time = str(region_status), item.last_updated_time
        return self._update_existing(item, CompleteRegionException)

    def update_region_request(self, region_request_item: RegionRequestItem) -> RegionRequestItem:
        """Set every attribute that has a value and return the updated row.

        Raises:
            UpdateRegionException: the region has no row.
        """
        return self._update_existing(self._touched(region_request_item), UpdateRegionException)

    def add_tile(self, image_id: str, region_id: str, tile: ImageRegion, state: TileState) -> RegionRequestItem:
        """Append one tile to the list of succeeded or failed tiles, and return the updated row.

        The worker itself stores each tile in a row of the feature table (T1) and writes the lists once, in R3.
        """
        name = f"{TileState(state).value}_tiles"
        row = self.update(
            {"image_id": image_id, "region_id": region_id},
            f"SET {name} = list_append(if_not_exists({name}, :none), :tile)",
            {":none": [], ":tile": [ImageRegion.of(tile).to_lists()]},
        )
        return RegionRequestItem.from_row(row)

    def _touched(self, item: RegionRequestItem) -> RegionRequestItem:
        now_ms = int(self._now() * 1000)
        touched = dataclasses.replace(item, last_updated_time=now_ms)
        if item.start_time is not None:
            touched.processing_duration = now_ms - item.start_time
        return touched

    def _update_existing(self, item: RegionRequestItem, error: type[Exception]) -> RegionRequestItem:
        expression, values = self.get_update_params(item.to_update(), item)
        try:
            row = self.update(self.get_keys(item), expression, values, "attribute_exists(region_id)")
        except ConditionNotMetError as err:
            raise error(f"the region {item.region_id} has no row") from err
        return RegionRequestItem.from_row(row)


class PublishedEndpointStatisticsTable(DDBHelper):
    """Published methods of ``EndpointStatisticsTable``."""

    def upsert_endpoint(self, endpoint: str, max_regions: int) -> None:
        """Create an endpoint's row or update its maximum number of regions; the count in progress stays."""
        self.update(
            {"endpoint": endpoint},
            "SET max_regions = :max, regions_in_progress = if_not_exists(regions_in_progress, :zero)",
            {":max": max_regions, ":zero": 0},
        )

    def increment_region_count(self, endpoint: str) -> None:
        """Increment the regions in progress; the worker itself uses slots."""
        self.update({"endpoint": endpoint}, "ADD regions_in_progress :one", {":one": 1})

    def decrement_region_count(self, endpoint: str) -> None:
        """Decrement the regions in progress, not below zero."""
        try:
            self.update(
                {"endpoint": endpoint},
                "ADD regions_in_progress :less",
                {":less": -1, ":zero": 0},
                "regions_in_progress > :zero",
            )
        except ConditionNotMetError:
            return

    def current_in_progress_regions(self, endpoint: str) -> int:
        """Return how many regions are in progress now; 0 for an endpoint without a row."""
        row = self.read({"endpoint": endpoint})
        return int(row["regions_in_progress"]) if row else 0


class PublishedFeatureTable(DDBHelper, ABC):
    """Published methods of ``FeatureTable``."""

    hash_salt: int
    tile_size: ImageDimensions | tuple[int, int]
    overlap: ImageDimensions | tuple[int, int]

    _read_all: Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]

    @abstractmethod
    def _rows_of_partition(self, image_id: str, salt: int) -> list[Item]:
        """Return the rows of one partition of an image."""

    @abstractmethod
    def _tiles_in(self, image_id: str, rows: Iterable[Item]) -> list[StoredTile]:
        """Return the tiles in ``rows``."""

    @abstractmethod
    def _expire_time(self) -> int:
        """Return the time at which a row that is written now expires, in epoch seconds."""

    def add_features(self, features: list[geojson.Feature], metrics: MetricsLogger | None = None) -> None:
        """Store features without a tile, grouped by the range of tiles that could have detected them.

        The keys follow from the content, so adding the same features again changes nothing. The worker itself stores
        features with their tile, by ``commit_tile``.

        Raises:
            AddFeaturesException: a feature has no location in the image, or DynamoDB did not take the rows.
        """
        try:
            rows: list[DDBItem] = []
            for key, group in self.group_features_by_key(features).items():
                image_id, _, tile_id = key.rpartition("-region-")
                for part in _parts([encode_feature(feature) for feature in group]):
                    digest = hashlib.sha256(b"\n".join(part)).hexdigest()
                    row = FeatureItem(
                        hash_key=f"{image_id}-{int(digest[:8], 16) % self.hash_salt + 1}",
                        range_key=digest[:32],
                        tile_id=tile_id,
                        features=[body.decode() for body in part],
                        expire_time=self._expire_time(),
                    )
                    rows.append(row)
            self.batch_write_items(rows)
        except (ValueError, TableError, ClientError, BotoCoreError) as err:
            raise AddFeaturesException(f"cannot store {len(features)} features: {err}") from err
        if metrics is not None:
            metrics.put_metric("Invocations", 1, "Count")

    def get_features(self, image_id: str, metrics: MetricsLogger | None = None) -> list[geojson.Feature]:
        """Return every feature stored for an image, in an order that does not depend on when it was stored.

        Features that were stored with their tile have its bounds in the property ``_modelRunnerTile``.
        """
        salts = range(1, self.hash_salt + 1)
        parts: Iterable[list[Item]] = self._read_all(lambda salt: self._rows_of_partition(image_id, salt), salts)
        rows = [row for part in parts for row in part]
        # Rows of tiles have a token.
        loose = sorted(text.encode() for row in rows if "tile_token" not in row for text in row.get("features", []))
        found = [_decode(body) for body in loose]
        for tile in self._tiles_in(image_id, rows):
            found += [_decode(body, tile) for body in tile.features]
        if metrics is not None:
            metrics.put_metric("Invocations", 1, "Count")
        return found

    def group_features_by_key(self, features: list[geojson.Feature]) -> dict[str, list[geojson.Feature]]:
        """Group features by ``generate_tile_key``."""
        groups: dict[str, list[geojson.Feature]] = defaultdict(list)
        for feature in features:
            groups[self.generate_tile_key(feature)].append(feature)
        return dict(groups)

    def generate_tile_key(self, feature: geojson.Feature) -> str:
        """Return ``<image id>-region-<minx>:<maxx>:<miny>:<maxy>``, the range of tiles that could detect a feature.

        Raises:
            ValueError: the feature has no location in the image.
        """
        bounds = feature_image_bounds(feature)
        if bounds is None:
            raise ValueError("the feature has neither imageGeometry nor imageBBox")
        min_x, min_y, max_x, max_y = bounds
        (width, height), (overlap_x, overlap_y) = self.tile_size, self.overlap
        spans = []
        for low, high, stride, overlap in (
            (min_x, max_x, width - overlap_x, overlap_x),
            (min_y, max_y, height - overlap_y, overlap_y),
        ):
            first = int(low / stride)
            if first > 0 and int(low) % stride < overlap:
                first -= 1
            spans.append(f"{first}:{int(high / stride)}")
        return f"{feature['properties']['image_id']}-region-{':'.join(spans)}"

    def aggregate_features(
        self, image_request_item: JobItem, metrics: MetricsLogger | None = None
    ) -> list[geojson.Feature]:
        """Return every feature of an image."""
        return self.get_features(image_request_item.image_id, metrics)


def _decode(body: bytes, tile: StoredTile | None = None) -> geojson.Feature:
    # The feature is filled after its construction, because the constructor rounds coordinates.
    feature = geojson.Feature()
    feature.update(decode_feature(body))
    if tile is not None:
        whole_tile = {IMAGE_ID: tile.key.image_id, INFERENCE_TIME: tile.inference_time, TILE: tile.bounds.to_lists()}
        feature["properties"] |= whole_tile
    return feature


def _parts(bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield features in parts of at most MAX_CHUNK_BYTES; a longer feature forms a part of its own."""
    start = size = 0
    for end, body in enumerate(bodies):
        if end > start and size + len(body) > MAX_CHUNK_BYTES:
            yield bodies[start:end]
            start, size = end, 0
        size += len(body)
    if bodies:
        yield bodies[start:]
