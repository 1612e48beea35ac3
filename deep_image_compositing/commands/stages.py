"""The commands ``stages``, ``models``, ``export-weights`` and ``export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from deep_image_compositing import published, registry
from deep_image_compositing.commands.arguments import (
    add_models,
    argument_adder,
    slot_and_name,
    use_models,
)
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.files import check_target
from deep_image_compositing.messages import PROGRAM, show

_OPTION = "option of the stage, such as weights=mine.safetensors; replaces the checkpoint's"


# fmt: off
def add_stages_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("pattern", "*", "", "pattern of names to list, such as 'multi*'", nargs="?")
    add("--slot", str, "", "list this slot only", choices=registry.SLOTS)


def add_models_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("action", str, "", "list models with size and licence, fetch models, or print the paths "
        "of their files", choices=("list", "fetch", "path"))
    add("names", str, "NAME", "names of models; default for list and path: all", nargs="*")
    add_models(parser)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("checkpoint", str, "", ".ckpt file from training")
    add("--stage", str, "SLOT/NAME", "stage in the checkpoint, as segmenter/pyramid", required=True)
    add("-o --output", str, "FILE.safetensors", "file to write", required=True)
    add("--option", list, "KEY=VALUE", _OPTION)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add("slot", str, "", "slot of the stage to export", choices=registry.SLOTS)
    add("-o --output", str, "FILE", ".onnx, or .pt2 for torch.export", required=True)
    add("--stage", str, "NAME", "default: pyramid, cascade, multi_stream or color_map")
    add("--option", list, "KEY=VALUE", _OPTION)
# fmt: on


def list_stages(args: argparse.Namespace) -> int:
    """List the stages of the slots; returns the exit code."""
    from rich.console import Console
    from rich.table import Table

    entries = registry.list_stages(args.slot, args.pattern)
    if not entries:
        raise UsageError(f"no stage is called {args.pattern!r}; see {PROGRAM} stages")
    table = Table("slot", "name", "description", "trained weights")
    for entry in entries:
        source = f" ({entry.source})" if entry.source else ""
        weights = ", ".join(entry.weights) or "-"
        if entry.published is not None:
            weights = f"fetched, {entry.published.megabytes} MB; {entry.published.licence}"
        table.add_row(entry.slot, entry.name, entry.description + source, weights)
    # In a pipe, one line for each stage.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    return 0


def manage_models(args: argparse.Namespace) -> int:
    """List or fetch published models, or print their paths; returns the exit code."""
    use_models(args)
    models = [published.get(name) for name in args.names]
    if args.action == "fetch" and not models:
        raise UsageError("name the models to fetch; `models list` shows them")
    for model in models or published.PUBLISHED:
        path = published.path_of(model)
        if args.action == "fetch":
            show(published.fetch(model, accept_licence=args.accept_licence))
        elif args.action == "path":
            show(path)
        else:
            state, size = "fetched" if path.is_file() else "not fetched", f"{model.megabytes} MB"
            show(f"{model.name:18}{size:>8}  {state:12}{model.description}; {model.licence}")
    return 0


def export_weights(args: argparse.Namespace) -> int:
    """Write the weights of a checkpoint; returns the exit code."""
    slot, name = slot_and_name(args.stage)
    options = registry.key_values("--option", args.option)
    registry.get(slot, name).check(options)
    if not Path(args.checkpoint).is_file():
        raise WeightsError(f"there is no checkpoint {args.checkpoint}")
    if Path(args.output).suffix != ".safetensors":
        raise UsageError(f"weights are written as .safetensors, not {args.output!r}")
    check_target(args.output)
    from deep_image_compositing import weights
    from deep_image_compositing.stages.making import make_stage

    stage: Any = make_stage(slot, (name, {**options, "weights": args.checkpoint}))
    weights.save(stage, args.output)
    show(f"wrote {args.output} ({_megabytes(args.output)}, {slot} {name})")
    return 0


def export_stage(args: argparse.Namespace) -> int:
    """Write the network of a stage to a file; returns the exit code."""
    # The default harmonizer has no network.
    name = args.stage or {**registry.DEFAULTS, "harmonizer": "color_map"}[args.slot]
    options = registry.key_values("--option", args.option)
    entry = registry.get(args.slot, name)
    entry.check(options)
    if entry.published is not None:
        raise UsageError(f"the {args.slot} {name!r} is an ONNX file already")
    if Path(args.output).suffix not in (".onnx", ".pt2"):
        raise UsageError(f"{args.output!r} has to end in .onnx or .pt2")
    check_target(args.output)
    from deep_image_compositing.export import export
    from deep_image_compositing.stages.making import make_stage

    stage: Any = make_stage(args.slot, (name, options), model=True)
    exported = export(stage, args.output)
    description = f"{args.slot} {name}: {', '.join(exported.inputs)} to {exported.output}"
    size = _megabytes(args.output)
    show(f"wrote {args.output} ({size}, {description}); not exported: {exported.rest}")
    return 0


def _megabytes(path: str) -> str:
    return f"{Path(path).stat().st_size / 1e6:.1f} MB"
