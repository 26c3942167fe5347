"""A model of the embedded stack that runs an ONNX file: a tile's bytes in, features in pixels of the tile out."""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.model_card import ModelCard, Tensors, parse_card
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError, ConfigurationError, ModelRunnerError
from aws.osml.model_runner.features.detection_tensors import (
    Fit,
    Placement,
    TensorFormat,
    TensorLayout,
    TileDetections,
    placement,
    read_detections,
)
from aws.osml.model_runner.local.image_request import TileSettings
from aws.osml.model_runner.local.models.example_model import BadModelCallError, ModelReply
from aws.osml.model_runner.raster import RasterSettings, open_image
from aws.osml.model_runner.raster.pixels import decode_tile

from .call_batches import CallBatches
from .file_metadata import card_of_metadata, input_sides, stride_of
from .network import Network, RunTimeoutError, Tensor
from .tensor_guess import recognized

Pixels = NDArray[Any]

MAX_BATCH = 16
ONE_TENSOR = (TensorLayout.YOLO_V8, TensorLayout.YOLO_V5, TensorLayout.YOLO_END2END)
# Side of the input of a network that takes any size, in the run that checks it.
_ANY_SIDE_PX = 640
# Ultralytics fills the margins of a letterbox with this grey.
_MARGIN = 114
_DECIMALS = 3


