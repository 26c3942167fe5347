"""The page of published names: all names of the published interface, and no others."""

import ast
import importlib
import inspect
import re
from pathlib import Path

from markdown_pages import coded, rows

ROOT = Path(__file__).parents[2]
PACKAGE = "aws.osml.model_runner"
PAGE = (ROOT / "docs" / "reference" / "python.md").read_text()
# sink.s3_sink repeats a name of sink; status of handlers is not a class.
STUBS = [
    Path(__file__).parent / "surface" / f"{name}.pyi"
    for name in ("database", "image_request_handler", "sink", "status")
]


def published() -> dict[str, set[str]]:
    """Return the public members of each published class, as the stubs name them."""
    found = {}
    for stub in STUBS:
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.ClassDef):
                names = {
                    getattr(member, "name", None) or ast.unparse(getattr(member, "target", member))
                    for member in node.body
                }
                found[f"{PACKAGE}.{stub.stem}.{node.name}"] = {
                    name for name in names if re.fullmatch(r"[a-z]\w*", name)
                }
    return found


def documented() -> dict[str, set[str]]:
    blocks = re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\]\n)?", PAGE, re.MULTILINE)
    return {name: set(filter(None, members.split(", "))) for name, members in blocks}


def test_page_documents_every_published_class_and_member() -> None:
    own = {name for name in documented() if name.startswith((f"{PACKAGE}.client.", f"{PACKAGE}.Client"))}
    others = own | {f"{PACKAGE}.ModelRunner"}
    assert {name: members for name, members in documented().items() if name not in others} == published()
    assert {name.rpartition(".")[2] for name in own} == set(importlib.import_module(f"{PACKAGE}.client").__all__)


def test_members_of_client_exist() -> None:
    for name, members in documented().items():
        kind = getattr(importlib.import_module(f"{PACKAGE}.client"), name.rpartition(".")[2], None)
        if kind is not None:
            known = {*dir(kind), *getattr(kind, "__dataclass_fields__", ()), *vars(kind).get("__annotations__", ())}
            source = inspect.getsource(kind)
            assert {member for member in members if member not in known and f"self.{member}" not in source} == set()


def test_table_names_what_the_page_documents() -> None:
    table = {f"{coded(row['Import from'])[0]}.{name}" for row in rows(PAGE) for name in coded(row["Names"])}
    assert table == set(documented())


def test_packages_export_what_the_page_documents() -> None:
    for name in documented():
        module = importlib.import_module(name.rpartition(".")[0])
        exported = getattr(module, "__all__", vars(module))
        assert name.rpartition(".")[2] in exported, name
