"""Weights files, recipes and options of stages."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from deep_image_compositing.errors import CompositingError
from tests import photographs as made
from tests.cases import Accepted, Read
from tests.hostile.damage import JUNK, dumps, junk, spoil
from tests.hostile.shards import sound_shards


@functools.cache
def sound_stages() -> dict[tuple[str, str], Any]:
    """Small stages with weights, by slot and name."""
    import torch

    from deep_image_compositing.registry import create

    small: dict[tuple[str, str], dict[str, Any]] = {
        ("segmenter", "pyramid"): {"backbone": "test_efficientnet", "width": 8, "size": 64},
        ("refiner", "cascade"): {"backbone": "test_efficientnet", "width": 8, "sizes": [32, 64]},
        ("refiner", "deep_image_matting"): {"width": 0.1, "context": 1, "refine": True},
        ("refiner", "index_net"): {"width": 0.1},
        ("fuser", "multi_stream"): {"widths": [4, 6]},
        ("fuser", "single_stream"): {"widths": [4, 6]},
    }
    torch.manual_seed(0)
    return {key: create(*key, weights=None, **options) for key, options in small.items()}


def odd_tensors(state: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Remove a tensor, add one, or change the shape, type or values of one."""
    import torch

    state, key, action = dict(state), rng.choice(sorted(state)), rng.randrange(4)
    value = state[key]
    if action == 0:
        del state[key]
    elif action == 1:
        state["x" * rng.choice((1, 10_000))] = value.clone()
    elif action == 2 and value.is_floating_point():
        state[key] = torch.full_like(value, rng.choice((float("nan"), float("inf"))))
    else:
        kinds = (torch.int8, torch.bool, torch.complex64, torch.float64)
        others = (value[None], value.flatten()[:1], value.flatten()[:0], torch.tensor(1.0))
        state[key] = rng.choice((*others, *(value.to(kind) for kind in kinds))).contiguous()
    return state


