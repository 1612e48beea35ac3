"""The command line, ``deep-image-compositing``; its :func:`main` is also what the tests call.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once. Exit
codes: 0 done, 1 work that failed, 2 a call that cannot be right, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from deep_image_compositing import __version__, registry, settings
from deep_image_compositing.errors import CompositingError, ImageError, UsageError, WeightsError
from deep_image_compositing.evaluation import command as evaluation
from deep_image_compositing.evaluation.study import command as study
from deep_image_compositing.messages import show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deep_image_compositing.compositor import Composite, Compositor
    from deep_image_compositing.images import Photograph

PROGRAM = "deep-image-compositing"
TRAINING = ("fit", "validate", "test")
"""Commands whose arguments are LightningCLI's."""

_SLOTS = ("segmenter", "refiner", "fuser")
_EXTRA_OUTPUTS = ("alpha", "cutout", "steps")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; messages go to standard error.

    Args:
        argv: the arguments after the program's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _messages(logging.DEBUG if debug else logging.INFO):
            if arguments[:1] == ["--debug"] and arguments[1:2] and arguments[1] in TRAINING:
                arguments = arguments[1:]
            if arguments and arguments[0] in TRAINING:
                return _train(arguments)
            options = _parse(arguments)
            code: int = options.run(options)
            return code
    except SystemExit as stop:  # argparse after --help, LightningCLI after a wrong argument
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except (CompositingError, OSError, MemoryError) as error:
        if debug:
            show(traceback.format_exc(), file=sys.stderr, lines=True)
        _say(f"error: {error or 'out of memory'}")
        return 2 if isinstance(error, UsageError) else 1


# What the commands take


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing its whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command.

    Raises:
        UsageError: arguments that are wrong; of unknown ones it names the nearest that there are.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    command: _Parser = vars(options).pop("parser", parser)
    if unknown:
        known = re.findall(r"--[\w-]+", command.format_help())
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near and unknown[0].startswith("-") else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Two photographs in, one finished composite out.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    _composite_arguments(
        command("composite", _composite, "set the subject of a photograph into another photograph")
    )
    stages = command("stages", _stages, "list what can fill the three slots")
    stages.add_argument("pattern", nargs="?", default="*", help="names to list, such as 'multi*'")
    stages.add_argument("--slot", choices=_SLOTS, help="list one slot only")
    for name, summary in (
        ("fit", "train a stage: fit --config recipes/fusion_easy.yaml"),
        ("validate", "measure a stage on a recipe's validation data"),
        ("test", "measure a stage on a recipe's test data"),
    ):
        commands.add_parser(name, help=summary, add_help=False)
    export = command("export-weights", _export_weights, "turn a training checkpoint into weights")
    export.add_argument("checkpoint", help="the .ckpt file that training wrote")
    export.add_argument(
        "--stage", required=True, metavar="SLOT/NAME", help="what it holds: segmenter/pyramid"
    )
    export.add_argument("-o", "--output", required=True, metavar="FILE.safetensors")
    export.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the stage, instead of the one in the checkpoint; repeatable",
    )
    _shards_arguments(command("shards", _shards, "turn data sets into shards for training"))
    _teach_arguments(command("teach", _teach, "let a trained fuser make hard training triplets"))
    _benchmark_arguments(
        command("benchmark", _benchmark, "time stages, training data or training, as ratios")
    )
    evaluation.add_arguments(
        command("evaluate", evaluation.run, "compare whole methods on a test set, with a report")
    )
    study.add_arguments(command("study", study.run, "ask people which method's pictures are best"))
    return parser


