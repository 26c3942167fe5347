#!/usr/bin/env python3
"""Check the prose of code and documents against the project's rules of writing.

Usage: scripts/check_prose.py [PATH...]    PATH is a file or a folder; by default all code and documents.

Checks docstrings, comments and string literals of Python, and the text of Markdown. Prints a line with file, line,
rule and sentence for each breach, and exits with 1 when there is one. Quoted words and code in backticks are skipped.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("src", "tests", "scripts", "benchmarks", "docs", "README.md", "CONTRIBUTING.md", "SECURITY.md")
MAX_WORDS = 25
# A string literal with fewer words is a name, a key or a format, not a sentence.
MIN_LITERAL_WORDS = 5

# Words that the glossary replaces. "turn" and "aside" have other uses ("in turn"), so the rule names whole phrases.
REPLACED = (
    "allowance|survey|quarantine|ledger|leash|nursery|strangers?|the peer|absorb(?:s|ed|ers?)?|overtak(?:e|es|en|ing)|"
    "seal(?:s|ed)|anew|takes? a turn|its turn|whose turn|gives? (?:it )?back|set(?:s|ting)? aside"
)
RULES = {
    "start with the subject": re.compile(r"^(?:What|Who|Whoever|Whatever|Of|Those)\b(?!.*\?)"),
    "name the thing": re.compile(r"\b(?:ones? that|those (?:that|which)|what is left of|whatever it)\b", re.I),
    "code does not speak": re.compile(r"\b(?:tell(?:s|ing)?|told|hears?|heard|says|said|wants|wishes)\b", re.I),
    "negate the verb": re.compile(
        r"(?<!\bthere )\b(?:is|are|was|were|be) no (?!(?:longer|more|less|fewer|earlier|later)\b)[a-z]"
    ),
    "use the glossary": re.compile(rf"\b(?:{REPLACED})\b", re.I),
}
# The head of an entry in a list of parameters or attributes: ":param name:" or "    name, other: ".
_ENTRY = re.compile(r"^(?:\s*:\w+[^:]*:|    [\w, ]+: )", re.MULTILINE)
MARKDOWN = MarkdownIt("commonmark").enable("table")


class Text(NamedTuple):
    """A paragraph and the number of the line where it begins."""

    line: int
    words: str


def main() -> int:
    """Print each breach, and return the exit status."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT / name for name in CHECKED]
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    breaches = [
        f"{file.relative_to(ROOT)}:{line}: {rule}: {sentence}"
        for file in files
        if file.suffix in {".py", ".md"} and file != Path(__file__).resolve() and file.name != "glossary.md"
        for paragraph in _paragraphs(file)
        for line, rule, sentence in _breaches(paragraph)
    ]
    print(*breaches, sep="\n", end="\n" if breaches else "")
    return 1 if breaches else 0


def _paragraphs(file: Path) -> Iterator[Text]:
    text = file.read_text()
    if file.suffix == ".md":
        yield from _of_markdown(Text(1, text))
        return
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if id(node) in docstrings:
            yield from _of_markdown(Text(node.lineno, cleandoc(node.value)))
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield from _of_literal(node.lineno, "".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _of_literal(node.lineno, node.value)
    yield from _of_comments(text)


def _of_literal(line: int, value: str) -> Iterator[Text]:
    if len(value.split()) >= MIN_LITERAL_WORDS and "\n" not in value and not re.search(r"[{}<>=\\]", value):
        yield Text(line, _without_code(value))


def _of_comments(text: str) -> Iterator[Text]:
    """Yield each run of comment lines as one paragraph; comments for tools are left out."""
    run: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        words = token.string.lstrip("#! ")
        if re.match(r"(noqa|type:|pragma|mypy|fmt:|/usr)", words):
            continue
        is_line = not token.line[: token.start[1]].strip()
        if run and not (is_line and token.start[0] == last + 1):
            yield Text(first, _without_code(" ".join(run)))
            run = []
        if not run:
            first = token.start[0]
        run.append(words)
        last = token.start[0]
    if run:
        yield Text(first, _without_code(" ".join(run)))


def _of_markdown(text: Text) -> Iterator[Text]:
    for token in MARKDOWN.parse(_ENTRY.sub("\n", text.words)):
        # A paragraph that begins with a rule of equals signs is a table of a docstring.
        if token.type == "inline" and token.children and not token.content.startswith("=="):
            words = "".join("X" if c.type == "code_inline" else c.content or " " for c in token.children)
            yield Text(text.line + (token.map or [0])[0], _without_code(words))


def _without_code(words: str) -> str:
    """Replace code in backticks and quoted words, which the rules do not hold."""
    return re.sub(r"``?[^`]+``?|\"[^\"]*\"|“[^”]*”", "X", words)


def _breaches(paragraph: Text) -> Iterator[tuple[int, str, str]]:
    for sentence in re.split(r"(?<=[.!?:;])\s+(?=[A-Z`(])", " ".join(paragraph.words.split())):
        count = len(re.findall(r"[\w'’./-]*\w", sentence))
        if count > MAX_WORDS:
            yield paragraph.line, f"{count} words", sentence
        for rule, pattern in RULES.items():
            if pattern.search(sentence):
                yield paragraph.line, rule, sentence


if __name__ == "__main__":
    sys.exit(main())
