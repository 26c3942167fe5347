"""A network in an ONNX file: its input and outputs, and its runs by ONNX Runtime."""

import importlib.util
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aws.osml.model_runner.api.processor_input import MAX_BANDS
from aws.osml.model_runner.common.machine import usable_cores
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError, ConfigurationError

from .tensor_guess import Shape

Tensor = NDArray[Any]

# Protocol buffers, of which an ONNX file is one, end there.
MAX_FILE_BYTES = 2 * 1024**3
# SageMaker waits so long for a response.
RUN_LIMIT_S = 60.0
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
}
# RT-DETR scales its boxes to this size, which is a second input.
_TARGET_SIZES = "orig_target_sizes"


class RunTimeoutError(BadModelResponseError):
    """The network did not end within its limit of time."""


@dataclass(frozen=True)
class NetworkInput:
    """The input of a network. ``size`` is None if width or height is free; ``is_batched``: the batch axis is free."""

    name: str
    bands: int
    size: ImageDimensions | None
    dtype: np.dtype[Any]
    has_batch_axis: bool
    is_batched: bool
    is_bands_last: bool


class Network:
    """An ONNX file that is open. Any thread may call ``run``, and ONNX Runtime uses all cores for each call."""

    def __init__(self, session: Any, network_input: NetworkInput, outputs: Mapping[str, Shape]) -> None:
        self.input = network_input
        self.outputs = outputs
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._session = session
        self._has_target_sizes = len(session.get_inputs()) > 1

    @classmethod
    def open(cls, path: Path) -> "Network":
        """Open a file. Weights in further files are read only from the file's own directory, by ONNX Runtime's rule.

        Raises ConfigurationError: ONNX Runtime is missing, the file is not an ONNX file, or its input is not an image.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise ConfigurationError("onnxruntime is missing: pip install '.[onnx]' in a clone of this project")
        import onnxruntime

        try:
            size_bytes = path.stat().st_size
        except OSError as err:
            raise ConfigurationError(f"{path} cannot be read: {err.strerror}") from err
        if not path.is_file() or not 0 < size_bytes <= MAX_FILE_BYTES:
            raise ConfigurationError(f"{path} is not a file of 1 byte to {MAX_FILE_BYTES // 1024**3} GiB")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 4  # errors are raised
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers)
        except Exception as err:  # ONNX Runtime has a class of its own for each of its status codes
            raise ConfigurationError(f"{path} is not an ONNX file that can be used: {_reason(err)}") from err
        outputs = {output.name: _shape(output.shape) for output in session.get_outputs()}
        return cls(session, _network_input(session, path), outputs)

    def run(self, tensors: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the outputs for each tensor, in the shape of a batch of one; several only if ``input.is_batched``.

        Raises BadModelResponseError if the run fails, or takes longer than ``RUN_LIMIT_S``.
        """
        shape = self.input
        fed = tensors[0] if not shape.has_batch_axis else np.stack(tensors)
        inputs = {shape.name: fed}
        if self._has_target_sizes:
            height, width = tensors[0].shape[:2] if shape.is_bands_last else tensors[0].shape[1:]
            inputs[_TARGET_SIZES] = np.array([[width, height]] * len(tensors), np.int64)
        with _limited() as options:
            try:
                results = self._session.run(None, inputs, options)
            except Exception as err:  # ONNX Runtime has a class of its own for each of its status codes
                if options.terminate:
                    raise RunTimeoutError(f"the network did not end within {RUN_LIMIT_S:.0f} s") from err
                raise BadModelResponseError(f"the network failed: {_reason(err)}") from err
        named = {
            name: value for name, value in zip(self.outputs, results, strict=True) if isinstance(value, np.ndarray)
        }
        if len(tensors) == 1:
            return [named]
        if any(value.shape[:1] != (len(tensors),) for value in named.values()):
            raise BadModelResponseError(f"the network did not return {len(tensors)} entries for as many tiles")
        return [{name: value[index : index + 1] for name, value in named.items()} for index in range(len(tensors))]


@contextmanager
def _limited() -> Iterator[Any]:
    """Yield options of a run that ends at the limit of time; the runtime looks at them between two nodes."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    watch = threading.Timer(RUN_LIMIT_S, setattr, (options, "terminate", True))
    watch.daemon = True
    watch.start()
    try:
        yield options
    finally:
        watch.cancel()


def _network_input(session: Any, path: Path) -> NetworkInput:
    inputs = [each for each in session.get_inputs() if each.name != _TARGET_SIZES]
    described = ", ".join(f"{each.name} {each.type} {each.shape}" for each in session.get_inputs())
    if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) not in (3, 4):
        kinds = ", ".join(name.removeprefix("tensor(").rstrip(")") for name in _TYPES)
        expected = f"one input of 3 or 4 axes and of the type {kinds}"
        raise ConfigurationError(
            f"{path} has the inputs {described or 'none'}; only networks with {expected} can be served"
        )
    sides = _shape(inputs[0].shape)
    has_batch_axis = len(sides) == 4
    batch, axes = (sides[0], sides[1:]) if has_batch_axis else (1, sides)
    # An image has fewer bands than pixels on a side.
    first, last = (MAX_BANDS + 1 if number is None else number for number in (axes[0], axes[2]))
    if first == last or not 1 <= min(first, last) <= MAX_BANDS:
        reason = "neither the first nor the last axis is that of bands"
        raise ConfigurationError(f"{path} has the input {described}: {reason}")
    if batch not in (None, 1):
        raise ConfigurationError(f"{path} has a batch of {batch} in its input {described}: export it with 1, or free")
    is_bands_last = last < first
    bands, (height, width) = (axes[2], axes[:2]) if is_bands_last else (axes[0], axes[1:])
    return NetworkInput(
        name=inputs[0].name,
        bands=bands or 0,
        size=ImageDimensions(width, height) if width and height else None,
        dtype=np.dtype(_TYPES[inputs[0].type]),
        has_batch_axis=has_batch_axis,
        # Outputs may have a free first axis that is not the batch, such as the number of boxes, under another name.
        is_batched=has_batch_axis
        and batch is None
        and all(output.shape and output.shape[0] == inputs[0].shape[0] for output in session.get_outputs()),
        is_bands_last=is_bands_last,
    )


def _shape(axes: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in axes)


def _reason(err: Exception) -> str:
    """Return the first line of an error of ONNX Runtime, without the places in its source."""
    text = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
    return text.rpartition("FAIL : ")[2][:300]
