"""Hooks of MkDocs: files outside ``docs/`` that its pages link to become part of the site.

On GitHub such a link leads to the file. A Markdown file becomes a page of the site, any other file a download.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "repository"
RELATIVE_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def source_of(uri: str) -> str:
    """Return where a page lies in the repository."""
    return uri.removeprefix(f"{FOLDER}/") if uri.startswith(f"{FOLDER}/") else f"docs/{uri}"


def uri_of(source: str) -> str:
    """Return where a file of the repository lies in the site."""
    return source.removeprefix("docs/") if source.startswith("docs/") else f"{FOLDER}/{source}"


def target_of(link: str, source: str) -> str:
    """Return the file of the repository that a relative link in another file leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def linked_files(source: str) -> set[str]:
    """Return the files outside ``docs/`` that a Markdown file links to, directly or through other files."""
    found: set[str] = set()
    pending = [source]
    while pending:
        page = pending.pop()
        for link, _anchor in RELATIVE_LINK.findall((ROOT / page).read_text()):
            target = target_of(link, page)
            if target.startswith(("docs/", "..")) or target in found or not (ROOT / target).is_file():
                continue
            found.add(target)
            if target.endswith(".md"):
                pending.append(target)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files to those of the site."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for source in sorted(set().union(*map(linked_files, pages))):
        added = File.generated(config, uri_of(source), abs_src_path=os.fspath(ROOT / source))
        added.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - the signature is MkDocs'
    """Lead links over the border of ``docs/`` to the files of the site."""
    source = source_of(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target = uri_of(target_of(found[1], source))
        if target not in files.src_uris:
            return found[0]
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri)) + (found[2] or "")

    return RELATIVE_LINK.sub(moved, markdown)
