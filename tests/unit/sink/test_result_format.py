"""Every format holds the same features, whatever reads it."""

import dataclasses
import gzip
import io
import json
import subprocess
import sys

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import shape

from aws.osml.model_runner.api.sink import OutputCompression, OutputFormat
from aws.osml.model_runner.sink import geoparquet
from aws.osml.model_runner.sink.delivery import Delivery
from aws.osml.model_runner.sink.result_format import ResultFormat, in_parts

GZIP = OutputCompression.GZIP


def features(count):
    rng = np.random.default_rng(count)
    for number, (x, y) in enumerate(rng.uniform(0, 4000, (count, 2)).round(3).tolist()):
        ring = [[x, y, 5.0], [x + 3, y, 5.0], [x + 3, y + 4, 6.0], [x, y, 5.0]]
        geometry = {"type": "Polygon", "coordinates": [[[10 + a / 1e5, 50 - b / 1e5, c] for a, b, c in ring]]}
        yield {
            "type": "Feature",
            "id": f"model-{number}" if number % 5 else number,
            "geometry": geometry if number % 7 else None,
            "properties": {
                "imageBBox": [x, y, x + 3, y + 4],
                "featureClasses": [{"iri": "ship", "score": 0.5}, {"iri": "boat"}] if number % 3 else [],
                "name": "é",
            },
        }


def delivery(count, **options):
    bodies = [json.dumps(one).encode() for one in features(count)]
    return Delivery.of("job", "", bodies, [f"id-{n}" for n in range(count)], **options)


def written(name, given_delivery, compression=OutputCompression.NONE):
    return b"".join(ResultFormat.of(name, compression).pieces(given_delivery))


def test_collection_and_sequence_hold_every_feature():
    expected = list(features(20))
    collection = json.loads(written(OutputFormat.GEOJSON, delivery(20)))
    assert collection == {"type": "FeatureCollection", "features": expected}
    lines = written(OutputFormat.GEOJSONSEQ, delivery(20)).splitlines()
    assert [json.loads(line) for line in lines] == expected


@pytest.mark.parametrize("name", [OutputFormat.GEOJSON, OutputFormat.GEOJSONSEQ])
def test_compressed_text_is_text(name):
    compressed = written(name, delivery(50), GZIP)
    assert gzip.decompress(compressed) == written(name, delivery(50))
    assert compressed == written(name, delivery(50), GZIP)
    assert ResultFormat.of(name, GZIP).extension == f"{ResultFormat.of(name).extension}.gz"


def test_geoparquet_beats_while_rows_are_written(monkeypatch):
    monkeypatch.setattr(geoparquet, "ROWS_PER_GROUP", 40)
    monkeypatch.setattr(geoparquet, "_ROWS_AT_ONCE", 15)
    signs = []
    written(OutputFormat.GEOPARQUET, delivery(100, note=lambda: signs.append(1)))
    assert len(signs) == 3 + 3 + 2


WRITE_A_TABLE = """
import re
from pathlib import Path
from aws.osml.model_runner.sink.delivery import Delivery
from aws.osml.model_runner.sink.geoparquet import parquet_pieces

def data_kb():
    return int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = data_kb()
b"".join(parquet_pieces(Delivery.of("job", "", [b'{"type":"Feature","geometry":null}'], ["id"])))
print(data_kb() - before)
"""


