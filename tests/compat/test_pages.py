"""The documentation holds together: links lead somewhere, JSON parses, and what is shown as an example works."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from aws.osml.model_runner.api.image_request_message import parse_image_request_message
from aws.osml.model_runner.api.image_request_schema import ImageRequestMessage, unknown_keys
from aws.osml.model_runner.features.model_response import parse_response
from markdown_pages import fences, links, slugs
from python_scripts import load_script

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PAGES = sorted([*DOCS.rglob("*.md"), *EXAMPLES.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target.read_text()), link


def test_the_index_names_every_page() -> None:
    index = DOCS / "index.md"
    named = {(DOCS / link).resolve() for link in links(index)}
    assert named == {page.resolve() for page in DOCS.rglob("*.md")} - {index.resolve()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_json_in_pages_parses(page: Path) -> None:
    for text in fences(page.read_text(), "json"):
        document = json.loads(text)
        if isinstance(document, dict) and "imageUrls" in document:
            assert parse_image_request_message(text)
        if isinstance(document, list) and "step" in document[0]:
            good = json.loads((EXAMPLES / "image-request.json").read_text())
            assert parse_image_request_message(json.dumps(good | {"postProcessing": document}))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("image-request*.json")), ids=lambda path: path.name)
def test_example_requests_are_valid(path: Path) -> None:
    body = path.read_text()
    requests = parse_image_request_message(body)
    assert [request.image_url for request in requests] == json.loads(body)["imageUrls"]
    assert not any(unknown_keys(ImageRequestMessage(**json.loads(body))))


def test_the_example_model_speaks_the_contract() -> None:
    picture = Image.new("L", (100, 60))
    picture.putpixel((40, 20), 255)
    tile = io.BytesIO()
    picture.save(tile, "PNG")
    found = load_script(EXAMPLES / "model" / "app.py").find_spots(tile.getvalue())
    answer = parse_response(json.dumps({"type": "FeatureCollection", "features": found}).encode())
    assert [feature["properties"]["imageBBox"] for feature in answer.features] == [[32, 16, 48, 32]]
    assert not answer.dropped


@pytest.mark.parametrize("page", ["reference/model-contract.md", "how-to/write-a-model.md"])
def test_answers_in_the_documentation_are_answers(page: str) -> None:
    answers = [text for text in fences((DOCS / page).read_text(), "json") if '"FeatureCollection"' in text]
    assert answers
    for text in answers:
        answer = parse_response(text.encode())
        assert answer.features
        assert not answer.dropped
