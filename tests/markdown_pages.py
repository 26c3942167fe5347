"""Takes Markdown pages apart: sections, tables, words in backticks, fenced blocks, links and anchors."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

Row = dict[str, str]


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its own or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"no heading {heading!r}"
    end = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(text, found.end())
    return text[found.end() : end.start() if end else len(text)]


def own_part(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of whatever level."""
    return re.split(r"^#+ ", section(text, heading), maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> Iterator[Row]:
    """Yield the rows of every table in ``text`` by the headings of their columns."""
    header: list[str] | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if header is None:
            header = cells
        elif set("".join(cells)) - set("-: "):
            assert len(cells) == len(header), line
            yield dict(zip(header, cells, strict=True))


def coded(text: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def first_column(table: Iterable[Row]) -> list[str]:
    return [name for row in table for name in coded(next(iter(row.values())))]


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def slugs(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return where the links of a page lead, but for those to the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text()))
    return [target for target in targets if not target.startswith(("http://", "https://"))]
