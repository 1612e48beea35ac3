"""The command line, by its own ``main`` and once by its entry point."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import os
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deep_image_compositing import __version__, published
from deep_image_compositing.cli import COMMANDS, main
from deep_image_compositing.registry import register
from deep_image_compositing.stages.base import Segmenter
from tests.conftest import disc, noise

STUBS = ["--segmenter", "disc", "--refiner", "none", "--fuser", "in-layers", "--device", "cpu"]


@pytest.fixture
def pair(save: Callable[..., Path]) -> list[str]:
    """Paths of a portrait and a beach."""
    beach = save("beach.jpg", noise(50, 70, seed=1), quality=95)
    return [str(save("portrait.png", noise(40, 60))), str(beach)]


@pytest.fixture
def rough(save: Callable[..., Path]) -> str:
    """Path of a mask of the portrait, half its size."""
    return str(save("rough.png", (disc(20, 30)[0, 0] * 255).byte().numpy()))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with ``code``; returns its short message."""

    def run(code: int, *arguments: Any) -> str:
        assert main([str(a) for a in arguments]) == code
        error = capsys.readouterr().err
        assert "Traceback" not in error
        message = error[error.index("deep-image-compositing: error: ") :]
        assert len(message.strip().splitlines()) <= 2
        return message

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# One pair


