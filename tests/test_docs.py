"""The pages of docs/: every method has one, links lead somewhere, and the specs in their commands can be built."""

import re
import shlex
from pathlib import Path

import pytest

from multifsl import registry
from multifsl.recipe import load_recipe

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
METHODS = registry.names("methods")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_page_that_names_all_its_options(name: str) -> None:
    page = (DOCS / "methods" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n") and "Departures" in page and "Cost" in page
    options = [
        part.partition("=")[0].strip() for part in re.split(r",(?![^(]*\))", registry.arguments("methods", name))
    ]
    assert [o for o in options if o and f"`{o}`" not in page] == []
    assert f"(methods/{name}.md)" in (DOCS / "methods.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_there_is(page: Path) -> None:
    """Methods and tasks of the commands are built from their specs; their options must be those of the command line."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^multifsl (?:train|evaluate) .*$", text, re.M):
        words = shlex.split(line, comments=True)
        method = (
            words[4] if words[1] == "train" else words[words.index("--method") + 1] if "--method" in words else None
        )
        if method is not None:
            registry.build("methods", method, encoder=registry.build("encoders", "conv4(width=8)"), way=5)
        task = words[2] if words[1] == "train" else words[words.index("--task") + 1] if "--task" in words else None
        if task is not None:
            registry.build("tasks", task)


def test_the_recipe_shown_can_be_followed(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (DOCS / "training.md").read_text(), re.DOTALL)
    (tmp_path / "photos.toml").write_text(block)
    shown = load_recipe(str(tmp_path / "photos.toml"))
    assert shown.train["way"] == 10 and [row.published for row in shown.rows] == [71.5]
