"""From a region to its tiles, and from tiles to what the model says about them."""

from aws.osml.model_runner.pipeline.exceptions import ProcessTilesException, SetupTileWorkersException
from aws.osml.model_runner.tiling.strategy import TilingStrategy, ceildiv, generate_crops
from aws.osml.model_runner.tiling.variable_overlap import VariableOverlapTilingStrategy
from aws.osml.model_runner.tiling.variable_tile import VariableTileTilingStrategy

__all__ = [
    "ProcessTilesException",
    "SetupTileWorkersException",
    "TilingStrategy",
    "VariableOverlapTilingStrategy",
    "VariableTileTilingStrategy",
    "ceildiv",
    "generate_crops",
]
