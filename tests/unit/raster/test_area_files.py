"""Files of areas: what geopandas writes is read back, wherever it lies; anything else is refused in words."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Transformer
from shapely.geometry import Point, Polygon, box

from aws.osml.model_runner.raster import area_files
from aws.osml.model_runner.raster.area_files import AreaFileError, area_of

SQUARE = {"type": "Polygon", "coordinates": [[[10, 50], [11, 50], [11, 51], [10, 51], [10, 50]]]}


def written(tmp_path: Path, suffix: str, shapes: list[shapely.Geometry], crs: Any = 4326, **options: Any) -> bytes:
    path = tmp_path / f"areas{suffix}"
    frame = geopandas.GeoDataFrame({"name": ["x"] * len(shapes)}, geometry=shapes, crs=crs)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path, **options)
    return path.read_bytes()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("suffix", [".geojson", ".parquet", ".gpkg"])
@pytest.mark.parametrize("crs", [4326, 32633, 2193, 3857, 4267])
def test_area_lies_where_its_coordinate_system_places_it(tmp_path: Path, suffix: str, crs: int) -> None:
    options = {"driver": "GeoJSON"} if suffix == ".geojson" else {}
    use = geopandas.GeoSeries([Point()], crs=crs).crs.area_of_use
    corner = Transformer.from_crs(4326, crs, always_xy=True).transform(use.west + 1, (use.south + use.north) / 2)
    unit = 1 if abs(corner[0]) <= 180 else 100_000
    shapes = [box(x, corner[1], x + unit, corner[1] + 2 * unit) for x in (corner[0], corner[0] + unit / 2)]
    area = area_of(written(tmp_path, suffix, shapes, crs, **options))
    back = Transformer.from_crs(crs, 4326, always_xy=True)
    union = shapely.union_all(shapes)
    for x, y in np.random.default_rng(7).uniform(union.bounds[:2], union.bounds[2:], (200, 2)):
        near = union.boundary.distance(Point(x, y)) < unit * 1e-5
        assert near or area.contains(Point(*back.transform(x, y))), (x, y)
    expected = shapely.transform(shapely.segmentize(union, unit / 1000), back.transform, interleaved=False)
    lon = np.round((area.centroid.x - expected.centroid.x) / 360) * 360
    assert shapely.transform(area, lambda places: places - (lon, 0)).symmetric_difference(expected).area < (
        expected.area * 1e-5
    )


def test_area_across_the_antimeridian_stays_whole(tmp_path: Path) -> None:
    area = area_of(written(tmp_path, ".gpkg", [box(7e5, 0, 9e5, 2e5)], 32660))
    back = Transformer.from_crs(32660, 4326, always_xy=True)
    crossing = {float(np.sign(back.transform(x, 1e5)[0])) for x in (7e5, 9e5)}
    assert crossing == {-1.0, 1.0}
    west, _, east, _ = area.bounds
    assert east - west < 2
    for x in (7.1e5, 8e5, 8.9e5):
        lon, lat = back.transform(x, 1e5)
        assert any(area.contains(Point(lon + turn, lat)) for turn in (-360, 0, 360))


@pytest.mark.parametrize(("crs", "pole"), [(3413, 90.0), (3031, -90.0)])
def test_area_around_a_pole_reaches_it_and_keeps_its_holes(tmp_path: Path, crs: int, pole: float) -> None:
    with_hole = box(-1e6, -1e6, 1e6, 1e6) - box(2e5, 2e5, 4e5, 4e5) - box(-3e5, -1e5, 1e5, 1e5)
    area = area_of(written(tmp_path, ".parquet", [with_hole], crs))
    back = Transformer.from_crs(crs, 4326, always_xy=True)
    for x, y in np.random.default_rng(5).uniform(-1.1e6, 1.1e6, (500, 2)):
        if with_hole.boundary.distance(Point(x, y)) < 10:
            continue
        lon, lat = back.transform(x, y)
        found = any(area.contains(Point(lon + turn, lat)) for turn in (-360, 0, 360))
        assert found == with_hole.contains(Point(x, y)), (x, y)
    whole = area_of(written(tmp_path, ".parquet", [box(-1e6, -1e6, 1e6, 1e6)], crs))
    assert pole in whole.bounds


def test_layers_of_a_geopackage_may_have_systems_of_their_own(tmp_path: Path) -> None:
    written(tmp_path, ".gpkg", [box(10, 50, 11, 51)], 4326, layer="degrees")
    body = written(tmp_path, ".gpkg", [box(500_000, 5_600_000, 600_000, 5_700_000)], 32633, layer="metres")
    area = area_of(body)
    assert area.contains(Point(10.5, 50.5))
    assert area.contains(Point(*Transformer.from_crs(32633, 4326, always_xy=True).transform(550_000, 5_650_000)))
    assert area.geom_type == "MultiPolygon"


def test_small_faults_of_rings_are_repaired() -> None:
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
    collection = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": None, "geometry": bow},
            {"type": "Feature", "properties": None, "geometry": None},
            {"type": "Feature", "properties": None, "geometry": {"type": "MultiPolygon", "coordinates": []}},
        ],
    }
    area = area_of(b"\xef\xbb\xbf\n" + as_json(collection))
    assert area.is_valid
    assert area.area == pytest.approx(0.5)
    assert area_of(as_json({"type": "Feature", "geometry": SQUARE})).equals(box(10, 50, 11, 51))
    with_heights = {"type": "Polygon", "coordinates": [[[*place, 7] for place in SQUARE["coordinates"][0]]]}
    assert not area_of(as_json(with_heights)).has_z


@pytest.mark.parametrize(
    ("content", "expectation"),
    [
        (b"hello", "GeoJSON, GeoParquet or GeoPackage"),
        (b"", "GeoJSON, GeoParquet or GeoPackage"),
        (b"{", "valid JSON"),
        (b"PAR1", "readable Parquet"),
        (b"SQLite format 3\0", "a readable GeoPackage"),
        (as_json({"type": "FeatureCollection", "features": []}), "polygons with an area; the file has none"),
        (as_json({"type": "FeatureCollection", "features": [1]}), "a list of features"),
        (as_json({"type": "FeatureCollection", "features": {"a": 1}}), "a list of features"),
        (as_json({"type": "Point", "coordinates": [1, 2]}), "polygons only; the file also has Point"),
        (as_json({"type": "GeometryCollection", "geometries": [SQUARE]}), "polygons only"),
        (as_json({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1]]]}), "closed"),
        (as_json({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [2, 0], [0, 0]]]}), "polygons with an area"),
        (as_json({"type": "Polygon", "coordinates": [[[0, 0], [4e5, 0], [4e5, 1], [0, 0]]]}), "within ±360"),
        (as_json({"type": "Polygon", "coordinates": "far"}), "well-formed"),
        (as_json({"type": "Topology"}), "well-formed"),
        (as_json({**SQUARE, "crs": {"type": "name", "properties": {"name": "+proj=utm +nadgrids=/a"}}}), "EPSG"),
        (as_json({**SQUARE, "crs": {"type": "name", "properties": {"name": "EPSG:9999999"}}}), "that is known"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, "valid JSON"),
    ],
)
def test_file_without_usable_polygons_is_refused_in_words(content: bytes, expectation: str) -> None:
    with pytest.raises(AreaFileError, match=expectation):
        area_of(content)


def test_file_with_too_many_vertices_is_refused_before_they_are_united(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(area_files, "MAX_AREA_VERTICES", 10)
    for suffix in (".geojson", ".parquet", ".gpkg"):
        assert area_of(written(tmp_path, suffix, [box(0, 0, 1, 1), box(2, 2, 3, 3)])).area == pytest.approx(2)
        with pytest.raises(AreaFileError, match="at most 10 vertices"):
            area_of(written(tmp_path, suffix, [box(n, n, n + 1, n + 1) for n in range(3)]))


def test_geojson_with_far_too_many_positions_is_not_even_parsed() -> None:
    content = b'{"type":"Polygon","coordinates":[[' + b"[1,2]," * 2_000_001 + b"!"
    with pytest.raises(AreaFileError, match="at most 1000000 vertices"):
        area_of(content)


def test_parquet_without_a_known_system_or_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AreaFileError, match="crs of the GeoParquet is null"):
        area_of(written(tmp_path, ".parquet", [box(0, 0, 1, 1)], None))
    plain = tmp_path / "plain.parquet"
    geopandas.pd.DataFrame({"a": [1]}).to_parquet(plain)
    with pytest.raises(AreaFileError, match="lacks the key geo"):
        area_of(plain.read_bytes())


def test_parquet_without_a_crs_is_in_longitude_and_latitude(tmp_path: Path) -> None:
    from pyarrow import parquet

    written(tmp_path, ".parquet", [box(10, 50, 11, 51)])
    table = parquet.read_table(tmp_path / "areas.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    del geo["columns"]["geometry"]["crs"]
    parquet.write_table(table.replace_schema_metadata({b"geo": json.dumps(geo)}), tmp_path / "areas.parquet")
    assert area_of((tmp_path / "areas.parquet").read_bytes()).equals(box(10, 50, 11, 51))


def changed(tmp_path: Path, *statements: str, crs: int | None = 4326) -> bytes:
    """Return a GeoPackage with a square, after statements that a hostile writer ran."""
    written(tmp_path, ".gpkg", [box(10, 50, 11, 51)], crs, layer="square")
    with sqlite3.connect(tmp_path / "areas.gpkg") as connection:
        connection.create_function("ST_IsEmpty", 1, lambda _blob: 0)
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return (tmp_path / "areas.gpkg").read_bytes()


@pytest.mark.parametrize(
    ("statements", "expectation"),
    [
        (
            [
                "ALTER TABLE square RENAME TO hidden",
                "CREATE VIEW square AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
                " SELECT geom FROM n, hidden",
                "UPDATE gpkg_geometry_columns SET table_name = 'square'",
            ],
            "whose layers are tables",
        ),
        (
            [
                "DROP TABLE square",
                "CREATE VIRTUAL TABLE square USING fts5(geom)",
                "INSERT OR REPLACE INTO gpkg_geometry_columns VALUES ('square', 'geom', 'POLYGON', 4326, 0, 0)",
            ],
            "whose layers are tables",
        ),
        (
            [
                "DELETE FROM gpkg_geometry_columns",
                "CREATE TABLE other (fid INTEGER PRIMARY KEY, geom BLOB GENERATED ALWAYS AS (zeroblob(900000000)))",
                "INSERT INTO other (fid) VALUES (1)",
                "INSERT INTO gpkg_geometry_columns VALUES ('other', 'geom', 'POLYGON', 4326, 0, 0)",
            ],
            "readable GeoPackage",
        ),
        (
            [
                "DROP TABLE gpkg_spatial_ref_sys",
                "CREATE VIEW gpkg_spatial_ref_sys AS SELECT 4326 AS srs_id, load_extension('/a') AS organization,"
                " 1 AS organization_coordsys_id, '' AS definition",
            ],
            "readable GeoPackage",
        ),
        (["UPDATE square SET geom = zeroblob(100)"], "standard binary"),
        (["UPDATE square SET geom = 'text'"], "standard binary"),
        (["UPDATE gpkg_geometry_columns SET srs_id = -1"], "system that is known"),
        (["UPDATE gpkg_geometry_columns SET srs_id = 12345"], "system that is known"),
        (
            [
                "UPDATE gpkg_spatial_ref_sys SET organization = 'me', definition ="
                ' \'GEOGCS["x",EXTENSION["PROJ4_GRIDS","/a"]]\' WHERE srs_id = 4326'
            ],
            "does not name grids",
        ),
        (["DELETE FROM gpkg_geometry_columns"], "1 to 100 layers"),
        (["UPDATE gpkg_geometry_columns SET table_name = 'absent'"], "1 to 100 layers"),
    ],
)
def test_nothing_that_a_geopackage_brings_is_run(tmp_path: Path, statements: list[str], expectation: str) -> None:
    drop = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    written(tmp_path, ".gpkg", [box(10, 50, 11, 51)], layer="square")
    with sqlite3.connect(tmp_path / "areas.gpkg") as connection:
        triggers = [f"DROP TRIGGER {name}" for (name,) in connection.execute(drop)]
    connection.close()
    with pytest.raises(AreaFileError, match=expectation):
        area_of(changed(tmp_path, "PRAGMA foreign_keys = OFF", *triggers, *statements))


def test_geopackage_with_too_many_layers_is_refused(tmp_path: Path) -> None:
    layers = [f"CREATE TABLE layer{n} (geom BLOB)" for n in range(101)]
    rows = [f"INSERT INTO gpkg_geometry_columns VALUES ('layer{n}', 'geom', 'POLYGON', 4326, 0, 0)" for n in range(101)]
    contents = [
        f"INSERT INTO gpkg_contents (table_name, data_type) VALUES ('layer{n}', 'features')" for n in range(101)
    ]
    with pytest.raises(AreaFileError, match="1 to 100 layers"):
        area_of(changed(tmp_path, *layers, *contents, *rows))


def test_geopackage_with_a_write_ahead_log_and_quotes_in_names_is_read(tmp_path: Path) -> None:
    content = changed(
        tmp_path,
        "PRAGMA journal_mode = WAL",
        'ALTER TABLE square RENAME TO "sq""u;are"',
        "UPDATE gpkg_geometry_columns SET table_name = 'sq\"u;are'",
    )
    assert area_of(content).equals(box(10, 50, 11, 51))


def test_system_of_a_geopackage_may_be_described_in_wkt(tmp_path: Path) -> None:
    square = box(-1e5, -1e5, 1e5, 1e5)
    area = area_of(written(tmp_path, ".gpkg", [square], "+proj=laea +lat_0=-17 +lon_0=179.5"))
    assert area.contains(Point(179.5, -17))
    back = Transformer.from_crs("+proj=laea +lat_0=-17 +lon_0=179.5", 4326, always_xy=True)
    lon, lat = back.transform(99_000, 99_000)
    assert lon < 0
    assert area.contains(Point(lon + 360, lat))
    assert isinstance(area, Polygon)
