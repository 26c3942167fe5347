"""STAC Items in the shapes of five catalogues, by their specifications, with small rasters as their assets."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.raster import write_geotiff

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
USGS_COG = "image/vnd.stac.geotiff; cloud-optimized=true"
EPSG = 32631
ORIGIN = (500_000.0, 5_400_000.0)

Json = dict[str, Any]


def grid(pixel_m: float) -> tuple[float, ...]:
    """Return GDAL's geotransform of a north-up grid in EPSG:32631."""
    return (ORIGIN[0], pixel_m, 0.0, ORIGIN[1], 0.0, -pixel_m)


def affine(pixel_m: float) -> list[float]:
    """Return ``proj:transform`` of the same grid."""
    return [pixel_m, 0.0, ORIGIN[0], 0.0, -pixel_m, ORIGIN[1]]


def _item(item_id: str, collection: str, version: str, properties: Json, assets: Json) -> Json:
    ring = [[3.0, 48.7], [3.1, 48.7], [3.1, 48.8], [3.0, 48.8], [3.0, 48.7]]
    return {
        "type": "Feature",
        "stac_version": version,
        "id": item_id,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [3.0, 48.7, 3.1, 48.8],
        "properties": properties,
        "links": [{"rel": "self", "href": "https://catalogue.example/items/one"}],
        "assets": assets,
    }


