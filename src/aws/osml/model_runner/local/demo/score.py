"""How good a result is: features against ships whose places are known."""

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
LEAST_FOUND_SHARE = 0.99


@dataclass(frozen=True)
class Score:
    """``found`` of ``known`` ships have a feature within the tolerance; ``doubles`` features found one already found.

    ``false_alarms`` have no ship. ``largest_error_px`` is the distance on the ground between a found ship's true place
    and its feature's, in pixels of the scene.
    """

    known: int
    found: int
    doubles: int
    false_alarms: int
    largest_error_px: float

    @property
    def is_good(self) -> bool:
        """True when at least 99 % of the ships were found, and none twice."""
        return self.found >= LEAST_FOUND_SHARE * self.known and self.doubles == 0


def score_features(features: Sequence[Mapping[str, Any]], ships: Sequence[Ship]) -> Score:
    """Compare the longitudes and latitudes of features with those of the ships.

    A feature belongs to the nearest ship, when that is within half of the ship's length.
    """
    places = _on_the_ground([(ship.longitude, ship.latitude) for ship in ships])
    middles = _on_the_ground([_center(feature) for feature in features])
    if not len(middles) or not len(places):
        return Score(len(ships), 0, 0, len(middles), 0.0)
    distances, nearest = cKDTree(places).query(middles)
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


def _center(feature: Mapping[str, Any]) -> tuple[float, float]:
    properties = feature["properties"]
    return properties["center_longitude"], properties["center_latitude"]


def _on_the_ground(lonlat: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Return places (n, 2) in pixels of the scene, from an origin of no importance."""
    to_metres = pyproj.Transformer.from_crs(4326, EPSG, always_xy=True)
    metres = [to_metres.transform(longitude, latitude) for longitude, latitude in lonlat]
    return np.array(metres, np.float64).reshape(-1, 2) / METRES_PER_PIXEL
