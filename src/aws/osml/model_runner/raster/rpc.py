"""Rational polynomial coefficients (RPC) as arrays, for many points at once, and as the fields of RPC00B hold them.

An RPC maps the ground to pixels: ``line = LINE_NUM(L, P, H) / LINE_DEN(L, P, H) * LINE_SCALE + LINE_OFF``, and the
same for samples. L is longitude, P is latitude and H is height, each minus its offset and divided by its scale.
The terms and their order are defined by RPC00B (STDI-0002, volume 1, appendix E).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_MAX_STEPS = 30
_CONVERGED_PX = 1e-3
# An RPC is fitted to ground within one scale of its offset. Its polynomials have more roots far outside.
_MAX_SCALES = 10.0
_FITTED_PX = 1e-2
# The pole, plus the rounding error of radians.
_POLE_DEG = 90.0 + 1e-9
# A field of RPC00B has one digit for the exponent.
_MIN_TERM = 1e-9


@dataclass(frozen=True)
class Axis:
    """Normalization of one coordinate: ``(value - offset) / scale``."""

    offset: float
    scale: float

    def normalized(self, values: FloatArray) -> FloatArray:
        """Return ``(values - offset) / scale``."""
        return (values - self.offset) / self.scale

    def restored(self, values: FloatArray) -> FloatArray:
        """Return the inverse of ``normalized``."""
        return values * self.scale + self.offset

    def rounded(self, decimals: int) -> "Axis":
        """Return offset and scale, rounded as for a fixed-width field; a scale that rounds to 0 becomes one unit."""
        return Axis(round(self.offset, decimals), round(self.scale, decimals) or 10.0**-decimals)


@dataclass(frozen=True)
class RPCModel:
    """Axes, polynomials as rows of 20 (line numerator, denominator, sample numerator, denominator), errors in m."""

    line: Axis
    sample: Axis
    latitude: Axis
    longitude: Axis
    height: Axis
    polynomials: FloatArray
    error_bias: float = 0.0
    error_random: float = 0.0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "RPCModel":
        """Read GDAL's RPC metadata; raises ValueError or KeyError where it is incomplete or would divide by zero."""

        def axis(name: str) -> Axis:
            offset, scale = _number(metadata[f"{name}_OFF"]), _number(metadata[f"{name}_SCALE"])
            if not (np.isfinite(offset) and np.isfinite(scale) and scale):
                raise ValueError(f"an RPC cannot have {name}_OFF={offset}, {name}_SCALE={scale}")
            return Axis(offset, scale)

        names = ("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF")
        polynomials = np.array([[float(text) for text in metadata[name].split()] for name in names])
        if polynomials.shape != (4, 20):
            raise ValueError(f"an RPC has 4 polynomials of 20 terms, not {polynomials.shape}")
        if not (np.isfinite(polynomials).all() and polynomials[1].any() and polynomials[3].any()):
            raise ValueError("an RPC's terms are finite, and its denominators are not zero")
        return cls(
            line=axis("LINE"),
            sample=axis("SAMP"),
            latitude=axis("LAT"),
            longitude=axis("LONG"),
            height=axis("HEIGHT"),
            polynomials=polynomials,
            error_bias=_number(metadata.get("ERR_BIAS") or "0"),
            error_random=_number(metadata.get("ERR_RAND") or "0"),
        )

    @classmethod
    def from_sensor_model(cls, model: Any) -> "RPCModel":
        """Return the coefficients of the toolkit's RPCSensorModel."""
        polynomials = (
            model.line_numerator_poly,
            model.line_denominator_poly,
            model.samp_numerator_poly,
            model.samp_denominator_poly,
        )
        return cls(
            line=Axis(model.line_off, model.line_scale),
            sample=Axis(model.samp_off, model.samp_scale),
            latitude=Axis(model.lat_off, model.lat_scale),
            longitude=Axis(model.long_off, model.long_scale),
            height=Axis(model.height_off, model.height_scale),
            polynomials=np.array([polynomial.coefficients for polynomial in polynomials], dtype=np.float64),
            error_bias=model.err_bias,
            error_random=model.err_rand,
        )

    def to_metadata(self) -> dict[str, str]:
        """Return GDAL's RPC metadata."""
        axes = {
            "LINE": self.line,
            "SAMP": self.sample,
            "LAT": self.latitude,
            "LONG": self.longitude,
            "HEIGHT": self.height,
        }
        metadata = {f"{name}_OFF": f"{axis.offset:.10g}" for name, axis in axes.items()}
        metadata |= {f"{name}_SCALE": f"{axis.scale:.10g}" for name, axis in axes.items()}
        names = ("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF")
        for name, row in zip(names, self.polynomials, strict=True):
            metadata[name] = " ".join(f"{value:.12e}" for value in row)
        return metadata | {"ERR_BIAS": f"{self.error_bias:.10g}", "ERR_RAND": f"{self.error_random:.10g}"}

    def to_pixels(self, world: FloatArray) -> FloatArray:
        """Map (n, 3) longitude, latitude in degrees and height in metres to (n, 2) x, y."""
        ground = [axis.normalized(world[:, i]) for i, axis in enumerate((self.longitude, self.latitude, self.height))]
        line, sample = self._ratios(*ground)
        return np.column_stack((self.sample.restored(sample), self.line.restored(line)))

    def to_world(self, pixels: FloatArray, height_m: float) -> FloatArray:
        """Map (n, 2) x, y at one height to (n, 3) longitude, latitude, height by Newton's method.

        A row is NaN unless its solution projects back to within a thousandth of a pixel. The solution must also lie on
        the Earth, and within ten scales of the RPC's offset.
        """
        target_line = self.line.normalized(pixels[:, 1])
        target_sample = self.sample.normalized(pixels[:, 0])
        height = np.full(len(pixels), self.height.normalized(np.array(height_m)))
        lon, lat = np.zeros(len(pixels)), np.zeros(len(pixels))
        with np.errstate(all="ignore"):
            for _ in range(_MAX_STEPS):
                step_lon, step_lat = self._newton_step(lon, lat, height, target_line, target_sample)
                lon, lat = lon + step_lon, lat + step_lat
                if np.nanmax(np.abs([step_lon, step_lat]), initial=0.0) < 1e-12:
                    break
            world = np.column_stack(
                (self.longitude.restored(lon), self.latitude.restored(lat), np.full(len(pixels), height_m))
            )
            is_converged = np.linalg.norm(self.to_pixels(world) - pixels, axis=1) < _CONVERGED_PX
            is_near = np.maximum(np.abs(lon), np.abs(lat)) <= _MAX_SCALES
        world[~(is_converged & is_near & is_on_earth(world))] = np.nan
        return world

    def encodable(self) -> "RPCModel":
        """Return an equivalent RPC whose offsets and scales fit into the fields of RPC00B.

        The fields are short: whole, non-negative lines and samples, degrees to four decimals, whole metres. Rounding
        alone would move the image, by hundreds of metres for a tile that begins past the RPC's offset. So the
        polynomials are fitted again to compensate. The fit is exact, because a change of axes maps polynomials of
        degree three to polynomials of degree three. Raises ValueError when the heights do not fit into the fields, or
        when the fitted RPC does not give the same pixels.
        """
        axes = replace(
            self,
            line=_whole_positive(self.line, 999_999),
            sample=_whole_positive(self.sample, 99_999),
            latitude=self.latitude.rounded(4),
            longitude=self.longitude.rounded(4),
            height=self.height.rounded(0),
        )
        if abs(axes.height.offset) > 9999 or abs(axes.height.scale) > 9999:
            raise ValueError("the heights of the RPC do not fit into RPC00B")
        if axes == self:
            return self
        return replace(axes, polynomials=self._polynomials_for(axes))

    def _polynomials_for(self, other: "RPCModel") -> FloatArray:
        """Return the polynomials with which the axes of ``other`` give the pixels of this RPC."""
        side = np.linspace(-1.0, 1.0, 5)
        lon, lat, height = (values.ravel() for values in np.meshgrid(side, side, side))
        own = _terms(
            self.longitude.normalized(other.longitude.restored(lon)),
            self.latitude.normalized(other.latitude.restored(lat)),
            self.height.normalized(other.height.restored(height)),
        )
        values = own @ self.polynomials.T
        for numerator, old, new in ((0, self.line, other.line), (2, self.sample, other.sample)):
            shifted = values[:, numerator] * old.scale + (old.offset - new.offset) * values[:, numerator + 1]
            values[:, numerator] = shifted / new.scale
        solution, *_ = np.linalg.lstsq(_terms(lon, lat, height), values, rcond=None)
        polynomials = np.where(np.abs(solution.T) < _MIN_TERM, 0.0, solution.T)
        world = np.column_stack(
            (other.longitude.restored(lon), other.latitude.restored(lat), other.height.restored(height))
        )
        with np.errstate(all="ignore"):
            moved = replace(other, polynomials=polynomials).to_pixels(world) - self.to_pixels(world)
        if not np.abs(moved).max() < _FITTED_PX:  # NaN is refused as well
            raise ValueError("the RPC cannot be fitted to the fields of RPC00B")
        return polynomials

    def _ratios(self, lon: FloatArray, lat: FloatArray, height: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return normalized line and sample of normalized ground coordinates."""
        values = _terms(lon, lat, height) @ self.polynomials.T
        return values[:, 0] / values[:, 1], values[:, 2] / values[:, 3]

    def _newton_step(
        self, lon: FloatArray, lat: FloatArray, height: FloatArray, line: FloatArray, sample: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return the Newton step in normalized longitude and latitude; derivatives by central differences."""
        h = 1e-5
        here_line, here_sample = self._ratios(lon, lat, height)
        (east_l, east_s), (west_l, west_s) = self._ratios(lon + h, lat, height), self._ratios(lon - h, lat, height)
        (north_l, north_s), (south_l, south_s) = self._ratios(lon, lat + h, height), self._ratios(lon, lat - h, height)
        line_lon, sample_lon = (east_l - west_l) / (2 * h), (east_s - west_s) / (2 * h)
        line_lat, sample_lat = (north_l - south_l) / (2 * h), (north_s - south_s) / (2 * h)
        missing_line, missing_sample = line - here_line, sample - here_sample
        determinant = line_lon * sample_lat - line_lat * sample_lon
        return (
            (missing_line * sample_lat - missing_sample * line_lat) / determinant,
            (missing_sample * line_lon - missing_line * sample_lon) / determinant,
        )


def is_on_earth(world: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which rows of longitude and latitude in degrees are places on the Earth; NaN is not.

    Longitudes may count from 0 to 360, or go on past the antimeridian.
    """
    is_place: npt.NDArray[np.bool_] = (np.abs(world[:, 0]) <= 360.0) & (np.abs(world[:, 1]) <= _POLE_DEG)
    return is_place


def _number(text: str) -> float:
    """Return the number at the head of ``text``; some files write units behind it."""
    return float(text.split()[0])


def _whole_positive(axis: Axis, largest: int) -> Axis:
    rounded = axis.rounded(0)
    return Axis(min(max(rounded.offset, 0.0), float(largest)), min(max(rounded.scale, 1.0), float(largest)))


def _terms(lon: FloatArray, lat: FloatArray, height: FloatArray) -> FloatArray:
    """Return the (n, 20) terms of RPC00B at (n,) normalized ground coordinates."""
    one = np.ones_like(lon)
    return np.stack(
        (
            one, lon, lat, height, lon * lat, lon * height, lat * height, lon**2, lat**2, height**2,
            lon * lat * height, lon**3, lon * lat**2, lon * height**2, lon**2 * lat, lat**3, lat * height**2,
            lon**2 * height, lat**2 * height, height**3,
        ),
        axis=1,
    )  # fmt: skip