def sentinel2(base: str = ".", size: int = 256) -> Json:
    """Sentinel-2 L2A on Earth Search: one band per asset, at 10, 20 and 60 m, and a true-colour image."""
    bands = {
        "blue": ("B02", "blue", 10),
        "green": ("B03", "green", 10),
        "red": ("B04", "red", 10),
        "nir": ("B08", "nir", 10),
        "nir08": ("B8A", "nir08", 20),
    }
    assets: Json = {}
    for key, (name, common, gsd) in bands.items():
        rows = size * 10 // gsd
        assets[key] = {
            "href": f"{base}/{name}.tif",
            "type": COG,
            "title": f"{common} - {gsd}m",
            "eo:bands": [{"name": key, "common_name": common}],
            "gsd": gsd,
            "proj:shape": [rows, rows],
            "proj:transform": affine(gsd),
            "raster:bands": [{"nodata": 0, "data_type": "uint16", "bits_per_sample": 15, "spatial_resolution": gsd}],
            "roles": ["data", "reflectance"],
        }
        assets[f"{key}-jp2"] = {**assets[key], "href": f"s3://sentinel-s2-l2a/{name}.jp2", "type": "image/jp2"}
    rgb = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
    visual = {"title": "True color image", "eo:bands": rgb, "gsd": 10, "proj:shape": [size, size], "roles": ["visual"]}
    assets["visual"] = {**visual, "href": f"{base}/TCI.tif", "type": COG, "proj:transform": affine(10)}
    assets["visual-jp2"] = {**visual, "href": "s3://sentinel-s2-l2a/TCI.jp2", "type": "image/jp2"}
    scl = {"proj:shape": [size // 2, size // 2], "proj:transform": affine(20), "gsd": 20, "roles": ["data"]}
    assets["scl"] = {**scl, "href": f"{base}/SCL.tif", "type": COG}
    assets["thumbnail"] = {"href": f"{base}/preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    assets["granule_metadata"] = {"href": f"{base}/metadata.xml", "type": "application/xml", "roles": ["metadata"]}
    properties = {
        "datetime": "2024-06-01T10:51:02.024000Z",
        "platform": "sentinel-2b",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": 3.1,
        "proj:code": f"EPSG:{EPSG}",
        "s2:product_uri": "S2B_MSIL2A_20240601T105029_N0510_R051_T31UDP_20240601T132130.SAFE",
    }
    return _item("S2B_31UDP_20240601_0_L2A", "sentinel-2-l2a", "1.0.0", properties, assets)


def landsat(base: str = "https://landsatlook.example/data", s3: str = "s3://usgs-landsat/x", size: int = 256) -> Json:
    """Landsat Collection 2 Level 2: files behind a login, and in a bucket whose requester pays as an alternate."""
    bands = {"blue": "B2", "green": "B3", "red": "B4", "nir08": "B5"}
    names = {key: f"SR_{band}.TIF" for key, band in bands.items()} | {"qa_pixel": "QA_PIXEL.TIF"}
    assets: Json = {
        key: {
            "title": key,
            "type": USGS_COG,
            "roles": ["data"] if key in bands else ["cloud", "cloud-shadow", "snow-ice", "water-mask"],
            "href": f"{base}/LC09_L2SP_{name}",
            "alternate": {
                "s3": {
                    "storage:platform": "AWS",
                    "storage:requester_pays": True,
                    "href": f"{s3}/LC09_L2SP_{name}",
                }
            },
        }
        for key, name in names.items()
    }
    for key, band in bands.items():
        assets[key]["eo:bands"] = [{"name": f"OLI_{band}", "common_name": key, "gsd": 30}]
    assets["MTL.json"] = {"href": f"{base}/MTL.json", "type": "application/json", "roles": ["metadata"]}
    assets["thumbnail"] = {"href": f"{base}/thumb_small.jpeg", "type": "image/jpeg", "roles": ["thumbnail"]}
    properties = {
        "datetime": "2024-05-02T10:33:11.147281Z",
        "platform": "LANDSAT_9",
        "instruments": ["OLI", "TIRS"],
        "landsat:correction": "L2SP",
        "proj:epsg": EPSG,
        "proj:shape": [size, size],
        "proj:transform": affine(30),
    }
    return _item("LC09_L2SP_199026_20240502_20240503_02_T1_SR", "landsat-c2l2-sr", "1.0.0", properties, assets)


def naip(base: str = ".", size: int = 256) -> Json:
    """NAIP: one file of four 8-bit bands."""
    names = {"Red": "red", "Green": "green", "Blue": "blue", "NIR": "nir"}
    bands = [{"name": name, "common_name": common} for name, common in names.items()]
    assets = {
        "image": {"href": f"{base}/m_4407001.tif", "type": COG, "roles": ["data"], "eo:bands": bands},
        "metadata": {"href": f"{base}/m_4407001.txt", "type": "text/plain", "roles": ["metadata"]},
        "thumbnail": {"href": f"{base}/m_4407001.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
    }
    properties = {
        "datetime": "2021-08-26T00:00:00Z",
        "gsd": 0.6,
        "naip:year": "2021",
        "naip:state": "me",
        "proj:epsg": EPSG,
        "proj:shape": [size, size],
        "proj:transform": affine(0.6),
    }
    return _item("me_m_4407001_ne_19_060_20210826", "naip", "1.0.0", properties, assets)


def planet(base: str = ".", size: int = 256) -> Json:
    """PlanetScope of an order, as STAC 1.1: eight bands beside a usable-data mask, in files beside the Item."""
    names = ("coastal", "blue", "green05", "green", "yellow", "red", "rededge", "nir")
    bands = [{"name": f"band{index}", "eo:common_name": name} for index, name in enumerate(names, 1)]
    stem = "20240603_101112_12_24a1_3B"
    assets = {
        f"{stem}_AnalyticMS_SR_8b_clip_tif": {
            "href": f"{base}/{stem}_AnalyticMS_SR_8b_clip.tif",
            "type": COG,
            "roles": ["data", "reflectance"],
            "pl:asset_type": "ortho_analytic_8b_sr",
            "bands": bands,
        },
        f"{stem}_udm2_clip_tif": {
            "href": f"{base}/{stem}_udm2_clip.tif",
            "type": COG,
            "roles": ["snow-ice", "cloud", "cloud-shadow"],
            "pl:asset_type": "ortho_udm2",
        },
        f"{stem}_metadata_json": {
            "href": f"{base}/{stem}_metadata.json",
            "type": "application/json",
            "roles": ["metadata"],
        },
    }
    properties = {
        "datetime": "2024-06-03T10:11:12.120000Z",
        "platform": "24a1",
        "constellation": "planetscope",
        "gsd": 3.7,
        "pl:item_type": "PSScene",
        "proj:code": f"EPSG:{EPSG}",
        "proj:shape": [size, size],
        "proj:transform": [*affine(3.0), 0.0, 0.0, 1.0],
    }
    return _item("20240603_101112_12_24a1", "PSScene", "1.1.0", properties, assets)


def maxar(base: str = ".", size: int = 256) -> Json:
    """Maxar Open Data: a picture, eight bands and a panchromatic band, each on its own grid, and a mask of polygons."""
    names = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir08", "nir09")
    eight = [{"name": f"BAND_{name[0].upper()}{index}", "common_name": name} for index, name in enumerate(names)]
    rgb = [{"name": f"BAND_{name[0].upper()}", "common_name": name} for name in ("red", "green", "blue")]
    stem = "10300100DB064000"

    def asset(kind: str, roles: list[str], bands: list[Json], pixel_m: float) -> Json:
        return {
            "href": f"{base}/{stem}-{kind}.tif",
            "type": COG,
            "roles": roles,
            "eo:bands": bands,
            "proj:shape": [round(size * 0.3 / pixel_m)] * 2,
            "proj:transform": affine(pixel_m),
            "alternate": {"public": {"href": f"https://maxar-opendata.example/{stem}-{kind}.tif"}},
        }

    assets = {
        "visual": asset("visual", ["visual"], rgb, 0.3),
        "ms_analytic": asset("ms", ["data"], eight, 1.2),
        "pan_analytic": asset("pan", ["data"], [{"name": "PAN", "common_name": "pan"}], 0.3),
        "data-mask": {
            "href": f"{base}/{stem}-data-mask.gpkg",
            "type": "application/geopackage+sqlite3",
            "roles": ["data-mask"],
        },
    }
    properties = {
        "datetime": "2023-02-13T08:11:25Z",
        "platform": "WV03",
        "gsd": 0.3,
        "ard_metadata_version": "0.0.1",
        "catalog_id": stem,
        "quadkey": "031133102033",
        "view:off_nadir": 17.2,
        "proj:epsg": EPSG,
    }
    return _item(f"37/031133102033/2023-02-13/{stem}", "maxar-opendata", "1.0.0", properties, assets)


CATALOGUES: Mapping[str, Callable[..., Json]] = {
    "sentinel-2": sentinel2,
    "landsat": landsat,
    "naip": naip,
    "planet": planet,
    "maxar": maxar,
}


def pixels_of(asset: Json, key: str, size: int) -> npt.NDArray[Any]:
    """Return the pixels of an asset's raster: reproducible, and different for every asset."""
    is_byte = asset["roles"] in (["visual"],) or "m_4407001" in asset["href"] or key in ("scl", "qa_pixel")
    bands = len(asset.get("bands") or asset.get("eo:bands") or [0])
    rng = np.random.default_rng(sum(key.encode()))
    return rng.integers(1, 255 if is_byte else 3_000, (bands, size, size)).astype(np.uint8 if is_byte else np.uint16)


def write_assets(item: Json, folder: Path, size: int = 256) -> dict[str, npt.NDArray[Any]]:
    """Write the GeoTIFF of each asset, by the last segment of its href; return their pixels by key."""
    written: dict[str, npt.NDArray[Any]] = {}
    for key, asset in item["assets"].items():
        name = asset["href"].rpartition("/")[2]
        if not name.lower().endswith(".tif"):
            continue
        stated = {**item["properties"], **asset}
        rows = stated.get("proj:shape", [size])[0]
        transform = stated.get("proj:transform", affine(10))
        written[key] = pixels_of(asset, key, rows)
        write_geotiff(folder / name, written[key], grid(transform[0]), epsg=EPSG)
    return written


def write_item(item: Json, folder: Path) -> Path:
    """Write the Item's file."""
    path = folder / "item.json"
    path.write_text(json.dumps(item))
    return path


def changed(item: Json, **members: Any) -> Json:
    """Return a copy of an Item with other members."""
    return copy.deepcopy(item) | members
