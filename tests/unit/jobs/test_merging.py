"""Images that are merged row by row of tiles: the same bytes as all at once, in memory that does not grow with them."""

import dataclasses
import itertools
import json
import time
import uuid

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationNMS,
    FeatureDistillationNone,
    FeatureDistillationSeam,
    FeatureDistillationSoftNMS,
    SeamMerge,
)
from aws.osml.model_runner.common.channel import Threads
from aws.osml.model_runner.common.memory_budget import MemoryBudget
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.database.feature_table import StoredTile, TileKey
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.exceptions import AggregationTooLargeError, ConservationError
from aws.osml.model_runner.features.encoding import encode_feature, encode_features
from aws.osml.model_runner.features.properties import FeatureOrigin, FeatureStamp, feature_id
from aws.osml.model_runner.features.selection import select
from aws.osml.model_runner.features.tile_spans import TileSpans, bounds_of_tiles
from aws.osml.model_runner.features.tiled_features import TiledFeatures
from aws.osml.model_runner.jobs.merging import MergedImage, distillation_of
from aws.osml.model_runner.jobs.tile_reader import ImageTiles, size_of
from aws.osml.model_runner.tiling.region_plan import TilePlanner, region_id_of
from aws.osml.model_runner.tiling.strategy import VariableOverlapTilingStrategy, VariableTileTilingStrategy
from examples import examples

ALGORITHMS = [
    FeatureDistillationSeam(),
    FeatureDistillationSeam(merge=SeamMerge.UNION, is_class_agnostic=True),
    FeatureDistillationNMS(iou_threshold=0.3),
    FeatureDistillationSoftNMS(sigma=0.3, skip_box_threshold=0.2),
    FeatureDistillationNone(),
]
STRATEGIES = [VariableOverlapTilingStrategy(), VariableTileTilingStrategy()]
WIDTH, HEIGHT, TILE, OVERLAP = 150, 330, 60, 20
PLENTY = 1 << 40


def job_of(options, region_px=100, tile_success=0, **changes):
    return dataclasses.replace(
        JobItem(
            "job:image",
            job_id="job",
            tile_size=str((TILE, TILE)),
            tile_overlap=str((OVERLAP, OVERLAP)),
            region_size=[region_px, region_px],
            processing_bounds=[[7, 3], [WIDTH, HEIGHT]],
            feature_properties=json.dumps([{"mission": "m"}]),
            feature_distillation_option=json.dumps(options.to_dict()),
            tile_success=tile_success,
        ),
        **changes,
    )


def feature(box, score, iri, ordinal):
    return {
        "type": "Feature",
        "geometry": None,
        "properties": {
            "imageBBox": list(box),
            "featureClasses": [{"iri": iri, "score": score}],
            "name": ordinal,
        },
    }


def planned(job, strategy):
    """Return the keys and pixels of all tiles, in order of regions and tiles."""
    planner = TilePlanner(strategy, job.tile_dimensions, job.overlap_dimensions)
    regions = planner.regions(ImageRegion.of(job.processing_bounds), ImageDimensions(*job.region_size))
    return [
        (TileKey(job.image_id, region_id_of(region, "job"), tile.index), tile.bounds)
        for region in regions
        for tile in planner.tiles(region)
    ]


