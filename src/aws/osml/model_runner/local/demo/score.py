"""Compares features with ships whose positions are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .scene import EPSG, METRES_PER_PIXEL
from .ships import Ship

TOLERANCE_PX = 2.0
MIN_FOUND_SHARE = 0.99


@dataclass(frozen=True)
class Score:
    """``found`` of ``known`` ships have a feature within the tolerance.

    ``doubles`` counts further features of a ship, and ``false_alarms`` features without a ship. ``largest_error_px`` is
    the maximum distance on the ground between a ship and its feature, in pixels of the scene.
    """

    known: int
    found: int
    doubles: int
    false_alarms: int
    largest_error_px: float

    @property
    def is_good(self) -> bool:
        """True if at least 99 % of the ships were found, and none twice."""
        return self.found >= MIN_FOUND_SHARE * self.known and self.doubles == 0


def score_features(features: Sequence[Mapping[str, Any]], ships: Sequence[Ship]) -> Score:
    """Compare the longitudes and latitudes of features with those of the ships.

    A feature belongs to the nearest ship if their distance is at most half of the ship's length.
    """
    properties = [feature["properties"] for feature in features]
    positions = _on_the_ground([(ship.longitude, ship.latitude) for ship in ships])
    middles = _on_the_ground([(each["center_longitude"], each["center_latitude"]) for each in properties])
    if not len(middles) or not len(positions):
        return Score(len(ships), 0, 0, len(middles), 0.0)
    distances, nearest = cKDTree(positions).query(middles)
    is_hit = distances <= np.array([ship.length_px / 2 for ship in ships])[nearest]
    hits = np.bincount(nearest[is_hit], minlength=len(ships))
    is_close = is_hit & (distances <= TOLERANCE_PX)
    return Score(
        known=len(ships),
        found=len(np.unique(nearest[is_close])),
        doubles=int(np.maximum(hits - 1, 0).sum()),
        false_alarms=int(np.count_nonzero(~is_hit)),
        largest_error_px=round(float(distances[is_hit].max(initial=0.0)), 3),
    )


def _on_the_ground(lonlat: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Return positions (n, 2) on the ground in units of a scene's pixel, from the origin of the projection."""
    to_metres = pyproj.Transformer.from_crs(4326, EPSG, always_xy=True)
    metres = [to_metres.transform(longitude, latitude) for longitude, latitude in lonlat]
    return np.array(metres, np.float64).reshape(-1, 2) / METRES_PER_PIXEL
