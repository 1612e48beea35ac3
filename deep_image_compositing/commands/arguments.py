"""Helpers to define command-line arguments, and arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from deep_image_compositing import published, registry, settings
from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import take

_TRANSPARENT = ("cutout", "shadow", "shadowed")  # outputs of ``Composite.save`` with an alpha

Stages: TypeAlias = dict[str, tuple[str, dict[str, Any]]]
"""Name and options of the stage for each slot."""


class Parser(argparse.ArgumentParser):
    """A parser that raises ``UsageError`` instead of exiting, and accepts ``--debug`` anywhere."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)
        text = "show the traceback of an error"
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def argument_adder(group: argparse._ActionsContainer) -> Callable[..., None]:
    """A function ``add(flags, kind, metavar, text)`` that adds an argument to a parser or group.

    ``kind`` is the default value, which also sets the type and is appended to the help ``text``; or
    a type for no default: ``bool`` for a switch, ``list`` for a repeatable option. Other keyword
    arguments are those of ``add_argument``.
    """

    def add(flags: str, kind: Any, metavar: str, text: str, **kwargs: Any) -> None:
        if metavar:
            kwargs["metavar"] = metavar
        if kind is bool:
            kwargs["action"] = "store_true"
        elif kind is list:
            kwargs |= {"action": "append", "default": []}
            text += "; repeatable"
        elif isinstance(kind, type):
            kwargs.setdefault("type", kind)
        else:
            kwargs = {"type": type(kind), "default": kind, **kwargs}
            text += f"; default: {kind}" if kind != "" else ""
        group.add_argument(*flags.split(), help=text, **kwargs)

    return add


def add_actions(
    parser: argparse.ArgumentParser, metavar: str
) -> Callable[[str, str], Callable[..., None]]:
    """A function that adds an action, by name and summary, and returns its ``argument_adder``."""
    actions = parser.add_subparsers(metavar=metavar, dest="action", required=True)

    def action(name: str, summary: str) -> Callable[..., None]:
        return argument_adder(actions.add_parser(name, help=summary, description=summary))

    return action


# fmt: off
def add_stages(group: argparse._ActionsContainer) -> None:
    """Add the options that choose stages."""
    add = argument_adder(group)
    for slot, default in registry.DEFAULTS.items():
        short = " --harmonize" if slot == "harmonizer" else ""
        add(f"--{slot}{short}", default, "NAME", f"name of the {slot}")
        add(f"--{slot}-option", list, "KEY=VALUE", f"option of the {slot}; VALUE is JSON or text")
    add("--harmonize-strength", str, "SHARE",
        "strength of the harmonizer, from 0 to 1; short for --harmonizer-option strength=",
        dest="harmonizer_option", action="append", default=[], type="strength={}".format)
    add_models(group)


def add_models(group: argparse._ActionsContainer) -> None:
    """Add the options of every command that uses published models."""
    add = argument_adder(group)
    add("--models", str, "FOLDER",
        "folder of downloaded models; default: $DIC_MODELS, or the user's cache")
    add("--accept-licence", bool, "",
        "accept the licence of a published model that excludes commercial use; once is enough")
# fmt: on


def use_models(args: argparse.Namespace) -> None:
    """Apply ``--models`` to this process and its child processes."""
    if args.models is not None:
        os.environ[published.VARIABLE] = args.models


def named_stages(args: argparse.Namespace) -> Stages:
    """The chosen stages, after all checks that do not need torch."""
    use_models(args)
    stages: Stages = {}
    for slot in registry.SLOTS:
        options = registry.key_values(f"--{slot}-option", getattr(args, f"{slot}_option"))
        name = getattr(args, slot)
        if slot == "segmenter" and args.accept_licence and name in published.NAMES:
            options["accept_licence"] = True
        stages[slot] = name, options
    name, options = stages["harmonizer"]
    if "strength" in options:
        settings.check_strength(options["strength"])
        if name == "none":
            raise UsageError(
                "--harmonize-strength takes effect only with --harmonizer NAME, other than none"
            )
    for slot, (name, options) in stages.items():
        registry.check(slot, name, options)
    return stages


def slot_and_name(stage: str) -> tuple[str, str]:
    """The slot and the name in ``--stage SLOT/NAME``."""
    slot, _, name = stage.partition("/")
    if not name:
        raise UsageError(f"--stage is a slot and a name, as in segmenter/pyramid, got {stage!r}")
    return slot, name


def launch_count(count: int | None, variable: str = "LOCAL_WORLD_SIZE") -> int:
    """``count``, by default torchrun's value of an environment variable, or 1 without torchrun."""
    return int(os.environ.get(variable, "1")) if count is None else count


def check_outputs(
    outputs: dict[str, Path], taken: set[str], size: tuple[int, int] | None = None
) -> None:
    """Check that outputs, of ``size`` pixels, can be written before the slow work starts.

    The outputs are added to ``taken``, the files that must not be overwritten. Raises
    ``UsageError`` or ``ImageError`` like ``Composite.save``.
    """
    from deep_image_compositing.images import check_writable

    for key, path in outputs.items():
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a file name to write to")
        check_writable(path, None if key == "steps" else size, alpha=key in _TRANSPARENT)
    take(outputs.values(), taken)
