"""Tiles in the bands, range and type of a model, cut by GDAL from real files and compared with NumPy."""

from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import InvalidImageRequestException, TileEncodingError
from aws.osml.model_runner.raster import (
    RasterSettings,
    TileEncoder,
    decode_tile,
    image_to_world,
    open_image,
    prepare,
    tile_parts,
)
from aws.osml.model_runner.raster.band_samples import MAX_SAMPLES_SIDE, valid_samples, windows_of
from aws.osml.model_runner.raster.sensor_model import build_sensor_model
from aws.osml.model_runner.raster.tile_parts import MAX_PART_BYTES
from aws.osml.model_runner.raster.tile_pixels import PreparedPixels
from raster_files import UTM_31N, pattern, place, rpc_metadata, translated, write_image

SETTINGS = RasterSettings()
TILES = [ImageRegion.of((origin, (256, 256))) for origin in ((0, 0), (44, 200), (132, 344), (45, 201), (131, 300))]
RGB = {"bands": ["nir", 3, 2], "stretch": {"type": "PERCENTILE"}, "pixelType": "UINT8"}
SIZE = (388, 600)


@pytest.fixture(scope="module")
def pixels():
    """Eight bands of 11 bits with a corner of zeros, which are declared not valid."""
    values = np.random.default_rng(1).gamma(4.0, 120.0, (8, *SIZE)).clip(1, 2047).astype(np.uint16)
    values[:, :90, :120] = 0
    return values


@pytest.fixture(scope="module", params=["GTiff", "NITF"])
def source(request, tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("eight") / "bands"
    options = ("TILED=YES",) if request.param == "GTiff" else ("IC=NC",)
    write_image(path, pixels, request.param, options, UTM_31N, 32631)
    if request.param == "GTiff":
        dataset = gdal.Open(str(path), gdal.GA_Update)
        dataset.GetRasterBand(5).SetDescription("NIR")
        for number in range(8):
            dataset.GetRasterBand(number + 1).SetNoDataValue(0)
        del dataset
    opened = open_image(place(path), SETTINGS)
    yield opened
    opened.close()


def asked(**keys):
    return ProcessorInput.model_validate(keys)


def encoder_of(source, tile_format, **keys):
    encoder = TileEncoder(source, tile_format, preparation=prepare(source, asked(**keys)))
    encoder.check()
    return encoder


def part(pixels, tile):
    (row, col), (width, height) = tile
    return pixels[..., row : row + height, col : col + width]


def stretched(values, low, high):
    return np.clip(np.round((values.astype(float) - low) / (high - low) * 255), 0, 255)


@pytest.mark.parametrize("tile_format", ["GTIFF", "NITF", "PNG"])
def test_tile_pixels_equal_those_of_numpy(source, pixels, tile_format):
    is_declared = source.driver_name == "GTIFF"
    encoder = encoder_of(source, tile_format, **RGB | {"bands": [5, 3, 2], "nodataFill": 9})
    for tile in TILES:
        decoded = decode_tile(bytes(encoder.encode(tile)))
        assert (decoded.shape, decoded.dtype) == ((3, 256, 256), np.uint8)
        for layer, band in zip(decoded, (5, 3, 2), strict=True):
            values = pixels[band - 1]
            limits = np.percentile(values[values > 0] if is_declared else values, [2, 98])
            expected = stretched(part(values, tile), *limits)
            if is_declared:
                expected[part(values, tile) == 0] = 9
            assert np.abs(layer - expected).max() <= 1


@pytest.mark.parametrize("tile_format", ["GTIFF", "PNG"])
def test_pixels_that_two_tiles_share_are_same_in_both(source, tile_format):
    encoder = encoder_of(source, tile_format, **RGB | {"bands": [5, 3, 2]})
    decoded = [decode_tile(bytes(encoder.encode(tile))) for tile in TILES]
    for first, second in ((0, 1), (1, 2), (1, 3), (2, 4)):
        (r1, c1), (r2, c2) = TILES[first].origin, TILES[second].origin
        row, col = max(r1, r2), max(c1, c2)
        height, width = min(r1, r2) + 256 - row, min(c1, c2) + 256 - col
        one, other = (
            pixels[:, row - r : row - r + height, col - c : col - c + width]
            for pixels, (r, c) in ((decoded[first], (r1, c1)), (decoded[second], (r2, c2)))
        )
        assert one.size
        assert np.array_equal(one, other)


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
def test_tiles_carry_bands_and_georeference_but_no_other_pixels(source, tmp_path):
    encoder = encoder_of(source, "GTIFF", **RGB)
    for number, tile in enumerate(TILES):
        (tmp_path / f"{number}.tif").write_bytes(encoder.encode(tile))
        dataset = gdal.Open(str(tmp_path / f"{number}.tif"))
        x, y = gdal.ApplyGeoTransform(UTM_31N, tile.origin.col, tile.origin.row)
        assert dataset.GetGeoTransform() == (x, 0.5, 0.0, y, 0.0, -0.5)
        assert dataset.GetSpatialRef().GetAuthorityCode(None) == "32631"
        band = dataset.GetRasterBand(1)
        assert (band.GetDescription(), band.GetNoDataValue()) == ("NIR", None)


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
@pytest.mark.parametrize("keys", [{}, {"pixelType": "UINT16"}, {"bands": [4, 4, 1]}], ids=str)
def test_values_are_unchanged_when_no_scaling_is_requested(source, pixels, keys):
    bands = keys.get("bands", range(1, 9))
    decoded = decode_tile(bytes(encoder_of(source, "GTIFF", **keys).encode(TILES[1])))
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, part(pixels[[band - 1 for band in bands]], TILES[1]))


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
def test_format_has_to_hold_prepared_tile_not_image(source):
    with pytest.raises(TileEncodingError, match=r"8 band\(s\) of UInt16"):
        TileEncoder(source, "PNG").check()
    with pytest.raises(TileEncodingError, match=r"3 band\(s\) of Float32"):
        encoder_of(source, "PNG", **RGB | {"pixelType": "FLOAT32"})


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
def test_unknown_band_is_refused_with_names_of_bands(source):
    with pytest.raises(
        InvalidImageRequestException, match=r'bands\[0\]="swir": a band of the image: 1 \(Gray\), 2, .*NIR'
    ):
        prepare(source, asked(bands=["swir"]))


