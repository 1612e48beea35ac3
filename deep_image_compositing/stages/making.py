"""Stages made from what users give: a name, a name with options, a file, or the stage itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from deep_image_compositing import registry, weights
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.options import accepted_options

StageLike: TypeAlias = "str | tuple[str, Mapping[str, Any]] | Callable[..., Tensor]"
"""What can fill a slot: a registered name, a name with options, a module or any callable."""


def make_stage(slot: str, given: StageLike) -> Callable[..., Any]:
    """The stage that ``given`` names or is.

    Args:
        slot: one of :data:`deep_image_compositing.registry.SLOTS`.
        given: a registered name, a (name, options) pair, a module, or a callable. By name,
            shipped weights are loaded unless the options say ``weights`` themselves.

    Raises:
        UsageError: an unknown name or option, a stage of another slot, or something else.
    """
    if isinstance(given, str):
        given = (given, {})
    if isinstance(given, tuple):
        if len(given) != 2 or not isinstance(given[1], Mapping):
            raise UsageError(f"a {slot} with options is a pair (name, dict), got {given!r}")
        name, options = given[0], dict(given[1])
        entry = registry.get(slot, name)
        if entry.weights:
            options.setdefault("weights", entry.weights[0])
        return registry.create(slot, name, **options)
    if isinstance(given, type) or not callable(given):
        hint = "make an instance of it" if isinstance(given, type) else "see Compositor"
        raise UsageError(
            f"a {slot} is a registered name, a module or a callable, not {given!r}; {hint}"
        )
    own = getattr(given, "slot", slot)
    if own in registry.SLOTS and own != slot:
        raise UsageError(f"{type(given).__name__} is a {own} and cannot be the {slot}")
    return given


def restore_stage(
    slot: str, name: str, path: str | Path, options: Mapping[str, Any] | None = None
) -> Any:
    """The stage ``name`` with the weights of a file, made as the stage in the file was made.

    Args:
        slot: one of :data:`deep_image_compositing.registry.SLOTS`.
        name: a registered name.
        path: a training checkpoint, or a weights file.
        options: of the stage, instead of those in the file.

    Raises:
        UsageError: an unknown name or option.
        WeightsError: no such file, or one that does not hold such a stage.
    """
    if not Path(path).is_file():
        raise WeightsError(f"there is no checkpoint {path}")
    entry = registry.get(slot, name)
    hyper = weights.read_hyper_parameters(path)
    accepted = accepted_options(entry.factory)
    taken = set(hyper) if accepted is None else accepted[0]
    settings = {key: value for key, value in hyper.items() if key in taken}
    settings.update(options or {})
    if "weights" in taken or entry.weights:
        settings["weights"] = None
    if "pretrained" in settings:
        settings["pretrained"] = None
    stage: Any = make_stage(slot, (name, settings))
    weights.load(stage, path)
    return stage