def test_table_reserves_no_memory_that_counts_against_limit_of_process():
    done = subprocess.run([sys.executable, "-c", WRITE_A_TABLE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000


def test_row_groups_are_bounded_by_bytes_too(monkeypatch):
    monkeypatch.setattr(geoparquet, "BYTES_PER_GROUP", 4_000)
    file = pq.ParquetFile(io.BytesIO(written(OutputFormat.GEOPARQUET, delivery(100))))
    assert file.metadata.num_row_groups > 5
    assert file.metadata.num_rows == 100


@pytest.mark.parametrize("name", OutputFormat)
def test_no_features_are_file_too(name):
    body = written(name, delivery(0))
    if name is OutputFormat.GEOPARQUET:
        assert len(geopandas.read_parquet(io.BytesIO(body))) == 0
    else:
        assert body == (b"" if name is OutputFormat.GEOJSONSEQ else b'{"type":"FeatureCollection","features":[]}')


def by_id(rows):
    return {row["feature_id"]: row for row in rows}


def test_geoparquet_holds_same_features_for_pyarrow_and_for_geopandas(monkeypatch):
    monkeypatch.setattr(geoparquet, "ROWS_PER_GROUP", 40)
    body = written(OutputFormat.GEOPARQUET, delivery(100))
    file = pq.ParquetFile(io.BytesIO(body))
    rows = by_id(file.read().to_pylist())
    frame = geopandas.read_parquet(io.BytesIO(body)).set_index("feature_id")
    assert frame.crs == "OGC:CRS84"
    assert file.metadata.num_row_groups == 3
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert len(rows) == len(frame) == 100
    for number, one in enumerate(features(100)):
        row, place = rows[f"id-{number}"], one["geometry"]
        assert json.loads(row["properties"]) == one["properties"]
        assert row["id"] == str(one["id"])
        assert (row["iri"], row["score"]) == (("ship", 0.5) if number % 3 else (None, None))
        if place is None:
            assert row["geometry"] is row["bbox"] is frame.loc[f"id-{number}"].geometry is None
            continue
        expected = shape(place)
        assert shapely.from_wkb(row["geometry"]).equals_exact(expected)
        assert frame.loc[f"id-{number}"].geometry.equals_exact(expected)
        assert tuple(row["bbox"].values()) == expected.bounds


def test_geoparquet_describes_its_columns():
    metadata = pq.ParquetFile(io.BytesIO(written(OutputFormat.GEOPARQUET, delivery(30)))).metadata.metadata
    geo = json.loads(metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon Z"])
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    places = [shape(one["geometry"]).bounds for one in features(30) if one["geometry"]]
    assert column["bbox"] == [*np.min(places, axis=0)[:2], *np.max(places, axis=0)[2:]]


def test_part_of_map_is_read_without_rest(monkeypatch):
    monkeypatch.setattr(geoparquet, "ROWS_PER_GROUP", 50)
    frame = geopandas.read_parquet(
        io.BytesIO(written(OutputFormat.GEOPARQUET, delivery(400))), bbox=(10.0, 49.98, 10.02, 50.0)
    )
    box = shapely.box(10.0, 49.98, 10.02, 50.0)
    expected = {
        f"id-{n}" for n, one in enumerate(features(400)) if one["geometry"] and shape(one["geometry"]).intersects(box)
    }
    assert set(frame["feature_id"]) == expected
    assert 0 < len(expected) < 400


def test_geoparquet_is_same_bytes_every_time():
    assert written(OutputFormat.GEOPARQUET, delivery(60)) == written(OutputFormat.GEOPARQUET, delivery(60))


def test_hilbert_curve_visits_adjacent_cells():
    side = 16
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2).astype(float)
    walk = places[geoparquet.hilbert_order(places)]
    assert np.abs(np.diff(walk, axis=0)).sum(axis=1).tolist() == [1] * (side * side - 1)


def test_features_without_geometry_are_last():
    places = np.array([[np.nan, np.nan], [3.0, 4.0], [np.nan, np.nan], [0.0, 0.0]])
    assert geoparquet.hilbert_order(places).tolist() == [3, 1, 0, 2]
    assert geoparquet.hilbert_order(places[:1]).tolist() == [0]


@given(
    features=st.lists(st.binary(max_size=40), max_size=40),
    part_bytes=st.integers(1, 200),
)
def test_parts_are_whole(features, part_bytes):
    parts = list(in_parts(features, part_bytes))
    assert b"".join(parts) == b"".join(features)
    assert all(len(part) >= part_bytes for part in parts[:-1])


def test_file_states_covered_share_of_image(tmp_path):
    about = {"modelRunner": {"status": "PARTIAL", "tiles": {"failed": 8}}}
    whole = dataclasses.replace(delivery(1), members=lambda: about)
    collection = json.loads(written(OutputFormat.GEOJSON, whole))
    assert (len(collection["features"]), collection["modelRunner"]) == (1, about["modelRunner"])
    metadata = pq.read_metadata(io.BytesIO(written(OutputFormat.GEOPARQUET, whole))).metadata
    assert json.loads(metadata[b"modelRunner"]) == about["modelRunner"]
    path = tmp_path / "a.geojson"
    path.write_bytes(written(OutputFormat.GEOJSON, whole))
    assert len(geopandas.read_file(path)) == 1
