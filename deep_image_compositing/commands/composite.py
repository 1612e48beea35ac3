"""The commands ``composite`` and ``cutout``, for a photograph or a folder of photographs."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing import registry, settings
from deep_image_compositing.commands.arguments import (
    Stages,
    add_stages,
    argument_adder,
    check_outputs,
    launch_count,
    named_stages,
)
from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import make_folder, real_paths
from deep_image_compositing.messages import say, show

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor

_EXTRA_OUTPUTS = ("alpha", "cutout", "steps", "shadow")
_FOREGROUND = ", or a folder of photographs; - for standard input"
_STREAM = "-"
"""Stands for standard input or output in place of a file."""

_LIMITS = ("max_pixels", "max_side", "work_side")
_RECORDED = ("wanted", "work_side", "max_side", "shadow", "shadow_option")
"""Options besides photographs, placement and stages on which a composite depends."""


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("foreground", str, "", f"photograph with the subject{_FOREGROUND}")
    add("background", str, "", "photograph that becomes the new background")
    _add_files(parser, "the composite (.png, .jpg, .webp, .tiff, .bmp; - for standard output)")
    add("--save-alpha", str, "FILE", "also write the alpha as a gray picture")
    add("--save-cutout", str, "FILE", "also write the subject alone, with transparency")
    add("--save-steps", str, "FILE", "also write a labelled contact sheet of all stages")
    add("--save-shadow", str, "FILE", "with --shadow, also write it as a black transparent layer")
    add = argument_adder(parser.add_argument_group("placement"))
    add("--frame", "foreground", "", "photograph whose frame the composite has",
        choices=("foreground", "background"))
    add("--scale", 1.0, "N", "with --frame background, size of the foreground; 1 just fits")
    add("--position", "0.5,0.5", "X,Y",
        "with --frame background, place of the foreground: 0,0 top left, 1,1 bottom right")
    _add_settings(parser)
    parser.set_defaults(wanted="path")


def add_cutout_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("foreground", str, "photograph", f"photograph with the subject{_FOREGROUND}")
    _add_files(parser, "the cut-out (.png, .webp, .tiff; - for standard output)")
    add("--background", str, "WHAT",
        "a colour (white, #rrggbb), blur (blurs the background) or a file; default: transparent")
    _add_settings(parser)
    extras = {f"save_{extra}": None for extra in _EXTRA_OUTPUTS}
    parser.set_defaults(frame="foreground", scale=1.0, position="0.5,0.5", **extras)


def _add_files(parser: argparse.ArgumentParser, output: str) -> None:
    add = argument_adder(parser)
    add("-o --output", str, "FILE", f"{output}; for a folder, a folder", required=True)
    add("--mask", str, "FILE",
        "mask, white on the subject, instead of a segmenter; for a folder, one mask or a folder of "
        "masks of the same names")
    add("--resume", bool, "", "for a folder, skip what exists with the same inputs and settings")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add_stages(parser.add_argument_group("stages"))
    add = argument_adder(parser.add_argument_group("shadow"))
    add("--shadow", str, "", "shadow of the subject on the ground: contact, or cast, which "
        "includes contact; default: none", choices=tuple(settings.SHADOWS))
    add("--shadow-option", list, "KEY=VALUE", "strength, softness; for cast also length and "
        "direction (left, right, behind, front or degrees)")
    add = argument_adder(parser.add_argument_group("resources"))
    add("--device", "auto", "", "auto, cpu, cuda, cuda:1, mps")
    add("--devices", int, "N", "for a folder, number of GPUs, or of processes on a CPU; -1 for "
        "all GPUs; default: 1, or torchrun's number")
    add("--accelerator", str, "", "for a folder, auto, cpu, gpu, mps; default: that of --device")
    add("--max-pixels", int, "N", "read files of up to N pixels")
    add("--max-side", int, "N", "maximum long side of composites; default: that of the frame")
    add("--work-side", 896, "PIXELS", "long side at which learned stages work")
# fmt: on


def run_cutout(args: argparse.Namespace) -> int:
    """Cut out the subject of a photograph, or of each in a folder; returns the exit code."""
    from deep_image_compositing.removal import ask

    background = args.background
    if background == _STREAM:
        args.wanted = "path"
    else:
        args.wanted, args.background = ask(background, args.shadow)
    is_file = isinstance(args.background, str)
    if args.harmonizer != registry.DEFAULTS["harmonizer"] and not is_file:
        raise UsageError(
            "--harmonizer takes effect only with another photograph as background (--background "
            f"FILE), not with {'a transparent background' if background is None else background}"
        )
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Composite a photograph, or each in a folder; returns the exit code."""
    start = time.perf_counter()
    if args.max_pixels is not None and args.max_pixels < 1:
        raise UsageError(f"--max-pixels must be at least 1, got {args.max_pixels}")
    settings.check_sides(args.work_side, args.max_side)
    settings.check_placement(args.frame, args.scale, args.position)
    settings.check_device(args.device)
    args.shade = _shadow(args)
    stages = named_stages(args)
    inputs = [args.foreground, args.background, args.mask]
    if "" in (*inputs, args.output):  # an unset variable of a shell; as a path, this folder
        raise UsageError("the name of a file is empty; give the names of all files")
    if inputs.count(_STREAM) > 1:
        raise UsageError("standard input (-) can be one of the pictures only")
    if Path(args.foreground).is_dir():
        if _STREAM in (*inputs, args.output):
            raise UsageError(f"{args.foreground} is a folder: - is for one photograph")
        return _folder(args, stages, start)
    for name in ("resume", "devices", "accelerator"):
        if getattr(args, name) not in (None, False):
            raise UsageError(f"--{name} is for a folder, and {args.foreground} is not a folder")
    return _one(args, stages, start)


