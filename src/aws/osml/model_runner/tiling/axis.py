"""The part of a strategy that is the same whichever way an axis is divided."""

from abc import abstractmethod

from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.features.overlap_groups import Selector, select_where_shared
from aws.osml.model_runner.features.properties import Feature

from .strategy import Span, TilingStrategy, axis_spans, cross


class AxisTilingStrategy(TilingStrategy):
    """A strategy that divides columns and rows by the same rule, each without regard to the other."""

    @abstractmethod
    def region_spans(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[Span]:
        """Return how the regions divide one axis of the processing bounds."""

    @abstractmethod
    def tile_spans(self, span: Span, tile_px: int, overlap_px: int) -> list[Span]:
        """Return how the tiles divide one axis of a region."""

    def compute_regions(
        self,
        processing_bounds: ImageRegion,
        region_size: ImageDimensions,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
    ) -> list[ImageRegion]:
        """Return the regions of the processing bounds; see the class for the rule."""
        columns, rows = axis_spans(processing_bounds)
        return cross(
            self.region_spans(columns, region_size[0], tile_size[0], overlap[0]),
            self.region_spans(rows, region_size[1], tile_size[1], overlap[1]),
        )

    def compute_tiles(
        self, region: ImageRegion, tile_size: ImageDimensions, overlap: ImageDimensions
    ) -> list[ImageRegion]:
        """Return the tiles of a region; see the class for the rule."""
        columns, rows = axis_spans(region)
        return cross(
            self.tile_spans(columns, tile_size[0], overlap[0]), self.tile_spans(rows, tile_size[1], overlap[1])
        )

    def cleanup_duplicate_features(
        self,
        processing_bounds: ImageRegion,
        region_size: ImageDimensions,
        tile_size: ImageDimensions,
        overlap: ImageDimensions,
        features: list[Feature],
        feature_selector: Selector,
    ) -> list[Feature]:
        """Return the features, merged by the selector where more than one tile of the plan could have seen them.

        The result does not depend on the order of the features; see ``select_where_shared`` for its own order.
        """
        columns, rows = axis_spans(processing_bounds)
        return select_where_shared(
            features,
            self._planned_tiles(columns, region_size[0], tile_size[0], overlap[0]),
            self._planned_tiles(rows, region_size[1], tile_size[1], overlap[1]),
            feature_selector,
        )

    def _planned_tiles(self, span: Span, region_px: int, tile_px: int, overlap_px: int) -> list[tuple[int, int]]:
        """Return [start, end) of the tiles of all regions on one axis."""
        regions = self.region_spans(span, region_px, tile_px, overlap_px)
        return [(tile.start, tile.end) for region in regions for tile in self.tile_spans(region, tile_px, overlap_px)]
