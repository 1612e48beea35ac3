"""The commands ``composite`` and ``cutout``: of one photograph, or of a folder of them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deep_image_compositing import published, registry, settings
from deep_image_compositing.commands import models
from deep_image_compositing.commands.arguments import (
    TRANSPARENT,
    check_outputs,
    launched,
    real_paths,
)
from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.messages import say, show

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor

_EXTRA_OUTPUTS = ("alpha", "cutout", "steps", "shadow")
_STREAM = "-"
"""What stands for standard input or output in the place of a file."""

_LIMITS = ("max_pixels", "max_side", "work_side")

Stages: TypeAlias = dict[str, tuple[str, dict[str, Any]]]
"""Name and options of what is to fill each slot."""


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``composite`` to its parser."""
    add = parser.add_argument
    add("foreground", help="photograph with the subject, or a folder of them; - for standard input")
    add("background", help="photograph that becomes the new background")
    _add_files(parser, "the composite (.png, .jpg, .webp, .tiff, .bmp; - for standard output)")
    for name, what in (
        ("alpha", "the alpha as a gray picture"),
        ("cutout", "the subject alone, with transparency"),
        ("steps", "a labelled contact sheet of all steps"),
        ("shadow", "with --shadow, the shadow as a layer: black, with transparency"),
    ):
        add(f"--save-{name}", metavar="FILE", help=f"also write {what}")
    _add_placement(parser.add_argument_group("placement"))
    add_stages(parser.add_argument_group("stages"))
    _add_shadow(parser.add_argument_group("shadow"))
    _add_resources(parser.add_argument_group("resources"))
    parser.set_defaults(wanted="path")


def add_cutout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cutout`` to its parser."""
    parser.add_argument("foreground", metavar="photograph",
        help="photograph with the subject, or a folder of them; - for standard input")
    _add_files(parser, "the cut-out (.png, .webp, .tiff; - for standard output)")
    parser.add_argument("--background", metavar="WHAT",
        help="white or another colour, #rrggbb, blur (its own, blurred) or a photograph; default: "
             "transparent")
    add_stages(parser.add_argument_group("stages"))
    _add_shadow(parser.add_argument_group("shadow"))
    _add_resources(parser.add_argument_group("resources"))
    parser.set_defaults(frame="foreground", scale=1.0, position="0.5,0.5",
        **{f"save_{extra}": None for extra in _EXTRA_OUTPUTS})


def _add_files(parser: argparse.ArgumentParser, output: str) -> None:
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="FILE", help=f"{output}; for a folder, a folder")
    add("--mask", metavar="FILE",
        help="white where the subject is, instead of a segmenter; for a folder, a folder of masks "
             "of the same names")
    add("--resume", action="store_true",
        help="for a folder, leave alone what is done already with the same photographs and "
             "settings")


def _add_placement(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--frame", choices=("foreground", "background"), default="foreground",
        help="whose frame the composite has; default: foreground")
    add("--scale", type=float, default=1.0,
        help="with --frame background, size of the subject's photograph; 1 just fits")
    add("--position", default="0.5,0.5", metavar="X,Y",
        help="with --frame background, where the subject goes: 0,0 top left, 1,1 bottom right")


def add_stages(group: argparse._ArgumentGroup) -> None:
    for slot, default in registry.DEFAULTS.items():
        names = [f"--{slot}", *(["--harmonize"] if slot == "harmonizer" else [])]
        group.add_argument(*names, default=default, metavar="NAME", help=f"default: {default}")
        group.add_argument(f"--{slot}-option", action="append", default=[], metavar="KEY=VALUE",
            help="an option of it, the value as JSON or plain text; repeatable")
    group.add_argument("--harmonize-strength", dest="harmonizer_option", action="append",
        type="strength={}".format, metavar="SHARE",
        help="how far the harmonizer goes, from 0 to 1; short for --harmonizer-option strength=")
    models.add_models_arguments(group)


def _add_shadow(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--shadow", choices=tuple(settings.SHADOWS),
        help="what the subject throws on the ground: contact, or cast, which includes it; "
             "default: none")
    add("--shadow-option", action="append", default=[], metavar="KEY=VALUE",
        help="strength, softness; of cast also direction (left, right, behind, front or degrees) "
             "and length; repeatable")


def _add_resources(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: auto")
    add("--devices", type=int, metavar="N",
        help="for a folder, GPUs, or processes on a CPU; -1 for all GPUs; default: 1, or as many "
             "as torchrun has started")
    add("--accelerator", help="for a folder, auto, cpu, gpu, mps; default: as --device says")
    add("--max-pixels", type=int, metavar="N", help="read files of up to N pixels")
    add("--max-side", type=int, metavar="N",
        help="make composites of at most N pixels on the long side; default: as large as the "
             "photograph")
    add("--work-side", type=int, default=896, metavar="PIXELS",
        help="long side at which learned stages work; default: 896")
# fmt: on


def _check(options: argparse.Namespace) -> None:
    """Raise ``UsageError`` for values that cannot be, before anything heavy is imported."""
    if options.max_pixels is not None and options.max_pixels < 1:
        raise UsageError(f"--max-pixels must be at least 1, got {options.max_pixels}")
    settings.check_sides(options.work_side, options.max_side)
    settings.check_placement(options.frame, options.scale, options.position)
    settings.check_device(options.device)
    _shadow(options)
    check_harmonizer(options)


def check_harmonizer(options: argparse.Namespace) -> None:
    """Raise ``UsageError`` for a strength that cannot be, or has no effect."""
    name, given = named_stage(options, "harmonizer")
    if "strength" in given:
        settings.check_strength(given["strength"])
        if name == "none":
            raise UsageError(
                "--harmonize-strength takes effect only with --harmonizer NAME, other than none"
            )


def _shadow(options: argparse.Namespace) -> settings.Shadow | None:
    """The shadow that is asked for, or ``UsageError``."""
    given = registry.key_values("--shadow-option", options.shadow_option)
    if options.shadow is None:
        for name, value in (("--shadow-option", given), ("--save-shadow", options.save_shadow)):
            if value:
                raise UsageError(f"{name} takes effect only with --shadow")
        return None
    return settings.Shadow.of((options.shadow, given))


def run_cutout(options: argparse.Namespace) -> int:
    """Cut out one subject, or those of a folder; returns the exit code."""
    from deep_image_compositing.removal import ask

    given = options.background
    options.wanted, options.background = ask(given, _shadow(options))
    is_file = isinstance(options.background, str)
    if options.harmonizer != registry.DEFAULTS["harmonizer"] and not is_file:
        raise UsageError(
            "--harmonizer takes effect only before another photograph (--background FILE), not "
            f"before {'a transparent background' if given is None else given}"
        )
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Make one composite, or those of a folder; returns the exit code."""
    _check(options)
    models.use_folder(options)
    stages = {slot: named_stage(options, slot) for slot in registry.SLOTS}
    for slot, (name, given) in stages.items():  # before torch is imported
        registry.check(slot, name, given)
    start, work = time.perf_counter(), _one
    inputs = [options.foreground, options.background, options.mask]
    if inputs.count(_STREAM) > 1:
        raise UsageError("standard input (-) can be one of the pictures only")
    if Path(options.foreground).is_dir():
        work = _folder
        if _STREAM in (*inputs, options.output):
            raise UsageError(f"{options.foreground} is a folder: - is for one photograph")
    else:
        for name in ("resume", "devices", "accelerator"):
            if getattr(options, name) not in (None, False):
                raise UsageError(f"--{name} is for a folder, and {options.foreground} is none")
    return work(options, stages, start)


