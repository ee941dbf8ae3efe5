"""What is installed is what stands in the tree. Oracle: a walk over the tree itself, folder by folder."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import multifsl
from tests.needs import needs_data

ROOT = Path(__file__).resolve().parent.parent
TOP = ("pyproject.toml", "README.md", "LICENSE")
LINKS = {"multifsl/encoders": "../encoders", "multifsl/tasks": "../tasks"}


def files(folder: Path) -> Iterator[Path]:
    """All files below, links not followed, without hidden ones and bytecode."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__" or path.is_symlink():
            continue
        yield from files(path) if path.is_dir() else [path]


def sources() -> dict[str, str]:
    """Place in the wheel -> place in the tree, of everything that a user needs."""
    places = {}
    for folder, package in {"multifsl": "multifsl", "encoders": "multifsl/encoders", "tasks": "multifsl/tasks"}.items():
        for path in files(ROOT / folder):
            inner = path.relative_to(ROOT / folder)
            data = inner.parts[0] in ("cohorts", "demo_data", "models", "recipes", "report.html")
            if path.suffix == ".py" or path.name == "py.typed" or data:
                places[f"{package}/{inner.as_posix()}"] = f"{folder}/{inner.as_posix()}"
    return places


def copy_tree(to: Path, *, links: bool) -> Path:
    """A checkout without build leftovers; `links=False` is one of git on Windows: small files instead of links."""
    for name in (*TOP, "MANIFEST.in"):
        shutil.copy(ROOT / name, to / name)
    for folder in ("multifsl", "encoders", "tasks", "tests"):
        shutil.copytree(ROOT / folder, to / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    if not links:
        for link, target in LINKS.items():
            (to / link).unlink()
            (to / link).write_text(target)
    return to


def build(tree: Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "."]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def wheel_contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


pytestmark = pytest.mark.xdist_group("packaging")  # one process: one build


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from the sdist alone, as `make wheel` makes them."""
    tree = copy_tree(tmp_path_factory.mktemp("tree"), links=True)
    build(tree)
    return tree / "dist"


@pytest.mark.parametrize("link", LINKS)
def test_links_are_relative(link: str) -> None:
    path = ROOT / link
    target = os.readlink(path) if path.is_symlink() else path.read_text().strip()  # git on Windows writes a small file
    assert Path(target).as_posix() == LINKS[link]


def test_every_folder_is_a_listed_package() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {place.rpartition("/")[0].replace("/", ".") for place in sources() if place.endswith(".py")}
    assert folders == set(config["tool"]["setuptools"]["packages"])


def test_wheel_is_the_tree(dist: Path) -> None:
    contents = wheel_contents(only(dist, "*.whl"))
    assert sorted(contents) == sorted(sources())
    assert [name for name, tree in sources().items() if contents[name] != (ROOT / tree).read_bytes()] == []


def test_wheel_without_links(dist: Path, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path, links=False)
    build(tree, "--wheel")
    assert wheel_contents(only(tree / "dist", "*.whl")) == wheel_contents(only(dist, "*.whl"))


def test_sdist_has_the_tree(dist: Path) -> None:
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        inside = {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}
    made = {name for name in inside if ".egg-info/" in name or name in ("PKG-INFO", "setup.cfg")}
    assert inside - made == {*sources().values(), *TOP, "MANIFEST.in"}


def test_version_is_said_once(dist: Path) -> None:
    version = multifsl.__version__
    assert only(dist, "*.whl").name == f"multifsl-{version}-py3-none-any.whl"
    assert only(dist, "*.tar.gz").name == f"multifsl-{version}.tar.gz"
    assert importlib.metadata.version("multifsl") == version, "the installed multifsl is old: run make again"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]


def test_installed_wheel_has_the_command(dist: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees this one's packages but for multifsl; far from the tree."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    wheel = only(dist, "*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    (site / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "import multifsl, multifsl.encoders, multifsl.tasks as t; print(multifsl.__file__, t.__file__, sep='\\n')"
    run = subprocess.run([python, "-c", script], cwd=tmp_path, env=clean, check=True, capture_output=True, text=True)
    assert run.stdout.split() == [
        str(site / "multifsl" / "__init__.py"),
        str(site / "multifsl" / "tasks" / "__init__.py"),
    ]
    run = subprocess.run(
        [scripts / "multifsl", "--help"], cwd=tmp_path, env=clean, check=False, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "Usage" in run.stdout

    command = [str(scripts / "multifsl"), "list", "models"]
    run = subprocess.run(command, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True)
    assert "model:omniglot-prototypical" in run.stdout
    needs_data("omniglot")
    options = "--eval-only --split val --episodes 64 --json -".split()
    command = [str(scripts / "multifsl"), "reproduce", "omniglot-prototypical", *options]
    offline = clean | {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    run = subprocess.run(command, cwd=tmp_path, env=offline, check=True, capture_output=True, text=True)
    figures = json.loads(run.stdout)["figures"]
    assert [(f["way"], f["shot"], f["published"]) for f in figures] == [
        (5, 1, 0.988), (5, 5, 0.997), (20, 1, 0.96), (20, 5, 0.989)
    ]  # fmt: skip
    assert all(f["accuracy"] > 0.9 and f["split"] == "val" for f in figures)
