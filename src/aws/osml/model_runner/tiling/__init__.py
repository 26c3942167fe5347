"""Which regions and tiles an image is cut into. Pure functions of sizes and areas."""
