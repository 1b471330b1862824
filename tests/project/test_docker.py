"""What can be checked of the images without an engine: the files fit one another, README and guide."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from sqlalchemy.engine import make_url

from depfuse.cli import main

TOP = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((TOP / "docker").glob("Dockerfile.*"))


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a Dockerfile, comments dropped and continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(word.upper(), arguments) for word, arguments in pairs]


def sources(dockerfile: Path) -> list[str]:
    """Everything that a Dockerfile copies from the repository."""
    copies = [shlex.split(arguments) for word, arguments in instructions(dockerfile) if word == "COPY"]
    return [source for copied in copies for source in copied[:-1]]


def test_there_is_an_image_for_the_cpu_and_one_for_cuda() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


def test_compose_file_names_both_images() -> None:
    compose = yaml.safe_load((TOP / "docker" / "compose.yaml").read_text())
    assert {"cpu", "cuda"} <= set(compose["services"])
    for name, service in compose["services"].items():
        context = (TOP / "docker" / service["build"]["context"]).resolve()
        assert context == TOP
        assert (context / service["build"]["dockerfile"]) in DOCKERFILES
        assert service["build"]["dockerfile"].endswith(name)
    (device,) = compose["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_workers_of_a_search_and_the_dashboard_share_a_database(capsys) -> None:
    compose = yaml.safe_load((TOP / "docker" / "tune.yaml").read_text())
    database, worker, dashboard = (compose["services"][name] for name in ("database", "worker", "dashboard"))
    assert "ports" not in database, "a database without a password is for the services beside it only"
    command = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", worker["command"])
    name, *words = shlex.split(command)
    assert name == "tune"
    assert set(words) >= {"--resume", "--trials"}
    files = [word for word in words if word.endswith(".safetensors")]
    assert len(files) == 2
    assert all((TOP / file).is_file() for file in files)
    assert main(["tune", "--help"]) == 0
    assert {word for word in words if word.startswith("--")} <= set(capsys.readouterr().out.split())
    for url in (words[words.index("--storage") + 1], dashboard["command"]):
        parsed = make_url(url)
        assert (parsed.host, parsed.username) == ("database", database["environment"]["POSTGRES_USER"])
        assert parsed.database == database["environment"]["POSTGRES_DB"]
    assert words[words.index("--out") + 1].startswith("runs/")
    assert worker["image"] == yaml.safe_load((TOP / "docker" / "compose.yaml").read_text())["services"]["cpu"]["image"]
    assert "container_name" not in worker, "there can be many"
    assert {own["depends_on"]["database"]["condition"] for own in (worker, dashboard)} == {"service_healthy"}
    assert dashboard["ports"] == ["127.0.0.1:8080:8080"]
    assert (TOP / "docker" / worker["build"]["context"]).resolve() == TOP


def test_the_guide_starts_workers() -> None:
    guide = " ".join((TOP / "docs" / "guide" / "docker.md").read_text().split())
    command = re.search(r"docker compose -f (\S+) up --build --scale (\w+)=\d", guide)
    assert command is not None
    assert command[2] in yaml.safe_load((TOP / command[1]).read_text())["services"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_copied_files_exist_and_reach_the_engine(dockerfile: Path) -> None:
    let_through = {
        line.removeprefix("!") for line in (TOP / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert sources(dockerfile)
    for source in sources(dockerfile):
        assert (TOP / source).exists(), source
        assert source in let_through, f"{source} is kept out by .dockerignore"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_install_as_the_readme_does(dockerfile: Path) -> None:
    readme = (TOP / "README.md").read_text()
    command = re.search(r"pip install -e \.(?=\s|$)", readme)
    assert command is not None, "the README does not say how to install"
    runs = [arguments.strip() for word, arguments in instructions(dockerfile) if word == "RUN"]
    assert command[0] in runs
    assert "pip install -e '.[postgresql]'" in runs, "a worker of a search needs a driver"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_have_what_the_package_needs(dockerfile: Path) -> None:
    found = dict(instructions(dockerfile))
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim", found["FROM"])
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (3, 10)
    assert found["ENTRYPOINT"] == '["depfuse"]'
    # What pyproject.toml names must be there when the package is built.
    assert {"pyproject.toml", "README.md", "LICENSE", "depfuse", "checkpoints"} <= set(sources(dockerfile))
