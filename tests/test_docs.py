"""What README.md and the documentation say is true; tests/docs runs their commands and code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deep_image_compositing import registry
from deep_image_compositing.cli import _parser
from tests.docs.blocks import PAGES, ROOT, blocks

KEPT = (".ci", "deep_image_compositing", "docs", "recipes", "tests")
TEXT = {".cfg", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml", ""}


def own_files() -> list[Path]:
    """The project's own text files, whether or not git is there to list them."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in KEPT:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in found if path.suffix in TEXT and "__pycache__" not in path.parts]


@pytest.mark.parametrize("slot", registry.SLOTS)
def test_the_page_of_slots_names_every_stage(slot: str) -> None:
    row = next(
        line
        for line in (ROOT / "docs/how-it-works.md").read_text().splitlines()
        if line.startswith(f"| {slot} |")
    )
    listed = set(re.findall(r"`(\w+)`", row.split("|", 4)[4]))
    own = {
        entry.name
        for entry in registry.list_stages(slot)
        if entry.factory.__module__.startswith("deep_image_compositing.")
        and entry.published is None  # those are on a page of their own
    }
    assert listed == own


@pytest.mark.parametrize(
    ("command", "name", "among"),
    [("composite", "command-line", "--work-side"), ("serve", "serve", "--max-pixels")],
)
def test_a_page_has_every_option_of_a_command(command: str, name: str, among: str) -> None:
    page = (ROOT / f"docs/{name}.md").read_text()
    actions = _parser()._subparsers._group_actions[0].choices[command]._actions  # type: ignore[union-attr,index]
    options = [text for action in actions for text in action.option_strings]
    assert among in options
    absent = [o for o in options if f"`{o}`" not in page and o not in ("-h", "--help", "--debug")]
    assert not absent


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_continuous_integration_runs_the_readme_s_first_two_blocks() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "commands"], capture_output=True, text=True, check=True
    )
    example, tests = blocks(ROOT / "README.md", "bash")[:2]
    assert done.stdout == example.text + tests.text
    assert blocks(ROOT / "docs/index.md", "bash")[0].text == example.text  # tests/docs runs it
    assert done.stdout.splitlines()[0].startswith("python -m pip install . ")
    assert done.stdout.splitlines()[1] == 'python -m pip install ".[test]" && python -m pytest'


def test_the_example_s_photographs_are_in_the_wheel() -> None:
    skimage = pytest.importorskip("skimage")
    example = blocks(ROOT / "README.md", "bash")[0].text
    names = re.findall(r'"\$photos/([\w.]+)"', example)
    assert names == ["astronaut.png", "rocket.jpg"]
    for name in names:
        assert (Path(skimage.__file__).parent / "data" / name).is_file()


@pytest.mark.usefixtures("own_registry")
def test_the_stage_of_the_page_on_stages_is_one() -> None:
    import torch

    (code,) = (
        block.text
        for block in blocks(ROOT / "docs/stages.md", "python")
        if "TinySegmenter" in block.text
    )
    exec(compile(code, "stages.md", "exec"), {})
    stage = registry.create("segmenter", "tiny", width=4, learning_rate=1e-3)
    assert stage(torch.rand(2, 3, 5, 7)).shape == (2, 1, 5, 7)
    assert stage.hparams["width"] == 4
    assert stage.loss({"image": torch.rand(1, 3, 8, 8), "mask": torch.ones(1, 1, 8, 8)})


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_page_on_training_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = blocks(ROOT / "docs/training.md", "python")[0].text
    exec(compile(code, "training.md", "exec"), names)
    stage, again = names["stage"], names["compositor"].segmenter
    assert names["trainer"].global_step == 2
    assert again.hparams["learning_rate"] == 1e-4
    assert again.hparams["width"] == 64
    for name, value in stage.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.to(again.device))
    shipped = type(stage)(weights="default").network.head[-1].weight
    assert not torch.equal(again.network.head[-1].weight, shipped)


def test_entry_points_of_the_pages_are_in_the_registry_s_group() -> None:
    found = [block for page in PAGES for block in blocks(page, "toml")]
    assert len(found) == 2
    for block in found:
        groups = tomllib.loads(block.text)["project"]["entry-points"]
        assert list(groups) == [registry.ENTRY_POINT_GROUP]


def test_links_between_files_of_the_readme_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)[)#]", (ROOT / "README.md").read_text())
    local = [link for link in links if "://" not in link]
    assert len(local) >= 6
    assert not [link for link in local if not (ROOT / link).is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    folders = ("work", "home", "root", "Users", "mnt")
    paths = rf"(?<![\w.~$*<)-])/(?:{'|'.join(folders)})/\w|/tmp/v\d"
    hosts = r"--(?:extra-)?index-url|PIP_INDEX_URL|https?://[^\s\"')]*/simple\b"
    pattern = re.compile(f"{paths}|{hosts}")
    files = own_files()
    assert len(files) > 50
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        if path != Path(__file__).resolve()
        for match in pattern.finditer(path.read_text())
    ]
    assert not found


def test_every_floor_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    wanted = tomllib.loads(text)["project"]["dependencies"]
    assert wanted
    for requirement in wanted:
        line = next(x for x in text.splitlines() if json.dumps(requirement) in x)
        assert re.search(r"#\s*\w+", line), f"{requirement} has a floor without a reason"
