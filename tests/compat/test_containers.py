"""The images are built elsewhere; here their files are held to what the tests of the set-up and the worker rely on."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPILERS = ("g++", "gcc", "build-essential", "-dev", "make", "git")


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
def worker_stages() -> list[list[tuple[str, str]]]:
    return stages(ROOT / "Dockerfile")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]


def test_the_build_takes_the_steps_of_the_tested_set_up(worker_stages: list[list[tuple[str, str]]]) -> None:
    build = " ".join(values(worker_stages[0], "RUN"))
    assert 'scripts/bootstrap "${EXTRA}" --venv /opt/model-runner --no-editable --require-hashes' in build
    assert {"g++", "libgdal-dev", "python3-dev", "python3-venv"} <= set(build.split())
    assert "COPY . ." in [" ".join(instruction) for instruction in worker_stages[0]]


def test_a_worker_can_write_every_format_that_a_request_may_ask_for() -> None:
    bootstrap = (ROOT / "scripts" / "bootstrap").read_text()
    targets = re.findall(r'target="\$\{ROOT\}\[([^]]*)\]"', bootstrap)
    assert len(targets) == 2
    assert all("parquet" in target.split(",") for target in targets)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("pyarrow") for requirement in extras["parquet"])


def test_the_last_stage_has_no_compiler(worker_stages: list[list[tuple[str, str]]]) -> None:
    installed = re.search(r"--no-install-recommends ([^&]+)", " ".join(values(worker_stages[-1], "RUN")))
    assert installed is not None
    assert installed[1].split() == ["ca-certificates", "libgdal32", "python3"]
    assert not any(word.endswith(COMPILERS) for word in installed[1].split())


def test_the_worker_is_no_privileged_user(worker_stages: list[list[tuple[str, str]]]) -> None:
    users = values(worker_stages[-1], "USER")
    assert len(users) == 1
    assert all(int(number) >= 10_000 for number in users[0].split(":"))


def test_signals_reach_the_worker(worker_stages: list[list[tuple[str, str]]]) -> None:
    assert values(worker_stages[-1], "ENTRYPOINT") == ['["/usr/local/bin/entrypoint"]']
    assert values(worker_stages[-1], "CMD") == ['["serve"]']
    assert (ROOT / "docker" / "entrypoint.sh").read_text().splitlines()[-1] == 'exec model-runner "$@"'


def test_health_is_asked_of_the_running_worker(worker_stages: list[list[tuple[str, str]]]) -> None:
    assert values(worker_stages[-1], "HEALTHCHECK")[0].endswith('CMD ["model-runner", "health"]')


def test_only_the_temporary_folder_is_written_to(worker_stages: list[list[tuple[str, str]]]) -> None:
    environment = " ".join(values(worker_stages[-1], "ENV"))
    assert "HEALTH_FILE=/tmp/" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    assert values(worker_stages[-1], "WORKDIR") == ["/tmp"]


def test_what_the_images_copy_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    needed = {
        "constraints.txt",
        "deploy",
        "docker",
        "LICENSE",
        "NOTICE",
        "pyproject.toml",
        "README.md",
        "requirements",
        "scripts",
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
