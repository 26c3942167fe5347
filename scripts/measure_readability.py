#!/usr/bin/env python3
"""Print the figures that describe how readable the package is.

Usage: scripts/measure_readability.py [ROOT]    ROOT is a checkout; by default the one of this script.
"""

import ast
import configparser
import re
import sys
from collections import Counter
from pathlib import Path

SMALL_MODULE_LINES = 40
# Words that the glossary replaces, as whole words of code and prose.
REPLACED_WORDS = (
    "allowance",
    "survey",
    "quarantine",
    "ledger",
    "SchedulingTurns",
    "overtake",
    "kept_hidden",
    "SEALED",
    "absorbers",
    "RationalCamera",
    "leash",
    "nursery",
    "stranger",
    "strangers",
    "the peer",
)


def main() -> None:
    """Print each figure of the checkout on a line of its own."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    modules = sorted((root / "src").rglob("*.py"))
    texts = {path: path.read_text() for path in modules}
    trees = [ast.parse(text) for text in texts.values()]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    uses = Counter(name for tree in trees for node in ast.walk(tree) if (name := _used_name(node)))
    private_once = [f for f in functions if _is_private(f.name) and uses[f.name] == 1]
    lines = [text.count("\n") for text in texts.values()]
    # Facades of packages, __init__ and __main__, are small by design.
    small = [path for path, text in texts.items() if text.count("\n") < SMALL_MODULE_LINES and path.stem[:2] != "__"]
    print(f"modules                        {len(modules)}")
    print(f"lines                          {sum(lines)}")
    print(f"functions per 1,000 lines      {1000 * len(functions) / sum(lines):.1f}")
    print(f"functions private, used once   {100 * len(private_once) / len(functions):.1f} %")
    print(f"modules under {SMALL_MODULE_LINES} lines         {len(small)}")
    print(f"layers of imports              {_layers(root)}")
    for word in REPLACED_WORDS:
        count = _occurrences(root, word)
        if count:
            print(f"  {word:28} {count}")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _used_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def _layers(root: Path) -> int:
    rules = configparser.ConfigParser()
    rules.read(root / ".importlinter")
    return len(rules["importlinter:contract:layers"]["layers"].strip().split("\n"))


def _occurrences(root: Path, word: str) -> int:
    pattern = re.compile(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", re.IGNORECASE)
    places = [
        path for name in ("src", "docs", "tests") for path in (root / name).rglob("*") if path.suffix in (".py", ".md")
    ]
    return sum(len(pattern.findall(path.read_text())) for path in places if path.name != "glossary.md")


if __name__ == "__main__":
    main()
