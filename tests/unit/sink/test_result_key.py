"""The key of a result: below its prefix whatever the job is called, and each job's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.sink.exceptions import SinkPermanentError
from aws.osml.model_runner.sink.result_key import result_key
from examples import examples

PREFIXES = ["", "results", "results/", "a/b.c/d", "a..b", ".hidden"]
JOB_IDS = st.text(min_size=1, max_size=60) | st.text("ab/.%:-_ ~", max_size=8)


@pytest.mark.parametrize(
    ("prefix", "job_id", "result_name", "key"),
    [
        ("results", "job-1", "", "results/job-1.geojson"),
        ("results/", "job-1", "", "results/job-1.geojson"),
        ("", "job-1", "", "job-1.geojson"),
        ("a/b", "Job_1.2:3", "", "a/b/Job_1.2:3.geojson"),
        ("r", "a/b", "", "r/a%2Fb.geojson"),
        ("r", "a b%", "", "r/a%20b%25.geojson"),
        ("r", "..", "", "r/%2E%2E.geojson"),
        ("r", "job", "image.tif", "r/job/image.tif.geojson"),
        ("r", "job", "image%20one.tif", "r/job/image%2520one.tif.geojson"),
        ("r", "job", "image one.tif", "r/job/image%20one.tif.geojson"),
        ("r", "job", "..", "r/job/%2E%2E.geojson"),
        ("r", "a/b", "x", "r/a%2Fb/x.geojson"),
        ("r", "é", "", "r/%C3%A9.geojson"),
    ],
)
def test_keys(prefix: str, job_id: str, result_name: str, key: str) -> None:
    assert result_key(prefix, job_id, result_name) == key


@pytest.mark.parametrize("prefix", ["/", "/a", "..", "a/../b", "a/..", "../a", "a/./b", "a\nb", "a\x00", "\x7f"])
def test_escaping_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(SinkPermanentError):
        result_key(prefix, "job")


def test_key_that_s3_does_not_take_is_refused() -> None:
    with pytest.raises(SinkPermanentError, match="1024"):
        result_key("p", "j" * 1020)


@examples(200)
@given(prefix=st.sampled_from(PREFIXES), job_ids=st.lists(JOB_IDS, min_size=2, max_size=20, unique=True))
def test_keys_are_distinct_and_below_prefix(prefix: str, job_ids: list[str]) -> None:
    keys = [result_key(prefix, job_id) for job_id in job_ids]
    assert len(set(keys)) == len(job_ids)
    for key in keys:
        assert key.startswith(prefix)
        assert ".." not in key.removeprefix(prefix).removesuffix(".geojson").split("/")
        assert key.removeprefix(prefix).strip("/").count("/") == 0
