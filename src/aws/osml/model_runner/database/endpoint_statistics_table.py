"""How many regions each endpoint works on, for workers that throttle themselves."""

import dataclasses

from aws.osml.model_runner.exceptions import ConditionNotMetError

from .ddb_helper import DDBHelper, DDBItem, DDBKey


@dataclasses.dataclass
class EndpointStatisticsItem(DDBItem):
    """One endpoint's row: the regions in progress, and the most that there may be."""

    endpoint: str
    regions_in_progress: int = 0
    max_regions: int = 0

    def __post_init__(self) -> None:
        """Set the key under which the table holds the row."""
        self.ddb_key = DDBKey("endpoint", self.endpoint)


class EndpointStatisticsTable(DDBHelper):
    """The table of endpoints: partition ``endpoint``, the endpoint's name or URL."""

    def upsert_endpoint(self, endpoint: str, max_regions: int) -> None:
        """Begin to follow an endpoint, or renew the most regions that it may work on; those in progress stay."""
        self.update(
            {"endpoint": endpoint},
            "SET max_regions = :max, regions_in_progress = if_not_exists(regions_in_progress, :zero)",
            {":max": max_regions, ":zero": 0},
        )

    def increment_region_count(self, endpoint: str) -> None:
        """Count one region more in progress."""
        self.update({"endpoint": endpoint}, "ADD regions_in_progress :one", {":one": 1})

    def decrement_region_count(self, endpoint: str) -> None:
        """Count one region less in progress, and never fewer than none."""
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
        """Return how many regions are in progress now; an endpoint that is not followed has none."""
        row = self.read({"endpoint": endpoint})
        return int(row["regions_in_progress"]) if row else 0
