"""Puts the figures of ``pipeline.py`` and ``costs.py`` into docs/explanation/performance.md, and draws its plot.

.venv/bin/python benchmarks/performance_page.py results.json        every row of pipeline.py, or costs alone, or both
"""

import json
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from pipeline_rows import Row

from aws.osml.model_runner.common.machine import usable_cores

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "explanation" / "performance.md"
PLOT = DOCS / "images" / "tile-time.png"
BEGIN, END = "<!-- figures: written by benchmarks/performance_page.py -->", "<!-- end of the figures -->"
BEGIN_COSTS, END_COSTS = "<!-- costs: written by benchmarks/performance_page.py -->", "<!-- end of the costs -->"

WIDTH_PX, BAR_PX, GAP_PX, MARGIN_PX, LEGEND_PX = 1200, 64, 62, 36, 70
COLORS = {"cut": "#2f6db5", "model": "#9aa5b1", "locate": "#e08a1e", "store": "#3f9a5f", "wait": "#dfe4ea"}
# A part of a bar that is narrower than this has its figure in the line above the bar alone.
LABELLED_PX = 46


class Line(NamedTuple):
    """A line of the table; ``is_reached`` is None without a target."""

    what: str
    target: str
    ours: str
    peer: str
    is_reached: bool | None


Found = dict[str, Row]


def lines(found: Found) -> Iterator[Line]:
    """Yield what the rows that were measured come to, beside their targets."""
    for name, lines_of in _LINES.items():
        if name in found:
            yield from lines_of(found[name])


def _throughput(row: Row) -> Iterator[Line]:
    yield _beside(row, "tiles/s", "times the tiles/s", "Tiles/s, 50 ms, 20 features", 10)
    yield _beside(row, "CPU ms/tile", "CPU per tile, peer's over ours", "CPU ms per tile, 20 features", 6, "less")
    started_s = row["ours"]["started s"]
    yield Line(
        "Seconds from message to STARTED", "< 0.5", f"{started_s:.2f}", _of_peer(row, "started s"), started_s < 0.5
    )


def _many_features(row: Row) -> Iterator[Line]:
    yield _beside(row, "CPU ms/tile", "CPU per tile, peer's over ours", "CPU ms per tile, 500 features", 10, "less")


def _secured(row: Row) -> Iterator[Line]:
    for label, figures in row.items():
        if label == "runs":
            continue
        for figure, what in (("tiles/s", "Tiles/s"), ("CPU ms/tile", "CPU ms per tile")):
            ours = f"{figures[figure]} ({figures[f'plain {figure}']} by plain HTTP in the same run)"
            yield Line(f"{what}, SageMaker with SigV4 and TLS, {label}", "", ours, "", None)


def _small_images(row: Row) -> Iterator[Line]:
    ratio = "times the tiles/s"  # each has one tile
    yield _beside(row, "images/min", ratio, "Images of one tile per minute, 20 in a row", 20)


def _slow_endpoint(row: Row) -> Iterator[Line]:
    for label, figures in row.items():
        if label == "runs":
            continue
        what = f"Tiles/s, 300 ms, {label} at once; CPU {figures['busy %']:.0f} % busy"
        ours = f"{figures['tiles/s']} of {figures['allowed tiles/s']} ({figures['share %']:.0f} %)"
        yield Line(what, "≥ 90 % until CPU is full", ours, "", figures["share %"] >= 90)


def _formats(row: Row) -> Iterator[Line]:
    for label, figures in row.items():
        if label == "runs":
            continue
        ours = f"{figures['tiles/s']} of {figures['GDAL alone']} ({figures['share %']:.0f} %)"
        yield Line(f"Tiles/s, {label}, of GDAL alone", "≥ 80 %", ours, "", figures["share %"] >= 80)


def _memory(row: Row) -> Iterator[Line]:
    whole, part = row["12288 px"]["MB"], row["100000 px"]["MB"]
    yield Line("Peak MB, 12288 px", "< 400", f"{whole:.0f}", "", whole < 400)
    share = f"{part:.0f} ({row['ratio']:.2f} times)"
    yield Line("Peak MB, 1000 tiles of 100000 px", "≤ 1.1 times", share, "", row["ratio"] <= 1.1)


def _growth(row: Row) -> Iterator[Line]:
    ratio = row["CPU per tile, ratio"]
    yield Line("CPU per tile, 10,000 tiles over 100", "≤ 1.1", f"{ratio:.2f}", "", ratio <= 1.1)


def _s3_input(row: Row) -> Iterator[Line]:
    for label, figures in row.items():
        if label == "runs":
            continue
        ratio = figures["ratio"]
        ours = f"{ratio:.2f} ({figures['fetched MB']} of {figures['needed MB']} MB)"
        yield Line(f"Bytes fetched from S3 over needed: {label}", "< 1.2", ours, "", ratio < 1.2)


def _prepared_pixels(row: Row) -> Iterator[Line]:
    for label, figures in row.items():
        if label == "runs":
            continue
        above_ms = figures["above CPU ms"]
        ours = f"{above_ms} ({figures['CPU ms']} with {figures['plain read CPU ms']} for the read)"
        what = f"CPU ms of preparing a tile, 8 bands of 16 bits to 3 of 8, {label}, above the plain read"
        yield Line(what, "≤ 12", ours, "", above_ms <= 12)


_LINES: dict[str, Callable[[Row], Iterator[Line]]] = {
    "throughput": _throughput,
    "many_features": _many_features,
    "secured": _secured,
    "small_images": _small_images,
    "slow_endpoint": _slow_endpoint,
    "formats": _formats,
    "memory": _memory,
    "growth": _growth,
    "s3_input": _s3_input,
    "prepared_pixels": _prepared_pixels,
}