def _shadow(args: argparse.Namespace) -> settings.Shadow | None:
    """The shadow of ``--shadow``; ``UsageError`` if its options are invalid."""
    options = registry.key_values("--shadow-option", args.shadow_option)
    if args.shadow is None:
        for name, value in (("--shadow-option", options), ("--save-shadow", args.save_shadow)):
            if value:
                raise UsageError(f"{name} takes effect only with --shadow")
        return None
    return settings.Shadow.of((args.shadow, options))


def _one(args: argparse.Namespace, stages: Stages, start: float) -> int:
    from deep_image_compositing.images import encode_image, longest_sides, read_image, read_mask

    outputs = _outputs(args)
    taken = real_paths(args.foreground, args.background, args.mask)
    for name in ("foreground", "background", "mask"):
        if getattr(args, name) == _STREAM:
            setattr(args, name, sys.stdin.buffer.read())
    # All checks of the files come before the import of torch.
    foreground_side, background_side = longest_sides(args.max_side, args.frame, args.scale)
    limit = args.max_pixels
    foreground = read_image(args.foreground, max_pixels=limit, max_side=foreground_side)
    background = read_image(args.background, max_pixels=limit, max_side=background_side)
    mask = args.mask and read_mask(args.mask, size=foreground.size, max_pixels=limit)
    frame = foreground.size
    if args.frame == "background":
        frame = background.size
        settings.placed_size(foreground.size, frame, args.scale)
    check_outputs(outputs, taken, frame)
    placement = {"frame": args.frame, "scale": args.scale, "position": args.position}
    result = _compositor(args, stages, args.device)(foreground, background, mask, **placement)
    result.save(**outputs)
    if args.output == _STREAM:
        pixels, alpha = result.picture(args.wanted)
        sys.stdout.buffer.write(encode_image(".png", pixels, alpha=alpha))
        return 0
    height, width = result.size
    seconds = time.perf_counter() - start
    show(f"wrote {args.output} ({width} x {height} pixels, {result.device}, {seconds:.1f} s)")
    for name, path in outputs.items():
        if name != args.wanted:
            show(f"wrote {path} ({name})")
    return 0


