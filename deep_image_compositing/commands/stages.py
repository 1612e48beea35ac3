"""The commands ``stages``, ``export-weights`` and ``export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deep_image_compositing import registry
from deep_image_compositing.commands.arguments import slot_and_name
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.files import check_target
from deep_image_compositing.messages import PROGRAM, show


def add_stages_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``stages`` to its parser."""
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, such as 'multi*'")
    parser.add_argument("--slot", choices=registry.SLOTS, help="list one slot only")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export-weights`` to its parser."""
    add = parser.add_argument
    add("checkpoint", help="the .ckpt file that training wrote")
    add("--stage", required=True, metavar="SLOT/NAME", help="what it holds: segmenter/pyramid")
    add("-o", "--output", required=True, metavar="FILE.safetensors")
    add(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the stage, instead of the one in the checkpoint; repeatable",
    )  # fmt: skip


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export`` to its parser."""
    add = parser.add_argument
    add("slot", choices=registry.SLOTS, help="of the stage whose network is exported")
    add("-o", "--output", required=True, metavar="FILE", help=".onnx, or .pt2 for torch.export")
    add("--stage", metavar="NAME", help="default: pyramid, cascade, multi_stream or color_map")
    add(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the stage, such as weights=mine.safetensors; repeatable",
    )  # fmt: skip


def export_stage(options: argparse.Namespace) -> int:
    """Write the network of a stage to a file; returns the exit code."""
    # The harmonizer that is the default may have no network.
    name = options.stage or {**registry.DEFAULTS, "harmonizer": "color_map"}[options.slot]
    given = registry.key_values("--option", options.option)
    entry = registry.get(options.slot, name)
    entry.check(given)
    if entry.published is not None:
        raise UsageError(f"the {options.slot} {name!r} is an ONNX file already")
    if Path(options.output).suffix not in (".onnx", ".pt2"):
        raise UsageError(f"{options.output!r} has to end in .onnx or .pt2")
    check_target(options.output)
    from deep_image_compositing.export import export
    from deep_image_compositing.stages.making import make_stage

    stage: Any = make_stage(options.slot, (name, given), model=True)
    exported = export(stage, options.output)
    size = Path(options.output).stat().st_size / 1e6
    what = f"{options.slot} {name}: {', '.join(exported.inputs)} to {exported.output}"
    show(f"wrote {options.output} ({size:.1f} MB, {what}); not in it: {exported.rest}")
    return 0


def list_stages(options: argparse.Namespace) -> int:
    """List what can fill the slots; returns the exit code."""
    from rich.console import Console
    from rich.table import Table

    entries = registry.list_stages(options.slot, options.pattern)
    if not entries:
        raise UsageError(f"no stage is called {options.pattern!r}; see {PROGRAM} stages")
    table = Table("slot", "name", "what it is", "trained weights")
    for entry in entries:
        about = f"{entry.description} ({entry.source})" if entry.source else entry.description
        weights = ", ".join(entry.weights) or "-"
        if entry.published is not None:
            weights = f"fetched, {entry.published.megabytes} MB; {entry.published.licence}"
        table.add_row(entry.slot, entry.name, about, weights)
    Console().print(table)
    return 0


def export_weights(options: argparse.Namespace) -> int:
    """Write the weights of a checkpoint; returns the exit code."""
    slot, name = slot_and_name(options.stage)
    given = registry.key_values("--option", options.option)
    registry.get(slot, name).check(given)
    if not Path(options.checkpoint).is_file():
        raise WeightsError(f"there is no checkpoint {options.checkpoint}")
    if Path(options.output).suffix != ".safetensors":
        raise UsageError(f"weights are written as .safetensors, not {options.output!r}")
    check_target(options.output)
    from deep_image_compositing import weights
    from deep_image_compositing.stages.making import restore_stage

    stage = restore_stage(slot, name, options.checkpoint, given)
    weights.save(stage, options.output)
    size = Path(options.output).stat().st_size / 1e6
    show(f"wrote {options.output} ({size:.1f} MB, {slot} {name})")
    return 0