def _beside(row: Row, figure: str, ratio: str, what: str, target: float, word: str = "as many") -> Line:
    times = row.get(ratio)
    ours = str(row["ours"][figure]) + (f" ({times} times {word})" if times is not None else "")
    return Line(what, f"≥ {target:g} times {word}", ours, _of_peer(row, figure), times is not None and times >= target)


def _of_peer(row: Row, figure: str) -> str:
    return str(row["peer"][figure]) if "peer" in row else ""


def table(found: Found) -> str:
    """Return the table as Markdown."""
    head = ["| | Target | This runner | 2.3.0 | Reached |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(_as_markdown(line) for line in lines(found))])


def _as_markdown(line: Line) -> str:
    reached = {True: "yes", False: "no", None: ""}[line.is_reached]
    return f"| {line.what} | {line.target} | {line.ours} | {line.peer} | {reached} |"


def figures(found: Found) -> str:
    """Return what stands between the marks: where and how often it was measured, and the table."""
    names = defaultdict(list)
    for name, row in found.items():
        names[row.get("runs", 1)].append(f"`{name}`")
    rows = " ".join(f"{_times(runs)}: {', '.join(names[runs])}." for runs in sorted(names, reverse=True))
    return f"{usable_cores()} cores ({platform.machine()}). {rows}\n\n{table(found)}\n"


def _times(runs: int) -> str:
    return "One run" if runs == 1 else f"Medians of {runs} runs"


def costs_table(costs: Row) -> str:
    """Return the costs of tiles as Markdown: a column for each label and number of features."""
    prices = costs["prices"]
    columns = [
        (label, features) for features in ("20 features", "500 features") for label in costs if label != "prices"
    ]
    rows = [costs[label][features] for label, features in columns]
    head = ["", *(f"{features}, {label}" for label, features in columns)]
    body = [[title, *(_cell(row.get(name)) for row in rows)] for name, title in _COST_LINES.items()]
    lines = [head, ["---"] * len(head), *body]
    return f"Prices of {prices}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


_COST_LINES = {
    "write units, FEATURE_TABLE": "Write units per tile, features",
    "write units, REGION_REQUEST_TABLE": "Write units per tile, regions",
    "write units, JOB_TABLE": "Write units per tile, images",
    "write units, OUTSTANDING_JOBS_TABLE": "Write units per tile, open jobs",
    "read units": "Read units per tile",
    "S3 GET, HEAD": "S3 GET and HEAD per tile",
    "S3 PUT, POST, LIST": "S3 PUT, POST and LIST per tile",
    "SQS calls": "SQS calls per tile",
    "SNS calls": "SNS calls per tile",
    "$ per 1,000 tiles": "Dollars per 1,000 tiles",
    "most tiles/s, one partition key of an image": "Most tiles/s: one of the 50 partition keys of an image",
    "most tiles/s, an image, on 50 partitions": "Most tiles/s: an image whose keys lie on 50 partitions",
    "most tiles/s, a new on-demand table": "Most tiles/s: a new on-demand table, 4,000 units/s",
    "most tiles/s, a table at the default quota": "Most tiles/s: the default quota of a table, 40,000 units/s",
    "most tiles/s, rows of an image's regions, one partition": "Most tiles/s: the rows of an image's regions",
    "most tiles/s, the row of an image": "Most tiles/s: the row of an image",
}


def draw(profiles: Row) -> Image.Image:
    """Return the plot: for each profile a bar from the first cut to the last write, its steps in their order."""
    bars = {label: steps for label, steps in profiles.items() if label != "runs"}
    height = MARGIN_PX + len(bars) * (BAR_PX + GAP_PX) + LEGEND_PX
    picture = Image.new("RGB", (WIDTH_PX, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=22)
    longest_ms = max(sum(steps.values()) for steps in bars.values())
    px_per_ms = (WIDTH_PX - 2 * MARGIN_PX) / longest_ms
    for number, (label, steps) in enumerate(bars.items()):
        top = MARGIN_PX + number * (BAR_PX + GAP_PX)
        parts = ", ".join(f"{name} {steps[name]:.0f}" for name in COLORS)
        title = f"{label}: {sum(steps.values()):.0f} ms ({parts})"
        pen.text((MARGIN_PX, top), title, fill="#202830", font=font)
        _draw_bar(pen, font, top + 32, steps, px_per_ms)
    _draw_legend(pen, font, height - LEGEND_PX + 10)
    return picture


def _draw_bar(
    pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, top: int, steps: dict[str, float], px_per_ms: float
) -> None:
    left = float(MARGIN_PX)
    for name, color in COLORS.items():
        right = left + steps[name] * px_per_ms
        pen.rectangle([left, top, right, top + BAR_PX], fill=color)
        if right - left > LABELLED_PX:
            middle = ((left + right) / 2, top + BAR_PX / 2)
            pen.text(middle, f"{steps[name]:.0f}", fill="#202830", font=font, anchor="mm")
        left = right


def _draw_legend(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, top: int) -> None:
    left = MARGIN_PX
    for name, color in COLORS.items():
        pen.rectangle([left, top, left + 26, top + 26], fill=color)
        pen.text((left + 36, top), name, fill="#202830", font=font)
        left += 150


def main() -> None:
    found: Found = json.loads(Path(sys.argv[1]).read_text())
    if costs := found.pop("costs", None):
        _write(BEGIN_COSTS, END_COSTS, costs_table(costs))
    if found:
        _write(BEGIN, END, figures(found))
        print(table(found))
    if "profile" in found:
        draw(found["profile"]).save(PLOT, optimize=True)


def _write(begin: str, end: str, text: str) -> None:
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{text.rstrip()}\n\n{end}{after}")


if __name__ == "__main__":
    main()
