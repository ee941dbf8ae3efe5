"""The page of the data sets has every task, and names the folders that the tasks themselves look for."""

import re
from pathlib import Path

import pytest

from multifsl import registry
from multifsl.errors import DataNotFound

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S))
SETS = [name for name in registry.names("tasks") if not registry.arguments("tasks", name).startswith("path")]


def test_the_page_has_every_task_and_no_other() -> None:
    assert sorted(SECTIONS) == registry.names("tasks")
    assert sorted(re.findall(r"\| \[(\w+)\]\(#\1\) \|", PAGE)) == registry.names("tasks")


@pytest.mark.parametrize("name", SETS)
def test_a_section_has_the_folders_the_split_and_the_licence(name: str, tmp_path: Path) -> None:
    task = registry.build("tasks", name, data_root=tmp_path)
    with pytest.raises(DataNotFound) as error:
        task.items("train")
    folders = re.findall(rf"{re.escape(str(tmp_path))}/(\w+)", str(error.value))
    assert folders and all(
        f"`{folder}`" in SECTIONS[name] or name == "fc100" for folder in folders
    )  # fc100: "as cifar_fs"
    assert "**Split**" in SECTIONS[name] and "**Folder" in SECTIONS[name]
    options = [part.partition("=")[0].strip() for part in re.split(r",(?![^(]*\))", registry.arguments("tasks", name))]
    assert [option for option in options if option and not re.search(rf"`{option}\b", SECTIONS[name])] == []
