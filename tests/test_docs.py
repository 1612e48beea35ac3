"""What README.md and the documentation say is true: their commands parse and their code runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deep_image_compositing import registry
from deep_image_compositing.cli import PROGRAM, TRAINING, _parser, main
from deep_image_compositing.options import accepted_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEPT = (".ci", "deep_image_compositing", "docs", "recipes", "tests")
TEXT = {".cfg", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml", ""}


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Page and arguments of every call of the command line in a fenced block, each once."""
    seen = set()
    for page in PAGES:
        for line in "".join(blocks(page, "bash")).splitlines():
            call = line[line.index(PROGRAM + " ") :] if PROGRAM + " " in line else ""
            if call and call not in seen:
                seen.add(call)
                yield page.name, shlex.split(call)[1:]


def name_of(arguments: list[str]) -> str:
    return " ".join(arguments)[:60]


CALLS = [arguments for _, arguments in commands()]
TRAINING_CALLS = [arguments for arguments in CALLS if arguments[0] in TRAINING]
OWN_CALLS = [arguments for arguments in CALLS if arguments[0] not in TRAINING]


def own_files() -> list[Path]:
    """The project's own text files, whether or not git is there to list them."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in KEPT:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in found if path.suffix in TEXT and "__pycache__" not in path.parts]


def test_there_are_commands_of_every_kind() -> None:
    used = {arguments[0] for arguments in CALLS}
    assert used >= {"composite", "stages", "fit", "validate", "export-weights", "benchmark"}
    assert used >= {"shards", "teach"}


@pytest.mark.parametrize("arguments", OWN_CALLS, ids=name_of)
def test_commands_parse_and_name_real_stages(arguments: list[str]) -> None:
    options = vars(_parser().parse_args(arguments))
    for slot in registry.SLOTS:
        if arguments[0] == "composite":
            entry = registry.get(slot, options[slot])
            given = registry.key_values("", options.get(f"{slot}_option", []))
            accepted = accepted_options(entry.factory)
            assert accepted is not None
            assert set(given) <= accepted[0]
            assert accepted[1] <= set(given)
    if arguments[0] == "export-weights":
        registry.get(*options["stage"].split("/"))


@pytest.mark.parametrize("arguments", TRAINING_CALLS, ids=name_of)
def test_training_commands_parse(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([*arguments, "--print_config"]) == 0
    assert "class_path: deep_image_compositing" in capsys.readouterr().out


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
    }
    assert listed == own


def test_the_command_line_page_has_every_option() -> None:
    page = (ROOT / "docs/command-line.md").read_text()
    actions = _parser()._subparsers._group_actions[0].choices["composite"]._actions  # type: ignore[union-attr,index]
    options = [text for action in actions for text in action.option_strings]
    assert "--work-side" in options
    absent = [o for o in options if f"`{o}`" not in page and o not in ("-h", "--help")]
    assert not absent


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_continuous_integration_runs_the_readme_s_first_two_blocks() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "commands"], capture_output=True, text=True, check=True
    )
    example, tests = blocks(ROOT / "README.md", "bash")[:2]
    assert done.stdout == example + tests
    assert done.stdout.splitlines()[0].startswith("python -m pip install . ")
    assert done.stdout.splitlines()[1] == 'python -m pip install ".[test]" && python -m pytest'


def test_the_example_s_photographs_are_in_the_wheel() -> None:
    skimage = pytest.importorskip("skimage")
    example = blocks(ROOT / "README.md", "bash")[0]
    names = re.findall(r'"\$photos/([\w.]+)"', example)
    assert names == ["astronaut.png", "rocket.jpg"]
    for name in names:
        assert (Path(skimage.__file__).parent / "data" / name).is_file()


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that README's code names."""
    skimage = pytest.importorskip("skimage")
    data = Path(skimage.__file__).parent / "data"
    portrait = Image.open(data / "astronaut.png").convert("RGB").resize((160, 160))
    portrait.save(tmp_path / "portrait.jpg")
    Image.open(data / "rocket.jpg").resize((120, 80)).save(tmp_path / "beach.jpg")
    rough = np.zeros((160, 160), np.uint8)
    rough[40:, 30:110] = 255
    Image.fromarray(rough).save(tmp_path / "rough.png")
    _save_onnx(tmp_path / "portrait.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _save_onnx(path: Path) -> None:
    """A model of one fixed size whose mask is the sigmoid of the picture's mean."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        make.make_node("ReduceMean", ["image"], ["gray"], axes=[1], keepdims=1),
        make.make_node("Sigmoid", ["gray"], ["mask"]),
    ]
    ends = [
        make.make_tensor_value_info(name, number, [1, channels, 64, 64])
        for name, channels in (("image", 3), ("mask", 1))
    ]
    graph = make.make_graph(nodes, "portrait", ends[:1], ends[1:])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


@pytest.mark.parametrize(
    "code",
    blocks(ROOT / "README.md", "python"),
    ids=lambda code: code.strip().splitlines()[-1][:50],
)
def test_the_readme_s_code_runs(code: str, photographs: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    result = names["result"]
    assert result.composite.shape == (3, 160, 160)
    assert 0 < float(result.mask.mean()) < 1
    if "save(" in code:
        with Image.open(photographs / "cutout.png") as cutout:
            assert cutout.mode == "RGBA"
        with Image.open(photographs / "composite.png") as composite:
            assert composite.size == (160, 160)


@pytest.mark.usefixtures("own_registry")
def test_the_code_of_the_page_on_stages_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    needing = [code for code in blocks(ROOT / "docs/stages.md", "python") if "Compositor" in code]
    assert len(needing) == 1
    for code in blocks(ROOT / "docs/stages.md", "python"):
        names: dict[str, Any] = {}
        exec(compile(code, "stages.md", "exec"), names)
        if "TinySegmenter" in names:
            stage = registry.create("segmenter", "tiny", width=4, learning_rate=1e-3)
            assert stage(torch.rand(2, 3, 5, 7)).shape == (2, 1, 5, 7)
            assert stage.hparams["width"] == 4
            assert stage.loss({"image": torch.rand(1, 3, 8, 8), "mask": torch.ones(1, 1, 8, 8)})
    assert "multi_stream" in capsys.readouterr().out


def test_entry_points_of_the_pages_are_in_the_registry_s_group() -> None:
    found = [block for page in PAGES for block in blocks(page, "toml")]
    assert len(found) == 2
    for block in found:
        assert list(tomllib.loads(block)["project"]["entry-points"]) == [registry.ENTRY_POINT_GROUP]


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
