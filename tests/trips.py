"""The trips of an image request and of a region message, as the architecture page draws them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/explanation/architecture.md"
NAMES = ("image request", "started image", "region message")

_TABLES = re.findall(r"^\| Module \| Function \| Does \|\n.*\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
# The module and the function of each step, in order, by the name of the trip.
TRIPS: dict[str, list[tuple[str, str]]] = {
    name: re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", table, re.MULTILINE)
    for name, table in zip(NAMES, _TABLES, strict=True)
}