@dataclass(frozen=True)
class OnnxModel:
    """A network, its card, and how its tensors are read. ``name`` is the card's, or the file's."""

    path: Path
    name: str
    card: ModelCard
    network: Network
    tensor_format: TensorFormat
    batches: CallBatches[dict[str, Tensor]]
    stride: int

    @classmethod
    def open(cls, path: Path) -> "OnnxModel":
        """Open an ONNX file, with the card beside it if there is one (``best.json`` for ``best.onnx``), and try it.

        The keys of the card come before the metadata of the file.

        Raises ConfigurationError: the file or the card cannot be used, or the network's tensors cannot be read.
        """
        network, card_file = Network.open(path), card_path(path)
        try:
            described = card_of_metadata(network.metadata)
            sides, stride = input_sides(network.metadata), stride_of(network.metadata)
        except ConfigurationError as err:
            raise ConfigurationError(f"{path}: its metadata has {err}") from err
        try:
            written = card_file.read_bytes() if card_file.exists() else b"{}"
        except OSError as err:
            raise ConfigurationError(f"{card_file} cannot be read: {err.strerror}") from err
        card = parse_card(written, str(card_file if card_file.exists() else path), described)
        given, classes = card.answer.tensors, card.class_names
        input_size = network.input.size or given.input_size or (ImageDimensions(*sides) if sides else None)
        guess = Tensors()
        if given.layout is None:
            try:
                guess = recognized(network.outputs, input_size, max(classes) + 1 if classes else None)
            except ConfigurationError as err:
                raise ConfigurationError(f"{path}: {err}; the card is {card_file}") from err
        elif given.layout in ONE_TENSOR:
            heads = [name for name, shape in network.outputs.items() if len(shape) == 3]
            guess = Tensors(boxes=heads[0]) if len(heads) == 1 else guess
        tensor_format = replace(card.answer.tensor_format(guess, classes), input_size=input_size)
        batches = CallBatches(network.run, MAX_BATCH if network.input.is_batched else 1)
        model = cls(path, card.name or path.stem, card, network, tensor_format, batches, stride)
        model.check()
        return model

    def tile_settings(self) -> TileSettings:
        """Return the tiles that the model takes best: the card's, else as large as its input, an eighth shared."""
        size = self.tensor_format.input_size
        size_px = self.card.tile_size or (max(size) if size else TileSettings.size_px)
        overlap_px = self.card.overlap if self.card.overlap is not None else size_px // 8
        return TileSettings(size_px, overlap_px, self.card.tile_format or TileSettings.tile_format)

    def settings(self) -> dict[str, Any]:
        """Return the settings by which the model server opens the file.

        With the digest of the file and its card, a run continues from a checkpoint only with the same network.
        """
        files = [file for file in (self.path, card_path(self.path)) if file.exists()]
        digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
        return {"path": str(self.path), "digest": hashlib.sha256(digests).hexdigest()}

    def members(self) -> dict[str, Any]:
        """Return the members of an image request that the card has."""
        pixels, steps = self.card.input.pixels(), self.card.post_processing
        return {
            **({"imageProcessorInput": pixels} if pixels else {}),
            **({} if steps is None else {"postProcessing": steps}),
        }

    def check_image(self, image: str, pixels: Mapping[str, Any]) -> None:
        """Raise ConfigurationError if the network does not take the tiles of a file on this machine.

        ``pixels`` is ``imageProcessorInput``. A file that cannot be opened is left to the job, which has the reason.
        """
        path, taken = Path(image).expanduser(), self.network.input
        try:
            with closing(open_image(parse_image_url(str(path.resolve())), RasterSettings())) as source:
                count, data_type = source.band_count, source.data_type.lower()
        except ModelRunnerError:
            return
        if len(pixels.get("bands") or range(count)) != taken.bands:
            advice = (
                f"choose {taken.bands} with --bands, such as --bands {','.join(map(str, range(1, taken.bands + 1)))}"
            )
            raise ConfigurationError(f"{image} has {count} bands, and the network takes {taken.bands}: {advice}")
        own = "uint8" if data_type == "byte" else data_type
        needed = taken.dtype.name if taken.dtype.kind == "u" else "uint8"
        is_any = taken.dtype.kind != "u" and self.card.input.pixel_scale is not None
        if not is_any and str(pixels.get("pixelType", own)).lower() != needed:
            advice = f"add --pixel-type {needed} and a stretch, such as --stretch percentile"
            raise ConfigurationError(f"{image} has samples of {own}, and the network takes {needed}: {advice}")

    def summary(self) -> str:
        """Return the facts of the network that decide how tiles are sent and read, as one line."""
        taken, tensors = self.network.input, self.tensor_format
        size = f"{tensors.input_size.width} x {tensors.input_size.height}" if tensors.input_size else "any size"
        batch = f"up to {self.batches.max_batch} at once" if taken.is_batched else "one at a time"
        names = self.card.class_names
        classes = f"{len(names)} classes" if names else "classes by number"
        return (
            f"{self.name}: {taken.bands} bands of {taken.dtype}, {size}, {batch}; {tensors.layout}, {classes},"
            f" minScore {tensors.min_score:g}, {'no NMS' if tensors.iou is None else f'NMS above {tensors.iou:g}'}"
        )

    def check(self) -> None:
        """Run the network once over a tile without content. Raises ConfigurationError if that fails."""
        size = self.tensor_format.input_size or ImageDimensions(_ANY_SIDE_PX, _ANY_SIDE_PX)
        sample_type = self.network.input.dtype if self.network.input.dtype.kind == "u" else np.uint8
        try:
            self.detections(np.zeros((self.network.input.bands, size.height, size.width), sample_type))
        except (BadModelResponseError, BadModelCallError) as err:
            raise ConfigurationError(f"{self.path} cannot be served: {err}") from err

    def with_query(self, query: Mapping[str, str]) -> "OnnxModel":
        """Return this model. Raises BadModelCallError for a query, because the card has all settings."""
        if query:
            raise BadModelCallError(
                f"the query has {', '.join(query)[:80]}; the settings of an ONNX file are in its card"
            )
        return self

    def reply(self, tile: bytes, attempt: int) -> ModelReply:  # noqa: ARG002 - every attempt gets the same reply
        """Return the detections in an encoded tile, as features.

        Raises BadModelCallError, or ImageError for bytes that are not an image.
        """
        try:
            found = self.detections(decode_tile(tile))
        except RunTimeoutError as err:
            return ModelReply(orjson.dumps({"error": str(err)}), 504)
        except BadModelResponseError as err:
            # A repeated call would fail too.
            return ModelReply(orjson.dumps({"error": str(err)}), 422)
        return ModelReply(orjson.dumps({"type": "FeatureCollection", "features": self._features(found)}))

    def detections(self, pixels: Pixels) -> TileDetections:
        """Return the detections in the pixels (bands, rows, columns) of a tile.

        Raises:
            BadModelCallError: the network does not take such a tile.
            BadModelResponseError: its tensors cannot be read.
        """
        bands, height, width = pixels.shape
        tile_size, network_input = ImageDimensions(width, height), self.network.input
        if bands != network_input.bands:
            expected = f"{network_input.bands}: choose them with bands of imageProcessorInput, or --bands"
            raise BadModelCallError(f"the tile has {bands} bands, and the network takes {expected}")
        size = self.tensor_format.input_size
        if size is None:
            size = ImageDimensions(*(-(-side // self.stride) * self.stride for side in tile_size))
        fit = self.card.answer.tensors.fit
        is_larger = width > size.width or height > size.height
        if fit is None:
            fit = Fit.LETTERBOX if is_larger else Fit.NONE
        elif fit is Fit.NONE and is_larger:
            reason = f"larger than the input of {size.width} x {size.height}, which fit NONE does not allow"
            raise BadModelCallError(f"the tile has {width} x {height} pixels, {reason}")
        placed = _placed(pixels.transpose(1, 2, 0), placement(fit, tile_size, size), size)
        tensor = self._as_tensor(placed)
        outputs = self.batches.call(
            np.ascontiguousarray(tensor if network_input.is_bands_last else tensor.transpose(2, 0, 1))
        )
        return read_detections(outputs, replace(self.tensor_format, input_size=size, fit=fit), tile_size)

    def _as_tensor(self, pixels: Pixels) -> Tensor:
        """Return the samples (rows, columns, bands) in the type of the input."""
        dtype, scale = self.network.input.dtype, self.card.input.pixel_scale
        if dtype.kind == "u":
            if pixels.dtype != dtype:
                reason = f"the network takes {dtype}: choose it with pixelType of imageProcessorInput, or --pixel-type"
                raise BadModelCallError(f"the tile has samples of the type {pixels.dtype}, and {reason}")
            return pixels
        if scale is None:
            if pixels.dtype != np.uint8:
                reason = (
                    "only those of uint8 have a known range: use --pixel-type uint8, or input.pixelScale in the card"
                )
                raise BadModelCallError(f"the tile has samples of the type {pixels.dtype}, and {reason}")
            scale = (1 / 255,)
        pixels = pixels.astype(np.float32) * np.array(scale, np.float32)
        mean, std = (np.array(numbers, np.float32) for numbers in (self.card.input.mean, self.card.input.std))
        return ((pixels - mean) / std).astype(dtype)

    def _features(self, found: TileDetections) -> list[dict[str, Any]]:
        names = self.card.class_names or {}
        metadata = {"modelName": self.name, **({"modelVersion": self.card.version} if self.card.version else {})}
        features = []
        boxes = np.round(found.boxes, _DECIMALS).tolist()
        for (x1, y1, x2, y2), score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True):
            ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
            properties = {
                "imageGeometry": {"type": "Polygon", "coordinates": [ring]},
                "imageBBox": [x1, y1, x2, y2],
                "featureClasses": [{"iri": names.get(label, str(label)), "score": round(score, 5)}],
                "modelMetadata": metadata,
            }
            features.append({"type": "Feature", "geometry": None, "properties": properties})
        return features


def onnx_file(path: Path) -> Path:
    """Return ``path``, or the only ONNX file in it if it is a directory, as SageMaker unpacks a model.

    Raises ConfigurationError for a directory with none or several.
    """
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:10]) or "none"
        raise ConfigurationError(f"{path} must have one file whose name ends in .onnx; it has {found}")
    return files[0]


def card_path(path: Path) -> Path:
    """Return the path of the card beside an ONNX file."""
    return path.with_suffix(".json")


def _placed(pixels: Pixels, where: Placement, size: ImageDimensions) -> Pixels:
    """Return (rows, columns, bands) of the input, into which the pixels of a tile are scaled and placed."""
    height, width, bands = pixels.shape
    scaled_width, scaled_height = (
        max(1, round(side * scale)) for side, scale in zip((width, height), where.scale.tolist(), strict=True)
    )
    if (scaled_width, scaled_height) != (width, height):
        method = cv2.INTER_AREA if scaled_width < width else cv2.INTER_LINEAR
        scaled = cv2.resize(np.ascontiguousarray(pixels), (scaled_width, scaled_height), interpolation=method)
        pixels = scaled.reshape(scaled_height, scaled_width, bands)  # OpenCV omits the axis of a single band
    if (scaled_width, scaled_height) == size:
        return pixels
    left, top = (int(margin) for margin in where.margin)
    canvas = np.full((size.height, size.width, bands), _MARGIN if pixels.dtype == np.uint8 else 0, pixels.dtype)
    canvas[top : top + scaled_height, left : left + scaled_width] = pixels
    return canvas
