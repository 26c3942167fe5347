"""The operator's limits on requests."""

import pytest

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.policy import RequestPolicy
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from malformed_requests import GOOD

ROLE = "arn:aws:iam::123456789012:role/osml/reader"


def request(**changes: object) -> ImageRequest:
    return ImageRequest.from_external_message(GOOD | changes)


def fields(policy: RequestPolicy, **changes: object) -> list[str]:
    """Return the fields that are refused."""
    try:
        policy.check(request(**changes))
    except InvalidImageRequestException as err:
        return [problem.field for problem in err.problems]
    return []


@pytest.mark.parametrize(
    ("policy", "changes", "refused"),
    [
        (RequestPolicy(), {}, []),
        (RequestPolicy(), {"imageReadRole": ROLE}, []),
        (RequestPolicy(image_sources={"http"}), {}, ["imageUrls"]),
        (RequestPolicy(image_buckets=["images"]), {}, []),
        (RequestPolicy(image_buckets=["im*s", "other"]), {}, []),
        (RequestPolicy(image_buckets=["image"]), {}, ["imageUrls"]),
        (RequestPolicy(image_buckets=["IMAGES"]), {}, ["imageUrls"]),
        (RequestPolicy(output_buckets=["results"]), {}, []),
        (RequestPolicy(output_buckets=["*-results"]), {}, ["outputs[0].bucket"]),
        (RequestPolicy(output_streams=["none"]), {}, []),
        (
            RequestPolicy(output_streams=["a*"]),
            {"outputs": [{"type": "Kinesis", "stream": "b"}]},
            ["outputs[0].stream"],
        ),
        (RequestPolicy(roles=["arn:aws:iam::123456789012:role/osml/*"]), {"imageReadRole": ROLE}, []),
        (RequestPolicy(roles=["arn:aws:iam::123456789012:role/other/*"]), {"imageReadRole": ROLE}, ["imageReadRole"]),
        (RequestPolicy(), {"imageReadRole": "arn:aws:iam::1:role/r"}, ["imageReadRole"]),
        (RequestPolicy(), {"imageReadRole": "arn:aws:sts::123456789012:assumed-role/r/s"}, ["imageReadRole"]),
        (RequestPolicy(), {"imageReadRole": "arn:aws:iam::123456789012:role/"}, ["imageReadRole"]),
        (RequestPolicy(), {"imageReadRole": "arn:aws-us-gov:iam::123456789012:role/a/b/c"}, []),
    ],
)
def test_policy_allows_only_listed_names(policy: RequestPolicy, changes: dict[str, object], refused: list[str]) -> None:
    assert fields(policy, **changes) == refused


def test_every_problem_is_reported_at_once_with_its_setting() -> None:
    policy = RequestPolicy(image_buckets=["x"], output_buckets=["x"], roles=["x"])
    outputs = [
        {"type": "S3", "bucket": "results", "role": ROLE},
        {"type": "Kinesis", "stream": "s", "assumedRole": ROLE},
    ]
    processor = {"name": "ships", "type": "SM_ENDPOINT", "assumedRole": ROLE}
    with pytest.raises(InvalidImageRequestException) as caught:
        policy.check(request(imageReadRole=ROLE, outputs=outputs, imageProcessor=processor))
    assert [problem.field for problem in caught.value.problems] == [
        "imageUrls",
        "outputs[0].bucket",
        "outputs[0].role",
        "outputs[1].assumedRole",
        "imageReadRole",
        "imageProcessor.assumedRole",
    ]
    for setting in ("IMAGE_BUCKETS", "OUTPUT_BUCKETS", "ASSUMABLE_ROLES"):
        assert setting in str(caught.value)