@st.composite
def images(draw):
    """Return (job, strategy, the stored tiles by key): some failed, some outside a region of interest, some empty."""
    strategy = draw(st.sampled_from(STRATEGIES))
    job = job_of(draw(st.sampled_from(ALGORITHMS)), region_px=draw(st.sampled_from([60, 100, 400])))
    places = planned(job, strategy)
    things = []
    for _ in range(draw(st.integers(0, 8))):
        x, y = draw(st.integers(0, WIDTH)), draw(st.integers(0, HEIGHT))
        width, height = (draw(st.sampled_from([3, 10, 25, 70, 200])) for _ in range(2))
        things.append(((x, y, x + width, y + height), draw(st.sampled_from(["ship", "boat"]))))
    tiles = {}
    for key, bounds in places:
        if draw(st.integers(0, 9)) == 0:
            continue
        if draw(st.integers(0, 9)) == 0:
            tiles[key] = StoredTile(key, bounds, TileState.FAILED, [])
            continue
        left, top, right, bottom = bounds_of_tiles([bounds])[0].tolist()
        seen = []
        for box, iri in things:
            if box[0] < right and box[2] > left and box[1] < bottom and box[3] > top:
                cut = (max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom))
                score = draw(st.sampled_from([0.3, 0.5, 0.9]))
                seen.append(feature(cut if draw(st.booleans()) else box, score, iri, len(seen)))
        encoded = encode_features(seen)
        when = f"2026-11-28T00:00:{key.index % 60:02}Z"
        tiles[key] = StoredTile(
            key, bounds, TileState.SUCCEEDED, encoded.bodies, encoded.detections, inference_time=when
        )
    good = sum(tile.state is TileState.SUCCEEDED for tile in tiles.values())
    return dataclasses.replace(job, tile_success=good), strategy, tiles


def merged(job, tiles, stored, memory_bytes=PLENTY, note=lambda: None):
    """Return the merge of these tiles, and what it has read at a time."""
    reads = []

    def read(keys):
        reads.append(len(keys))
        return [stored[key] for key in keys if key in stored]

    budget = MemoryBudget(memory_bytes, time.monotonic, time.sleep)
    with budget.share(note) as memory:
        image = MergedImage(job, tiles, distillation_of(job), read, memory, Threads.of_process(), note)
        batches = list(image)
    bodies = [body for batch in batches for body in batch.bodies]
    ids = [feature_id for batch in batches for feature_id in batch.ids]
    assert (image.kept, image.stored) == (len(bodies), sum(len(tile.features) for tile in stored.values()))
    return bodies, ids, reads


def all_at_once(job, strategy, stored):
    """Return the features that are delivered, by id: one selection of all of them, each created again."""
    planned_tiles = planned(job, strategy)
    rows = sorted({bounds.origin.row for _, bounds in planned_tiles})
    in_order = sorted(planned_tiles, key=lambda place: rows.index(place[1].origin.row))
    tiles = [stored[key] for key, _ in in_order if key in stored and stored[key].state is TileState.SUCCEEDED]
    features = [orjson.loads(body) for tile in tiles for body in tile.features]
    origins = [(tile, ordinal) for tile in tiles for ordinal in range(len(tile.features))]
    arrays = TiledFeatures.of([(tile.bounds, map(orjson.loads, tile.features)) for tile in tiles], features.__getitem__)
    spans = TileSpans.of(bounds_of_tiles(bounds for _, bounds in planned_tiles))
    selection = select(dataclasses.replace(arrays, plan=spans), distillation_of(job))
    stamp = FeatureStamp.from_request("job", [{"mission": "m"}])
    ids = [feature_id("job", tile.key.region_id, tile.key.index, ordinal) for tile, ordinal in origins]
    is_union = json.loads(job.feature_distillation_option).get("merge") == "UNION"
    found = {}
    for index in selection.kept.tolist():
        absorbed = selection.absorbed.get(index, [])
        told = [ids[other] for other in absorbed] if is_union else []
        tile, _ = origins[index]
        origin = FeatureOrigin(ids[index], tile.bounds, len(absorbed), told, tile.inference_time)
        finished = selection.finished(index, features[index], features.__getitem__)
        found[ids[index]] = encode_feature(stamp.finalized(finished, origin))
    return found


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@examples(60)
@given(image=images(), memory_bytes=st.sampled_from([200_000, 100_000]))
def test_merge_row_by_row_equals_merge_at_once(image, memory_bytes):
    job, strategy, stored = image
    tiles = ImageTiles.of(job, strategy, None)
    bodies, ids, _ = merged(job, tiles, stored)
    assert dict(zip(ids, bodies, strict=True)) == all_at_once(job, strategy, stored)
    assert merged(job, tiles, stored, memory_bytes)[:2] == (bodies, ids)
    # Regions were sent without a plan in the row: the stored tiles are the tiles.
    if len(stored) == len(planned(job, strategy)):
        assert merged(job, ImageTiles.stored((key, tile.bounds) for key, tile in stored.items()), stored)[:2] == (
            bodies,
            ids,
        )


