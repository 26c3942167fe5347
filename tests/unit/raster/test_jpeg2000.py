"""Headers of JPEG 2000 images, and the memory that decoding would take."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.raster.jpeg2000 import Codestream, codestreams
from aws.osml.model_runner.raster.tiff_tags import OddHeaderError
from security.hostile_images import codestream, jp2

MIB = 2**20


def found(body: bytes) -> list[Codestream]:
    return list(codestreams(lambda offset, count: body[offset : offset + count], len(body)))


def test_codestream_is_found_bare_and_in_box() -> None:
    stream = codestream(1000, 700, 256, 3)
    expected = Codestream(1000, 700, 256, 256, 3, code_block_px=64 * 64)
    assert found(stream) == [expected]
    assert found(jp2(stream)) == [expected]
    assert expected.tile_count == 4 * 3


@pytest.mark.parametrize("body", [b"", b"II*\0", b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x51\x00", jp2(b"")])
def test_other_bytes_have_no_codestream(body: bytes) -> None:
    assert found(body) == []


@pytest.mark.parametrize(
    ("stream", "at_least", "at_most"),
    [
        # an ordinary image of 30,000 x 30,000 pixels in tiles of 1,024
        (codestream(30_000, 30_000, 1024, 3), 10 * MIB, 30 * MIB),
        # measured: OpenJPEG 2.5 takes 620 MB to open the first of these, and 4.9 GB for the second
        (codestream(255 * 64, 257 * 64, 64, 1), 600 * MIB, 800 * MIB),
        (codestream(255 * 64, 257 * 64, 64, 64), 4_500 * MIB, 5_500 * MIB),
        # and 965 MB to decode a window of this one
        (codestream(100_000, 100_000, 100_000, 1), 900 * MIB, 1_200 * MIB),
    ],
)
def test_estimate_is_near_memory_of_decoder(stream: bytes, at_least: int, at_most: int) -> None:
    (header,) = found(stream)
    assert at_least < header.decoder_bytes(len(stream)) < at_most


def test_smaller_code_blocks_and_precincts_take_more() -> None:
    (usual,) = found(codestream(8192, 8192, 8192, 1))
    (small,) = found(codestream(8192, 8192, 8192, 1, code_block=0))
    assert (small.code_block_px, usual.code_block_px) == (16, 4096)
    assert small.decoder_bytes(0) > 100 * usual.decoder_bytes(0)
    precincts = codestream(8192, 8192, 8192, 1).replace(
        struct.pack(">HHB", 0xFF52, 12, 0), struct.pack(">HHB", 0xFF52, 18, 1)
    )
    at = precincts.index(b"\xff\x5c")
    (fine,) = found(precincts[:at] + b"\x11" * 6 + precincts[at:])
    assert fine.precincts_per_px == pytest.approx(sum(0.25**level for level in range(6)) / 4)
    assert fine.decoder_bytes(0) > small.decoder_bytes(0)


def test_single_tile_is_estimated_by_its_size() -> None:
    (header,) = found(codestream(1000, 1000, 1000, 1))
    assert header.decoder_bytes(5 * 2**30) > 5 * 2**30


@given(st.binary(max_size=300), st.integers(0, 120))
def test_any_bytes_have_end(noise: bytes, at: int) -> None:
    stream = jp2(codestream(64, 64, 64, 1))
    with suppress(OddHeaderError):
        for header in found(stream[:at] + noise + stream[at + len(noise) :]):
            assert header.decoder_bytes(300) >= 0
