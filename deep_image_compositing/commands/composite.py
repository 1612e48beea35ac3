"""The command ``composite``: one photograph, or a folder of them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing import registry, settings
from deep_image_compositing.commands.arguments import check_outputs, launched, real_paths
from deep_image_compositing.errors import ImageError, UsageError
from deep_image_compositing.messages import say, show

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor

_EXTRA_OUTPUTS = ("alpha", "cutout", "steps")


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``composite`` to its parser."""
    add = parser.add_argument
    add("foreground", help="photograph with the subject, or a folder of them")
    add("background", help="photograph that becomes the new background")
    add("-o", "--output", required=True, metavar="FILE",
        help="the composite (.png, .jpg, .webp, .tiff, .bmp); for a folder, a folder")
    add("--mask", metavar="FILE",
        help="white where the subject is, instead of a segmenter; for a folder, a folder of masks "
             "of the same names")
    add("--resume", action="store_true",
        help="for a folder, leave alone what is done already with the same photographs and "
             "settings")
    for name, what in (
        ("alpha", "the alpha as a gray picture"),
        ("cutout", "the subject alone, with transparency"),
        ("steps", "a labelled contact sheet of all steps"),
    ):
        add(f"--save-{name}", metavar="FILE", help=f"also write {what}")
    _add_placement(parser.add_argument_group("placement"))
    add_stages(parser.add_argument_group("stages"))
    add = parser.add_argument_group("last step").add_argument
    add("--harmonize", choices=("reinhard",),
        help="move the subject's colours towards the new background's; default: not")
    add("--harmonize-strength", type=float, metavar="SHARE",
        help="with --harmonize, how far, from 0 to 1; default: 0.5")
    _add_resources(parser.add_argument_group("resources"))


def _add_placement(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--frame", choices=("foreground", "background"), default="foreground",
        help="whose frame the composite has; default: foreground")
    add("--scale", type=float, default=1.0,
        help="with --frame background, size of the subject's photograph; 1 just fits")
    add("--position", default="0.5,0.5", metavar="X,Y",
        help="with --frame background, where the subject goes: 0,0 top left, 1,1 bottom right")


def add_stages(group: argparse._ArgumentGroup) -> None:
    defaults = ("pyramid", "cascade", "multi_stream")
    for slot, default in zip(registry.SLOTS, defaults, strict=True):
        group.add_argument(f"--{slot}", default=default, metavar="NAME", help=f"default: {default}")
        group.add_argument(f"--{slot}-option", action="append", default=[], metavar="KEY=VALUE",
            help="an option of it, the value as JSON or plain text; repeatable")


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
    if options.harmonize_strength is not None:
        if options.harmonize is None:
            raise UsageError("--harmonize-strength takes effect only with --harmonize")
        settings.check_strength(options.harmonize_strength)


def run(options: argparse.Namespace) -> int:
    """Make one composite, or those of a folder; returns the exit code."""
    _check(options)
    if Path(options.foreground).is_dir():
        return _run_folder(options)
    for name in ("resume", "devices", "accelerator"):
        if getattr(options, name) not in (None, False):
            raise UsageError(f"--{name} is for a folder, and {options.foreground} is none")
    start = time.perf_counter()
    arguments = _compositor_arguments(options)
    from deep_image_compositing.images import check_writable, longest_sides, read_image, read_mask

    outputs = _outputs(options, None)
    check_outputs(outputs, real_paths(options.foreground, options.background, options.mask))
    # Everything that can be wrong with the files is found before torch is imported.
    own, theirs = longest_sides(options.max_side, options.frame, options.scale)
    limit = options.max_pixels
    foreground = read_image(options.foreground, max_pixels=limit, max_side=own)
    background = read_image(options.background, max_pixels=limit, max_side=theirs)
    mask = options.mask and read_mask(options.mask, size=foreground.size, max_pixels=limit)
    frame = foreground.size if options.frame == "foreground" else background.size
    if options.frame == "background":
        settings.placed_size(foreground.size, frame, options.scale)
    for key, path in outputs.items():
        check_writable(path, None if key == "steps" else frame, alpha=key == "cutout")
    placement = {"frame": options.frame, "scale": options.scale, "position": options.position}
    compositor = _compositor(arguments, options.device)
    result = compositor(foreground, background, mask, **placement)
    result.save(**outputs)
    height, width = result.size
    seconds = time.perf_counter() - start
    show(f"wrote {options.output} ({width} x {height} pixels, {result.device}, {seconds:.1f} s)")
    for name in _EXTRA_OUTPUTS:
        if name in outputs:
            show(f"wrote {outputs[name]} ({name})")
    return 0