def _composite_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("foreground", help="photograph with the subject, or a folder of them")
    parser.add_argument("background", help="photograph that becomes the new background")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="the composite (.png, .jpg, .webp, .tiff, .bmp); for a folder, a folder",
    )
    parser.add_argument(
        "--mask", metavar="FILE", help="white where the subject is, instead of a segmenter; "
        "for a folder, a folder of masks of the same names",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="for a folder, leave alone what is done already with "
        "the same photographs and settings",
    )  # fmt: skip
    for name, what in (
        ("alpha", "the alpha as a gray picture"),
        ("cutout", "the subject alone, with transparency"),
        ("steps", "a labelled contact sheet of all steps"),
    ):
        parser.add_argument(f"--save-{name}", metavar="FILE", help=f"also write {what}")
    place = parser.add_argument_group("placement")
    place.add_argument(
        "--frame",
        choices=("foreground", "background"),
        default="foreground",
        help="whose frame the composite has; default: foreground",
    )
    place.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="with --frame background, size of the subject's photograph; 1 just fits",
    )
    place.add_argument(
        "--position",
        default="0.5,0.5",
        metavar="X,Y",
        help="with --frame background, where the subject goes: 0,0 top left, 1,1 bottom right",
    )
    slots = parser.add_argument_group("stages")
    for slot, default in zip(_SLOTS, ("pyramid", "cascade", "multi_stream"), strict=True):
        slots.add_argument(f"--{slot}", default=default, metavar="NAME", help=f"default: {default}")
        slots.add_argument(
            f"--{slot}-option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="an option of it, the value as JSON or plain text; repeatable",
        )
    after = parser.add_argument_group("last step")
    after.add_argument(
        "--harmonize",
        choices=("reinhard",),
        help="move the subject's colours towards the new background's; default: not",
    )
    after.add_argument(
        "--harmonize-strength",
        type=float,
        metavar="SHARE",
        help="with --harmonize, how far, from 0 to 1; default: 0.5",
    )
    limits = parser.add_argument_group("resources")
    limits.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: auto"
    )
    limits.add_argument(
        "--devices", type=int, metavar="N", help="for a folder, GPUs, or processes on a CPU; -1 "
        "for all GPUs; default: 1, or as many as torchrun has started",
    )  # fmt: skip
    limits.add_argument(
        "--accelerator", help="for a folder, auto, cpu, gpu, mps; default: as --device says"
    )
    limits.add_argument("--max-pixels", type=int, metavar="N", help="read files of up to N pixels")
    limits.add_argument(
        "--max-side", type=int, metavar="N", help="make composites of at most N pixels on the long "
        "side; default: as large as the photograph",
    )  # fmt: skip
    limits.add_argument(
        "--work-side",
        type=int,
        default=896,
        metavar="PIXELS",
        help="long side at which learned stages work; default: 896",
    )


def _shards_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="KIND", dest="action", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        return sub

    for kind, what in (
        ("segmentation", "photographs and masks of their subjects"),
        ("mattes", "subjects with soft alphas and straight colour"),
        ("backgrounds", "photographs to set subjects into"),
    ):
        sub = action(kind, what)
        sub.add_argument(
            "--layout", metavar="NAME", help="how the set lies on disk: shards layouts"
        )
        sub.add_argument("--root", required=True, metavar="DIR", help="where the set lies")
        sub.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
        sub.add_argument(
            "--validation", type=float, default=0.1, metavar="SHARE", help="of what the set itself "
            "has not split; default: 0.1",
        )  # fmt: skip
        sub.add_argument("--seed", type=int, default=0, help="of split and order; default: 0")
        sub.add_argument(
            "--shard-samples", type=int, metavar="N", help="most samples in a shard; default: as "
            "many as make 32 shards, at most 500 (mattes: 100)",
        )  # fmt: skip
        sub.add_argument("--max-side", type=int, metavar="PIXELS", help="shrink what is longer")
        if kind == "mattes":
            sub.add_argument("--lossless", action="store_true", help="write RGBA PNG, not JPEG")
        sub.add_argument("--source", metavar="TEXT", help="where the set comes from, to record")
        sub.add_argument("--licence", metavar="TEXT", help="what it may be used for, to record")
        sub.add_argument(
            "--max-skipped", type=float, default=0.01, metavar="SHARE", help="of unusable samples "
            "above which the exit code is 1; default: 0.01",
        )  # fmt: skip
        sub.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")
    verify = action("verify", "read shards again and compare them with their index")
    verify.add_argument("folder", help="folder of shards with their index.json")
    verify.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")
    action("layouts", "list the layouts of data sets")


