"""Reads a STAC Item as an image: chooses its assets, resolves their URLs, takes what the Item states about them. Pure.

Versions 0.8 to 1.1 are read. In 0.8 an asset refers to bands of the properties by index; later it has ``eo:bands`` and
``raster:bands`` of its own, and in 1.1 ``bands``. Members that are not of the expected type count as absent, unless the
image needs them.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from aws.osml.model_runner.exceptions import InvalidImageRequestException, InvalidImageURLException, Problem

from .image_url import ImageLocation, public_url
from .json_document import load_object
from .problems import shortened

MAX_ITEM_BYTES = 1024 * 1024
MAX_ITEM_ASSETS = 1_000
# Assets of one image, and bytes of all that its row holds of the Item.
MAX_IMAGE_ASSETS = 32
MAX_STORED_BYTES = 48 * 1024

_FIELD = "imageAssets"
_MAX_LISTED = 40
_MAX_TEXT_LENGTH = 256
_MAX_BANDS = 64
_ITEM_PATH = re.compile(r"\.(?:json|geojson)$|/collections/[^/]+/items/[^/]+$", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CRS = re.compile(r"[A-Za-z]{2,16}:[A-Za-z0-9]{1,16}")
# Media types and names of files that may be images, the best first: a cloud-optimized file is read in parts.
_COG = re.compile(r"cloud-optimized")
_TIFF = re.compile(r"^image/(?:tiff|vnd\.stac\.geotiff|geotiff)", re.IGNORECASE)
_OTHER = re.compile(r"^(?:image/(?:jp2|jpx|j2k|png|jpeg|nitf)|application/(?:vnd\.|x-)?nitf)", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"\.(?:tiff?|jp2|j2k|png|jpe?g|ntf|nitf|nsf)$", re.IGNORECASE)
_TIFF_NAME = re.compile(r"\.tiff?$", re.IGNORECASE)
_NOT_IMAGES = frozenset({"thumbnail", "overview", "metadata"})

Allow = Callable[[str], ImageLocation]


@dataclass(frozen=True)
class ItemAsset:
    """An asset of an Item: its key, its URL, and the names that the Item has for each of its bands."""

    key: str
    url: str
    bands: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class ItemImage:
    """An image that a STAC Item describes, as its job's row holds it.

    ``assets`` are the files of the image, in the order of its bands; ``masks`` are assets that rules of the request
    name. ``crs`` is a code such as ``EPSG:32633``, ``shape`` is (rows, columns), and ``transform`` is in GDAL's order.
    The Item states these three for the first asset. ``gsd_m`` is the ground sample distance in metres.
    """

    item_id: str
    assets: tuple[ItemAsset, ...]
    masks: tuple[ItemAsset, ...] = ()
    collection: str | None = None
    datetime: str | None = None
    platform: str | None = None
    gsd_m: float | None = None
    crs: str | None = None
    shape: tuple[int, int] | None = None
    transform: tuple[float, ...] | None = None

    def to_text(self) -> str:
        """Return the image as JSON; equal images have equal texts."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "ItemImage":
        """Return the image that ``to_text`` wrote."""
        values = json.loads(text)
        for name in ("assets", "masks"):
            values[name] = tuple(
                ItemAsset(asset["key"], asset["url"], tuple(tuple(names) for names in asset["bands"]))
                for asset in values.get(name, ())
            )
        for name in ("shape", "transform"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    def mask(self, key: str) -> ItemAsset:
        """Return the asset ``key`` that a rule of the request names; it is fixed with the job as the image is."""
        return {asset.key: asset for asset in (*self.assets, *self.masks)}[key]


@dataclass(frozen=True)
class AssetChoice:
    """Conditions of a request for the assets of its Items.

    ``names`` are keys or roles, None for the default. ``takes_rgb``: the model takes 8-bit RGB, so that an asset with
    role ``visual`` is preferred. ``may_pay``: assets of buckets whose requester pays may be read. ``masks`` are keys of
    assets that rules of the request name, each with the path of its field.
    """

    names: Sequence[str] | None = None
    takes_rgb: bool = False
    may_pay: bool = False
    masks: Mapping[str, str] = field(default_factory=dict)


def is_item_url(url: str) -> bool:
    """Return whether an image URL is that of a STAC Item: a file ``….json``, or an Item of a STAC API."""
    path = urlsplit(url).path if url.startswith(("http://", "https://")) else url
    return _ITEM_PATH.search(path) is not None


def parse_item(body: bytes) -> dict[str, Any]:
    """Return the Item in ``body``; raises InvalidImageRequestException when it is not one."""
    document, problems = load_object(body, MAX_ITEM_BYTES)
    if not document:
        problem = problems[0] if problems else Problem("body", "{}", "a STAC Item")
        raise _refusal([Problem("imageUrls", problem.value, f"a STAC Item: {problem.expectation}")])
    kind = document.get("type")
    if kind != "Feature" or not isinstance(document.get("assets"), dict):
        expected = "a STAC Item: an object of type Feature with assets"
        raise _refusal([Problem("imageUrls", f"an object of type {shortened(kind)}", expected)])
    if len(document["assets"]) > MAX_ITEM_ASSETS:
        expected = f"a STAC Item with at most {MAX_ITEM_ASSETS} assets"
        raise _refusal([Problem("imageUrls", f"{len(document['assets'])} assets", expected)])
    return document


def image_of(item: Mapping[str, Any], item_url: str, choice: AssetChoice, allow: Allow) -> ItemImage:
    """Return the image that ``choice`` selects from the Item at ``item_url``.

    ``allow`` returns the location of an image URL, or raises InvalidImageURLException when it may not be read. Raises
    InvalidImageRequestException with every problem.
    """
    assets = {key: asset for key, asset in item["assets"].items() if isinstance(asset, dict) and _is_text(key)}
    problems: list[Problem] = []
    chosen = _chosen(assets, choice, problems)
    twice = {key for key, _ in chosen if [key for key, _ in chosen].count(key) > 1}
    problems += [Problem(_FIELD, shortened(key), "each asset of the Item once") for key in sorted(twice)]
    reader = _ItemReader(item, item_url, choice, allow)
    found = [reader.asset(key, path, problems) for key, path in chosen if key not in twice]
    masks = []
    for key, path in choice.masks.items():
        if key in assets:
            masks.append(reader.asset(key, path, problems))
        else:
            problems.append(Problem(path, shortened(key), f"an asset of the Item: {_listed(assets)}"))
    if problems:
        raise _refusal(problems)
    image = reader.image([asset for asset in found if asset], [asset for asset in masks if asset])
    size = len(image.to_text().encode())
    if size > MAX_STORED_BYTES:
        expected = f"assets whose URLs and bands take at most {MAX_STORED_BYTES} bytes (they take {size})"
        raise _refusal([Problem(_FIELD, f"{len(image.assets)} assets", expected)])
    return image


def _refusal(problems: Sequence[Problem]) -> InvalidImageRequestException:
    return InvalidImageRequestException("the STAC Item cannot be used", problems)


# Choice ---------------------------------------------------------------------------------------------------------------


def _chosen(assets: Mapping[str, Any], choice: AssetChoice, problems: list[Problem]) -> list[tuple[str, str]]:
    """Return (key, field) of each asset of the image; add a problem for each that is not clear."""
    if choice.names is None:
        key = _default(assets, choice.takes_rgb, problems)
        return [] if key is None else [(key, _FIELD)]
    chosen = []
    for index, name in enumerate(choice.names):
        field = f"{_FIELD}[{index}]"
        keys = [name] if name in assets else _best(assets, _with_role(assets, name))
        if len(keys) == 1:
            chosen.append((keys[0], field))
        elif keys:
            problems.append(Problem(field, shortened(name), f"one key of the assets with this role: {_keys(keys)}"))
        else:
            expected = f"the key of an asset of the Item: {_listed(assets)}{_roles(assets)}"
            problems.append(Problem(field, shortened(name), expected))
    return chosen


def _default(assets: Mapping[str, Any], takes_rgb: bool, problems: list[Problem]) -> str | None:
    images = [key for key, asset in assets.items() if _rank(asset) is not None and not _NOT_IMAGES & _roles_of(asset)]
    groups = [("with role data", _with_role(assets, "data")), ("that may be images", images)]
    if takes_rgb:
        groups.insert(0, ("with role visual", _with_role(assets, "visual")))
    for described, candidates in groups:
        keys = _best(assets, candidates)
        if len(keys) == 1:
            return keys[0]
        if keys:
            expected = f"keys of assets, because the Item has several {described}: {_keys(keys)}"
            problems.append(Problem(_FIELD, "absent", expected))
            return None
    problems.append(Problem(_FIELD, "absent", f"the key of an asset that is an image: {_listed(assets)}"))
    return None


def _with_role(assets: Mapping[str, Any], role: str) -> list[str]:
    return [key for key, asset in assets.items() if role in _roles_of(asset) and _rank(asset) is not None]


def _best(assets: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return the assets that are best to read; one picture may be there in several formats."""
    ranks = {key: rank for key in keys if (rank := _rank(assets[key])) is not None}
    return [key for key, rank in ranks.items() if rank == min(ranks.values())]


def _rank(asset: Mapping[str, Any]) -> int | None:
    """Return how well an asset can be read as an image, 0 is best; None where it is not an image."""
    media_type, path = asset.get("type"), urlsplit(str(asset.get("href"))).path
    if isinstance(media_type, str) and media_type:
        if _TIFF.search(media_type):
            return 0 if _COG.search(media_type) else 1
        return 2 if _OTHER.search(media_type) else None
    if not _IMAGE_NAME.search(path):
        return None
    return 1 if _TIFF_NAME.search(path) else 2


def _roles_of(asset: Mapping[str, Any]) -> frozenset[str]:
    roles = asset.get("roles")
    return frozenset(role for role in roles if isinstance(role, str)) if isinstance(roles, list) else frozenset()


def _roles(assets: Mapping[str, Any]) -> str:
    roles = sorted({role for asset in assets.values() for role in _roles_of(asset) if _is_text(role)})
    return f", or a role: {_keys(roles)}" if roles else ""


def _listed(assets: Mapping[str, Any]) -> str:
    return _keys(list(assets)) or "it has none"


def _keys(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return ", ".join(keys[:_MAX_LISTED]) + rest


# Facts ----------------------------------------------------------------------------------------------------------------


class _ItemReader:
    """Facts of one Item, for one request."""

    def __init__(self, item: Mapping[str, Any], item_url: str, choice: AssetChoice, allow: Allow) -> None:
        properties = item.get("properties")
        self._item = item
        self._properties: Mapping[str, Any] = properties if isinstance(properties, dict) else {}
        self._url = item_url
        self._choice = choice
        self._allow = allow

    def asset(self, key: str, field: str, problems: list[Problem]) -> ItemAsset | None:
        """Return an asset at the first of its URLs that may be read; add a problem where none may."""
        asset = self._item["assets"][key]
        refusals = []
        for href, place in self._places(asset):
            try:
                location = self._allow(_resolved(href, self._url))
            except InvalidImageURLException as err:
                refusals.append(f"{shortened(public_url(href))} must be {err.problems[0].expectation}")
                continue
            if location.source == "file" and not self._url.startswith(("/", "file:")):
                refusals.append(f"{shortened(href)} is a file of the worker, and the Item is not")
            elif location.source == "s3" and self._is_paid(place) and not self._choice.may_pay:
                refusals.append(f"{shortened(href)} is read at the cost of the requester: requesterPays must be true")
            else:
                return ItemAsset(key, location.url, self._band_names(asset, key))
        expected = f"an asset with a URL that may be read: {'; '.join(refusals) or 'it has no href'}"
        problems.append(Problem(field, shortened(key), expected))
        return None

    def image(self, assets: Sequence[ItemAsset], masks: Sequence[ItemAsset]) -> ItemImage:
        """Return the image with what the Item states about its first asset, else about itself."""
        properties, first = self._properties, self._item["assets"][assets[0].key]

        def stated(name: str) -> Any:
            return first.get(name, properties.get(name))

        code, epsg = stated("proj:code"), stated("proj:epsg")
        crs = code if isinstance(code, str) else f"EPSG:{epsg}" if isinstance(epsg, int) else ""
        shape, transform = _numbers(stated("proj:shape")), _numbers(stated("proj:transform"))
        a, b, c, d, e, f = transform[:6] if len(transform) in (6, 9) else (math.nan,) * 6
        gsd = next((gsd for gsd in self._gsds(first) if _numbers([gsd]) and gsd > 0), None)
        moment = properties.get("datetime") or properties.get("start_datetime")
        return ItemImage(
            item_id=_text(self._item.get("id")) or "",
            assets=tuple(assets),
            masks=tuple(masks),
            collection=_text(self._item.get("collection")),
            datetime=_text(moment),
            platform=_text(properties.get("platform") or properties.get("eo:platform")),
            gsd_m=None if gsd is None else float(gsd),
            crs=crs.upper() if _CRS.fullmatch(crs) else None,
            shape=(int(shape[0]), int(shape[1])) if len(shape) == 2 else None,
            transform=None if math.isnan(a) else (c, a, b, f, d, e),
        )

    def _gsds(self, asset: Mapping[str, Any]) -> Iterator[Any]:
        yield asset.get("gsd")
        for name, key in (("bands", "gsd"), ("raster:bands", "spatial_resolution"), ("eo:bands", "gsd")):
            yield from (band.get(key) for band in _bands(asset, name)[:1])
        yield from (self._properties.get(name) for name in ("gsd", "eo:gsd"))

    def _places(self, asset: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
        """Return each URL of an asset, with the object that describes it; S3 comes first for a request that pays."""
        alternates = asset.get("alternate")
        others = alternates.values() if isinstance(alternates, dict) else ()
        found = [
            (href, place)
            for place in (asset, *(other for other in others if isinstance(other, dict)))
            if isinstance(href := place.get("href"), str) and href
        ]
        if self._choice.may_pay:
            found.sort(key=lambda pair: not pair[0].startswith("s3://"))
        return found

    def _is_paid(self, place: Mapping[str, Any]) -> bool:
        """Return whether the storage extension states that the requester pays."""
        if place.get("storage:requester_pays", self._properties.get("storage:requester_pays")) is True:
            return True
        schemes, refs = self._properties.get("storage:schemes"), place.get("storage:refs")
        if not (isinstance(schemes, dict) and isinstance(refs, list)):
            return False
        named = [schemes.get(ref) for ref in refs if isinstance(ref, str)]
        return any(isinstance(scheme, dict) and scheme.get("requester_pays") is True for scheme in named)

    def _band_names(self, asset: Mapping[str, Any], key: str) -> tuple[tuple[str, ...], ...]:
        """Return the names of each band; the only band of an asset is also called by the asset's key."""
        names: list[list[Any]] = []
        for member in ("bands", "eo:bands", "raster:bands"):
            for index, band in enumerate(_bands(asset, member, _bands(self._properties, "eo:bands"))):
                if index == len(names):
                    names.append([])
                names[index] += [band.get(name) for name in ("name", "eo:common_name", "common_name")]
        if len(names) <= 1:
            names = [[*(names[0] if names else ()), key]]
        return tuple(tuple(dict.fromkeys(name for one in band if (name := _text(one)))) for band in names)


def _bands(owner: Mapping[str, Any], member: str, all_bands: Sequence[Any] = ()) -> list[Mapping[str, Any]]:
    """Return the bands of an asset; in STAC 0.8 they are indices of ``all_bands``."""
    listed = owner.get(member)
    if not isinstance(listed, list):
        return []
    found: list[Mapping[str, Any]] = []
    for band in listed[:_MAX_BANDS]:
        is_index = isinstance(band, int) and not isinstance(band, bool) and 0 <= band < len(all_bands)
        whole = all_bands[band] if is_index else band
        found.append(whole if isinstance(whole, dict) else {})
    return found


def _resolved(href: str, base: str) -> str:
    """Return the URL of an asset of the Item at ``base``."""
    if _SCHEME.match(href) or href.startswith("//"):
        return href
    if base.startswith(("http://", "https://")):
        return urljoin(base, href)
    scheme, mark, path = base.rpartition("://")
    # The first segment is a bucket, or empty before the path of a file.
    root, *folders = path.split("/")[:-1]
    segments = [] if href.startswith("/") else folders
    for segment in href.removeprefix("/").split("/"):
        if segment == "..":
            segments = segments[:-1]
        elif segment != ".":
            segments.append(segment)
    return f"{scheme}{mark}{'/'.join([root, *segments])}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT_LENGTH and value.isprintable()


def _text(value: Any) -> str | None:
    return value.strip() or None if _is_text(value) else None


def _numbers(value: Any) -> list[float]:
    """Return a list of finite numbers; empty for anything else."""
    are_numbers = isinstance(value, list) and all(
        isinstance(item, int | float) and not isinstance(item, bool) and abs(item) < 1e18 for item in value
    )
    return [float(item) for item in value] if are_numbers else []
