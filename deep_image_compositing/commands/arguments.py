"""How commands say which options they have, and those that several of them share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from deep_image_compositing import published, registry, settings
from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import take

_TRANSPARENT = ("cutout", "shadow", "shadowed")  # what ``Composite.save`` writes with an alpha

Stages: TypeAlias = dict[str, tuple[str, dict[str, Any]]]
"""Name and options of what is to fill each slot."""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing its whole usage; ``--debug`` may stand anywhere."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)
        text = "show the traceback of an error"
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def options(group: argparse._ActionsContainer) -> Callable[..., None]:
    """What adds an argument to a parser or a group: ``add(flags, kind, metavar, help)``.

    ``kind`` is a default, whose type values have and which the help then names; or a type, without
    a default: ``bool`` for a switch, ``list`` for what may be repeated. More is as in argparse.
    """

    def add(flags: str, kind: Any, metavar: str, text: str, **more: Any) -> None:
        if metavar:
            more["metavar"] = metavar
        if kind is bool:
            more["action"] = "store_true"
        elif kind is list:
            more |= {"action": "append", "default": []}
            text += "; repeatable"
        elif isinstance(kind, type):
            more.setdefault("type", kind)
        else:
            more = {"type": type(kind), "default": kind, **more}
            text += f"; default: {kind}" if kind != "" else ""
        group.add_argument(*flags.split(), help=text, **more)

    return add


def add_actions(
    parser: argparse.ArgumentParser, metavar: str, *, needed: bool = True
) -> Callable[[str, str], Callable[..., None]]:
    """What adds an action to a command by its name and what it does; see ``options``."""
    actions = parser.add_subparsers(metavar=metavar, dest="action", required=needed)

    def action(name: str, summary: str) -> Callable[..., None]:
        return options(actions.add_parser(name, help=summary, description=summary))

    return action


# fmt: off
def add_stages(group: argparse._ActionsContainer) -> None:
    """Add what fills the slots."""
    add = options(group)
    for slot, default in registry.DEFAULTS.items():
        short = " --harmonize" if slot == "harmonizer" else ""
        add(f"--{slot}{short}", default, "NAME", "what fills the slot")
        add(f"--{slot}-option", list, "KEY=VALUE", "an option of it, the value as JSON or text")
    add("--harmonize-strength", str, "SHARE",
        "how far the harmonizer goes, from 0 to 1; short for --harmonizer-option strength=",
        dest="harmonizer_option", action="append", default=[], type="strength={}".format)
    add_models(group)


def add_models(group: argparse._ActionsContainer) -> None:
    """Add what every command takes that uses published models."""
    add = options(group)
    add("--models", str, "FOLDER",
        "where fetched models are kept; default: $DIC_MODELS, or the user's cache")
    add("--accept-licence", bool, "",
        "accept the licence of a published model that excludes commercial use; once is enough")
# fmt: on


def use_models(given: argparse.Namespace) -> None:
    """Let ``--models`` hold for this process and those that it starts."""
    if given.models is not None:
        os.environ[published.VARIABLE] = given.models


def named_stages(given: argparse.Namespace) -> Stages:
    """What is to fill the slots, after all checks that need no torch."""
    use_models(given)
    stages: Stages = {}
    for slot in registry.SLOTS:
        chosen = registry.key_values(f"--{slot}-option", getattr(given, f"{slot}_option"))
        name = getattr(given, slot)
        if slot == "segmenter" and given.accept_licence and name in published.NAMES:
            chosen["accept_licence"] = True
        stages[slot] = name, chosen
    name, chosen = stages["harmonizer"]
    if "strength" in chosen:
        settings.check_strength(chosen["strength"])
        if name == "none":
            raise UsageError(
                "--harmonize-strength takes effect only with --harmonizer NAME, other than none"
            )
    for slot, (name, chosen) in stages.items():
        registry.check(slot, name, chosen)
    return stages


def slot_and_name(stage: str) -> tuple[str, str]:
    """The parts of ``--stage SLOT/NAME``."""
    slot, _, name = stage.partition("/")
    if not name:
        raise UsageError(f"--stage is a slot and a name, as in segmenter/pyramid: {stage!r}")
    return slot, name


def launched(given: int | None, variable: str = "LOCAL_WORLD_SIZE") -> int:
    """The number of devices, or of nodes: as given, else as torchrun says, else 1."""
    return int(os.environ.get(variable, "1")) if given is None else given


def real_paths(*given: Any) -> set[str]:
    """The files themselves, whatever links lead to them; what is no path names none."""
    return {os.path.realpath(path) for path in given if isinstance(path, (str, os.PathLike))}


def check_outputs(
    outputs: dict[str, Path], taken: set[str], size: tuple[int, int] | None = None
) -> None:
    """Find before the slow work what would stop outputs, of a ``size``, from being written.

    ``taken`` are the files that must not be overwritten; the outputs join them. Raises
    ``UsageError`` or ``ImageError``, as ``Composite.save`` would.
    """
    from deep_image_compositing.images import check_writable

    for key, path in outputs.items():
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give a file name to write to")
        check_writable(path, None if key == "steps" else size, alpha=key in _TRANSPARENT)
    take(outputs.values(), taken)