ALGORITHMS = {"NEAREST": "near", "BILINEAR": "bilinear", "CUBIC": "cubic", "AVERAGE": "average"}


@pytest.mark.parametrize("resampling", ALGORITHMS)
@pytest.mark.parametrize("scale", [0.5, 0.37, 2.6])
def test_scaled_tiles_are_what_gdal_makes_of_image(tmp_path, pixels, resampling, scale):
    path = write_image(tmp_path / "valid.tif", pixels[:3, 90:])
    opened = open_image(place(path), SETTINGS)
    encoder = encoder_of(opened, "GTIFF", scale=scale, resampling=resampling)
    side = min(100, int(298 * scale))
    window = {"srcWin": [0, 0, side / scale, side / scale], "width": side, "height": side}
    made = translated(path, tmp_path / "made.tif", resampleAlg=ALGORITHMS[resampling], **window)
    expected = gdal.Open(str(made)).ReadAsArray().astype(int)
    found = decode_tile(bytes(encoder.encode(ImageRegion.of(((0, 0), (side, side))))))
    # GDAL does not read beyond the window.
    inside = np.s_[:, : side - 5, : side - 5]
    assert np.abs(found[inside] - expected[inside]).max() <= 1
    opened.close()


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
@pytest.mark.parametrize("resampling", ALGORITHMS)
@pytest.mark.parametrize("scale", [0.05, 0.3, 0.77, 1.9])
def test_pixels_that_scaled_tiles_share_are_same_in_both(source, resampling, scale):
    encoder = encoder_of(source, "GTIFF", **RGB | {"scale": scale, "resampling": resampling})
    width, height = round(SIZE[1] * scale), round(SIZE[0] * scale)
    whole = decode_tile(bytes(encoder.encode(ImageRegion.of(((0, 0), (width, height))))))
    for row, col in ((0, 1), (1, 0), (height // 3, width // 2), (height // 2, width // 3)):
        rows, columns = min(50, height - row), min(60, width - col)
        part = decode_tile(bytes(encoder.encode(ImageRegion.of(((row, col), (columns, rows))))))
        assert np.array_equal(part, whole[:, row : row + rows, col : col + columns])


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
@pytest.mark.parametrize("keys", [{"scale": 0.4}, {"gsd": 1.25}, {"scale": 3}], ids=str)
def test_scaled_tiles_carry_georeference_of_their_own_pixels(source, tmp_path, keys):
    step = 0.5 / keys["scale"] if "scale" in keys else 1.25
    width, height = round(SIZE[1] * 0.5 / step), round(SIZE[0] * 0.5 / step)
    row, col = height - 100, width - 120
    tile = ImageRegion.of(((row, col), (120, 100)))
    with pytest.raises(TileEncodingError, match="not inside"):
        encoder_of(source, "GTIFF", **keys).encode(ImageRegion.of(((height - 99, 0), (100, 100))))
    (tmp_path / "tile.tif").write_bytes(encoder_of(source, "GTIFF", **keys).encode(tile))
    left, _, _, top, _, _ = UTM_31N
    transform = gdal.Open(str(tmp_path / "tile.tif")).GetGeoTransform()
    assert transform == pytest.approx((left + col * step, step, 0, top - row * step, 0, -step))
    (tmp_path / "tile.ntf").write_bytes(encoder_of(source, "NITF", **keys).encode(tile))
    model = build_sensor_model(gdal.Open(str(tmp_path / "tile.ntf")), SETTINGS)
    corners = np.array([[0, 0], [120, 0], [120, 100], [0, 100]], dtype=float)
    expected = image_to_world(source.sensor_model)((corners + np.array([col, row])) * step / 0.5)
    # A NITF has its corners in whole seconds.
    assert np.abs(image_to_world(model)(corners) - expected)[:, :2].max() < 1 / 3600


def test_rpc_of_scaled_tile_leads_to_same_places(tmp_path):
    path = write_image(tmp_path / "rpc.tif", pattern(1, 600, 800), rpc=rpc_metadata())
    source = open_image(place(path), SETTINGS)
    tile = ImageRegion.of(((100, 60), (120, 90)))
    (tmp_path / "tile.tif").write_bytes(encoder_of(source, "GTIFF", scale=0.4).encode(tile))
    model = build_sensor_model(gdal.Open(str(tmp_path / "tile.tif")), SETTINGS)
    corners = np.array([[0, 0], [120, 0], [60.5, 33], [0, 90]], dtype=float)
    expected = image_to_world(source.sensor_model)((corners + np.array([60, 100])) / 0.4)
    assert np.abs(image_to_world(model)(corners) - expected)[:, :2].max() < 1e-9
    source.close()


def test_overviews_are_read_below_scale_of_image_except_for_nearest_pixel(tmp_path):
    path = write_image(tmp_path / "image.tif", np.full((2, 400, 600), 100, np.uint16), options=("TILED=YES",))
    dataset = gdal.Open(str(path), gdal.GA_Update)
    dataset.BuildOverviews("AVERAGE", [2, 4])
    for number, value in ((0, 200), (1, 300)):
        for band in (1, 2):
            overview = dataset.GetRasterBand(band).GetOverview(number)
            overview.WriteArray(np.full((overview.YSize, overview.XSize), value, np.uint16))
    del dataset
    source = open_image(place(path), SETTINGS)
    tile = ImageRegion.of(((0, 0), (30, 20)))
    for scale, value in ((0.51, 100), (0.5, 200), (0.3, 200), (0.25, 300), (0.05, 300), (2, 100)):
        assert np.unique(decode_tile(bytes(encoder_of(source, "GTIFF", scale=scale).encode(tile)))).tolist() == [value]
    nearest = encoder_of(source, "GTIFF", scale=0.25, resampling="NEAREST")
    assert np.unique(decode_tile(bytes(nearest.encode(tile)))).tolist() == [100]
    source.close()


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
def test_tile_that_is_made_from_too_much_of_image_is_refused(source):
    small = open_image(source.location, RasterSettings(max_tile_bytes=2_000))
    encoder = TileEncoder(small, "GTIFF", preparation=prepare(small, asked(bands=[1], scale=0.05)))
    with pytest.raises(TileEncodingError, match=r"made from 456000 bytes of the image, the limit is 128000 "):
        encoder.check(ImageDimensions(30, 19))
    small.close()


@pytest.mark.parametrize("kind", ["mask", "alpha"])
def test_mask_and_alpha_band_mark_invalid_pixels(tmp_path, kind, monkeypatch):
    values = np.full((4, 100, 100), 1000, np.uint16)
    values[0] += np.arange(100, dtype=np.uint16)
    is_valid = np.tri(100, dtype=bool)
    path = tmp_path / "image.tif"
    monkeypatch.setenv("GDAL_TIFF_INTERNAL_MASK", "YES")
    options = ["ALPHA=YES", "PHOTOMETRIC=RGB"] if kind == "alpha" else []
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), 100, 100, 4, gdal.GDT_UInt16, options)
    if kind == "mask":
        dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
        dataset.GetRasterBand(1).GetMaskBand().WriteArray(is_valid.astype(np.uint8) * 255)
    else:
        values[3] = is_valid * 65535
    dataset.WriteArray(values)
    del dataset
    source = open_image(place(path), SETTINGS)
    encoder = encoder_of(source, "GTIFF", bands=[1], stretch={"type": "MINMAX"}, pixelType="UINT8", nodataFill=77)
    decoded = decode_tile(bytes(encoder.encode(ImageRegion.of(((0, 0), (100, 100))))))[0]
    expected = stretched(values[0], 1000, 1099)
    expected[~is_valid] = 77
    assert np.abs(decoded - expected).max() <= 1
    source.close()


