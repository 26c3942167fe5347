"""Reads an answer's body without trusting its length or its pace."""

from collections.abc import Callable

from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass

from .call_errors import ModelErrorCode

PIECE_BYTES = 64 * 1024


def read_bounded(read1: Callable[[int], bytes], max_bytes: int, deadline_s: float, clock: Callable[[], float]) -> bytes:
    """Read until ``read1`` returns nothing: at most ``max_bytes``, and while ``clock`` is below ``deadline_s``.

    ``read1`` returns what has arrived, up to its argument; so a peer that trickles is noticed piece by piece.

    Raises:
        ModelCallError: permanent when the body is too long, transient when it came too slowly.
    """
    pieces: list[bytes] = []
    size = 0
    while piece := read1(PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            message = f"the model's answer is longer than {max_bytes} bytes"
            raise ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.BAD_RESPONSE)
        if clock() > deadline_s:
            raise ModelCallError("the answer came too slowly", ModelErrorClass.TRANSIENT, ModelErrorCode.TIMEOUT)
    return b"".join(pieces)
