"""The published names of tiling: strategies, crops and the errors of tile workers."""

from aws.osml.model_runner.exceptions import ProcessTilesException, SetupTileWorkersException
from aws.osml.model_runner.tiling.strategy import (
    TilingStrategy,
    VariableOverlapTilingStrategy,
    VariableTileTilingStrategy,
    ceildiv,
    generate_crops,
)

__all__ = [
    "ProcessTilesException",
    "SetupTileWorkersException",
    "TilingStrategy",
    "VariableOverlapTilingStrategy",
    "VariableTileTilingStrategy",
    "ceildiv",
    "generate_crops",
]