def _teach_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fuser", required=True, metavar="FILE", help="a checkpoint or weights file trained on "
        "easy triplets, or the name of shipped weights: default",
    )  # fmt: skip
    parser.add_argument(
        "--stage", default="fuser/multi_stream", metavar="SLOT/NAME", help="what it holds; "
        "default: fuser/multi_stream",
    )  # fmt: skip
    for name, text in (("mattes", "subjects with their alpha"), ("backgrounds", "photographs")):
        parser.add_argument(
            f"--{name}", nargs="+", required=True, metavar="PATH", help=f"{text}: folders, shards "
            "or patterns of shards",
        )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--sheet", metavar="FILE.png", help="also draw the first triplets")
    what = parser.add_argument_group("what is made")
    for flag, kind, default, text in (
        ("samples", int, 10_000, "triplets"),
        ("shard-samples", int, 100, "triplets in a shard"),
        ("size", int, 640, "side of the pictures in pixels"),
        ("validation", float, 0.0, "share of shards made of what the sources hold out"),
        ("augment", float, 1.0, "strength of colour jitter and camera effects"),
        ("degrade", float, 1.0, "how far the written masks are degraded"),
        ("teacher-degrade", float, 0.25, "how far those are that the fuser is given"),
        ("seed", int, 0, "of everything random"),
    ):
        metavar = "N" if kind is int else "SHARE" if flag == "validation" else "STRENGTH"
        what.add_argument(
            f"--{flag}", type=kind, default=default, metavar=metavar, help=f"{text}; "
            f"default: {default}",
        )  # fmt: skip
    what.add_argument("--licence", default="", metavar="TEXT", help="of plain folders, to record")
    where = parser.add_argument_group("resources")
    where.add_argument(
        "--devices", type=int, metavar="N", help="GPUs, or processes on a CPU; -1 for all GPUs; "
        "default: 1, or as many as torchrun has started",
    )  # fmt: skip
    where.add_argument("--nodes", type=int, metavar="N", help="machines; default: 1, or torchrun's")
    where.add_argument("--accelerator", default="auto", help="auto, cpu, cuda, mps; default: auto")
    where.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="triplets at once; default: 4"
    )
    where.add_argument(
        "--workers", type=int, default=2, metavar="N", help="loader processes a device; default: 2"
    )
    where.add_argument("--cache", metavar="DIR", help="keep shards from elsewhere here")


