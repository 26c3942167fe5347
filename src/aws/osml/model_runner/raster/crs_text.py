"""Whether the text of a coordinate system in a file may reach PROJ, which opens the files that such a text names.

PROJ reads grids by path, whatever drivers and options GDAL has, and reading a device or a pipe may never end. So the
text must hold nothing but names, numbers and the nodes of a plain coordinate system. See WKT 1 (OGC 01-009, and as GDAL
and ESRI write it) and WKT 2 (OGC 18-010r7).
"""

import re

# Words of a transformation by grid, of a PROJ string, and of the nodes that carry either.
_FORBIDDEN = re.compile(
    rb"EXTENSION|PROJ4|BOUNDCRS|ABRIDGED|PARAMETERFILE|PROJ-BASED|CONCATENATED|COORDINATEOPERATION|POINTMOTION"
    rb"|NADGRIDS|GEOIDGRIDS|GRIDSHIFT|GRIDS\s*=|[+]\s*(?:INIT|PROJ|STEP|FILE)\s*=|PIPELINE",
    re.IGNORECASE,
)
# Marks WKT in a citation of a GeoTIFF. GDAL treats every other citation as a name.
_WKT_MARK = re.compile(rb"ESRI PE String", re.IGNORECASE)
# GDAL writes a PROJ string beside a projection that WKT 1 does not describe, such as that of a geostationary satellite.
# These keys, with numbers and a few names, are safe: PROJ reads files by other keys only.
_PLAIN_PROJ4 = re.compile(
    r',EXTENSION\["PROJ4","(?:\+(?:proj=(?!\w*(?:shift|pipeline|def|horner))\w+|(?:ellps|units|sweep|axis|o_proj)=\w+'
    r"|(?:lat_|lon_|o_lat_|o_lon_|x_|y_|k_)\w+=[-\d.e]+|(?:h|k|a|b|f|rf|R|zone|alpha|gamma|lonc|to_meter|pm)=[-\d.e]+"
    r'|towgs84=[-\d.,e]+|datum=(?:WGS84|NAD83)|nadgrids=@null|no_defs|wktext|over|south|type=crs) ?){1,40}"\]'
)
_QUOTED = re.compile(r'"([^"]*)"')
# A PROJ string has an equals sign in every part.
_PLAIN_NAME = re.compile(r"[^=|\\{}<>]*")
_NODES = frozenset(
    re.findall(
        r"\w+",
        """PROJCS GEOGCS GEOCCS LOCAL_CS COMPD_CS VERT_CS VERTCS DATUM VERT_DATUM VDATUM LOCAL_DATUM SPHEROID ELLIPSOID
        PRIMEM UNIT LINUNIT PROJECTION PARAMETER AXIS AUTHORITY TOWGS84 PROJCRS PROJECTEDCRS GEOGCRS GEOGRAPHICCRS
        GEODCRS GEODETICCRS BASEGEOGCRS BASEGEODCRS COMPOUNDCRS VERTCRS VERTICALCRS ENGCRS EDATUM CONVERSION METHOD CS
        ORDER ANGLEUNIT LENGTHUNIT SCALEUNIT TIMEUNIT PARAMETRICUNIT ID USAGE SCOPE AREA BBOX REMARK MERIDIAN
        PRIMEMERIDIAN TRF VRF ENSEMBLE MEMBER ENSEMBLEACCURACY DYNAMIC FRAMEEPOCH ANCHOR VERTICALEXTENT TIMEEXTENT
        CITATION URI""",
    )
)


# Words without brackets: directions of axes and kinds of coordinate systems. PROJ 9 ends the process where the name of
# a node has no brackets, as in VERTCS["a",VDATUM].
_VALUES = re.compile(
    r"(?:north|south|east|west)*|up|down|other|unspecified|geocentric[xyz]|(?:column|row)(?:positive|negative)"
    r"|display(?:right|left|up|down)|forward|aft|port|starboard|clockwise|counterclockwise|towards|awayfrom|future|past"
    r"|affine|cartesian|cylindrical|ellipsoidal|linear|ordinal|parametric|polar|spherical|vertical|true|false",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def are_plain_citations(raw: bytes) -> bool:
    """Return whether PROJ may read the citations of a GeoTIFF: any WKT in them describes a plain coordinate system."""
    marked = _WKT_MARK.split(raw, maxsplit=1)
    if len(marked) == 1:
        return True
    return is_plain_wkt(marked[1].decode("latin-1"))


def is_plain_wkt(wkt: str) -> bool:
    """Return whether PROJ may read a WKT, up to a bar: it describes a plain coordinate system."""
    text = _PLAIN_PROJ4.sub("", wkt)
    names = _QUOTED.findall(text)
    # A citation ends at the bar.
    *before_brackets, last = _QUOTED.sub("", text).partition("|")[0].replace("(", "[").split("[")
    parts = [part.rpartition(",") for part in before_brackets]
    nodes = (node.strip(" \t\r\n=").upper() for _, _, node in parts)
    values = (word for part in [*(values for values, _, _ in parts), last] for word in _WORD.findall(part))
    are_names_plain = all(_PLAIN_NAME.fullmatch(name) for name in names)
    are_words_known = all(node in _NODES for node in nodes) and all(_VALUES.fullmatch(word) for word in values)
    return is_plain_gml(text.encode()) and are_names_plain and are_words_known


def is_plain_gml(raw: bytes) -> bool:
    """Return whether PROJ may read the GML of a JPEG 2000, which names or describes a coordinate system."""
    return not _FORBIDDEN.search(raw)
