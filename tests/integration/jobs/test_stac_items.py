"""Jobs whose image is a STAC Item: on S3 and web servers, fixed once planned, and left alone by earlier versions."""

import json

import numpy as np
import pytest

from aws.osml.model_runner.api.image_request import ImageRequest, tile_format_of
from aws.osml.model_runner.api.stac_item import ItemImage
from aws.osml.model_runner.common.typing import ImageFormats
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.exceptions import InvalidImageRequestException, ProcessImageException
from aws.osml.model_runner.raster import write_geotiff
from range_server import RangeServer
from stac_items import CATALOGUES, EPSG, grid, sentinel2, write_assets, write_item

SIZE = 512


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The assets of each catalogue's Item."""
    made = {}
    for name, make in CATALOGUES.items():
        made[name] = tmp_path_factory.mktemp(name)
        write_assets(make(size=SIZE), made[name], SIZE)
    return made


@pytest.fixture
def uploaded(clients, data_plane, folders):
    """Put the files of a catalogue into the bucket, and return their prefix."""

    def upload(name):
        s3, prefix = clients.client("s3"), f"catalogue/{name}"
        for path in folders[name].iterdir():
            s3.upload_file(str(path), data_plane.result_bucket, f"{prefix}/{path.name}")
        return f"s3://{data_plane.result_bucket}/{prefix}"

    return upload


@pytest.fixture
def put_item(clients, data_plane):
    def put(item, key="catalogue/item.json"):
        clients.client("s3").put_object(Bucket=data_plane.result_bucket, Key=key, Body=json.dumps(item).encode())
        return f"s3://{data_plane.result_bucket}/{key}"

    return put


def processed(worker, request):
    worker.image_handler.process_image_request(request)
    worker.work_off()
    return worker.jobs.get_image_request(request.image_id)


# For each catalogue, the changes of a request that choose an image of it, and the assets of that image.
WANTED = {
    "sentinel-2": ({"imageAssets": ["red", "green", "blue"]}, ["red", "green", "blue"]),
    "landsat": ({"imageAssets": ["nir08", "red"], "requesterPays": True}, ["nir08", "red"]),
    "naip": ({}, ["image"]),
    "planet": ({"imageAssets": ["reflectance"]}, ["20240603_101112_12_24a1_3B_AnalyticMS_SR_8b_clip_tif"]),
    "maxar": ({"imageProcessorTileFormat": "JPEG"}, ["visual"]),
}


@pytest.mark.parametrize("place", ["s3", "http"])
@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_items_of_five_catalogues_are_processed(
    new_worker, model_server, folders, uploaded, put_item, catalogue, place
):
    worker = new_worker(ALLOW_REQUESTER_PAYS="True", IMAGE_SOURCES="s3,http" if place == "http" else "s3")
    changes, keys = WANTED[catalogue]
    files = {f"/data/{path.name}": path.read_bytes() for path in folders[catalogue].iterdir()}
    with RangeServer(files) as server:
        if place == "s3":
            base = uploaded(catalogue)
            item = CATALOGUES[catalogue](**({"s3": base} if catalogue == "landsat" else {"base": base}), size=SIZE)
            url = put_item(item)
        else:
            # As relative as the catalogue has them.
            item = CATALOGUES[catalogue](".", size=SIZE)
            for asset in item["assets"].values():
                asset.pop("alternate", None)
            server.files["/data/item.json"] = json.dumps(item).encode()
            url = f"{server.url}/data/item.json"
        tiles = {"imageProcessorTileFormat": "GTIFF"} | changes
        request = worker.request(url, model_server("centerpoint").invocations_url, **tiles)
        job = processed(worker, request)
    assert (job.image_status, job.width, job.height) == ("SUCCESS", SIZE, SIZE), job.message
    image = ItemImage.from_text(job.image_item)
    assert [asset.key for asset in image.assets] == keys
    features = worker.result("job")
    assert len(features) == job.tile_count
    (about,) = features[0]["properties"]["sourceMetadata"]
    assert about["location"] == url
    assert (about["sourceId"], about["sourceDT"]) == (item["id"], item["properties"]["datetime"])
    assert (job.accuracy or {}).get("warning") is None
    assert worker.result_file("job")["modelRunner"]["image"] == url


def test_refusal_lists_every_problem_and_ends_job_before_a_tile(worker, put_item, model_server, statuses, data_plane):
    url = put_item(sentinel2(f"s3://{data_plane.result_bucket}/none"))
    request = worker.request(url, model_server("centerpoint").invocations_url, imageAssets=["B04", "red", "data"])
    with pytest.raises(ProcessImageException) as caught:
        worker.image_handler.process_image_request(request)
    for part in ("imageAssets[0]", '"B04"', "blue, blue-jp2", "imageAssets[2]"):
        assert part in str(caught.value)
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.region_count) == ("FAILED", None)