def _run_folder(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    arguments = _compositor_arguments(options)
    from deep_image_compositing.images import list_images, longest_sides, read_image, read_mask

    _check_folders(options)
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
            lambda device: _compositor(arguments, device),
            record=Path(options.output) / batch.RECORD,
            settings=_settings(options),
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
    done = f"wrote {outcome.made} of {len(files)} composites to {options.output}"
    show(f"{done}{before} ({time.perf_counter() - start:.1f} s)")
    return _tell_failures(files, failures)


def _check_folders(options: argparse.Namespace) -> None:
    """Raise ``UsageError`` where a folder is to be written to what is named like a picture."""
    from deep_image_compositing.images import WRITABLE

    for target in _outputs(options, None).values():
        if target.suffix.lower() in WRITABLE and not target.is_dir():
            raise UsageError(
                f"{target} is the name of a picture, but {options.foreground} is a folder: "
                "name a folder for what is written"
            )


def _tell_failures(files: Sequence[Path], failures: Mapping[Path, str]) -> int:
    if failures:
        say(f"error: {len(failures)} of {len(files)} failed:")
        for file in files:
            if file in failures:
                show(f"  {file.name}: {failures[file]}", file=sys.stderr)
    return 1 if failures else 0


def _folder_outputs(
    options: argparse.Namespace, files: Sequence[Path]
) -> dict[Path, dict[str, Path]]:
    """The files to write for each photograph of a folder; their folders are made."""
    names = _output_names(files)
    outputs = {file: _outputs(options, names[file]) for file in files}
    for folder in {target.parent for targets in outputs.values() for target in targets.values()}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return outputs


def _compositor(arguments: dict[str, Any], device: str) -> Compositor:
    from deep_image_compositing.compositor import Compositor

    return Compositor(**arguments, device=device)


def _compositor_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What a compositor is made with; what is wrong with it is told before torch is imported."""
    for slot, (name, given) in named_stages(options):
        registry.get(slot, name).check(given)
    stages = {
        slot: (name, given) if given else name for slot, (name, given) in named_stages(options)
    }
    last: dict[str, Any] = {"harmonize": options.harmonize}
    if options.harmonize_strength is not None:
        last["harmonize_strength"] = options.harmonize_strength
    limits = {name: getattr(options, name) for name in ("max_pixels", "max_side", "work_side")}
    return {**stages, **last, **limits}


def named_stages(options: argparse.Namespace) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Each slot with the name and the options of what is to fill it."""
    for slot in registry.SLOTS:
        given = registry.key_values(f"--{slot}-option", getattr(options, f"{slot}_option"))
        yield slot, (getattr(options, slot), given)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What decides how composites look, besides the photographs; for the record of a folder.

    Options that are added later count, unless they are named here.
    """
    from deep_image_compositing.stages.making import describe_stages

    others = {"foreground", "background", "output", "mask", "run", "debug"}
    others |= {f"save_{extra}" for extra in _EXTRA_OUTPUTS}
    others |= {"device", "devices", "accelerator", "max_pixels", "resume"}
    others |= {name for slot in registry.SLOTS for name in (slot, f"{slot}_option")}
    rest = {name: value for name, value in vars(options).items() if name not in others}
    return {**rest, "stages": describe_stages(dict(named_stages(options)))}


def _outputs(options: argparse.Namespace, name: str | None) -> dict[str, Path]:
    """The files to write, by the arguments of ``Composite.save``; ``name`` in a folder each."""
    wanted = {"path": options.output}
    wanted |= {extra: getattr(options, f"save_{extra}") for extra in _EXTRA_OUTPUTS}
    return {
        key: Path(target) / name if name else Path(target)
        for key, target in wanted.items()
        if target is not None
    }


def _output_names(files: Sequence[Path]) -> dict[Path, str]:
    """``a.jpg`` becomes ``a.png``; where two inputs share a stem, ``a.jpg.png``."""
    stems = Counter(file.stem for file in files)
    return {file: f"{file.stem if stems[file.stem] == 1 else file.name}.png" for file in files}


def _masks(given: str | None, files: Sequence[Path]) -> dict[Path, Path | None]:
    """The mask of every file: the same one, or the one of its stem in a folder; None without."""
    if given is None or not Path(given).is_dir():
        return {file: None if given is None else Path(given) for file in files}
    from deep_image_compositing.images import list_images

    by_stem = {mask.stem: mask for mask in list_images(given)}
    return {file: by_stem.get(file.stem) for file in files}
