"""From a region to its tiles, and from tiles to what the model says about them."""

from .exceptions import ProcessTilesException, SetupTileWorkersException
from .tiling_strategy import TilingStrategy, ceildiv, generate_crops
from .variable_overlap_tiling_strategy import VariableOverlapTilingStrategy
from .variable_tile_tiling_strategy import VariableTileTilingStrategy

__all__ = [
    "ProcessTilesException",
    "SetupTileWorkersException",
    "TilingStrategy",
    "VariableOverlapTilingStrategy",
    "VariableTileTilingStrategy",
    "ceildiv",
    "generate_crops",
]