@pytest.mark.usefixtures("stub_stages")
def test_two_photographs_in_one_composite_out(
    pair: list[str], rough: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, alpha = tmp_path / "composite.png", tmp_path / "alpha.png"
    given = ["composite", *pair, "-o", str(out), *STUBS]
    assert main(given) == 0
    assert pixels(out).shape == (40, 60, 3)
    said = capsys.readouterr()
    assert said.out.startswith(f"wrote {out} (60 x 40 pixels, cpu, ")
    assert said.err == ""
    assert main([*given, "--device", "auto"]) == 0
    assert "deep-image-compositing: running on " in capsys.readouterr().err
    assert main([*given, "--mask", rough, "--max-side", "32"]) == 0
    assert pixels(out).shape == (21, 32, 3)
    placed = ["--frame", "background", "--scale", "0.6", "--position", "0.5,1.0"]
    assert main([*given, "--save-alpha", str(alpha), *placed]) == 0
    assert pixels(out).shape == (50, 70, 3)
    assert pixels(alpha)[-1].max() > 127  # the subject stands on the bottom edge
    assert pixels(alpha)[0].max() == 0


@pytest.mark.usefixtures("stub_stages")
def test_options_of_stages_and_the_last_step_are_passed_on(pair: list[str], tmp_path: Path) -> None:
    out, made = str(tmp_path / "composite.png"), []
    for more in (
        [],
        ["--segmenter-option", "softness=0.9"],
        ["--fuser", "plain"],
        ["--harmonizer", "white_balance"],
        ["--harmonizer", "reinhard"],
        ["--harmonize", "reinhard", "--harmonize-strength", "0.9"],
        ["--harmonizer", "reinhard", "--harmonizer-option", "strength=0.9"],
        ["--harmonize", "none"],
    ):
        assert main(["composite", *pair, "-o", out, *STUBS, *more]) == 0
        made.append(pixels(Path(out)).tobytes())
    assert made[-2] == made[-3]
    assert made[-1] == made[0]
    assert len(set(made)) == 6


@pytest.mark.usefixtures("stub_stages")
def test_what_was_decided_while_reading_is_said(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgba = np.dstack([noise(40, 60), (disc(40, 60)[0, 0] * 255).byte().numpy()])
    front, back = save("front.png", rgba), save("back.png", noise(9, 9))
    frames = [Image.fromarray(noise(20, 30, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    arguments = ["-o", str(tmp_path / "out.png"), *STUBS]
    assert main(["composite", str(front), str(back), *arguments]) == 0
    assert "its own alpha is taken as the mask" in capsys.readouterr().err
    assert main(["composite", str(tmp_path / "moving.gif"), str(back), *arguments]) == 0
    assert "warning: " in (said := capsys.readouterr().err)
    assert "moving.gif" in said


# A folder


@pytest.mark.usefixtures("stub_stages")
def test_a_folder(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("a.png", "b.jpg", "twice.png", "twice.jpg")):
        save(f"portraits/{name}", noise(20 + number, 30, number))
    (tmp_path / "portraits" / "notes.txt").write_text("not a picture")
    back, out = save("back.png", noise(9, 9)), tmp_path / "new" / "out"
    arguments = ["composite", str(tmp_path / "portraits"), str(back), "-o", str(out), *STUBS]
    assert main([*arguments, "--save-alpha", str(tmp_path / "alphas")]) == 0
    names = ["a.png", "b.png", "twice.jpg.png", "twice.png.png"]
    assert sorted(path.name for path in out.glob("*.png")) == names
    assert sorted(path.name for path in (tmp_path / "alphas").iterdir()) == names
    assert pixels(out / "b.png").shape == (21, 30, 3)
    said = capsys.readouterr()
    assert "wrote 4 of 4 composites" in said.out
    assert "compositing: 4 of 4 are done" in said.err


@pytest.mark.usefixtures("stub_stages")
def test_a_bad_file_and_a_missing_mask_do_not_stop_the_others(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "acd":
        save(f"portraits/{name}.jpg", noise(20, 30))
    (tmp_path / "portraits" / "b.jpg").write_bytes(b"not a picture")
    for name in "abd":
        save(f"masks/{name}.png", (disc(20, 30)[0, 0] * 255).byte().numpy())
    back, out = save("back.png", noise(9, 9)), tmp_path / "out"
    arguments = ["composite", str(tmp_path / "portraits"), str(back), "-o", str(out), *STUBS]
    assert main([*arguments, "--mask", str(tmp_path / "masks")]) == 1
    assert sorted(path.name for path in out.glob("*.png")) == ["a.png", "d.png"]
    said = capsys.readouterr()
    assert "wrote 2 of 4 composites" in said.out
    assert "error: 2 of 4 failed:" in said.err
    bad, missing = said.err.strip().splitlines()[-2:]
    assert bad.startswith("  b.jpg: ")
    assert missing.startswith(f"  c.jpg: {tmp_path / 'masks' / 'c.*'} does not exist")


def test_letters_that_standard_output_does_not_have_are_shown_by_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv(published.VARIABLE, "\u6a21é")
    assert main(["models", "path", "u2netp"]) == 0
    assert output.buffer.getvalue().strip() == rb"\u6a21" + b"\xe9/u2netp.onnx"
    assert output.errors == "strict"


@pytest.mark.usefixtures("stub_stages")
def test_of_masks_that_share_a_stem_each_photograph_has_its_own(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    mask = (disc(20, 30)[0, 0] * 255).byte().numpy()
    mask[:, :15] = 0
    for name, its in (("a.bmp", mask), ("a.png", mask[:, ::-1])):
        save(f"portraits/{name}", noise(20, 30))
        save(f"masks/{name}", its)
    folders = ["--mask", str(tmp_path / "masks"), "--save-alpha", str(tmp_path / "alphas")]
    arguments = ["composite", str(tmp_path / "portraits"), str(save("back.png", noise(9, 9)))]
    assert main([*arguments, "-o", str(tmp_path / "out"), *folders, *STUBS]) == 0
    for name, its in (("a.bmp", mask), ("a.png", mask[:, ::-1])):
        assert (pixels(tmp_path / "alphas" / f"{name}.png") == its).all()


@pytest.mark.usefixtures("stub_stages")
@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "\u202eturned"])
def test_names_of_files_do_not_reach_the_terminal_raw(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rgba = np.dstack([noise(20, 30), (disc(20, 30)[0, 0] * 255).byte().numpy()])
    save(f"{name}/{name}.png", rgba)
    (tmp_path / name / f"{name}-bad.png").write_bytes(b"not a picture")
    back, front = save("back.png", noise(9, 9)), str(tmp_path / name)
    assert main(["composite", front, str(back), "-o", str(tmp_path / name / "out"), *STUBS]) == 1
    assert main(["composite", f"{front}-none.png", str(back), "-o", "out.png", *STUBS]) == 1
    assert main(["composite", front, str(back), "-o", "out", *STUBS, "--fuser", name]) == 2
    assert main(["--debug", "composite", f"{front}.png", str(back), "-o", "out.png"]) == 1
    said = capsys.readouterr()
    shown = ascii(name)[1:-1]
    assert said.out.count(shown) >= 1  # where the composites are
    assert said.err.count(shown) >= 6  # the alpha that is taken, what failed, what is not there
    lines = [line.rstrip("\r") for line in (said.out + said.err).split("\n")]
    assert all(line.isprintable() for line in lines if "\x1b[?" not in line)


# Bad input: exit code 1 for work that failed


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_read_and_written_must_be_files(
    pair: list[str], tmp_path: Path, fails: Callable[..., str], which: int
) -> None:
    out, bad, whole = tmp_path / "out.png", tmp_path / "bad.png", Path(pair[0]).read_bytes()
    good = ["composite", *pair, "-o"]
    pair[which] = str(bad)
    assert "bad.png does not exist" in fails(1, "composite", *pair, "-o", out)
    for content in (b"hello", whole[:2000], b""):
        bad.write_bytes(content)
        assert "bad.png" in fails(1, "composite", *pair, "-o", out)
    assert "does not exist" in fails(1, *good, tmp_path / "no" / "out.png")
    assert "does not exist" in fails(1, *good, out, "--save-alpha", tmp_path / "no" / "a.png")
    (tmp_path / "empty").mkdir()
    pair[which] = str(tmp_path / "empty")
    target, said = ((tmp_path / "out", "holds no image"), (out, "is a folder"))[which]
    assert said in fails(1, "composite", *pair, "-o", target)
    assert not list(tmp_path.glob("out*"))


def test_more_pixels_than_the_limit(
    pair: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    arguments = ["composite", *pair, "-o", tmp_path / "out.png", "--max-pixels"]
    assert "portrait.png" in fails(1, *arguments, 100)
    assert "--max-pixels" in fails(2, *arguments, 0)


def test_masks_that_cannot_be_and_no_subject(
    stub_stages: None, pair: list[str], save: Callable[..., Path], tmp_path: Path,
    fails: Callable[..., str],
) -> None:  # fmt: skip
    arguments = ["composite", *pair, "-o", tmp_path / "out.png", *STUBS, "--mask"]
    empty = save("empty.png", np.zeros((40, 60), np.uint8))
    assert "mask of" in fails(1, *arguments, empty)
    assert "missing.png" in fails(1, *arguments, tmp_path / "missing.png")
    upright = save("upright.png", np.full((60, 40), 255, np.uint8))
    assert "aspect" in fails(2, *arguments, upright)
    register("segmenter", "blind", description="")(lambda: lambda image: image[:, :1] * 0)
    message = fails(1, *arguments[:-1], "--segmenter", "blind")
    assert f"no subject found in {pair[0]}; give a mask with --mask" in message
    assert not (tmp_path / "out.png").exists()


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.mark.usefixtures("stub_stages")
def test_weights_that_are_none_or_hold_code(
    pair: list[str], tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["composite", *pair, "-o", tmp_path / "out.png", *STUBS, "--refiner", "cascade"]
    for name in ("bad.safetensors", "bad.ckpt"):
        for content in (b"", b"no weights", b"\x80\x02K\x01."):
            (tmp_path / name).write_bytes(content)
            assert name in fails(1, *arguments, "--refiner-option", f"weights={name}")
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.ckpt")
    assert "could run code" in fails(1, *arguments, "--refiner-option", "weights=evil.ckpt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_may_not_be_written_to(
    pair: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission" in fails(1, "composite", *pair, "-o", tmp_path / "locked" / "out.png")


# Bad usage: exit code 2


def test_calls_that_cannot_be_right(
    pair: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    out, good = tmp_path / "out.png", ["composite", *pair, "-o", tmp_path / "out.png"]
    assert "COMMAND" in fails(2)
    assert "unrecognized arguments: --quiet" in fails(2, "--quiet", "fit")
    assert "'compose'" in fails(2, "compose")
    assert "-o" in fails(2, "composite", *pair)
    assert "background" in fails(2, "composite", pair[0], "-o", out)
    assert "--nothing" in fails(2, *good, "--nothing")
    assert "--scale" in fails(2, *good, "--scale", "big")
    assert "--frame" in fails(2, *good, "--frame", "both")
    assert "KEY=VALUE" in fails(2, *good, "--fuser-option", "weights")
    assert "which format" in fails(2, "composite", *pair, "-o", tmp_path / "out")
    assert "which format" in fails(2, "composite", *pair, "-o", tmp_path / "out.txt")
    assert "is a folder" in fails(2, "composite", *pair, "-o", tmp_path)
    assert "also an input" in fails(2, "composite", *pair, "-o", pair[0])
    assert "another output" in fails(2, *good, "--save-alpha", out)
    assert "cannot hold an alpha" in fails(2, *good, "--save-cutout", tmp_path / "cutout.jpg")
    folder = ("composite", tmp_path, pair[1], "-o", tmp_path / "new.png")
    assert "new.png is the name of a picture, but" in fails(2, *folder)
    assert not (tmp_path / "new.png").exists()
    for names in ((*pair, "-o", ""), ("", pair[1], "-o", out), (*pair, "-o", out, "--mask", "")):
        assert "the name of a file is empty" in fails(2, "composite", *names)
    assert not out.exists()


@pytest.mark.usefixtures("stub_stages")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--fuser", "laplace"], "there is no fuser called 'laplace'; did you mean 'laplacian'"),
        (["--devise", "cpu"], "unrecognized arguments: --devise cpu; did you mean --device?"),
        (["--position", "0.5", "1"], "unrecognized arguments: 1 (see deep-image-compositing comp"),
        (["--scale", "0.5"], "only with --frame background"),
        (["--segmenter-option", "softnes=1"], "did you mean 'softness'?"),
        (["--segmenter-option", "softness=wide"], "is a number, got 'wide'"),
        (["--segmenter-option", "hardness=1"], "takes no option 'hardness'"),
        (["--device", "nonsense"], "there is no device 'nonsense'"),
        (["--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["--work-side", "1"], "work_side"),
        (["--max-side", "31"], "--max-side (max_side=) must be at least 32 pixels, got 31"),
        (["--harmonize", "deep"], "there is no harmonizer called 'deep'"),
        (["--harmonizer", "rheinhard"], "did you mean 'reinhard'"),
        (["--harmonize-strength", "1"], "only with --harmonize"),
        (["--harmonize", "reinhard", "--harmonize-strength", "2"], "got 2"),
        (["--harmonizer", "reinhard", "--harmonizer-option", "strength=x"], "got 'x'"),
        (["--harmonizer", "reinhard", "--harmonizer-option", "strenght=1"], "mean 'strength'?"),
        (["--frame", "background", "--scale", "0"], "scale"),
        (["--frame", "background", "--scale", "nan"], "scale"),
        (["--frame", "background", "--position", "2,2"], "position"),
        (["--frame", "background", "--position", "left"], "position"),
    ],
)
def test_values_that_cannot_be(
    pair: list[str], tmp_path: Path, fails: Callable[..., str], arguments: list[str], reason: str
) -> None:
    assert reason in fails(2, "composite", *pair, "-o", tmp_path / "out.png", *STUBS, *arguments)
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.usefixtures("stub_stages")
def test_a_cut_out_is_harmonized_with_a_photograph_alone(
    pair: list[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    made, harmonized = [], ["--harmonizer", "reinhard"]
    for more in ([], harmonized):
        call = ["cutout", pair[0], "--background", pair[1], "-o", str(tmp_path / "out.png")]
        assert main([*call, *STUBS, *more]) == 0
        made.append(pixels(tmp_path / "out.png").tobytes())
    assert made[0] != made[1]
    for background, name in (([], "a transparent background"), (["--background", "blur"], "blur")):
        said = fails(2, "cutout", pair[0], "-o", tmp_path / "no.png", *background, *harmonized)
        assert f"another photograph as background (--background FILE), not with {name}" in said


# Stopping, debugging, logging


def test_ctrl_c(
    stub_stages: None, pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(image: Tensor) -> Tensor:
        raise KeyboardInterrupt

    register("segmenter", "interrupted", description="")(lambda: interrupt)
    arguments = ["composite", *pair, "-o", str(tmp_path / "out.png"), *STUBS]
    assert main([*arguments, "--segmenter", "interrupted"]) == 130
    assert capsys.readouterr().err == "deep-image-compositing: interrupted\n"
    assert list(tmp_path.glob("*out*")) == []


def test_debug_shows_the_traceback(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for place in (0, 3):
        arguments = ["composite", "missing.png", pair[1], "-o", "out.png"]
        arguments.insert(place, "--debug")
        assert main(arguments) == 1
        assert "Traceback" in capsys.readouterr().err


def test_logging_is_left_as_it_was(fails: Callable[..., str]) -> None:
    log = logging.getLogger("deep_image_compositing")
    before = (log.level, list(log.handlers))
    fails(1, "composite", "missing.png", "missing.png", "-o", "out.png")
    assert (log.level, list(log.handlers)) == before


def test_warnings_are_messages_of_a_line(
    stub_stages: None, pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(image: Tensor) -> Tensor:
        warnings.simplefilter("always")
        warnings.warn("something is odd", stacklevel=1)
        return disc(image.shape[-2], image.shape[-1])

    register("segmenter", "warning", description="")(lambda: warn)
    arguments = ["composite", *pair, "-o", str(tmp_path / "out.png"), *STUBS]
    assert main([*arguments, "--segmenter", "warning"]) == 0
    assert capsys.readouterr().err == "deep-image-compositing: warning: something is odd\n"


# The other commands


@pytest.mark.usefixtures("stub_stages")
def test_stages_are_listed(capsys: pytest.CaptureFixture[str], fails: Callable[..., str]) -> None:
    assert main(["stages"]) == 0
    table = capsys.readouterr().out
    for text in ("slot", "name", "segmenter", "pyramid", "cascade", "default", "disc", "ellipse"):
        assert text in table
    line = next(line for line in table.splitlines() if " pyramid " in line)
    assert "segmenter" in line and "default" in line  # noqa: PT018  (in a pipe, a line each)
    assert main(["stages", "di*", "--slot", "segmenter"]) == 0
    table = capsys.readouterr().out
    assert "disc" in table
    assert "pyramid" not in table
    assert "no stage is called" in fails(2, "stages", "nothing")
    assert "--slot" in fails(2, "stages", "--slot", "nothing")


def test_a_misspelt_command_is_told_the_closest(fails: Callable[..., str]) -> None:
    assert "there is no command 'composit'; did you mean 'composite'?" in fails(2, "composit")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"deep-image-compositing {__version__}\n"
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(re.search(rf"^ +{name}\s", overview, re.MULTILINE) for name in COMMANDS)


def test_training_gets_its_arguments_untouched_and_keeps_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, list[str]]] = []

    def run(name: str, arguments: list[str]) -> None:
        calls.append((name, arguments))
        if "--nothing" in arguments:
            raise SystemExit(2)
        if "--told" in arguments:
            raise SystemExit("why it ended")

    module = types.ModuleType("deep_image_compositing.training")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deep_image_compositing.training", module)
    arguments = ["--config", "a.yaml", "--trainer.max_steps=3", "--help"]
    for command in ("fit", "validate", "test"):
        calls.clear()
        assert main([command, *arguments]) == 0
        assert main(["--debug", command, *arguments]) == 0
        assert main([command, *arguments, "--debug"]) == 0
        assert calls == [(command, arguments)] * 3
    assert main(["fit", "--nothing"]) == 2
    assert main(["fit", "--told"]) == 1
    assert "why it ended" in capsys.readouterr().err


def test_weights_are_exported_from_a_checkpoint(
    stub_stages: None, tmp_path: Path, fails: Callable[..., str]
) -> None:
    @register("segmenter", "learned", description="")
    class Learned(Segmenter):
        def __init__(self, width: int = 1, weights: str | None = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.save_hyperparameters()
            self.layer = nn.Conv2d(3, width, 1)
            self.load_weights(weights)

        def forward(self, image: Tensor) -> Tensor:
            return self.layer(image).mean(1, keepdim=True).sigmoid()

    trained = Learned(width=5, learning_rate=0.125)
    content = {"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}
    content["hyper_parameters"] |= {"_instantiator": "of the training command"}
    torch.save(content, tmp_path / "last.ckpt")
    out = tmp_path / "learned.safetensors"
    arguments = ["export-weights", tmp_path / "last.ckpt", "--stage"]
    assert main([*map(str, arguments), "segmenter/learned", "-o", str(out)]) == 0
    again = Learned(width=5, weights=str(out))
    image = torch.rand(1, 3, 4, 4)
    assert torch.allclose(again(image), trained(image), atol=1e-3)

    assert "does not fit" in fails(
        1, *arguments, "segmenter/learned", "-o", out, "--option", "width=2"
    )
    assert "SLOT" not in fails(2, *arguments, "learned", "-o", out)
    assert "no segmenter" in fails(2, *arguments, "segmenter/other", "-o", out)
    assert ".safetensors" in fails(2, *arguments, "segmenter/learned", "-o", tmp_path / "a.pt")
    assert "does not exist" in fails(
        1, *arguments, "segmenter/learned", "-o", tmp_path / "no" / "a.safetensors"
    )
    arguments[1] = tmp_path / "missing.ckpt"
    assert "there is no checkpoint" in fails(1, *arguments, "segmenter/learned", "-o", out)
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.ckpt")
    arguments[1] = tmp_path / "evil.ckpt"
    assert "could run code" in fails(1, *arguments, "segmenter/learned", "-o", out)


def test_the_program_is_installed_under_its_name() -> None:
    points = importlib.metadata.entry_points(group="console_scripts")
    values = {point.value for point in points if point.name == "deep-image-compositing"}
    if not values:
        pytest.skip("the package is not installed")
    assert values == {"deep_image_compositing.cli:main"}


def test_as_a_process(pair: list[str], tmp_path: Path) -> None:
    program = [sys.executable, "-m", "deep_image_compositing"]
    done = subprocess.run(
        [*program, "composite", "missing.png", pair[1], "-o", str(tmp_path / "out.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("deep-image-compositing: error: missing.png")
    assert len(done.stderr.splitlines()) == 1
    assert subprocess.run([*program], capture_output=True, check=False).returncode == 2
