"""Parses a file of areas, GeoJSON, GeoParquet or GeoPackage, to one geometry in longitude and latitude.

A file may be hostile, so a child process parses it; see ``area_reader``. A GeoPackage is a database of SQLite. The
connection that reads its rows runs nothing that the file brings: no view, trigger, virtual table or function.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from shapely.geometry import MultiPolygon, Polygon

from .crs_text import is_plain_gml, is_plain_wkt

MAX_AREA_VERTICES = 1_000_000
MAX_AREA_LAYERS = 100
# A compressed file of 64 MB may hold more than this, but not as polygons with so few vertices.
_MAX_UNCOMPRESSED_BYTES = 256 * 1024 * 1024
# A straight edge of a projection is a curve in degrees: over one kilometre it bends by some centimetres.
_MAX_EDGE_M = 1_000.0
# Longitudes are shifted by a whole turn, and latitudes end at the poles, as in a region of interest of a request.
_MOST_DEGREES = (360.0, 90.0)
# Each position has a bracket. Rings, bounding boxes and properties of a usable file have fewer than as many again.
_MAX_BRACKETS = 2 * MAX_AREA_VERTICES
_HALF_TURN = 180.0
_TURNS = tuple(np.array([degrees, 0.0]) for degrees in (-360.0, 0.0, 360.0))
_WGS84 = "OGC:CRS84"
_CODE = re.compile(r"(?:urn:ogc:def:crs:)?(EPSG|OGC|ESRI)::?(?:[\d.]*:)?(CRS84|\d{1,7})", re.IGNORECASE)
_VIRTUAL = re.compile(r"\s*CREATE\s+VIRTUAL", re.IGNORECASE)
_GEOPACKAGE_ENVELOPE_BYTES = (0, 32, 48, 48, 64)


class AreaFileError(ValueError):
    """The file is not one of areas; the message completes "must be"."""


class _Shapes(NamedTuple):
    """Shapes of a layer, and the text of its coordinate system; None where they are longitudes and latitudes."""

    shapes: Any
    crs: str | None


def area_of(body: bytes) -> Polygon | MultiPolygon:
    """Return the union of all polygons of a file: valid, in degrees of longitude and latitude on WGS 84.

    Longitudes lie in [-360, 360].    Raises AreaFileError.
    """
    if body.startswith(b"SQLite format 3\0"):
        read: Callable[[bytes], Iterator[_Shapes]] = _read_geopackage
    elif body.startswith(b"PAR1"):
        read = _read_geoparquet
    elif body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        read = _read_geojson
    else:
        raise AreaFileError("GeoJSON, GeoParquet or GeoPackage")
    try:
        return _area_of(read(body))
    except shapely.errors.ShapelyError as err:
        if "bad_alloc" in str(err):
            raise MemoryError from err
        raise AreaFileError(f"well-formed polygons: {str(err).splitlines()[0][:120]}") from err


def _area_of(layers_of_file: Iterator[_Shapes]) -> Polygon | MultiPolygon:
    layers, vertices = [], 0
    for shapes, crs in layers_of_file:
        polygons = np.array([shape for shape in shapes if shape is not None and not shape.is_empty], dtype=object)
        _check_polygons(polygons)
        vertices += int(shapely.get_num_coordinates(polygons).sum())
        if vertices > MAX_AREA_VERTICES:
            raise AreaFileError(f"polygons with at most {MAX_AREA_VERTICES} vertices")
        if len(polygons):
            layers.append(_in_degrees(polygons, crs))
    area = _united(np.concatenate(layers)) if layers else Polygon()
    if not isinstance(area, Polygon | MultiPolygon) or not area.area > 0:
        raise AreaFileError("polygons with an area; the file has none")
    return area


def _check_polygons(shapes: Any) -> None:
    kinds = {shape.geom_type for shape in shapes} - {"Polygon", "MultiPolygon"}
    if kinds:
        raise AreaFileError(f"polygons only; the file also has {', '.join(sorted(kinds))}")
    if not np.isfinite(shapely.get_coordinates(shapes)).all():
        raise AreaFileError("polygons with finite coordinates")


def _united(polygons: Any) -> shapely.Geometry:
    is_valid = shapely.is_valid(polygons)
    polygons[~is_valid] = shapely.make_valid(polygons[~is_valid], method="structure", keep_collapsed=False)
    return shapely.disjoint_subset_union_all(polygons)


# Coordinate systems --------------------------------------------------------------------------------------------------


def _in_degrees(polygons: Any, crs: str | None) -> Any:
    """Return the polygons in longitude and latitude on WGS 84."""
    flat = shapely.force_2d(polygons)
    if crs not in (None, _WGS84):
        flat = _transformed(flat, str(crs))
    if not (np.abs(shapely.get_coordinates(flat)) <= _MOST_DEGREES).all():
        raise AreaFileError(
            "longitudes within ±360 and latitudes within ±90 degrees, or coordinates in a system that the file names"
        )
    return flat


def _transformed(polygons: Any, text: str) -> Any:
    try:
        crs = CRS.from_user_input(text)
        transformer = Transformer.from_crs(crs, _WGS84, always_xy=True)
    except ProjError as err:
        raise AreaFileError(f"in a coordinate system that is known; {text[:80]!r} is not") from err
    if not crs.is_geographic:
        shortest = shapely.length(polygons).sum() / MAX_AREA_VERTICES
        unit_m = crs.axis_info[0].unit_conversion_factor
        polygons = shapely.segmentize(polygons, max(_MAX_EDGE_M / unit_m, shortest))
    parts = shapely.get_parts(polygons)
    moved = shapely.transform(parts, lambda points: np.column_stack(transformer.transform(*points.T)))
    points, part_of = shapely.get_coordinates(moved, return_index=True)
    if not np.isfinite(points).all():
        raise AreaFileError(f"polygons where their coordinate system is defined: {text[:80]!r}")
    jumps = (np.abs(np.diff(points[:, 0])) > _HALF_TURN) & (np.diff(part_of) == 0)
    # A jump from one ring to the next divides a polygon that needs no division, which does no harm.
    for index in np.unique(part_of[1:][jumps]):
        rings = [_unrolled(shapely.get_coordinates(ring)) for ring in shapely.get_rings(moved[index])]
        holes = [shapely.transform(ring, shift.__add__) for ring in rings[1:] for shift in _TURNS]
        moved[index] = shapely.difference(rings[0], shapely.union_all(holes))
    return moved


def _unrolled(ring: Any) -> shapely.Geometry:
    """Return the polygon inside an (n, 2) ring in degrees whose longitudes jump where it crosses the antimeridian.

    Longitudes of the result are continuous, so they may leave [-180, 180]. A ring around a pole becomes a polygon
    between its line, once around the Earth, and the pole.
    """
    lon = np.unwrap(ring[:, 0], period=360.0)
    lon -= 360.0 * np.round((lon.min() + lon.max()) / 720.0)
    line = np.column_stack([lon, ring[:, 1]])
    if abs(lon[-1] - lon[0]) > _HALF_TURN:
        pole = np.copysign(90.0, ring[:, 1].mean())
        line = np.concatenate([line, [[lon[-1], pole], [lon[0], pole], line[0]]])
    polygon: shapely.Geometry = shapely.make_valid(Polygon(line), method="structure", keep_collapsed=False)
    return polygon


def _code(text: str) -> str | None:
    """Return the authority and the code of a name such as ``urn:ogc:def:crs:EPSG::32633``; None for other names."""
    found = _CODE.fullmatch(text.strip())
    return f"{found[1].upper()}:{found[2].upper()}" if found else None


# Formats -------------------------------------------------------------------------------------------------------------


def _read_geojson(body: bytes) -> Iterator[_Shapes]:
    """Yield the shapes of a document by RFC 7946, or with the older member ``crs``."""
    if body.count(b"[") > _MAX_BRACKETS:
        raise AreaFileError(f"polygons with at most {MAX_AREA_VERTICES} vertices")
    try:
        document = orjson.loads(body.lstrip(b"\xef\xbb\xbf"))
    except ValueError as err:
        raise AreaFileError(f"valid JSON: {err}") from err
    crs = None
    if isinstance(named := document.get("crs"), dict):
        name = str((named.get("properties") or {}).get("name") or "")
        crs = _code(name)
        if crs is None:
            raise AreaFileError(f"in a coordinate system with a code of EPSG; its crs names {name[:80]!r}")
    kind = document.get("type")
    if kind == "FeatureCollection":
        features = document.get("features") or []
        if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
            raise AreaFileError("a feature collection with a list of features")
        geometries = [feature.get("geometry") for feature in features]
    else:
        geometries = [document.get("geometry") if kind == "Feature" else document]
    texts = np.array([None if geometry is None else orjson.dumps(geometry) for geometry in geometries], dtype=object)
    yield _Shapes(shapely.from_geojson(texts), crs)


def _read_geoparquet(body: bytes) -> Iterator[_Shapes]:
    """Yield the primary geometries of a file by GeoParquet 1.0 and 1.1, in batches."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as err:
        raise AreaFileError("GeoJSON or GeoPackage, because pyarrow is not installed to read GeoParquet") from err
    try:
        file = parquet.ParquetFile(pa.BufferReader(body))
        geo = json.loads((file.schema_arrow.metadata or {}).get(b"geo") or b"null")
    except (pa.ArrowException, OSError) as err:
        raise AreaFileError(f"readable Parquet: {err}") from err
    if not isinstance(geo, dict):
        raise AreaFileError("GeoParquet: the metadata of this Parquet lacks the key geo")
    name = geo.get("primary_column")
    column = (geo.get("columns") or {}).get(name) or {}
    if column.get("encoding") != "WKB":
        raise AreaFileError(f"GeoParquet with the encoding WKB, not {column.get('encoding')!r}")
    if column.get("edges") not in (None, "planar"):
        raise AreaFileError("GeoParquet with planar edges")
    crs = _projjson_text(column["crs"]) if "crs" in column else None
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    stored = sum(
        group.column(index).total_uncompressed_size
        for group in groups
        for index in range(group.num_columns)
        if group.column(index).path_in_schema.split(".")[0] == name
    )
    if stored > _MAX_UNCOMPRESSED_BYTES or file.metadata.num_rows > MAX_AREA_VERTICES:
        raise AreaFileError(f"polygons with at most {MAX_AREA_VERTICES} vertices")
    try:
        for batch in file.iter_batches(columns=[name], batch_size=4096):
            yield _Shapes(shapely.from_wkb(batch.column(0).to_numpy(zero_copy_only=False)), crs)
    except (pa.ArrowException, OSError) as err:
        raise AreaFileError(f"readable Parquet: {err}") from err


