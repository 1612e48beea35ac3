"""Runs the commands of a block as a reader would and captures their output.

Training is shortened and nothing is downloaded. Commands of the library run in forks
(``tests.runs``); those that need a shell run in one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests import runs
from tests.docs.blocks import PROGRAM, ROOT

PATIENCE = 600
"""Timeout for a command in seconds."""

_PYTHON = shlex.quote(sys.executable)
_SHIMS = {
    PROGRAM: f'exec {_PYTHON} -m deep_image_compositing "$@"',
    "python": f'if [ "$1 $2" = "-m pip" ]; then exit 0; fi\nexec {_PYTHON} "$@"',
}
"""Programs in the shell's path: this checkout's library, and a pip that installs nothing."""

_LOADING = ["--data.size=64", "--data.batch_size=2", "--data.num_workers=1"]
_CUTS = {
    "fit": ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", *_LOADING],
    "validate": ["--trainer.limit_val_batches=1", *_LOADING],
    "teach": ["--samples=2", "--size=128", "--workers=1"],
    "evaluate": ["--sheets=1"],
    "benchmark": ["--quick"],
    "recipes/default/train.py": ["--minutes=0.5", "--device=cpu", "--batch=2"],
}


def shortened(arguments: list[str], folder: Path) -> list[str]:
    """Append options that shorten a command and avoid downloads."""
    if "--print_config" in arguments:
        return arguments
    more = list(_CUTS.get(arguments[0], []))
    if arguments[0] in ("fit", "validate"):
        recipe = yaml.safe_load((folder / arguments[arguments.index("--config") + 1]).read_text())
        model = recipe["model"]["init_args"]
        for weights, option in (("pretrained", "pretrained"), ("perceptual_weights", "perceptual")):
            if model.get(weights) == "pretrained":  # timm would download them
                more.append(f"--model.{option}=null")
        if "--resume" in arguments:
            more.append("--trainer.max_steps=3")
        if "--trainer.devices" in arguments:
            more += ["--trainer.devices=2", "--trainer.accelerator=cpu"]
    elif "--devices" in arguments:
        more += ["--devices=2", "--accelerator=cpu"]
    elif arguments[0] == "shards" and arguments[1] != "layouts":
        more += ["--workers=1"]
    if arguments[0] == "evaluate" and "--photographs" in arguments:
        more += ["--samples=1", "--size=256"]
    elif arguments[0] == "evaluate" and "--test-set" not in arguments:
        more += ["--samples=1", "--size=256", "--grades=rough"]
    elif arguments[0] == "evaluate" and "taught" in arguments:
        more += ["--samples=1", "--grades=rough"]
    if arguments[:2] in (["benchmark", "train"], ["benchmark", "gpu"]):
        more += ["--device=cpu", "--workers=1"]
    if arguments[:2] == ["study", "make"]:
        more += ["--max-side=256"]
    return [*arguments, *more]


def environment(folder: Path) -> dict[str, str]:
    """Variables of every command: prefer this checkout, and use the stand-ins for packages."""
    paths = [str(ROOT), str(folder / "packages")]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


def prepare(folder: Path) -> None:
    """Write the programs of ``_SHIMS`` into the folder."""
    (folder / "bin").mkdir()
    for name, script in _SHIMS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)


def run(line: str, folder: Path) -> tuple[int | None, str]:
    """Run one line of a bash block.

    Returns:
        The exit code, None if it was killed, and the output.
    """
    words = shlex.split(line)
    if "&&" in line or "$(" in line:
        return _run_in_shell(line, folder)
    if words[0] == PROGRAM:
        arguments = shortened(words[1:], folder)
        if "serve" in arguments[:2]:
            return _serve(arguments, folder)
        if "--devices=2" in arguments or "--trainer.devices=2" in arguments:  # it starts itself
            return _run_in_shell(shlex.join([PROGRAM, *arguments]), folder)
        return fork(folder, [PROGRAM, *arguments])
    if words[0] == "pip" or words[:3] == ["python", "-m", "pip"]:
        return 0, ""
    assert words[0] == "python", f"unknown program {words[0]}"
    return fork(folder, [*words[1:], *_CUTS.get(words[1], [])])


def _run_in_shell(line: str, folder: Path) -> tuple[int | None, str]:
    variables = {**os.environ, **environment(folder)}
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", line], cwd=folder, env=variables, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output


def _serve(arguments: list[str], folder: Path) -> tuple[int | None, str]:
    """Start a server, take part if it is a study, and stop it as Ctrl-C does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deep_image_compositing", *arguments, f"--port={port}"]
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment(folder)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    page = ""
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as browser:
        deadline = time.monotonic() + PATIENCE
        while not page and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx2.ConnectError):
                page = browser.get("/").text
                if arguments[0] == "study":
                    _take_part(browser)
            time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    return (0 if "<html" in page else process.returncode or 1), output


def _take_part(browser: httpx2.Client) -> None:
    browser.post("/join", json={"name": "Ann"}).raise_for_status()
    while match := re.search(r'data-set="(\w+)"', page := browser.get("/").text):
        results = re.findall(r'data-result="(\w+)"', page)
        answer = {"ranking": results[:3]}
        browser.post(f"/sets/{match[1]}", json=answer).raise_for_status()


def fork(folder: Path, argv: list[str], code: str | None = None) -> tuple[int | None, str]:
    """Run the command line, a script, or Python code in a forked process."""
    work = None if argv[0] == PROGRAM else functools.partial(_run_python, code)
    variables = {**environment(folder), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    process = runs.Fork(argv, variables, work, folder)
    try:
        output = runs.finish(process, PATIENCE)
        return process.returncode, output
    except AssertionError as timeout:
        return None, str(timeout)


def _run_python(code: str | None) -> None:
    if code is None:
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    names: dict[str, Any] = {}
    exec(compile(code, sys.argv[0], "exec"), names)
    _check_result(names)


def _check_result(names: dict[str, Any]) -> None:
    """Check that a composite made by the code has the photograph's size and valid content."""
    result = names.get("result")
    if result is not None:
        size = result.foreground.shape[-2:]
        assert result.composite.shape == (3, *size)
        assert result.alpha.shape == (1, *size)
        assert 0 < float(result.mask.mean()) < 1
        assert bool(result.composite.isfinite().all())