def test_item_that_changes_after_plan_does_not_change_job(worker, put_item, uploaded, model_server, clients):
    base = uploaded("sentinel-2")
    url = put_item(sentinel2(base, SIZE))
    request = worker.request(
        url, model_server("centerpoint").invocations_url, imageAssets=["red"], imageProcessorTileFormat="GTIFF"
    )
    planned = worker.plan(request)
    put_item({"type": "Feature", "assets": {}})
    worker.work_off()
    job = worker.jobs.get_image_request(request.image_id)
    assert (job.image_status, job.image_item) == ("SUCCESS", planned.image_item)
    # A job that is begun again opens the same assets too.
    worker.jobs.update(
        {"image_id": job.image_id}, "SET image_status = :partial, tile_error = :one", {":partial": "PARTIAL", ":one": 1}
    )
    job = worker.jobs.find(request.image_id)
    assert worker.image_handler.redrive(job, worker.jobs.request_of(job), "again")
    worker.look_after()
    worker.work_off()
    job = worker.jobs.get_image_request(request.image_id)
    assert (job.image_status, job.generation, job.image_item) == ("SUCCESS", 1, planned.image_item)


def test_first_plan_counts_where_two_workers_read_different_items(
    new_worker, put_item, tmp_path, model_server, monkeypatch
):
    first, second = new_worker("first"), new_worker("second")
    for name, size in (("B04", 700), ("B03", 300)):
        write_geotiff(tmp_path / f"{name}.tif", np.ones((1, size, size), np.uint16), grid(10), EPSG)
    item = write_item(sentinel2("."), tmp_path)
    request = first.request(
        item, model_server("centerpoint").invocations_url, imageAssets=["red"], imageProcessorTileFormat="GTIFF"
    )
    fix_plan = first.jobs.fix_plan

    def second_comes_first(planned):
        changed = sentinel2(".")
        changed["assets"]["red"]["href"] = "./B03.tif"
        write_item(changed, tmp_path)
        job = second.outstanding_jobs.find(request)
        second.image_handler.plan_started(job)
        return fix_plan(planned)

    monkeypatch.setattr(first.jobs, "fix_plan", second_comes_first)
    first.image_handler.plan(first.image_handler.accept(request))
    first.work_off()
    job = first.jobs.get_image_request(request.image_id)
    assert (job.image_status, job.width, job.region_count) == ("SUCCESS", 300, 1)
    assert ItemImage.from_text(job.image_item).assets[0].url.endswith("B03.tif")


@pytest.mark.parametrize("asked", [None, {"scale": 0.5}])
def test_rows_are_not_readable_for_earlier_versions(worker, asked):
    changes = {"imageProcessorInput": asked} if asked else {}
    message = worker.message("s3://bucket/item.json", "http://127.0.0.1:9/invocations")
    request = ImageRequest.from_external_message(message | {"imageAssets": ["red"], "requesterPays": True} | changes)
    worker.skip_preflight()
    worker.image_handler.accept(request)
    stored = worker.jobs.get_image_request(request.image_id)
    (opened,) = worker.outstanding_jobs.open_rows()
    assert opened.request.tile_format == request.tile_format
    put = JobItem.from_row(JobItem.from_image_request(request).to_put())
    for found in (stored.image_request(), put.image_request(), worker.jobs.request_of(stored)):
        assert (found.image_assets, found.requester_pays, found.tile_format) == (["red"], True, request.tile_format)
    row = worker.jobs.read({"image_id": request.image_id})
    key = {"endpoint_id": request.model_name, "job_id": request.job_id}
    payload = worker.outstanding_jobs.read(key)["request_payload"]
    for text in (row["tile_format"], payload["tile_format"], request.to_item()["tile_format"]):
        assert tile_format_of(text) == request.tile_format
        # The last version reads a format without this prefix, and those before it the whole text.
        for read in (text, text.removeprefix("PREPARED:")):
            with pytest.raises(ValueError, match="SOURCED:"):
                ImageFormats(read)


@pytest.mark.parametrize(
    ("changes", "field", "expectation"),
    [
        ({"imageUrls": ["s3://one/a.json", "s3://one/a.tif"], "imageAssets": ["red"]}, "imageAssets", "s3://one/a.tif"),
        ({"imageAssets": []}, "imageAssets", "at least 1 items"),
        ({"imageAssets": ["a"] * 33}, "imageAssets", "at most 32 items"),
        ({"imageAssets": ["a", "a"]}, "imageAssets", "each asset once"),
        ({"imageAssets": ["a\n"]}, "imageAssets[0]", "the key or role of an asset"),
        ({"imageAssets": "red"}, "imageAssets", "a list"),
        ({"requesterPays": "yes"}, "requesterPays", "true or false"),
    ],
)
def test_fields_of_request_are_checked(worker, changes, field, expectation):
    message = worker.message("s3://bucket/item.json", "http://127.0.0.1:9/invocations") | changes
    with pytest.raises(InvalidImageRequestException) as caught:
        ImageRequest.from_external_message(message)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert expectation in problem.expectation


def test_requester_pays_only_where_operator_allows_it(new_worker):
    message = {"requesterPays": True}
    worker = new_worker()
    request = worker.request("s3://bucket/a.tif", "http://127.0.0.1:9/invocations", **message)
    with pytest.raises(InvalidImageRequestException, match=r"requesterPays=true.*ALLOW_REQUESTER_PAYS"):
        worker.config.policy.check(request)
    new_worker(ALLOW_REQUESTER_PAYS="True").config.policy.check(request)