def _benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    # An option may stand before or behind what is measured: only the outermost has defaults.
    parser.set_defaults(quick=False, threads=None, size=None, device=None)
    kinds = parser.add_subparsers(metavar="WHAT", dest="what", required=False)
    pipeline, resolution, data, train = (
        kinds.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        for name, summary in (
            ("pipeline", "imports, stages and the whole; what is measured when nothing is named"),
            ("resolution", "time and memory from 0.6 to 48 megapixels, against exact truth"),
            ("data", "shards against a bare loop and a folder, synthesis, memory"),
            ("train", "steps a second, waiting for data and memory of recipes"),
        )
    )
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    for sub in (parser, pipeline, resolution, data, train):
        sub.add_argument("--quick", action="store_true", help="everything small and once", **given)
        sub.add_argument(
            "--threads", type=int, metavar="N", help="CPU threads; default: torch's", **given
        )
    for sub in (parser, pipeline, resolution, data, train):
        default = "auto" if sub in (data, train) else "cpu"
        sub.add_argument("--device", help=f"auto, cpu, cuda, ...; default: {default}", **given)
    for sub in (pipeline, resolution, data, train):
        sub.add_argument(
            "--debug", action="store_true", help=argparse.SUPPRESS, default=argparse.SUPPRESS
        )
    for sub in (parser, pipeline):
        sub.add_argument("--size", type=int, metavar="PIXELS", help="default: 768", **given)
    resolution.add_argument(
        "--megapixels", metavar="N,...", help="sizes of the photographs; default: 0.6,2,12,24,48"
    )
    resolution.add_argument(
        "--parts", metavar="NAME,...", help="what is measured; default: sizes,solved,"
        "outline,blends,batches",
    )  # fmt: skip
    data.add_argument(
        "--workers", type=int, default=2, metavar="N", help="loader processes; default: 2"
    )
    data.add_argument(
        "--samples", type=int, default=10_000, metavar="N", help="samples over which memory is "
        "watched; default: 10000",
    )  # fmt: skip
    train.add_argument(
        "recipes", nargs="*", default=[], metavar="RECIPE.yaml", help="default: a built-in set, "
        "the paper's settings and modern ones",
    )  # fmt: skip
    train.add_argument("--steps", type=int, default=20, metavar="N", help="timed; default: 20")
    train.add_argument(
        "--workers", type=int, default=None, metavar="N", help="loader processes; default: as the "
        "recipe says",
    )  # fmt: skip
    train.add_argument(
        "--compile", action="store_true", help="compile on the CPU too, where a recipe says so"
    )


# What the commands do


