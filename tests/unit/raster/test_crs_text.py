"""Coordinate systems in files: what PROJ may get, and what names other files."""

import pytest
from pyproj import CRS

from aws.osml.model_runner.raster.crs_text import are_plain_citations


@pytest.mark.parametrize("form", ["WKT1_GDAL", "WKT1_ESRI", "WKT2_2019"])
def test_systems_of_every_kind_of_projection_are_plain(form: str) -> None:
    for code in (4326, 32631, 27700, 3035, 3413, 5514, 2154, 6933, 7405, 4979):
        crs = CRS.from_epsg(code)
        if "DERIVING" not in crs.to_wkt() and (text := written(crs, form)):
            assert are_plain_citations(f"UTM (zone 31)|ESRI PE String = {text}|a [b]|".encode()), text


def written(crs: CRS, form: str) -> str | None:
    """Return the system as WKT; None where the form has none for it."""
    try:
        return str(crs.to_wkt(form))
    except Exception:  # noqa: BLE001 - pyproj has no class of its own for this
        return None


def test_projection_that_only_proj_string_names_is_plain() -> None:
    for text in (
        "+proj=geos +sweep=x +lon_0=-75 +h=35786023 +x_0=0 +y_0=0 +ellps=GRS80 +units=m +no_defs",
        "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433",
        "+proj=igh +R=6371007 +units=m",
        "+proj=merc +a=6378137 +b=6378137 +lat_ts=0 +lon_0=0 +x_0=0 +y_0=0 +k=1 +units=m +nadgrids=@null +wktext",
    ):
        wkt = f'PROJCS["x",GEOGCS["y"],PROJECTION["z"],EXTENSION["PROJ4","{text}"]]'
        assert are_plain_citations(f"ESRI PE String = {wkt}|".encode()), text


def test_citation_without_wkt_is_name() -> None:
    assert are_plain_citations(b"+proj=utm +zone=31 +nadgrids=@null|EXTENSION[|")


@pytest.mark.parametrize(
    "text",
    [
        b'GEOGCS["x",EXTENSION["PROJ4_GRIDS","/a"]]',
        b'geogcs["x",extension["a","b"]]',
        b'PROJCS["x",EXTENSION["PROJ4","+proj=utm +zone=31 +nadgrids=/a"]]',
        b'PROJCS["x",EXTENSION["PROJ4","+proj=utm +zone=31 +nadgrids=a"]]',
        b'PROJCS["x",EXTENSION["PROJ4","+proj=utm +zone=31 +nadgrids=@null,a"]]',
        b'PROJCS["x",EXTENSION["PROJ4","+proj=hgridshift +grids=a"]]',
        b'PROJCS["x",EXTENSION["PROJ4","+proj=pipeline +step"]]',
        b'PROJCS["x",EXTENSION["PROJ4","+init=epsg:4326"]]',
        b'PROJCS["x",EXTENSION["PROJ4","+proj=utm +datum=NAD27"]]',
        b'GEOGCS["x",UNKNOWN["a"]]',
        b'GEOGCS["x|",SOMETHING["a"]]',
        b'GEOGCS("x",OTHER("a"))',
        b'GEOGCS["x",DATUM["+proj=longlat"]]',
        b'GEOGCS["x",DATUM["a=b"]]',
        b'GEOGCS["x",[["a"]]]',
        b'GEOGCS["x",DATUM]',
        b'PROJCS["x",GEOGCS["y"]],VERTCS["z",VDATUM,"w"],UNIT["m",1]',
        b'VERTCS["z",CS[vertical,1],VDATUM',
        # PROJ 9.1 crashes on it.
        b'PROJCS[GEOGCS[DATUM["D_OSGB_1936",SPHEROID[,6377563.396,299.3249646]]UNIT["Degree",0.0174532925199433]]'
        b'PROJECTION[0.9996012717]UNIT["Meter",1.0]],VERTCS[VDATUM]',
    ],
)
def test_unsafe_coordinate_system_is_found(text: bytes) -> None:
    assert not are_plain_citations(b"esri pe string = " + text)