def _one(options: argparse.Namespace, stages: Stages, start: float) -> int:
    from deep_image_compositing.images import (
        check_writable,
        encode_image,
        longest_sides,
        read_image,
        read_mask,
    )

    streamed = options.output == _STREAM
    outputs = _outputs(options)
    check_outputs(outputs, real_paths(options.foreground, options.background, options.mask))
    for name in ("foreground", "background", "mask"):
        if getattr(options, name) == _STREAM:
            setattr(options, name, sys.stdin.buffer.read())
    # Everything that can be wrong with the files is found before torch is imported.
    own, theirs = longest_sides(options.max_side, options.frame, options.scale)
    limit = options.max_pixels
    foreground = read_image(options.foreground, max_pixels=limit, max_side=own)
    background = read_image(options.background, max_pixels=limit, max_side=theirs)
    mask = options.mask and read_mask(options.mask, size=foreground.size, max_pixels=limit)
    frame = foreground.size
    if options.frame == "background":
        frame = background.size
        settings.placed_size(foreground.size, frame, options.scale)
    for key, path in outputs.items():
        check_writable(path, None if key == "steps" else frame, alpha=key in TRANSPARENT)
    placement = {"frame": options.frame, "scale": options.scale, "position": options.position}
    result = _compositor(options, stages, options.device)(foreground, background, mask, **placement)
    result.save(**outputs)
    if streamed:
        pixels, alpha = result.picture(options.wanted)
        sys.stdout.buffer.write(encode_image(".png", pixels, alpha=alpha))
        return 0
    height, width = result.size
    seconds = time.perf_counter() - start
    show(f"wrote {options.output} ({width} x {height} pixels, {result.device}, {seconds:.1f} s)")
    for name in _EXTRA_OUTPUTS:
        if name in outputs and name != options.wanted:
            show(f"wrote {outputs[name]} ({name})")
    return 0


