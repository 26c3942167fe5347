"""Features as GeoParquet 1.1: columns of geometries with their bounding boxes, compressed by zstd.

https://geoparquet.org/releases/v1.1.0/ defines the format. Row groups are written in the order of the features, and
each is sorted along a Hilbert curve. Readers that use the ``bbox`` column, such as GDAL, geopandas and DuckDB, skip row
groups and pages that a query does not touch.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import shapely
from numpy.typing import NDArray

from aws.osml.model_runner.features.best_class import best_class
from aws.osml.model_runner.features.detections import NO_BOX
from aws.osml.model_runner.features.image_geometry import feature_image_bounds

from .delivery import Delivery, FeatureBatch
from .exceptions import SinkPermanentError

if TYPE_CHECKING:
    import pyarrow as pa

# Must match pyproject.toml.
REQUIREMENT = "pyarrow>=17,<24"
ROWS_PER_GROUP = 50_000
BYTES_PER_GROUP = 64 * 1024 * 1024
# Number of features that are decoded at once. Decoded features take several times the memory of their JSON.
_ROWS_AT_ONCE = 2_000
_CURVE_BITS = 16


def parquet_pieces(delivery: Delivery) -> Iterator[bytes]:
    """Yield the file of a delivery, one row group at a time; only one row group is in memory.

    Columns: ``id`` and ``feature_id``; ``class``, ``iri`` and ``score`` of the best class; ``properties`` as JSON;
    ``geometry`` in degrees, null if the feature has none, and its ``bbox``. The file's metadata has the members of
    the delivery, as JSON.

    The delivery's own ``columns`` follow.

    Raises SinkPermanentError if pyarrow is not installed.
    """
    # Arrow's own pool reserves a gigabyte at its first use, which counts against MEMORY_LIMIT_BYTES.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as err:
        raise SinkPermanentError(f"GEOPARQUET needs pyarrow: pip install '{REQUIREMENT}'") from err
    buffer = _Buffer()
    extent = _Extent()
    with parquet.ParquetWriter(
        pa.PythonFile(buffer, mode="w"), _schema(pa, delivery.columns), compression="zstd", write_statistics=True
    ) as writer:
        for group in row_groups(delivery.batches):
            order = hilbert_order(centres(group)).tolist()
            tables = []
            for start in range(0, len(order), _ROWS_AT_ONCE):
                indices = order[start : start + _ROWS_AT_ONCE]
                delivery.note()
                bodies = [group.bodies[index] for index in indices]
                ids = [group.ids[index] for index in indices]
                tables.append(_table(pa, FeatureBatch(bodies, ids), extent, delivery.columns))
            writer.write_table(pa.concat_tables(tables), row_group_size=ROWS_PER_GROUP)
            yield buffer.take()
        metadata = {"geo": _geo_metadata(extent), **delivery.members()}
        writer.add_key_value_metadata({name: orjson.dumps(value).decode() for name, value in metadata.items()})
    yield buffer.take()


def row_groups(batches: Iterable[FeatureBatch]) -> Iterator[FeatureBatch]:
    """Yield features in groups of at most ROWS_PER_GROUP and BYTES_PER_GROUP; a longer feature is a group."""
    bodies: list[bytes] = []
    ids: list[str] = []
    points: list[NDArray[np.float64]] = []
    size = 0
    for batch in batches:
        batch_points = centres(batch)
        for index, (body, feature_id) in enumerate(zip(batch.bodies, batch.ids, strict=True)):
            if bodies and (len(bodies) == ROWS_PER_GROUP or size + len(body) > BYTES_PER_GROUP):
                yield FeatureBatch(bodies, ids, np.array(points))
                bodies, ids, points, size = [], [], [], 0
            bodies.append(body)
            ids.append(feature_id)
            points.append(batch_points[index])
            size += len(body)
    if bodies:
        yield FeatureBatch(bodies, ids, np.array(points))


def centres(batch: FeatureBatch) -> NDArray[np.float64]:
    """Return (n, 2) the centre (x, y) of each feature in pixels; NaN for a feature without pixels."""
    if batch.centres is not None:
        return batch.centres
    boxes = [feature_image_bounds(orjson.loads(body)) or NO_BOX for body in batch.bodies]
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 2, 2)
    middles: NDArray[np.float64] = corners.mean(axis=1)
    return middles


def hilbert_order(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the indices of (n, 2) points along a Hilbert curve through all of them; NaN comes last.

    The curve has 2^16 steps to a side (J. Skilling, Programming the Hilbert curve, AIP 707, 2004, in two dimensions).
    Points of one step keep their order.
    """
    if not len(points):
        return np.zeros(0, dtype=np.intp)
    is_known = ~np.isnan(points[:, 0])
    known = points[is_known]
    distances = np.full(len(points), 4**_CURVE_BITS, dtype=np.int64)
    if len(known):
        low, size = known.min(axis=0), np.ptp(known, axis=0).max() or 1.0
        steps = np.minimum((known - low) / size * 2**_CURVE_BITS, 2**_CURVE_BITS - 1).astype(np.int64)
        x, y = steps.T.copy()
        along = np.zeros_like(x)
        for bit in range(_CURVE_BITS - 1, -1, -1):
            side = 1 << bit
            right, upper = (x & side) > 0, (y & side) > 0
            along += side * side * ((3 * right) ^ upper)
            is_flipped, is_turned = right & ~upper, ~upper
            x, y = (np.where(is_flipped, side - 1 - (each & (side - 1)), each & (side - 1)) for each in (x, y))
            x, y = np.where(is_turned, y, x), np.where(is_turned, x, y)
        distances[is_known] = along
    order: NDArray[np.intp] = np.argsort(distances, kind="stable")
    return order