def _projjson_text(crs: Any) -> str:
    """Return what PROJ may read of a coordinate system in PROJJSON: its code where it has one."""
    if not isinstance(crs, dict):
        raise AreaFileError("in a coordinate system that is known; the crs of the GeoParquet is null")
    identity = crs.get("id") or {}
    code = _code(f"{identity.get('authority')}:{identity.get('code')}")
    text = json.dumps(crs)
    if code is None and ("=" in text or not is_plain_gml(text.encode())):
        raise AreaFileError("in a coordinate system that does not name grids, files or transformations")
    return code or text


def _read_geopackage(body: bytes) -> Iterator[_Shapes]:
    """Yield the shapes of each layer of features, in batches; see OGC 12-128r19."""
    connection = sqlite3.connect(":memory:")
    try:
        # A database in memory cannot have a write-ahead log, even an empty one.
        connection.deserialize(body[:18] + b"\1\1" + body[20:])
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, len(body))
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.set_authorizer(_only_reads)
        layers = connection.execute(
            "SELECT g.table_name, g.column_name, s.organization, s.organization_coordsys_id, s.definition,"
            " m.type, m.sql FROM gpkg_geometry_columns g JOIN sqlite_master m ON m.name = g.table_name COLLATE NOCASE"
            " LEFT JOIN gpkg_spatial_ref_sys s ON s.srs_id = g.srs_id LIMIT ?",
            (MAX_AREA_LAYERS + 1,),
        ).fetchall()
        if not 0 < len(layers) <= MAX_AREA_LAYERS:
            raise AreaFileError(f"a GeoPackage with 1 to {MAX_AREA_LAYERS} layers of features")
        for table, column, organization, code, definition, kind, sql in layers:
            if kind != "table" or _VIRTUAL.match(sql):
                raise AreaFileError(f"a GeoPackage whose layers are tables; {table[:80]!r} is not")
            crs = _geopackage_crs(organization, code, definition)
            rows = connection.execute(f"SELECT {_quoted(column)} FROM {_quoted(table)}")  # noqa: S608 - quoted names
            while blobs := rows.fetchmany(4096):
                yield _Shapes(shapely.from_wkb([_wkb_of(blob) for (blob,) in blobs]), crs)
    except sqlite3.Error as err:
        raise AreaFileError(f"a readable GeoPackage: {err}") from err
    finally:
        connection.close()