def _folder(options: argparse.Namespace, stages: Stages, start: float) -> int:
    from deep_image_compositing.images import list_images, longest_sides, read_image, read_mask

    devices = launched("LOCAL_WORLD_SIZE", options.devices)
    settings.one_device(options.device, devices, options.accelerator or "auto")
    files = list_images(options.foreground)
    _, side = longest_sides(options.max_side, options.frame, options.scale)
    background = read_image(options.background, max_pixels=options.max_pixels, max_side=side)
    if options.mask and not Path(options.mask).is_dir():
        read_mask(options.mask, max_pixels=options.max_pixels)
    masks = _masks(options.mask, files)
    outputs = _folder_outputs(options, files)
    taken = real_paths(*files, options.background, *masks.values())
    for targets in outputs.values():
        check_outputs(targets, taken)
    ready = [file for file in files if not options.mask or masks[file] is not None]
    from deep_image_compositing import batch

    try:
        outcome = batch.composite_all(
            [batch.Job(file, outputs[file], masks[file]) for file in ready],
            background,
            lambda device: _compositor(options, stages, device),
            record=Path(options.output) / batch.RECORD,
            settings=_settings(options, stages),
            frame=options.frame,
            scale=options.scale,
            position=options.position,
            resume=options.resume,
            device=options.device,
            devices=devices,
            accelerator=options.accelerator or "auto",
            show=True,
        )
    except KeyboardInterrupt:
        if batch.writing():  # told to stop twice: the interpreter's own end would not be at once
            say("interrupted")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise
    if outcome is None:
        return 0
    failures = {ready[number]: reason for number, reason in outcome.failures.items()}
    for file in set(files) - set(ready):
        failures[file] = f"there is no mask for {file.name} in {options.mask}"
    before = f", {outcome.kept} were there already" if outcome.kept else ""
    what = "composites" if options.wanted == "path" else "cut-outs"
    done = f"wrote {outcome.made} of {len(files)} {what} to {options.output}"
    show(f"{done}{before} ({time.perf_counter() - start:.1f} s)")
    if failures:
        say(f"error: {len(failures)} of {len(files)} failed:")
    for file in sorted(failures):
        show(f"  {file.name}: {failures[file]}", file=sys.stderr)
    return 1 if failures else 0


def _outputs(options: argparse.Namespace) -> dict[str, Path]:
    """The files to write, or their folders, by the arguments of ``Composite.save``."""
    wanted = {extra: getattr(options, f"save_{extra}") for extra in _EXTRA_OUTPUTS}
    if options.output != _STREAM:
        wanted[options.wanted] = options.output
    return {key: Path(file) for key, file in wanted.items() if file is not None}


def _folder_outputs(
    options: argparse.Namespace, files: Sequence[Path]
) -> dict[Path, dict[str, Path]]:
    """The files to write for each photograph of a folder; their folders are made.

    Of ``a.jpg`` comes ``a.png``; where two photographs share a stem, ``a.jpg.png``.
    """
    from deep_image_compositing.images import WRITABLE

    stems, folders = Counter(file.stem for file in files), _outputs(options)
    for folder in folders.values():
        if folder.suffix.lower() in WRITABLE and not folder.is_dir():
            raise UsageError(
                f"{folder} is the name of a picture, but {options.foreground} is a folder: "
                "name a folder for what is written"
            )
    for folder in folders.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    names = {file: f"{file.stem if stems[file.stem] == 1 else file.name}.png" for file in files}
    return {file: {key: to / names[file] for key, to in folders.items()} for file in files}


def _masks(given: str | None, files: Sequence[Path]) -> dict[Path, Path | None]:
    """The mask of every file: the same one, or the one of its stem in a folder; None without."""
    if given is None or not Path(given).is_dir():
        return {file: None if given is None else Path(given) for file in files}
    from deep_image_compositing.images import list_images

    by_stem = {mask.stem: mask for mask in list_images(given)}
    return {file: by_stem.get(file.stem) for file in files}


def named_stage(options: argparse.Namespace, slot: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of what is to fill a slot."""
    given = registry.key_values(f"--{slot}-option", getattr(options, f"{slot}_option"))
    name = getattr(options, slot)
    if options.accept_licence and slot == "segmenter" and name in published.NAMES:
        given["accept_licence"] = True
    return name, given


def _compositor(options: argparse.Namespace, stages: Stages, device: str) -> Compositor:
    from deep_image_compositing.compositor import Compositor

    fill: dict[str, Any] = {slot: one if one[1] else one[0] for slot, one in stages.items()}
    limits = {name: getattr(options, name) for name in _LIMITS}
    return Compositor(**fill, **limits, shadow=_shadow(options), device=device)


def _settings(options: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """What decides how composites look, besides the photographs; for the record of a folder.

    Options that are added later count, unless they are named here.
    """
    from deep_image_compositing.stages.making import describe_stages

    others = {"foreground", "background", "output", "mask", "run", "debug"}
    others |= {f"save_{extra}" for extra in _EXTRA_OUTPUTS}
    others |= {"models", "accept_licence"}
    others |= {"device", "devices", "accelerator", "max_pixels", "resume"}
    others |= {name for slot in registry.SLOTS for name in (slot, f"{slot}_option")}
    rest = {name: value for name, value in vars(options).items() if name not in others}
    return {**rest, "stages": describe_stages(stages)}
