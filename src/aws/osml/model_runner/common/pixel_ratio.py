"""The grid that tiles are cut from, where it is not the image's own: model pixels and image pixels."""

import math
from typing import NamedTuple

from .typing import ImageCoord, ImageDimensions, ImageRegion

# A position so close to a pixel's edge or middle lies on it; rounding may have moved it.
_ROUNDING = 1e-9


class PixelRatio(NamedTuple):
    """Image pixels per model pixel, in x and in y.

    Image position = model position * ratio, both counted from the outer corner of the upper left pixel.
    """

    x: float = 1.0
    y: float = 1.0

    @property
    def is_one(self) -> bool:
        """True where model pixels are image pixels."""
        return self == (1.0, 1.0)

    def size_of(self, width: int, height: int) -> ImageDimensions:
        """Return the size in model pixels of an image: all pixels whose middle is in the image, at least one."""
        sides = [math.floor(side / step + 0.5 + _ROUNDING) for side, step in ((width, self.x), (height, self.y))]
        return ImageDimensions(max(1, sides[0]), max(1, sides[1]))

    def in_image(self, region: ImageRegion) -> ImageRegion:
        """Return the smallest region in image pixels that holds a region in model pixels."""
        if self.is_one:
            return region
        left, top = (
            math.floor(region.origin.col * self.x + _ROUNDING),
            math.floor(region.origin.row * self.y + _ROUNDING),
        )
        right, bottom = math.ceil(region.right * self.x - _ROUNDING), math.ceil(region.bottom * self.y - _ROUNDING)
        return ImageRegion(ImageCoord(top, left), ImageDimensions(right - left, bottom - top))


ONE = PixelRatio()