def size_of_tiles(stored):
    return sum(size_of(tile.features) for tile in stored.values())


def tall_image(rows, per_tile, options, boxes):
    """Return a job of one column of so many tiles, and its tiles: each reports boxes relative to its own top."""
    job = job_of(options, 200, rows, processing_bounds=[[0, 0], [TILE, OVERLAP + rows * (TILE - OVERLAP)]])
    stored = {}
    for key, bounds in planned(job, STRATEGIES[0]):
        top = bounds.origin.row
        seen = [
            feature((x0, top + y0, x1, top + y1), 0.5, "ship", number)
            for number, (x0, y0, x1, y1) in enumerate(itertools.islice(itertools.cycle(boxes), per_tile))
        ]
        encoded = encode_features(seen)
        stored[key] = StoredTile(key, bounds, TileState.SUCCEEDED, encoded.bodies, encoded.detections)
    return job, stored


@pytest.mark.parametrize("options", ALGORITHMS)
def test_memory_is_bounded_however_many_features_there_are(options):
    job, stored = tall_image(300, 9, options, [(5, 25, 9, 30), (30, 25, 34, 30), (10, 45, 15, 55)])
    bodies, _, reads = merged(job, ImageTiles.of(job, STRATEGIES[0], None), stored, size_of_tiles(stored) // 5)
    assert len(bodies) >= 600
    assert sum(reads) == 300, "each tile is read once"


def test_merge_names_setting_when_group_is_too_large():
    road = FeatureDistillationSeam(merge=SeamMerge.UNION)
    job, stored = tall_image(300, 9, road, [(2, 0, 12, 60)])
    with pytest.raises(AggregationTooLargeError, match="AGGREGATION_MEMORY_BYTES"):
        merged(job, ImageTiles.of(job, STRATEGIES[0], None), stored, size_of_tiles(stored) // 5)


def test_merge_raises_when_tile_is_missing():
    job, stored = tall_image(5, 3, ALGORITHMS[0], [(5, 25, 9, 30)])
    del stored[next(iter(stored))]
    with pytest.raises(ConservationError, match="4 tiles are stored as good, 5 were counted"):
        merged(job, ImageTiles.of(job, STRATEGIES[0], None), stored)


def test_each_batch_and_each_read_is_sign_of_life():
    job, stored = tall_image(30, 200, FeatureDistillationNone(), [(5, 25, 9, 30)])
    signs = []
    _, _, reads = merged(job, ImageTiles.of(job, STRATEGIES[0], None), stored, note=lambda: signs.append(1))
    assert len(signs) >= len(reads) + 3


def test_merge_raises_and_ends_reader_when_stopped():
    job, stored = tall_image(30, 10, FeatureDistillationNone(), [(5, 25, 9, 30)])
    calls = itertools.count()

    def note():
        if next(calls) == 3:
            raise InterruptedError("stop")

    with pytest.raises(InterruptedError):
        merged(job, ImageTiles.of(job, STRATEGIES[0], None), stored, note=note)


def test_ids_are_those_of_earlier_versions():
    job, stored = tall_image(2, 1, FeatureDistillationNone(), [(5, 25, 9, 30)])
    _, ids, _ = merged(job, ImageTiles.of(job, STRATEGIES[0], None), stored)
    assert all(uuid.UUID(one).version == 5 for one in ids)
