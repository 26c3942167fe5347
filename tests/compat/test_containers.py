"""The files of the images; tests/images builds and runs the images, in the long form only."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

Stages = dict[str, list[tuple[str, str]]]

ROOT = Path(__file__).parents[2]
COMPILERS = ("g++", "gcc", "build-essential", "-dev", "make", "git")
# Words of the code that are also names of services.
OTHER_WORDS = {"config", "health", "location", "logs"}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments) of a Dockerfile in order, continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, from its FROM on."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(dockerfile):
        if instruction[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def values(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [arguments for instruction, arguments in stage if instruction == name]


@pytest.fixture(scope="module")
def worker_stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name; the worker is the last one."""
    return {values(stage, "FROM")[0].split()[-1]: stage for stage in stages(ROOT / "Dockerfile")}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]


def test_packages_are_installed_by_hash_and_nothing_is_compiled(worker_stages: Stages) -> None:
    steps = " ".join(argument for stage in worker_stages.values() for argument in values(stage, "RUN"))
    installs = re.findall(r"pip (?:--python \S+ )?install (.*?)(?=&&|$|/opt/build/bin/pip)", steps)
    listed = [install for install in installs if "requirements/" in install]
    assert len(listed) == 4
    assert all("--require-hashes" in install and "--only-binary :all:" in install for install in listed)
    packages = re.findall(r"apt-get install --yes --no-install-recommends ([^&]+)", steps)
    assert not any(word.endswith(COMPILERS) for words in packages for word in words.split())


def test_a_line_of_code_repeats_no_layer_of_packages(worker_stages: Stages) -> None:
    copied = {name: values(stage, "COPY") for name, stage in worker_stages.items()}
    assert not copied["system"]
    assert not any("src" in source.split() or "." in source.split()[:-1] for source in copied["packages"])
    assert copied["project"] == [". ."]
    assert [source.split()[0] for source in copied["worker"]] == ["--from=packages", "--from=project"]


def test_the_worker_s_image_leaves_the_embedded_stack_out(worker_stages: Stages) -> None:
    assert list(worker_stages)[-1] == "worker", "a build without a target is the worker"
    assert values(worker_stages["worker"], "COPY")[1] == "--from=project /production/ /"
    (steps,) = values(worker_stages["project"], "RUN")
    package = "aws/osml/model_runner/local"
    assert {"demo", "models", "onnx", "stack"} == set(re.findall(rf"{package}/(\w+)", steps))


def test_nothing_is_pulled_but_the_base() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "syntax=" not in text
    assert {line.split()[1] for line in text.splitlines() if line.startswith("FROM")} == {
        "${BASE}", "system", "packages", "runtime"
    }  # fmt: skip


def test_every_service_of_aws_that_code_names_stays_in_the_image() -> None:
    services = set(boto3.Session().get_available_services())
    words = {
        node.value
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    kept = set((ROOT / "docker" / "aws-services.txt").read_text().split())
    assert kept <= services
    assert (words & services) - OTHER_WORDS <= kept


def test_a_worker_can_write_every_format_that_a_request_may_ask_for() -> None:
    bootstrap = (ROOT / "scripts" / "bootstrap").read_text()
    targets = re.findall(r'target="\$\{ROOT\}\[([^]]*)\]"', bootstrap)
    assert len(targets) == 2
    assert all("parquet" in target.split(",") for target in targets)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("pyarrow") for requirement in extras["parquet"])


def test_the_system_has_no_compiler(worker_stages: Stages) -> None:
    installed = re.search(r"--no-install-recommends ([^&]+)", " ".join(values(worker_stages["system"], "RUN")))
    assert installed is not None
    assert installed[1].split() == ["ca-certificates", "libgdal32", "python3", "tini"]


def test_the_worker_is_no_privileged_user(worker_stages: Stages) -> None:
    users = values(worker_stages["runtime"], "USER")
    assert len(users) == 1
    assert all(int(number) >= 10_000 for number in users[0].split(":"))


def test_signals_reach_the_worker(worker_stages: Stages) -> None:
    assert values(worker_stages["runtime"], "ENTRYPOINT") == ['["/usr/bin/tini", "--", "/usr/local/bin/entrypoint"]']
    assert values(worker_stages["runtime"], "CMD") == ['["serve"]']
    assert (ROOT / "docker" / "entrypoint.sh").read_text().splitlines()[-1] == 'exec model-runner "$@"'


def test_health_is_asked_of_the_running_worker(worker_stages: Stages) -> None:
    assert values(worker_stages["runtime"], "HEALTHCHECK")[0].endswith('CMD ["model-runner", "health"]')


def test_only_the_temporary_folder_is_written_to(worker_stages: Stages) -> None:
    environment = " ".join(values(worker_stages["runtime"], "ENV"))
    assert "HEALTH_FILE=/tmp/" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    assert values(worker_stages["runtime"], "WORKDIR") == ["/tmp"]
    assert values(worker_stages["runtime"], "VOLUME") == ['["/tmp"]'], "ECS gives a volume the mode of this folder"


def test_what_the_images_copy_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    needed = {
        "deploy",
        "docker",
        "LICENSE",
        "NOTICE",
        "pyproject.toml",
        "README.md",
        "requirements",
        "src",
    }
    assert kept == needed
    assert all((ROOT / name).exists() for name in needed)


@pytest.mark.parametrize("name", ["emulator", "gateway", "model", "worker"])
def test_containers_may_do_as_little_as_possible(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all({"noexec", "nosuid"} <= set(re.split("[:,]", mount)) for mount in service["tmpfs"])


def test_nothing_but_the_emulator_is_reachable_and_only_from_this_machine(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"emulator": ["127.0.0.1:4566:4566"]}
    assert {service.get("network_mode") for name, service in services.items() if name != "emulator"} == {
        "service:emulator"
    }


@pytest.mark.parametrize("name", ["emulator", "model"])
def test_health_commands_are_python(services: dict[str, Any], name: str) -> None:
    kind, program, option, code = services[name]["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    compile(code, name, "exec")