def _folder_masks(args: argparse.Namespace, files: list[Path]) -> dict[Path, Path | None]:
    """The mask of each photograph: a file of its name in a folder, there or not, or one for all."""
    from deep_image_compositing.images import list_images, read_mask

    if args.mask and Path(args.mask).is_dir():
        paths = list_images(args.mask)
        by_name = {path.stem: path for path in paths} | {path.name: path for path in paths}
        # A missing mask fails its photograph, with "masks/NAME.* does not exist".
        return {
            file: by_name.get(file.name)
            or by_name.get(file.stem, Path(args.mask, f"{file.stem}.*"))
            for file in files
        }
    if args.mask:
        read_mask(args.mask, max_pixels=args.max_pixels)  # fail before the first photograph
    return dict.fromkeys(files, args.mask and Path(args.mask))


def _folder(args: argparse.Namespace, stages: Stages, start: float) -> int:
    from deep_image_compositing.images import list_images, longest_sides, read_image

    devices, accelerator = launch_count(args.devices), args.accelerator or "auto"
    settings.one_device(args.device, devices, accelerator)
    files = list_images(args.foreground)
    _, side = longest_sides(args.max_side, args.frame, args.scale)
    background = read_image(args.background, max_pixels=args.max_pixels, max_side=side)
    masks = _folder_masks(args, files)
    outputs = _folder_outputs(args, files)
    taken = real_paths(*files, args.background, *masks.values())
    for targets in outputs.values():
        check_outputs(targets, taken)
    from deep_image_compositing import batch
    from deep_image_compositing.stages.making import describe_stages

    recorded = {name: getattr(args, name) for name in _RECORDED}
    try:
        outcome = batch.composite_all(
            [batch.Job(file, outputs[file], masks[file]) for file in files],
            background,
            lambda device: _compositor(args, stages, device),
            record=Path(args.output) / batch.RECORD,
            settings={**recorded, "stages": describe_stages(stages)},
            frame=args.frame,
            scale=args.scale,
            position=args.position,
            resume=args.resume,
            device=args.device,
            devices=devices,
            accelerator=accelerator,
            show=True,
        )
    except KeyboardInterrupt:
        if batch.writing():  # second Ctrl-C: the interpreter would wait for the writer at exit
            say("interrupted")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise
    if outcome is None:
        return 0
    existing = f", {outcome.kept} already there" if outcome.kept else ""
    unit = "composites" if args.wanted == "path" else "cut-outs"
    seconds = time.perf_counter() - start
    show(
        f"wrote {outcome.made} of {len(files)} {unit} to {args.output}{existing} ({seconds:.1f} s)"
    )
    if outcome.failures:
        say(f"error: {len(outcome.failures)} of {len(files)} failed:")
    for number, reason in outcome.failures.items():
        show(f"  {files[number].name}: {reason}", file=sys.stderr)
    return int(bool(outcome.failures))


def _outputs(args: argparse.Namespace) -> dict[str, Path]:
    """The files or folders to write, by argument of ``Composite.save``."""
    outputs = {extra: getattr(args, f"save_{extra}") for extra in _EXTRA_OUTPUTS}
    if args.output != _STREAM:
        outputs[args.wanted] = args.output
    return {key: Path(file) for key, file in outputs.items() if file is not None}


def _folder_outputs(args: argparse.Namespace, files: Sequence[Path]) -> dict[Path, dict[str, Path]]:
    """The files to write for each photograph of a folder, after their folders are created.

    The result of ``a.jpg`` is ``a.png``, or ``a.jpg.png`` if another photograph has the same stem.
    """
    from deep_image_compositing.images import WRITABLE

    stems, folders = Counter(file.stem for file in files), _outputs(args)
    for folder in folders.values():
        if folder.suffix.lower() in WRITABLE and not folder.is_dir():
            raise UsageError(
                f"{folder} is the name of a picture, but {args.foreground} is a folder: "
                "name a folder for the results"
            )
    for folder in folders.values():
        make_folder(folder)
    names = {file: f"{file.stem if stems[file.stem] == 1 else file.name}.png" for file in files}
    return {file: {key: folder / names[file] for key, folder in folders.items()} for file in files}


def _compositor(args: argparse.Namespace, stages: Stages, device: str) -> Compositor:
    from deep_image_compositing.compositor import Compositor

    slots: dict[str, Any] = {
        slot: (name, options) if options else name for slot, (name, options) in stages.items()
    }
    limits = {name: getattr(args, name) for name in _LIMITS}
    return Compositor(**slots, **limits, shadow=args.shade, device=device)