def test_mask_is_not_looked_for_in_file_that_image_names(tmp_path):
    path, other = tmp_path / "image.tif", tmp_path / "other.tif"
    for target in (path, other):
        write_image(target, np.full((1, 64, 64), 5, np.uint8))
    dataset = gdal.Open(str(path), gdal.GA_Update)
    dataset.SetMetadataItem("OVERVIEW_FILE", str(other), "OVERVIEWS")
    del dataset
    source = open_image(place(path), SETTINGS)
    encoder = encoder_of(source, "GTIFF", stretch={"type": "MINMAX", "min": 0, "max": 10})
    encoder.encode(ImageRegion.of(((0, 0), (64, 64))))
    assert decode_tile(
        bytes(encoder_of(source, "GTIFF", scale=0.5).encode(ImageRegion.of(((0, 0), (32, 32)))))
    ).tolist() == [[[5] * 32] * 32]
    assert not [file for file in Path("/proc/self/fd").iterdir() if file.is_symlink() and file.resolve() == other]
    source.close()


def test_statistics_of_large_image_use_bounded_sample(tmp_path):
    ramp = np.repeat(np.arange(5000, dtype=np.uint16), 2100).reshape(5000, 2100)
    path = write_image(tmp_path / "ramp.tif", ramp[None], options=("TILED=YES", "COMPRESS=DEFLATE"))
    source = open_image(place(path), SETTINGS)
    with source.dataset() as dataset:
        samples = valid_samples(dataset, [1], "UInt16")[1]
    assert 0 < samples.size <= MAX_SAMPLES_SIDE**2
    assert samples.min() == 0
    assert samples.max() >= 4800
    assert np.abs(np.percentile(samples, [25, 50, 75]) - [1250, 2500, 3750]).max() < 250
    assert list(windows_of((2048, 10), (512, 512))) == [(0, 0, 2048, 10)]
    source.close()


