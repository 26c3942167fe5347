"""Writes what follows from code and templates in docs: ``.venv/bin/python scripts/render_reference.py [--check]``.

A generated part stands between two comments; the text around it is written by hand.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from aws.osml.model_runner.cli.main import build_parser
from aws.osml.model_runner.config import Setting, documented_settings
from aws.osml.model_runner.jobs.prices import Prices, UnitPrices
from aws.osml.model_runner.jobs.quote import (
    Amounts,
    Cost,
    ImageQuote,
    PlanDocument,
    QuotedImage,
    QuotedProblem,
    QuotedRegion,
    QuotedTiles,
    Unchecked,
)

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
END = "<!-- end of generated part -->"


def environment_table() -> str:
    """Return one row for each setting of a worker."""
    rows = [
        f"| {_names(setting)} | {_default(setting)} | {_cell(setting.description)} |"
        for setting in documented_settings()
    ]
    return "\n".join(["| Variable | Default | Meaning |", "|---|---|---|", *rows])


def command_sections() -> str:
    """Return a section for each command: what it is for, and a table of its options."""
    return "\n\n".join(_section(name, parser) for name, parser in subcommands().items())


def subcommands() -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each command by its name."""
    commands = next(action for action in _actions(build_parser()) if isinstance(action.choices, dict))
    found: Mapping[str, argparse.ArgumentParser] = commands.choices
    return found


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a command, without ``--help``."""
    return (action for action in _actions(parser) if action.dest != "help")


class _TemplateLoader(yaml.SafeLoader):
    """Reads a template without evaluating it: ``!Ref X`` becomes ``{"!Ref": "X"}``."""


def _function(loader: _TemplateLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {f"!{name}": loader.construct_scalar(node)}
    return {f"!{name}": loader.construct_sequence(node, deep=True)}  # type: ignore[arg-type]


_TemplateLoader.add_multi_constructor("!", _function)


def template(name: str) -> Mapping[str, Any]:
    """Return a template of CloudFormation."""
    found: Mapping[str, Any] = yaml.load(
        (REFERENCE.parents[1] / "deploy" / name).read_text(),
        Loader=_TemplateLoader,  # noqa: S506 - from SafeLoader
    )
    return found


def parameter_table(name: str) -> str:
    """Return one row for each parameter of a template."""
    rows = []
    for parameter, facts in template(name)["Parameters"].items():
        default = "*required*" if "Default" not in facts else f"`{facts['Default']}`" if facts["Default"] != "" else ""
        rows.append(f"| `{parameter}` | {default} | {_cell(facts['Description'])} |")
    return "\n".join(["| Parameter | Default | Meaning |", "|---|---|---|", *rows])


def permission_table() -> str:
    """Return one row for each statement of the workers' role."""
    rows = []
    for policy in template("service.yaml")["Resources"]["TaskRole"]["Properties"]["Policies"]:
        condition, document = (policy["!If"][0], policy["!If"][1]) if "!If" in policy else ("", policy)
        for statement in document["PolicyDocument"]["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            shown = ", ".join(f"`{action}`" for action in actions)
            resources = ", ".join(f"`{resource}`" for resource in _resources(statement["Resource"]))
            rows.append(f"| {shown} | {resources} | {f'`{condition}`' if condition else 'always'} |")
    return "\n".join(["| Actions | Output of the data plane, or parameter | Condition |", "|---|---|---|", *rows])


def _resources(value: Any) -> Iterator[str]:
    """Yield the imported outputs and the parameters in the resources of a statement."""
    if isinstance(value, Mapping):
        for function, argument in value.items():
            if function == "!Ref":
                yield argument
            elif function == "!Sub":
                yield argument.partition(":")[2]
            else:
                yield from _resources(argument)
    elif isinstance(value, list):
        for item in value:
            yield from _resources(item)


def plan_document() -> str:
    """Return a table for each object of the document of ``plan``, and for the file of prices."""
    models = (PlanDocument, ImageQuote, QuotedImage, QuotedTiles, QuotedRegion, Amounts, Cost, QuotedProblem, Unchecked)
    titles = ("Document", "images", "image", "tile", "regions", "amounts and totals", "cost", "problems", "unchecked")
    parts = [_object(f"### {title}", model) for title, model in zip(titles, models, strict=True)]
    return "\n\n".join([*parts, _object("## File of prices", Prices), _object("### prices", UnitPrices)])


PARTS: Mapping[str, tuple[str, Callable[[], str]]] = {
    "environment": ("environment.md", environment_table),
    "commands": ("command-line.md", command_sections),
    "data-plane parameters": ("../how-to/deploy-the-data-plane.md", lambda: parameter_table("data-plane.yaml")),
    "service parameters": ("../how-to/deploy-the-service.md", lambda: parameter_table("service.yaml")),
    "service permissions": ("../how-to/deploy-the-service.md", permission_table),
    "plan": ("plan.md", plan_document),
}


def rendered(name: str, page: str) -> str:
    """Return ``page`` with its generated part replaced."""
    begin = f"<!-- generated by scripts/render_reference.py: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
    new, count = pattern.subn(lambda _: f"{begin}\n\n{PARTS[name][1]()}\n\n{END}", page)
    if count != 1:
        raise ValueError(f"the page has {count} generated parts named {name}, not one")
    return new


def main(argv: list[str] | None = None) -> int:
    """Write every page that is out of date, or, with ``--check``, only name them and return 1."""
    parser = argparse.ArgumentParser(description="Renew the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    is_check = parser.parse_args(argv).check
    stale = []
    for name, (file, _render) in PARTS.items():
        path = REFERENCE / file
        old = path.read_text()
        new = rendered(name, old)
        if new != old:
            stale.append(file)
            if not is_check:
                path.write_text(new)
    print("\n".join(f"{file}: {'out of date' if is_check else 'written'}" for file in stale) or "all up to date")
    return int(is_check and bool(stale))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # argparse has no public way to list them


def _object(heading: str, model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {_json_type(schema)} | {_cell(schema.get('description', ''))} |"
        for name, schema in model.model_json_schema()["properties"].items()
    ]
    return "\n".join([heading, "", "| Key | Type | Meaning |", "|---|---|---|", *rows])


def _json_type(schema: Mapping[str, Any]) -> str:
    """Return the type of a key, of its items for a list, and ``null`` where it may be that."""
    if "anyOf" in schema:
        return " or ".join(_json_type(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return "text" if schema["$ref"].endswith("BlockSizes") else "object"
    if schema["type"] == "array":
        return f"list of {_json_type(schema['items'])}s" if "items" in schema else "two numbers"
    return {"string": "text", "integer": "number", "boolean": "true or false"}.get(schema["type"], schema["type"])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [_option_row(action) for action in options_of(parser)]
    table = ["| Option | Default | Meaning |", "|---|---|---|", *rows] if rows else ["It has no options."]
    return "\n".join([f"## {name}", "", parser.description or "", "", *table])


def _option_row(action: argparse.Action) -> str:
    name = action.option_strings[-1] if action.option_strings else action.dest.upper()
    choices = f"One of {', '.join(f'`{choice}`' for choice in action.choices)}." if action.choices else ""
    meaning = _sentence(" ".join(filter(None, [action.help])))
    return f"| `{name}` | {_option_default(action)} | {_cell(' '.join(filter(None, [meaning, choices])))} |"


def _option_default(action: argparse.Action) -> str:
    if action.required:
        return "*required*"
    is_empty = action.default in (None, {}) or action.dest == "file"  # that of --file is the environment's
    return "" if is_empty else f"`{action.default}`"


def _names(setting: Setting) -> str:
    return " or ".join(f"`{name}`" for name in setting.names)


def _default(setting: Setting) -> str:
    return f"`{setting.default}`" if setting.default else "*required*"


def _sentence(text: str) -> str:
    return text and f"{text[0].upper()}{text[1:]}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