def _only_reads(action: int, *_: Any) -> int:
    is_read = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
    return sqlite3.SQLITE_OK if is_read else sqlite3.SQLITE_DENY


def _quoted(name: str) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def _geopackage_crs(organization: Any, code: Any, definition: Any) -> str:
    if found := _code(f"{organization}:{code}"):
        return found
    text = str(definition or "")
    if not text or text.lower() == "undefined":
        raise AreaFileError("in a coordinate system that is known; a layer of the GeoPackage has none")
    if "|" in text or not is_plain_wkt(text):
        raise AreaFileError("in a coordinate system that does not name grids, files or transformations")
    return text


def _wkb_of(blob: Any) -> bytes | None:
    """Return the WKB in a binary of a GeoPackage: after "GP", version, flags, four bytes of SRS id, and an envelope."""
    if blob is None:
        return None
    if not isinstance(blob, bytes) or blob[:2] != b"GP" or len(blob) < 8:
        raise AreaFileError("a GeoPackage with geometries in its standard binary")
    envelope = blob[3] >> 1 & 7
    if envelope >= len(_GEOPACKAGE_ENVELOPE_BYTES):
        raise AreaFileError("a GeoPackage with geometries in its standard binary")
    return blob[8 + _GEOPACKAGE_ENVELOPE_BYTES[envelope] :]
