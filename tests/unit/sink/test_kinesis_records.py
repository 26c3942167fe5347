"""Features as records, and records as batches that the service takes."""

from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.sink.delivery import Delivery, encode_feature
from aws.osml.model_runner.sink.kinesis_records import Record, batches, may_be_oversize, record_of, refused

records = st.builds(Record, st.integers(0), st.binary(max_size=60), st.text(min_size=1, max_size=10))


@given(items=st.lists(records, max_size=60), max_records=st.integers(1, 20), max_bytes=st.integers(1, 400))
def test_batches_respect_both_limits(items: list[Record], max_records: int, max_bytes: int) -> None:
    made = list(batches(items, max_records, max_bytes))
    assert [record for batch in made for record in batch] == items
    for batch in made:
        assert 1 <= len(batch) <= max_records
        assert len(batch) == 1 or sum(record.size_bytes for record in batch) <= max_bytes


def test_key_counts_by_its_bytes() -> None:
    assert Record(0, b"1234", "é€").size_bytes == 4 + 5


@given(
    job_id=st.text(max_size=300),
    feature_id=st.text(max_size=300),
    properties=st.none() | st.dictionaries(st.text(max_size=5), st.integers(-5, 5) | st.text(max_size=50), max_size=3),
    partition_by=st.sampled_from(["JOB", "FEATURE"]),
    slack=st.integers(-400, 400),
)
def test_too_long_record_is_never_skipped(
    job_id: str, feature_id: str, properties: dict[str, object] | None, partition_by: str, slack: int
) -> None:
    feature = encode_feature({"type": "Feature", "properties": properties})
    record = record_of(job_id, 0, feature_id, feature, partition_by)
    assert may_be_oversize(job_id, feature_id, feature, record.size_bytes + slack) or slack >= 0
    assert not may_be_oversize(job_id, feature_id, feature, len(feature) + 192 + 12 * (len(job_id) + len(feature_id)))


def test_record_names_its_feature_and_job() -> None:
    feature = b'{"type":"Feature","properties":{"job_id":"other","feature_id":"other","a":1}}'
    record = record_of("job", 0, "f", feature, "FEATURE")
    (made,) = orjson.loads(record.data)["features"]
    assert made["properties"] == {"job_id": "job", "feature_id": "f", "a": 1}
    assert record.partition_key == "f"


@pytest.mark.parametrize(("job_id", "key"), [("j" * 300, "j" * 256), ("", "-")])
def test_partition_keys_fit(job_id: str, key: str) -> None:
    assert record_of(job_id, 0, "f", b"{}", "JOB").partition_key == key


def test_refused_entries_are_found_by_index() -> None:
    entries = [{"Data": bytes([n])} for n in range(3)]
    answers = [{"SequenceNumber": "1"}, {"ErrorCode": "InternalFailure"}, {"SequenceNumber": "2"}]
    assert refused(entries, answers) == [{"Data": b"\x01"}]


def test_equal_features_are_equal_bytes() -> None:
    one = encode_feature({"type": "Feature", "properties": {"b": 1, "a": [1.5, (2, 3)]}})
    two = encode_feature({"properties": {"a": (1.5, [2, 3]), "b": 1}, "type": "Feature"})
    assert one == two == b'{"properties":{"a":[1.5,[2,3]],"b":1},"type":"Feature"}'


def test_decimals_are_numbers_and_other_values_are_refused() -> None:
    assert encode_feature({"n": Decimal("0.5")}) == b'{"n":0.5}'
    with pytest.raises(TypeError, match="object"):
        encode_feature({"n": object()})


def test_feature_id_is_own_or_derived_from_geometry() -> None:
    features = [{"properties": {"feature_id": "own"}}, {"properties": None}, {"properties": {"feature_id": 3}}]
    first, again = (Delivery.from_features("job", features) for _ in range(2))
    other = Delivery.from_features("job-2", features)
    assert first == again
    ids = [feature_id for made in (first, other) for batch in made.batches for feature_id in batch.ids]
    assert ids[0] == "own"
    assert len(set(ids)) == 5
