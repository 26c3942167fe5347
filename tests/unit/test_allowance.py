"""What an operator allows requests to reach."""

import pytest

from aws.osml.model_runner.api.allowance import Allowance
from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from unit.malformed_requests import GOOD

ROLE = "arn:aws:iam::123456789012:role/osml/reader"


def request(**changes: object) -> ImageRequest:
    return ImageRequest.from_external_message(GOOD | changes)


def fields(allowance: Allowance, **changes: object) -> list[str]:
    """Return the fields that are refused."""
    try:
        allowance.check(request(**changes))
    except InvalidImageRequestException as err:
        return [problem.field for problem in err.problems]
    return []


@pytest.mark.parametrize(
    ("allowance", "changes", "refused"),
    [
        (Allowance(), {}, []),
        (Allowance(), {"imageReadRole": ROLE}, []),
        (Allowance(image_sources={"http"}), {}, ["imageUrls"]),
        (Allowance(image_buckets=["images"]), {}, []),
        (Allowance(image_buckets=["im*s", "other"]), {}, []),
        (Allowance(image_buckets=["image"]), {}, ["imageUrls"]),
        (Allowance(image_buckets=["IMAGES"]), {}, ["imageUrls"]),
        (Allowance(output_buckets=["results"]), {}, []),
        (Allowance(output_buckets=["*-results"]), {}, ["outputs[0].bucket"]),
        (Allowance(output_streams=["none"]), {}, []),
        (Allowance(output_streams=["a*"]), {"outputs": [{"type": "Kinesis", "stream": "b"}]}, ["outputs[0].stream"]),
        (Allowance(roles=["arn:aws:iam::123456789012:role/osml/*"]), {"imageReadRole": ROLE}, []),
        (Allowance(roles=["arn:aws:iam::123456789012:role/other/*"]), {"imageReadRole": ROLE}, ["imageReadRole"]),
        (Allowance(), {"imageReadRole": "arn:aws:iam::1:role/r"}, ["imageReadRole"]),
        (Allowance(), {"imageReadRole": "arn:aws:sts::123456789012:assumed-role/r/s"}, ["imageReadRole"]),
        (Allowance(), {"imageReadRole": "arn:aws:iam::123456789012:role/"}, ["imageReadRole"]),
        (Allowance(), {"imageReadRole": "arn:aws-us-gov:iam::123456789012:role/a/b/c"}, []),
    ],
)
def test_what_is_named_has_to_be_allowed(allowance: Allowance, changes: dict[str, object], refused: list[str]) -> None:
    assert fields(allowance, **changes) == refused


def test_every_problem_is_told_at_once_with_its_setting() -> None:
    allowance = Allowance(image_buckets=["x"], output_buckets=["x"], roles=["x"])
    outputs = [
        {"type": "S3", "bucket": "results", "role": ROLE},
        {"type": "Kinesis", "stream": "s", "assumedRole": ROLE},
    ]
    processor = {"name": "ships", "type": "SM_ENDPOINT", "assumedRole": ROLE}
    with pytest.raises(InvalidImageRequestException) as caught:
        allowance.check(request(imageReadRole=ROLE, outputs=outputs, imageProcessor=processor))
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
