"""Images for the tests of the raster room, written by GDAL itself, and the places of the sample imagery."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from osgeo import gdal, gdal_array
from pyproj import CRS

SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
SAMPLES = {
    "umbra_mount_yasur.tiff": (2000, 2000, 1, "Byte", "TIFF"),
    "autzen-utm10.ntf": (742, 1024, 1, "Byte", "NITF"),
    "i_3301a.ntf": (1024, 1024, 3, "Byte", "NITF"),
    "005_007_1024x1024_s_8_1_multi_j2c.ntf": (1024, 1024, 1, "Byte", "NITF"),
    "rareplanes_tile.png": (512, 512, 3, "Byte", "PNG"),
}

UTM_31N = (500000.0, 0.5, 0.0, 5400000.0, 0.0, -0.5)


def sample_path(name: str) -> Path:
    """Return the path of a sample image, or skip the test."""
    path = SAMPLE_FOLDER / name
    if not path.exists():
        pytest.skip("the sample imagery is not here")
    return path


@dataclass(frozen=True)
class Place:
    """Where a test's image is."""

    url: str
    gdal_path: str


def place(path: str | Path) -> Place:
    return Place(url=f"file://{path}", gdal_path=str(path))


def pattern(bands: int, rows: int, columns: int, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
    """Return smooth pixels in which every place is different, over the whole range of the type."""
    row, column = np.mgrid[0:rows, 0:columns]
    layers = [(row * (3 + band) + column * (5 + 2 * band)) % 251 for band in range(bands)]
    pixels = np.stack(layers)
    kind = np.dtype(dtype)
    if kind.kind == "c":
        return (pixels - 1j * pixels[:, ::-1]).astype(kind)
    if kind.kind == "f":
        return (pixels * 1.25 - 100.5).astype(kind)
    if kind.kind == "i":
        return (pixels * 131 - 16000).astype(kind)
    return (pixels if kind.itemsize == 1 else pixels * 257).astype(kind)


def write_image(
    path: Path,
    pixels: npt.NDArray[Any],
    driver: str = "GTiff",
    options: tuple[str, ...] = (),
    geo_transform: tuple[float, ...] | None = None,
    epsg: int | None = None,
    gcps: tuple[list[Any], int] | None = None,
    rpc: dict[str, str] | None = None,
    nodata: float | None = None,
) -> Path:
    """Write (bands, rows, columns) in any format."""
    bands, rows, columns = pixels.shape
    memory = gdal.GetDriverByName("MEM").Create(
        "", columns, rows, bands, gdal_array.NumericTypeCodeToGDALTypeCode(pixels.dtype)
    )
    memory.WriteArray(pixels)
    if geo_transform is not None:
        memory.SetGeoTransform(geo_transform)
    if epsg is not None:
        memory.SetProjection(wkt(epsg))
    if gcps is not None:
        memory.SetGCPs(gcps[0], wkt(gcps[1]))
    if rpc is not None:
        memory.SetMetadata(rpc, "RPC")
    if nodata is not None:
        for number in range(bands):
            memory.GetRasterBand(number + 1).SetNoDataValue(nodata)
    gdal.GetDriverByName(driver).CreateCopy(str(path), memory, options=list(options)).FlushCache()
    return path


def translated(source: Path, target: Path, **options: Any) -> Path:
    """Write ``target`` by ``gdal.Translate`` with these options, in a process that has all of GDAL's drivers."""
    code = "import json, sys; from osgeo import gdal; gdal.UseExceptions(); a = sys.argv; "
    code += "gdal.Translate(a[2], a[1], **json.loads(a[3])).FlushCache()"
    subprocess.run([sys.executable, "-c", code, str(source), str(target), json.dumps(options)], check=True)
    return target


def wkt(epsg: int) -> str:
    return str(CRS.from_epsg(epsg).to_wkt("WKT1_GDAL"))


def rpc_metadata(line_offset: float = 300.0, sample_offset: float = 400.0) -> dict[str, str]:
    """Return a camera that looks at 10 E, 20 N, somewhat askew, so that height and every axis matter."""

    def terms(**values: float) -> str:
        names = ["one", "lon", "lat", "height", "lonlat", "lonheight", "latheight", "lon2", "lat2"]
        return " ".join(str(values.get(name, 0.0)) for name in names) + " 0.0" * 11

    return {
        "LINE_OFF": str(line_offset),
        "SAMP_OFF": str(sample_offset),
        "LAT_OFF": "20.0",
        "LONG_OFF": "10.0",
        "HEIGHT_OFF": "100",
        "LINE_SCALE": "500",
        "SAMP_SCALE": "600",
        "LAT_SCALE": "0.01",
        "LONG_SCALE": "0.01",
        "HEIGHT_SCALE": "500",
        "LINE_NUM_COEFF": terms(one=0.001, lat=-1.0, height=0.01, lon2=0.0003),
        "LINE_DEN_COEFF": terms(one=1.0, lon=0.001),
        "SAMP_NUM_COEFF": terms(lon=1.0, height=0.02, lonlat=0.0001),
        "SAMP_DEN_COEFF": terms(one=1.0, lat=0.0002),
        "ERR_BIAS": "1",
        "ERR_RAND": "0.5",
    }


# A scene at 10 E, 20 N, seen by a sensor that flies north at 700 km. The slant plane has a plane grid, with I and Q
# as bands.
SICD_XML = """<SICD xmlns="urn:SICD:1.2.1">
<CollectionInfo><CollectorName>test\\made</CollectorName><CoreName>one</CoreName>
<RadarMode><ModeType>SPOTLIGHT</ModeType></RadarMode><Classification>UNCLASSIFIED</Classification></CollectionInfo>
<ImageData><PixelType>RE32F_IM32F</PixelType><NumRows>{rows}</NumRows><NumCols>{columns}</NumCols>
<FirstRow>0</FirstRow><FirstCol>0</FirstCol>
<FullImage><NumRows>{rows}</NumRows><NumCols>{columns}</NumCols></FullImage>
<SCPPixel><Row>{scp_row}</Row><Col>{scp_col}</Col></SCPPixel></ImageData>
<GeoData><EarthModel>WGS_84</EarthModel><SCP><ECF><X>{scp[0]}</X><Y>{scp[1]}</Y><Z>{scp[2]}</Z></ECF>
<LLH><Lat>20.0</Lat><Lon>10.0</Lon><HAE>50.0</HAE></LLH></SCP></GeoData>
<Grid><ImagePlane>SLANT</ImagePlane><Type>PLANE</Type>
<TimeCOAPoly order1="0" order2="0"><Coef exponent1="0" exponent2="0">0.0</Coef></TimeCOAPoly>
<Row><UVectECF><X>{row[0]}</X><Y>{row[1]}</Y><Z>{row[2]}</Z></UVectECF><SS>1.0</SS></Row>
<Col><UVectECF><X>{col[0]}</X><Y>{col[1]}</Y><Z>{col[2]}</Z></UVectECF><SS>1.0</SS></Col></Grid>
<Position><ARPPoly>
<X order1="1"><Coef exponent1="0">{arp[0]}</Coef><Coef exponent1="1">{velocity[0]}</Coef></X>
<Y order1="1"><Coef exponent1="0">{arp[1]}</Coef><Coef exponent1="1">{velocity[1]}</Coef></Y>
<Z order1="1"><Coef exponent1="0">{arp[2]}</Coef><Coef exponent1="1">{velocity[2]}</Coef></Z></ARPPoly></Position>
<SCPCOA><SCPTime>0.0</SCPTime><ARPPos><X>{arp[0]}</X><Y>{arp[1]}</Y><Z>{arp[2]}</Z></ARPPos>
<ARPVel><X>{velocity[0]}</X><Y>{velocity[1]}</Y><Z>{velocity[2]}</Z></ARPVel><SideOfTrack>{side}</SideOfTrack></SCPCOA>
</SICD>"""


def sicd_document(rows: int, columns: int) -> str:
    """Return a SICD document of a complex image whose centre is at 10 E, 20 N, 50 m up."""
    east, north, up = _east_north_up(10.0, 20.0)
    scene = _earth_centred(10.0, 20.0, 50.0)
    sensor = scene + 700_000.0 * up - 500_000.0 * east
    away = scene - sensor
    row = away / np.linalg.norm(away)
    return SICD_XML.format(
        rows=rows,
        columns=columns,
        scp_row=rows // 2,
        scp_col=columns // 2,
        scp=scene,
        row=row,
        col=north,
        arp=sensor,
        velocity=7500.0 * north,
        side="R",
    )


def write_sicd(path: Path, rows: int, columns: int) -> Path:
    """Write a complex SICD: NITF of two float bands, I and Q, with its document in a data extension segment."""
    document = gdal.EscapeString(f"{_DES_HEADER}{sicd_document(rows, columns)}", gdal.CPLES_BackslashQuotable)
    options = ("ICAT=SAR", "IREP=NODISPLY", "IREPBAND= , ", "ISUBCAT=I,Q", f"DES=XML_DATA_CONTENT={document}")
    return write_image(path, pattern(2, rows, columns, np.float32), "NITF", options)


# DESVER, DESCLAS, the other security fields, and a user-defined subheader of length 0.
_DES_HEADER = "01U" + " " * 166 + "0000"


def _east_north_up(longitude: float, latitude: float) -> tuple[Any, Any, Any]:
    lon, lat = np.radians(longitude), np.radians(latitude)
    east = np.array([-np.sin(lon), np.cos(lon), 0.0])
    up = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    return east, np.cross(up, east), up


def _earth_centred(longitude: float, latitude: float, height: float) -> npt.NDArray[np.float64]:
    """Return metres from the Earth's centre of a place on WGS 84."""
    major, flatness = 6378137.0, 6.69437999014e-3
    lon, lat = np.radians(longitude), np.radians(latitude)
    radius = major / np.sqrt(1.0 - flatness * np.sin(lat) ** 2)
    return np.array(
        [
            (radius + height) * np.cos(lat) * np.cos(lon),
            (radius + height) * np.cos(lat) * np.sin(lon),
            (radius * (1.0 - flatness) + height) * np.sin(lat),
        ]
    )
