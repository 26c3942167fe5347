"""Bodies of calls by the Open Inference Protocol v2: a tensor of pixels, or an encoded picture, in binary.

The body is a JSON object, and then the bytes of its only input. An HTTP endpoint describes the input itself, see
``ReadMetadata``; SageMaker endpoints are described by the request.
"""

import io
import re
import struct
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from aws.osml.model_runner.api.model_protocol import InputTensor, ModelProtocol
from aws.osml.model_runner.common.typing import EncodedTile
from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass
from aws.osml.model_runner.features.tensor_response import framed

from .call_errors import ModelErrorCode
from .envelopes import CallBody, Envelope, base64_envelope, multipart_envelope, raw_envelope

# Returns the body of a model's metadata; raises ModelCallError.
ReadMetadata = Callable[[], bytes]

# Bytes of the JSON object of a request, for a size that is computed before the tile is known.
_JSON_BYTES = 4 * 1024
_TYPES = {"UINT8": "u1", "UINT16": "<u2", "INT16": "<i2", "FP16": "<f2", "FP32": "<f4"}
_BYTES = "BYTES"
# Size of a padded tensor. The shape is that of the endpoint's own metadata.
MAX_TENSOR_BYTES = 256 * 1024 * 1024


def envelope_of(
    protocol: ModelProtocol, tile_format: str | None, read_metadata: ReadMetadata | None = None
) -> Envelope:
    """Return the envelope of tiles of a format. ``read_metadata`` is None where no metadata exist."""
    match protocol.body:
        case "MULTIPART":
            return multipart_envelope(protocol.field, protocol.template, tile_format)
        case "BASE64_JSON":
            return base64_envelope(protocol.field, protocol.template)
        case "TENSOR" | "IMAGE_TENSOR":
            return tensor_envelope(protocol, read_metadata)
        case _:
            return raw_envelope(tile_format)


def tensor_envelope(protocol: ModelProtocol, read_metadata: ReadMetadata | None) -> Envelope:
    """Return the envelope of ``KSERVE_V2`` or ``KSERVE_V2_IMAGE``.

    Tiles of the first are NumPy files (rows, columns, bands), tiles of the second PNG or JPEG files.
    """
    model = _ModelInput(protocol.tensor, read_metadata, is_picture=protocol.body == "IMAGE_TENSOR")

    def room_in(body_bytes: int, sample_bytes: int) -> int:
        room = max(0, body_bytes - _JSON_BYTES)
        if protocol.body == "IMAGE_TENSOR":
            return room
        # SageMaker alone limits bodies, and its requests name the type.
        return room // np.dtype(_TYPES[protocol.tensor.datatype or "FP32"]).itemsize * sample_bytes

    return Envelope(model.wrapped, room_in)


