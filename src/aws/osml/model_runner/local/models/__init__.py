"""Example models: what goes in is a tile's bytes, what comes out is what the model contract asks for."""