def _check_composite(options: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for values that cannot be, before anything heavy is imported."""
    if options.max_pixels is not None and options.max_pixels < 1:
        raise UsageError(f"--max-pixels must be at least 1, got {options.max_pixels}")
    settings.check_sides(options.work_side, options.max_side)
    settings.check_placement(options.frame, options.scale, options.position)
    settings.check_device(options.device)
    if options.harmonize_strength is not None:
        if options.harmonize is None:
            raise UsageError("--harmonize-strength takes effect only with --harmonize")
        settings.check_strength(options.harmonize_strength)


def _composite(options: argparse.Namespace) -> int:
    _check_composite(options)
    if Path(options.foreground).is_dir():
        return _composite_folder(options)
    for name in ("resume", "devices", "accelerator"):
        if getattr(options, name) not in (None, False):
            raise UsageError(f"--{name} is for a folder, and {options.foreground} is none")
    start = time.perf_counter()
    arguments = _compositor_arguments(options)
    from deep_image_compositing.images import check_writable, longest_sides, read_image, read_mask

    outputs = _outputs(options, None)
    _check_outputs(outputs, _real(options.foreground, options.background, options.mask))
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
    compositor = _compositor(arguments, options.device)
    result = _make(compositor, options, foreground, background, mask)
    result.save(**outputs)
    height, width = result.size
    seconds = time.perf_counter() - start
    show(f"wrote {options.output} ({width} x {height} pixels, {result.device}, {seconds:.1f} s)")
    for name in _EXTRA_OUTPUTS:
        if name in outputs:
            show(f"wrote {outputs[name]} ({name})")
    return 0


def _composite_folder(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    arguments = _compositor_arguments(options)
    from deep_image_compositing.images import (
        WRITABLE,
        list_images,
        longest_sides,
        read_image,
        read_mask,
    )

    devices = _launched("LOCAL_WORLD_SIZE", options.devices)
    settings.one_device(options.device, devices, options.accelerator or "auto")
    for target in _outputs(options, None).values():
        if target.suffix.lower() in WRITABLE and not target.is_dir():
            raise UsageError(
                f"{target} is the name of a picture, but {options.foreground} is a folder: "
                "name a folder for what is written"
            )
    files = list_images(options.foreground)
    _, side = longest_sides(options.max_side, options.frame, options.scale)
    background = read_image(options.background, max_pixels=options.max_pixels, max_side=side)
    names = _output_names(files)
    if options.mask and not Path(options.mask).is_dir():
        read_mask(options.mask, max_pixels=options.max_pixels)
    masks = _masks(options.mask, files)
    outputs = {file: _outputs(options, names[file]) for file in files}
    for folder in {target.parent for targets in outputs.values() for target in targets.values()}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    taken = _real(*files, options.background, *masks.values())
    for targets in outputs.values():
        _check_outputs(targets, taken)
    ready = [file for file in files if not options.mask or masks[file] is not None]
    failures = {
        file: f"there is no mask for {file.name} in {options.mask}"
        for file in files
        if file not in ready
    }
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
            _say("interrupted")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise
    if outcome is None:
        return 0
    failures |= {ready[number]: reason for number, reason in outcome.failures.items()}
    seconds = time.perf_counter() - start
    before = f", {outcome.kept} were there already" if outcome.kept else ""
    done = f"wrote {outcome.made} of {len(files)} composites to {options.output}"
    show(f"{done}{before} ({seconds:.1f} s)")
    if failures:
        _say(f"error: {len(failures)} of {len(files)} failed:")
        for file in files:
            if file in failures:
                show(f"  {file.name}: {failures[file]}", file=sys.stderr)
    return 1 if failures else 0


def _stages(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    entries = registry.list_stages(options.slot, options.pattern)
    if not entries:
        raise UsageError(f"no stage is called {options.pattern!r}; see {PROGRAM} stages")
    table = Table("slot", "name", "what it is", "trained weights")
    for entry in entries:
        about = f"{entry.description} ({entry.source})" if entry.source else entry.description
        table.add_row(entry.slot, entry.name, about, ", ".join(entry.weights) or "-")
    Console().print(table)
    return 0


def _train(arguments: list[str]) -> int:
    from deep_image_compositing.training import run

    run(arguments[0], arguments[1:])
    return 0


def _export_weights(options: argparse.Namespace) -> int:
    slot, name = _slot_and_name(options.stage)
    given = registry.key_values("--option", options.option)
    registry.get(slot, name).check(given)
    if not Path(options.checkpoint).is_file():
        raise WeightsError(f"there is no checkpoint {options.checkpoint}")
    if Path(options.output).suffix != ".safetensors":
        raise UsageError(f"weights are written as .safetensors, not {options.output!r}")
    _check_folder(Path(options.output))
    from deep_image_compositing import weights
    from deep_image_compositing.stages.making import restore_stage

    stage = restore_stage(slot, name, options.checkpoint, given)
    weights.save(stage, options.output)
    size = Path(options.output).stat().st_size / 1e6
    show(f"wrote {options.output} ({size:.1f} MB, {slot} {name})")
    return 0


def _teach(options: argparse.Namespace) -> int:
    slot, name = _slot_and_name(options.stage)
    if slot != "fuser":
        raise UsageError(f"only a fuser can teach, not a {slot}: --stage {options.stage}")
    if options.sheet is not None:
        _check_outputs({"path": Path(options.sheet)}, _real(options.fuser))
    given = {"weights": options.fuser}
    registry.get(slot, name).check(given)
    from deep_image_compositing import weights
    from deep_image_compositing.data.teach import teach
    from deep_image_compositing.data.triplet_recipe import identify
    from deep_image_compositing.stages.making import make_stage

    start = time.perf_counter()
    fuser: Any = make_stage(slot, (name, given))
    own = ("run", "debug", "fuser", "stage", "devices", "nodes")
    index = teach(
        fuser,
        identify(options.stage, weights.resolve(fuser, options.fuser)),
        devices=_launched("LOCAL_WORLD_SIZE", options.devices),
        nodes=_launched("GROUP_WORLD_SIZE", options.nodes),
        show=True,
        **{key: value for key, value in vars(options).items() if key not in own},
    )
    if index is not None:
        counts = ", ".join(f"{index.count(split)} {split}" for split in index.splits)
        seconds = time.perf_counter() - start
        show(f"{options.out}: {counts} triplets ({seconds:.1f} s)")
        if options.sheet is not None:
            show(f"wrote {options.sheet}")
    return 0


def _launched(variable: str, given: int | None) -> int:
    """The number of devices or nodes: as given, else as torchrun says, else 1."""
    return int(os.environ.get(variable, "1")) if given is None else given


def _shards(options: argparse.Namespace) -> int:
    if options.action == "layouts":
        return _layouts()
    if options.action == "verify":
        return _verify(options)
    from deep_image_compositing.data.convert import convert

    if not 0 <= options.max_skipped <= 1:
        raise UsageError(f"--max-skipped is a share from 0 to 1, got {options.max_skipped}")
    start = time.perf_counter()
    own = ("action", "run", "debug", "max_skipped")
    arguments = {name: value for name, value in vars(options).items() if name not in own}
    index = convert(options.action, **arguments, show=True)
    shards = [shard for part in index.splits.values() for shard in part]
    counts = ", ".join(f"{index.count(split)} {split}" for split in index.splits) or "no"
    size, seconds = sum(shard.bytes for shard in shards) / 1e6, time.perf_counter() - start
    show(
        f"{options.out}: {counts} samples in {len(shards)} shards ({size:.1f} MB, {seconds:.1f} s)"
    )
    if not index.skipped:
        return 0
    total = index.about["entries"]
    _say(f"{len(index.skipped)} of {total} samples were skipped:")
    for item in index.skipped:
        show(f"  {item['key']}: {item['reason']}", file=sys.stderr)
    return int(len(index.skipped) > options.max_skipped * total)


def _verify(options: argparse.Namespace) -> int:
    from deep_image_compositing.data.shards import Index
    from deep_image_compositing.data.verify import verify

    problems = verify(options.folder, workers=options.workers, show=True)
    for problem in problems:
        show(problem)
    index = Index.read(options.folder)
    counts = ", ".join(f"{index.count(split)} {split}" for split in index.splits) or "no"
    if not problems:
        show(f"{options.folder}: {counts} samples, all as the index says")
    return int(bool(problems))


def _layouts() -> int:
    from rich.console import Console
    from rich.table import Table

    from deep_image_compositing.data.layouts import LAYOUTS

    table = Table("kind", "layout", "files", "source", "licence")
    for layout in LAYOUTS:
        table.add_row(
            layout.kind, layout.name, layout.expects, layout.source or "-", layout.licence
        )
    Console().print(table)
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    ours = options.what in ("data", "train")
    if options.what not in (None, "pipeline") and options.size is not None:
        raise UsageError(f"--size is an option of benchmark pipeline, not of {options.what}")
    device = options.device or ("auto" if ours else "cpu")
    shared = {"quick": options.quick, "threads": options.threads, "device": device}
    if options.what == "data":
        from deep_image_compositing.benchmark import data

        data.run(workers=options.workers, samples=options.samples, **shared)
    elif options.what == "train":
        from deep_image_compositing.benchmark import train

        train.run(
            options.recipes,
            steps=options.steps,
            workers=options.workers,
            compile=options.compile,
            **shared,
        )
    elif options.what == "resolution":
        from deep_image_compositing.benchmark import resolution

        try:
            sizes = [float(size) for size in (options.megapixels or "").split(",") if size]
        except ValueError:
            raise UsageError(
                f"--megapixels is a list such as 0.6,12, got {options.megapixels!r}"
            ) from None
        parts = options.parts.split(",") if options.parts else resolution.PARTS
        resolution.run(sizes or resolution.MEGAPIXELS, parts=parts, **shared)
    else:
        from deep_image_compositing.benchmark import pipeline

        size = 768 if options.size is None else options.size
        pipeline.run(size, **shared)
    return 0


# Small parts


def _compositor(arguments: dict[str, Any], device: str) -> Compositor:
    from deep_image_compositing.compositor import Compositor

    return Compositor(**arguments, device=device)


def _compositor_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What a compositor is made with; what is wrong with it is told before torch is imported."""
    for slot, (name, given) in _named(options):
        registry.get(slot, name).check(given)
    stages = {slot: (name, given) if given else name for slot, (name, given) in _named(options)}
    last: dict[str, Any] = {"harmonize": options.harmonize}
    if options.harmonize_strength is not None:
        last["harmonize_strength"] = options.harmonize_strength
    limits = {name: getattr(options, name) for name in ("max_pixels", "max_side", "work_side")}
    return {**stages, **last, **limits}


def _named(options: argparse.Namespace) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Each slot with the name and the options of what is to fill it."""
    for slot in _SLOTS:
        given = registry.key_values(f"--{slot}-option", getattr(options, f"{slot}_option"))
        yield slot, (getattr(options, slot), given)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What decides how composites look, besides the photographs; for the record of a folder.

    Options that are added later count, unless they are named here.
    """
    from deep_image_compositing.batch import describe_stages

    others = {"foreground", "background", "output", "mask", "run", "debug"}
    others |= {f"save_{extra}" for extra in _EXTRA_OUTPUTS}
    others |= {"device", "devices", "accelerator", "max_pixels", "resume"}
    others |= {name for slot in _SLOTS for name in (slot, f"{slot}_option")}
    rest = {name: value for name, value in vars(options).items() if name not in others}
    return {**rest, "stages": describe_stages(dict(_named(options)))}


def _make(
    compositor: Compositor,
    options: argparse.Namespace,
    foreground: Photograph,
    background: Photograph,
    mask: NDArray[np.float32] | None,
) -> Composite:
    return compositor(
        foreground,
        background,
        mask,
        frame=options.frame,
        scale=options.scale,
        position=options.position,
    )


def _slot_and_name(stage: str) -> tuple[str, str]:
    slot, _, name = stage.partition("/")
    if not name:
        raise UsageError(f"--stage is a slot and a name, as in segmenter/pyramid: {stage!r}")
    return slot, name


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


def _real(*paths: str | Path | None) -> set[str]:
    """The files themselves, whatever links lead to them."""
    return {os.path.realpath(path) for path in paths if path is not None}


def _check_outputs(outputs: dict[str, Path], taken: set[str]) -> None:
    """Find before the slow work what would stop the outputs from being written.

    ``taken`` are the files that must not be overwritten; the outputs join them.

    Raises:
        UsageError: a suffix that is no format or cannot hold the picture, one file for two
            outputs, or an output that is also an input.
        ImageError: a folder that is not there, or may not be written to.
    """
    from deep_image_compositing.images import check_writable

    for key, path in outputs.items():
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a file name to write to")
        check_writable(path, alpha=key == "cutout")
        real = os.path.realpath(path)
        if real in taken:
            raise UsageError(f"{path} is also an input or another output; give another file name")
        taken.add(real)


def _check_folder(path: Path) -> None:
    real = Path(os.path.realpath(path))
    if not real.parent.is_dir():
        raise ImageError(f"{path} cannot be written: the folder {path.parent} does not exist")
    if not os.access(real if real.exists() else real.parent, os.W_OK):
        raise ImageError(f"{path} cannot be written: permission denied")


def _say(message: str, *, lines: bool = False) -> None:
    show(f"{PROGRAM}: {message}", file=sys.stderr, lines=lines)


class _Messages(logging.Handler):
    """Shows the library's log as messages on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        _say(kind + record.getMessage(), lines=record.levelno < logging.INFO)


@contextlib.contextmanager
def _messages(least: int) -> Iterator[None]:
    """While a command runs, its log from ``least`` on and its warnings are messages of a line."""
    log, handler = logging.getLogger("deep_image_compositing"), _Messages()
    level = log.level
    log.addHandler(handler)
    log.setLevel(least)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: _say(f"warning: {message}")
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