class Code:
    """Makes the folder ``mark`` when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("mark",)


def weights_file(path: Path, state: dict[str, Any], hyper: Any, rng: Random) -> Path:
    """Write a weights file or checkpoint that is invalid in some way."""
    import safetensors.torch
    import torch

    state = {key: value.contiguous() for key, value in state.items()}
    action, plain = rng.randrange(8), rng.random() < 0.6
    if action < 2:
        state = odd_tensors(state, rng)
    elif action < 5:
        hyper = junk(hyper, rng)
    elif action == 5 and not plain:
        hyper = Code()
    content: Any = {"state_dict": state, "hyper_parameters": hyper}
    if plain:
        data = safetensors.torch.save(state, {"hyper_parameters": dumps(hyper, rng).decode()})
        if action == 5:
            size = int.from_bytes(data[:8], "little")
            head = dumps(junk(json.loads(data[8 : 8 + size]), rng), rng)
            data = len(head).to_bytes(8, "little") + head + data[8 + size :]
    else:
        file = io.BytesIO()
        torch.save(junk(content, rng) if action == 6 else content, file)
        data = file.getvalue() if rng.random() < 0.9 else pickle.dumps(hyper)
    path = path.with_suffix(".safetensors" if plain else ".ckpt")
    path.write_bytes(spoil(data, rng) if action == 7 else data)
    return path


def weights(rng: Random, folder: Path) -> Read:
    """A weights file or checkpoint, loaded as a user would."""
    from deep_image_compositing.stages.making import make_stage

    (slot, name), stage = rng.choice(list(sound_stages().items()))
    path = weights_file(folder / "x", stage.state_dict(), dict(stage.hparams), rng)
    export = ["export-weights", str(path), "--stage", f"{slot}/{name}", "-o", "x.safetensors"]
    load = rng.choice(
        (
            lambda: make_stage(slot, (name, {"weights": str(path)})),
            lambda: command(*export),
        )
    )

    def read() -> None:
        log = logging.getLogger("deep_image_compositing")
        patch = mock.patch.object(log, "warning", wraps=log.warning)
        with patch as warned, contextlib.chdir(folder):
            state = getattr(load(), "state_dict", dict)()
        if (folder / "mark").exists():
            raise Accepted("code in a checkpoint was run")
        for key, value in state.items():
            if value.is_floating_point() and not value.isfinite().all() and not warned.called:
                raise Accepted(f"{key} is not finite, without a warning")

    return read


def command(*arguments: str) -> None:
    """Run a command; a nonzero exit code raises ``CompositingError``."""
    from deep_image_compositing.cli import main

    if code := main(list(arguments)):
        raise CompositingError(f"exit code {code}")


YAML = (
    bytes(range(256)), made.encode(made.disk()), b"\xff\xfe\0a", b"", b"\0", b"- x", b"x: [",
    b"? x", b"x: !!python/object/apply:os.getcwd []", b"&a [*a]", b"model: &a {class_path: *a}",
    b"a: *b", b"model: {class_path: os.getcwd}", b"1: 2", b"null", b"a: 2001-01-01", b"<<: [1]",
)  # fmt: skip


def aliases(width: int, depth: int) -> bytes:
    """Short YAML that expands to ``width`` to the power of ``depth`` values."""
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(["a0: &a0 [x]", *lines]).encode()


def configs(rng: Random, folder: Path) -> Read:
    """A recipe for ``fit``, which creates everything in the recipe but does not train."""
    from lightning.pytorch import Trainer

    from tests.runs import arguments

    shutil.copytree(sound_shards(), folder, dirs_exist_ok=True)
    args = arguments(folder, folder / "run", num_sanity_val_steps=0)
    path, action = folder / "run.yaml", rng.randrange(12)
    recipe = path.read_bytes().replace(bytes(folder), b".")
    if action == 0:
        path.write_bytes(aliases(rng.choice((2, 10)), rng.choice((5, 9, 30))))
    elif action < 3:
        path.write_bytes(rng.choice(YAML))
    elif action < 6:
        path.write_bytes(spoil(recipe, rng))
    elif action < 11:
        path.write_bytes(dumps(junk(json.loads(recipe), rng), rng))
    else:
        key = rng.choice(("model", "data", "trainer", "trainer.callbacks", "data.train", "x"))
        args += [f"--{key}", dumps(junk({}, rng), rng).decode()]

    def read() -> None:
        with mock.patch.object(Trainer, "fit", autospec=True), contextlib.chdir(folder):
            command(*args)

    return read


COMMAND_OPTIONS = (
    "scale", "position", "harmonizer-option", "harmonize-strength", "shadow-option", "max-side",
    "work-side", "max-pixels", "mask", "frame", "harmonizer", "harmonize", "shadow", "fuser",
    "device", "save-alpha", "save-steps", "save-shadow",
)  # fmt: skip
"""Options of the command ``composite``."""

ODD_VALUES = (
    "0", "-1", "nan", "inf", "1e9", "0.5", "1,1", "nan,nan", "9" * 400, "x", "", "\0", "b.png",
    "\x1b[2J",
)  # fmt: skip


@functools.cache
def stage_options(factory: Any) -> list[str]:
    """The options of a stage, without those that every stage has."""
    from deep_image_compositing.options import accepted_options
    from deep_image_compositing.stages.base import Fuser

    common, all_options = (accepted_options(stage) or (set(), set()) for stage in (Fuser, factory))
    return sorted(all_options[0] - common[0])


def odd_value(entry: Any, option: str, rng: Random) -> Any:
    """A junk value, of the type that the option accepts if a few draws find one."""
    from deep_image_compositing.options import check_options

    value, needed = None, {"path": "m.png"} if entry.name == "onnx" else {}
    for _ in range(8):
        value = rng.choice(JUNK)
        with contextlib.suppress(CompositingError):
            check_options(entry.slot, entry.name, entry.factory, needed | {option: value})
            break
    return value


def options(rng: Random, folder: Path) -> Read:
    """``composite`` with odd options of a stage or of the command."""
    from deep_image_compositing.registry import list_stages

    files = {"a": made.scene(40, 56), "b": made.scene(48, 40, 1), "m": made.disk(40, 56)}
    for name, pixels in files.items():
        (folder / f"{name}.png").write_bytes(made.encode(pixels))
    entry = rng.choice([entry for entry in list_stages() if entry.published is None])
    slot, name, accepted = entry.slot, entry.name, stage_options(entry.factory)
    stages = {"segmenter": "pyramid", "refiner": "none", "fuser": "alpha"} | {slot: name}
    args = [f"--{key}={stage}" for key, stage in stages.items()]
    args += [] if slot == "segmenter" else ["--mask=m.png"]
    values: dict[str, Any] = {"path": "m.png"} if name == "onnx" else {}
    if (slot, name) in sound_stages():  # small, to leave more time for other cases
        hyper = sound_stages()[slot, name].hparams
        sizes = ("backbone", "width", "widths", "size", "sizes")
        values = {"weights": None} | {key: hyper[key] for key in sizes if key in hyper}
    for key in rng.sample(accepted, min(len(accepted), rng.choice((0, 1, 1, 2)))):
        values[key] = odd_value(entry, key, rng)
    texts = {key: dumps(value, rng).decode() for key, value in values.items()}
    args += [f"--{slot}-option={key}={value}" for key, value in texts.items()]
    if rng.random() < 0.2:
        args += [f"--{rng.choice(COMMAND_OPTIONS)}={rng.choice(ODD_VALUES)}" for _ in range(2)]

    def read() -> None:
        with contextlib.chdir(folder):
            command("composite", "a.png", "b.png", "-o", "o.png", "--device=cpu", *args)

    return read
