"""Keys of jobs' rows: within DynamoDB's limits, one for each job and image, and readable where that can be."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aws.osml.model_runner.api.job_keys import (
    MAX_IMAGE_ID_BYTES,
    MAX_SORT_KEY_BYTES,
    bounded,
    image_id_of,
    job_id_of_key,
    open_job_key,
)

# Parts that could be confused: separators, beginnings of URLs, hashes.
PARTS = st.sampled_from(["a", "#", "##", ":", "/", "s3://b/k", "https://h/p", "file:///f", ":/x", "é", "0" * 64])
JOB_IDS = st.lists(PARTS, min_size=1, max_size=4).map("".join)
URLS = st.tuples(
    st.sampled_from(["s3://b/", "/", "http://h/"]), st.lists(PARTS, max_size=4).map("".join), st.integers(0, 1_700)
).map(lambda parts: f"{parts[0]}{parts[1]}{'x' * parts[2]}")
IMAGES = st.tuples(JOB_IDS, URLS)


@given(IMAGES, IMAGES)
@example(("a", "/x:/y"), ("a:/x", "/y"))
@example(("a", "s3://b/k:s3://c/d"), ("a:s3://b/k", "s3://c/d"))
def test_two_images_never_share_id(one, other):
    ids = image_id_of(*one), image_id_of(*other)
    assert (ids[0] == ids[1]) == (one == other)
    assert all(len(f"{text}-50".encode()) <= 2_048 for text in ids)


@given(st.tuples(JOB_IDS, st.none() | URLS), st.tuples(JOB_IDS, st.none() | URLS))
@example(("a#s3://b/k", None), ("a", "s3://b/k"))
@example(("a#", "s3://b/k"), ("a##", "s3://b/k"))
def test_keys_of_open_jobs_are_distinct_and_name_their_job(one, other):
    keys = open_job_key(*one), open_job_key(*other)
    assert (keys[0] == keys[1]) == (one == other)
    assert all(len(key.encode()) <= MAX_SORT_KEY_BYTES for key in keys)
    assert job_id_of_key(keys[0]) == one[0]


@given(st.text(max_size=60), st.text(max_size=60), st.integers(80, 100))
def test_bounded_keys_stay_distinct(one, other, max_bytes):
    texts = bounded(one, max_bytes), bounded(other, max_bytes)
    assert (texts[0] == texts[1]) == (one == other)
    assert all(len(text.encode()) <= max_bytes for text in texts)


@pytest.mark.parametrize("job_id", ["job", "a/b", "job#7", "x" * 128, "é" * 128])
def test_usual_ids_can_be_read(job_id):
    assert image_id_of(job_id, "s3://images/a.tif") == f"{job_id}:s3://images/a.tif"
    assert open_job_key(job_id, None) == job_id.replace("#", "##")


def test_longest_that_request_may_name_fits():
    job_id, url = "\U0001f6a2" * 128, "s3://b" + "x" * 1_794
    assert len(image_id_of(job_id, url).encode()) <= MAX_IMAGE_ID_BYTES
    key = open_job_key(job_id, url)
    assert len(key.encode()) <= MAX_SORT_KEY_BYTES
    assert job_id_of_key(key) == job_id