class _ModelInput:
    """The input of a model, from the request and from the metadata of the endpoint, which are read once."""

    def __init__(self, asked: InputTensor, read_metadata: ReadMetadata | None, *, is_picture: bool) -> None:
        self._asked = asked
        self._read_metadata = read_metadata
        self._is_picture = is_picture

    def wrapped(self, tile: EncodedTile) -> CallBody:
        """Return the body for a tile; raises ModelCallError where the input does not take it."""
        tensor = self._described
        if self._is_picture:
            shape, content = [1] * max(1, len(tensor.shape or ())), struct.pack("<I", len(tile)) + bytes(tile)
        else:
            pixels = _as_input(np.load(io.BytesIO(tile), allow_pickle=False), tensor)
            shape, content = list(pixels.shape), pixels.tobytes()
        head = orjson.dumps(
            {
                "inputs": [
                    {
                        "name": tensor.name,
                        "shape": shape,
                        "datatype": _BYTES if self._is_picture else tensor.datatype,
                        "parameters": {"binary_data_size": len(content)},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        )
        return CallBody(head + content, "application/octet-stream", len(head))

    @cached_property
    def _described(self) -> InputTensor:
        """The input with name, type and shape; those of the request win."""
        asked = self._asked
        is_whole = asked.name is not None and (self._is_picture or asked.datatype is not None)
        if self._read_metadata is None or (is_whole and (asked.shape or asked.layout or self._is_picture)):
            return asked
        described = _input_in(self._read_metadata(), asked.name)
        kept = asked.model_dump(by_alias=True, exclude_unset=True)
        names = ("shape",) if self._is_picture else ("datatype", "shape")
        known = {name: described[name] for name in names if name in described}
        try:
            return InputTensor.model_validate({**known, **kept, "name": described.get("name")})
        except ValueError as err:
            raise _refusal(f"the input {described.get('name')} has a type or a shape that no tile has") from err


def _input_in(body: bytes, name: str | None) -> Mapping[str, Any]:
    """Return the input of a model's metadata: the one of this name, or the only one."""
    try:
        metadata = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise _refusal("the metadata of the model are not valid JSON") from err
    inputs = metadata.get("inputs") if isinstance(metadata, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        raise _refusal("the metadata of the model have no list of inputs")
    names = [str(one.get("name"))[:64] for one in inputs]
    chosen = [one for one in inputs if name is None or one.get("name") == name]
    if len(chosen) != 1:
        wanted = "envelope.tensor.name has to choose one" if name is None else f"none of them is {name}"
        raise _refusal(f"the model has the inputs {', '.join(names[:8]) or 'none'}: {wanted}")
    found: Mapping[str, Any] = chosen[0]
    return found


def _as_input(pixels: NDArray[Any], tensor: InputTensor) -> NDArray[Any]:
    """Return (rows, columns, bands) in the type, the order and the shape of the input.

    A tile that is smaller than the input lies in its upper left corner; the rest is 0.
    """
    dtype = np.dtype(_TYPES[tensor.datatype or "FP32"])
    if dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = _per_band(tensor, pixels.shape[2])
            samples = ((pixels.astype(np.float32) * np.float32(tensor.pixel_scale) - mean) / std).astype(dtype)
    elif np.can_cast(pixels.dtype, dtype):
        samples = pixels.astype(dtype)
    else:
        raise _refusal(
            f"the input {tensor.name} takes {tensor.datatype}, and tiles are {pixels.dtype.name}:"
            " use imageProcessorInput.pixelType"
        )
    return _placed(samples, tensor)


def _per_band(tensor: InputTensor, bands: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each band."""
    for name, numbers in (("mean", tensor.mean), ("std", tensor.std)):
        if len(numbers) not in (1, bands):
            raise _refusal(f"envelope.tensor.{name} has {len(numbers)} numbers, and tiles have {bands} bands")
    return np.array(tensor.mean, np.float32), np.array(tensor.std, np.float32)


def _placed(samples: NDArray[Any], tensor: InputTensor) -> NDArray[Any]:
    """Return samples (rows, columns, bands) in the order and the shape of the input."""
    shape = tensor.shape or (1, -1, -1, -1)
    if len(shape) not in (3, 4):
        raise _refusal(f"the input {tensor.name} has {len(shape)} dimensions instead of 3 or 4")
    rows, columns, bands = samples.shape
    first, middle, last = shape[-3:]
    is_last = tensor.layout == "NHWC" if tensor.layout else last == bands != first
    max_rows, max_columns, taken = (first, middle, last) if is_last else (middle, last, first)
    if taken not in (-1, bands):
        raise _refusal(
            f"the input {tensor.name} {list(shape)} takes {taken} bands, and tiles have {bands}:"
            " use imageProcessorInput.bands"
        )
    below = 0 if max_rows == -1 else max_rows - rows
    right = 0 if max_columns == -1 else max_columns - columns
    if below < 0 or right < 0:
        raise _refusal(
            f"the input {tensor.name} {list(shape)} takes {max_columns} x {max_rows} pixels, and the tile has"
            f" {columns} x {rows}: use imageProcessorTileSize"
        )
    if (rows + below) * (columns + right) * bands * samples.itemsize > MAX_TENSOR_BYTES:
        raise _refusal(f"the input {tensor.name} {list(shape)} has more than {MAX_TENSOR_BYTES} bytes")
    padded = np.pad(samples, ((0, below), (0, right), (0, 0))) if below or right else samples
    ordered: NDArray[Any] = padded if is_last else padded.transpose(2, 0, 1)
    return ordered[np.newaxis] if len(shape) == 4 else ordered


def framed_response(body: bytes, json_length: str | None) -> bytes:
    """Return a response for ``features.tensor_response``; without a length all of it is JSON.

    Raises ModelCallError for a length that is not a number of bytes.
    """
    if json_length is None:
        return framed(body, len(body))
    if not re.fullmatch(r"[0-9]{1,12}", json_length, re.ASCII):
        message = "the length of the JSON in the response is not a whole number"
        raise ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.BAD_RESPONSE)
    return framed(body, int(json_length))


def _refusal(message: str) -> ModelCallError:
    return ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.BAD_REQUEST)