class _Buffer(io.RawIOBase):
    """An append-only file; ``take`` removes the bytes written so far."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self._position += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        """Return the bytes written since the last call."""
        taken = b"".join(self._pieces)
        self._pieces = []
        return taken


class _Extent:
    """Types and bounding box of all geometries of a file."""

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.box = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def add(self, shapes: NDArray[np.object_], boxes: NDArray[np.float64]) -> None:
        found = {(str(shape.geom_type), bool(shape.has_z)) for shape in shapes if shape is not None}
        self.types |= {f"{name} Z" if has_z else name for name, has_z in found}
        if found:
            self.box[:2] = np.minimum(self.box[:2], np.nanmin(boxes[:, :2], axis=0))
            self.box[2:] = np.maximum(self.box[2:], np.nanmax(boxes[:, 2:], axis=0))


def _schema(pa: Any, columns: Mapping[str, str]) -> "pa.Schema":
    sides = pa.struct([(name, pa.float64()) for name in _SIDES])
    return pa.schema(
        [
            ("id", pa.string()),
            ("feature_id", pa.string()),
            ("class", pa.string()),
            ("iri", pa.string()),
            ("score", pa.float64()),
            ("properties", pa.string()),
            ("geometry", pa.binary()),
            ("bbox", sides),
            *((name, pa.type_for_alias(alias)) for name, alias in columns.items()),
        ]
    )


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _table(pa: Any, batch: FeatureBatch, extent: _Extent, names: Mapping[str, str]) -> "pa.Table":
    features = [orjson.loads(body) for body in batch.bodies]
    geometries = [feature.get("geometry") for feature in features]
    texts = [orjson.dumps(geometry) if geometry else None for geometry in geometries]
    shapes: NDArray[np.object_] = np.asarray(shapely.from_geojson(np.array(texts, dtype=object)), dtype=object)
    boxes = shapely.bounds(shapes).reshape(-1, 4)
    extent.add(shapes, boxes)
    best = [best_class(feature) for feature in features]
    columns = {
        "id": [_text(feature.get("id")) for feature in features],
        "feature_id": batch.ids,
        "class": [found.iri if found else None for found in best],
        "iri": [found.iri if found else None for found in best],
        "score": [found.score if found and found.score == found.score else None for found in best],
        "properties": [orjson.dumps(feature.get("properties") or {}).decode() for feature in features],
        "geometry": shapely.to_wkb(shapes, output_dimension=3, flavor="iso").tolist(),
        "bbox": [
            None if shape is None else dict(zip(_SIDES, box, strict=True))
            for shape, box in zip(shapes, boxes.tolist(), strict=True)
        ],
    }
    columns |= {name: [(feature.get("properties") or {}).get(name) for feature in features] for name in names}
    return pa.table(columns, schema=_schema(pa, names))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else orjson.dumps(value).decode()


def _geo_metadata(extent: _Extent) -> dict[str, Any]:
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(extent.types),
        "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
    }
    if extent.types:
        column["bbox"] = extent.box.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