@pytest.mark.parametrize("block", [(256, 256), (512, 512), (128, 128), (2049, 1), (9000, 16), (1024, 4096)])
@pytest.mark.parametrize("size", [(2049, 2049), (9000, 2049), (10_007, 33_333)])
def test_windows_of_a_large_image_lie_inside_it_and_in_few_blocks(size, block):
    windows = list(windows_of(size, block))
    assert len(set(windows)) == len(windows) == 64
    for col, row, width, height in windows:
        assert (width, height) == (256, 256)
        for start, length, side in ((col, size[0], block[0]), (row, size[1], block[1])):
            assert 0 <= start <= length - 256
            blocks = (start + 255) // side - start // side + 1
            assert blocks == 1 or side < 256
            assert start % side == 0 or side >= 256


def write_alpha_image(path, colours, dtype):
    """Write 60 x 40 pixels, whose last column is transparent; return their colours (bands, rows, columns)."""
    values = np.random.default_rng(4).integers(100, 2000, (colours + 1, 40, 60)).astype(dtype)
    values[-1] = np.iinfo(dtype).max
    values[:, :, -1] = 0
    options = ["ALPHA=YES", f"PHOTOMETRIC={'RGB' if colours == 3 else 'MINISBLACK'}"]
    number = gdal.GDT_Byte if dtype == np.uint8 else gdal.GDT_UInt16
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), 60, 40, colours + 1, number, options)
    dataset.WriteArray(values)
    return values[:-1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("per", ["BAND", "ALL"])
@pytest.mark.parametrize("scale", [1, 0.5])
def test_alpha_is_neither_measured_nor_stretched(tmp_path, colours, per, scale, dtype):
    values = write_alpha_image(tmp_path / "alpha.tif", colours, dtype)
    source = open_image(place(tmp_path / "alpha.tif"), SETTINGS)
    stretch = {"type": "MINMAX", "per": per}
    keys = {"stretch": stretch, "pixelType": "UINT8", "nodataFill": 9, "scale": scale, "resampling": "NEAREST"}
    encoder = encoder_of(source, "PNG", **keys)
    decoded = decode_tile(bytes(encoder.encode(ImageRegion.of(((0, 0), (int(60 * scale), int(40 * scale)))))))
    assert decoded.shape[0] == colours + 1
    chosen = values if scale == 1 else values[:, 1::2, 1::2]
    valid = values[:, :, :-1]
    for index in range(colours):
        measured = valid if per == "ALL" else valid[index]
        expected = stretched(chosen[index], measured.min(), measured.max())
        expected[:, -1] = 9
        assert np.abs(decoded[index] - expected).max() <= 1
    assert np.unique(decoded[-1, :, :-1]).tolist() == [255]
    assert np.unique(decoded[-1, :, -1]).tolist() == [0]
    source.close()


@pytest.mark.parametrize("keys", [{}, {"scale": 0.5}, {"stretch": {"type": "SIGMA"}, "scale": 0.5}], ids=str)
def test_alpha_of_invalid_pixels_is_zero(tmp_path, keys):
    write_alpha_image(tmp_path / "alpha.tif", 3, np.uint16)
    source = open_image(place(tmp_path / "alpha.tif"), SETTINGS)
    encoder = encoder_of(source, "GTIFF", nodataFill=9, resampling="AVERAGE", **keys)
    scale = keys.get("scale", 1)
    decoded = decode_tile(bytes(encoder.encode(ImageRegion.of(((0, 0), (int(60 * scale), int(40 * scale)))))))
    if scale == 1:
        assert decoded[:, 0, -1].tolist() == [9, 9, 9, 0]
    assert np.unique(decoded[-1, :, :-1]).tolist() == [65535]
    source.close()


@pytest.mark.parametrize("kind", ["CFloat32", "CInt16", "CFloat64"])
@pytest.mark.parametrize("keys", [{}, {"bands": [1]}], ids=str)
def test_complex_samples_are_kept_and_invalid_ones_are_zero(tmp_path, monkeypatch, keys, kind):
    monkeypatch.setenv("GDAL_TIFF_INTERNAL_MASK", "YES")
    values = (np.arange(600).reshape(20, 30) * (1 - 2j)).astype(np.complex128 if kind == "CFloat64" else np.complex64)
    dataset = gdal.GetDriverByName("GTiff").Create(
        str(tmp_path / "complex.tif"), 30, 20, 1, gdal.GetDataTypeByName(kind)
    )
    dataset.GetRasterBand(1).WriteArray(values)
    dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
    is_valid = np.arange(600).reshape(20, 30) % 7 != 3
    dataset.GetRasterBand(1).GetMaskBand().WriteArray(is_valid.astype(np.uint8) * 255)
    del dataset
    source = open_image(place(tmp_path / "complex.tif"), SETTINGS)
    (tmp_path / "tile.tif").write_bytes(encoder_of(source, "GTIFF", **keys).encode(ImageRegion.of(((2, 3), (25, 16)))))
    tile = gdal.Open(str(tmp_path / "tile.tif"))
    assert gdal.GetDataTypeName(tile.GetRasterBand(1).DataType) == kind
    assert np.array_equal(tile.ReadAsArray(), np.where(is_valid, values, 0)[2:18, 3:28])
    source.close()


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
@pytest.mark.parametrize("scale", [1, 0.5])
def test_handle_of_image_keeps_nothing_of_preparations(source, scale):
    def kept(high):
        stretch = {"type": "MINMAX", "min": 0, "max": high}
        encoder_of(source, "GTIFF", stretch=stretch, scale=scale + high * 1e-4).encode(ImageRegion.of(((0, 0), (9, 9))))
        return source.read(lambda handle: len(handle._companions))

    first = kept(100)
    assert [kept(high) for high in range(101, 104)] == [first] * 3


class CountedReads:
    """Bytes of samples that each read of the image held, of all threads."""

    def __init__(self, monkeypatch):
        self.sizes = []
        read = PreparedPixels._samples

        def counted(pixels, handle, level, window):
            source, mask = read(pixels, handle, level, window)
            self.sizes.append(source.nbytes + (0 if mask is None else mask.nbytes))
            return source, mask

        monkeypatch.setattr(PreparedPixels, "_samples", counted)


@pytest.mark.parametrize("keys", [{}, {"scale": 0.2}, {"scale": 0.05, "resampling": "NEAREST"}], ids=str)
@pytest.mark.parametrize("block", [1024, 16])
def test_bytes_of_image_that_are_held_for_tile_are_bounded(tmp_path, monkeypatch, keys, block):
    limit = MAX_PART_BYTES // 32
    monkeypatch.setattr(tile_parts, "MAX_PART_BYTES", limit)
    path = tmp_path / "blocks.tif"
    options = ["TILED=YES", f"BLOCKXSIZE={block}", f"BLOCKYSIZE={block}", "SPARSE_OK=YES"]
    gdal.GetDriverByName("GTiff").Create(str(path), 1200, 1100, 8, gdal.GDT_UInt16, options)
    source = open_image(place(path), SETTINGS)
    stretch = {"type": "MINMAX", "min": 0, "max": 9}
    preparation = prepare(source, asked(stretch=stretch, pixelType="UINT8", **keys))
    reads, parts = CountedReads(monkeypatch), []
    encoder = TileEncoder(source, "GTIFF", preparation=preparation, on_part=parts.append)
    scale = keys.get("scale", 1)
    tile = ImageRegion.of(((0, 0), (int(1200 * scale), int(1100 * scale))))
    encoder.encode(tile)
    assert max(reads.sizes) <= limit
    # Few pixels are read twice, and each read shows that the tile makes progress.
    assert sum(reads.sizes) < 2 * 1200 * 1100 * 16
    assert parts == [tile] * len(reads.sizes)
    assert len(parts) > 10
    source.close()


@pytest.mark.parametrize("source", ["GTiff"], indirect=True)
@pytest.mark.parametrize("resampling", ALGORITHMS)
@pytest.mark.parametrize("scale", [0.3, 1, 1.9])
def test_tile_is_same_from_many_parts_and_from_one(source, monkeypatch, resampling, scale):
    tile = ImageRegion.of(((3, 5), (60, 40)))
    keys = RGB | {"scale": scale, "resampling": resampling}
    whole = bytes(encoder_of(source, "GTIFF", **keys).encode(tile))
    reads = CountedReads(monkeypatch)
    for limit in (12_000, 3_000):
        monkeypatch.setattr(tile_parts, "MAX_PART_BYTES", limit)
        reads.sizes.clear()
        assert bytes(encoder_of(source, "GTIFF", **keys).encode(tile)) == whole
        assert len(reads.sizes) > 1 or scale > 1
        assert max(reads.sizes) <= limit
