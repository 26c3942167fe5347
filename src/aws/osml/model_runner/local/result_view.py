"""The page of a result file: reads the result, and the image where it is at hand."""

import gzip
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.stac_item import MAX_ITEM_BYTES, AssetChoice, image_of, is_item_url, parse_item
from aws.osml.model_runner.exceptions import ConfigurationError, ImageError, ModelRunnerError
from aws.osml.model_runner.raster import (
    ImageSource,
    RasterSettings,
    configure_gdal,
    open_image,
    overview_picture,
    overview_pixels,
    place_grid,
    preview_picture,
)
from aws.osml.model_runner.raster.open_images import Access, OpenImages
from aws.osml.model_runner.view import Layer, Picture, Places, ResultView, page_of
from aws.osml.model_runner.view.columns import parts_of

Features = list[Mapping[str, Any]]
_SUFFIXES = ".geojson, .json, .geojsonl, .parquet, and .gz of the first three"


def read_result(path: Path) -> tuple[Features, dict[str, Any]]:
    """Return the features of a result file, and its other members.

    Raises:
        ConfigurationError: the file cannot be read, or is not a result.
    """
    try:
        body = path.read_bytes()
        kind = path.suffix
        if kind == ".gz":
            body, kind = gzip.decompress(body), Path(path.stem).suffix
        if kind == ".parquet":
            return _parquet(body)
        if kind == ".geojsonl":
            document = {"features": [orjson.loads(line) for line in body.splitlines() if line.strip()]}
        elif kind in (".geojson", ".json"):
            document = orjson.loads(body)
        else:
            raise ConfigurationError(f"{path}: expected a file with one of the suffixes {_SUFFIXES}")
    except OSError as err:
        raise ConfigurationError(f"{path} cannot be read: {err.strerror or err}") from err
    except (ValueError, EOFError, zlib.error) as err:
        raise ConfigurationError(f"{path} is not a feature collection: {err}") from err
    features = document.pop("features", None) if isinstance(document, dict) else None
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise ConfigurationError(f"{path} is not a feature collection: it has no list of features")
    return features, document


def write_view(
    result: Path,
    output: Path,
    image: str | None = None,
    before: Path | None = None,
    coverage: Path | None = None,
    assets: Sequence[str] | None = None,
    preview: Path | None = None,
) -> list[str]:
    """Write the page of ``result`` to ``output``; return notes on what it lacks.

    ``image`` is the path or URL of the image; without it, the file that the result names is taken, if it exists.
    ``before`` is a result of the same job that is not merged. ``coverage`` is the coverage file of the job; that of
    another job is not shown. ``assets`` are the assets of a STAC Item; by default those of the first feature.
    ``preview`` is the path of a PNG of the image with the outlines of the features, which is written too.

    Raises:
        ConfigurationError: a file cannot be read or written.
    """
    features, members = read_result(result)
    layers = [Layer("detections", features)]
    if before is not None:
        layers.append(Layer("before merging", read_result(before)[0]))
    run = members.get("modelRunner") or {}
    named = str(run.get("image") or "")
    is_named = image is None and named.startswith("/") and Path(named).is_file()
    if is_named:
        image = named
    notes: list[str] = []
    size, picture, places = None, None, None
    if image is None:
        notes.append("the image is not at hand, so the page has no picture: name it with --image")
    else:
        configure_gdal(RasterSettings(), os.environ)
        try:
            with _opened(_absolute(image), assets or _assets_of(features)) as source:
                size = (source.width, source.height)
                grid = place_grid(source)
                places = None if grid is None else Places(grid)
                overview = overview_pixels(source)
                picture = Picture(overview_picture(overview))
                if preview is not None:
                    preview.write_bytes(preview_picture(overview, size, _outlines(features)))
        except (ImageError, ModelRunnerError, RuntimeError) as err:
            if size is None and not is_named:
                raise ConfigurationError(f"--image {image}: {err}") from err
            notes.append(str(err))
    tiles: Features = []
    if coverage is not None:
        tiles, about = read_result(coverage)
        job_id = (about.get("modelRunner") or {}).get("jobId")
        if job_id not in (None, run.get("jobId", job_id)):
            tiles = []
            notes.append(f"{coverage} is the coverage of job {job_id}, so the page does not show it")
    view = ResultView(
        title=str(run.get("jobId") or result.stem),
        layers=layers,
        size=size,
        members=members,
        picture=picture,
        places=places,
        coverage=tiles,
    )
    try:
        output.write_bytes(page_of(view))
    except OSError as err:
        raise ConfigurationError(f"{output} cannot be written: {err.strerror}") from err
    return notes


@contextmanager
def _opened(url: str, assets: Sequence[str] | None) -> Iterator[ImageSource]:
    """Open an image; of a STAC Item, these assets."""
    settings = RasterSettings()
    if not is_item_url(url):
        with closing(open_image(parse_image_url(url), settings)) as source:
            yield source
        return
    images = OpenImages(settings, ("file", "http"), lambda _role: None)
    with closing(images):
        item = image_of(parse_item(images.read_file(url, MAX_ITEM_BYTES)), url, AssetChoice(assets), images.allow)
        with images.lend_item(item, lambda _bucket: Access()) as source:
            yield source


def _assets_of(features: Features) -> Sequence[str] | None:
    """Return the assets of a STAC Item that the first feature names."""
    stated = ((feature.get("properties") or {}).get("sourceMetadata") for feature in features[:1])
    return next((about[0].get("assets") for about in stated if about), None)


def _outlines(features: Features) -> Iterator[Sequence[Sequence[float]]]:
    for feature in features:
        for kind, points in parts_of((feature.get("properties") or {}).get("imageGeometry")):
            yield from ([point[:2]] for point in points) if kind == 0 else [[point[:2] for point in points]]


def _absolute(image: str) -> str:
    return image if "://" in image else str(Path(image).expanduser().resolve())


def _parquet(body: bytes) -> tuple[Features, dict[str, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import ArrowInvalid, parquet
    except ImportError as err:
        raise ConfigurationError("a .parquet result needs pyarrow: pip install 'tile-model-runner[parquet]'") from err
    try:
        file = parquet.ParquetFile(pa.BufferReader(body))
        rows = file.read(columns=["id", "properties"]).to_pylist()
    except ArrowInvalid as err:
        raise ValueError(str(err)) from err
    metadata = {key.decode(): value for key, value in (file.schema_arrow.metadata or {}).items()}
    members = {"modelRunner": orjson.loads(metadata["modelRunner"])} if "modelRunner" in metadata else {}
    return [{"id": row["id"], "properties": orjson.loads(row["properties"] or "{}")} for row in rows], members
