"""Stages made from what users give: a name, a name with options, a file, or the stage itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from deep_image_compositing import registry, weights
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.ledger import digest
from deep_image_compositing.options import accepted_options, check_options, existing_weights, misfit
from deep_image_compositing.registry import Entry

StageLike: TypeAlias = "str | tuple[str, Mapping[str, Any]] | Callable[..., Tensor]"
"""What can fill a slot: a registered name, a name with options, a module or any callable."""


def make_stage(slot: str, given: StageLike, *, model: bool = False) -> Callable[..., Any]:
    """The stage that ``given`` names or is; with ``model`` one to run, perhaps without Lightning.

    By name, shipped weights are loaded unless the options say ``weights`` themselves; where that is
    a file, the stage is made as the one in the file was, but for the other options.

    Raises:
        UsageError: an unknown name or option, a stage of another slot, or something else.
        WeightsError: weights that cannot be loaded, or describe no such stage.
    """
    if isinstance(given, str):
        given = (given, {})
    if isinstance(given, tuple):
        if len(given) != 2 or not isinstance(given[1], Mapping):
            raise UsageError(f"a {slot} with options is a pair (name, dict), got {given!r}")
        return _by_name(slot, given[0], dict(given[1]), model)
    if isinstance(given, type) or not callable(given):
        hint = "make an instance of it" if isinstance(given, type) else "see Compositor"
        raise UsageError(
            f"a {slot} is a registered name, a module or a callable, not {given!r}; {hint}"
        )
    own = getattr(given, "slot", slot)
    if own in registry.SLOTS and own != slot:
        raise UsageError(f"{type(given).__name__} is a {own} and cannot be the {slot}")
    return given


def check_stage(slot: str, given: StageLike) -> None:
    """Raise what ``make_stage`` would of the name and the options, without making the stage."""
    if isinstance(given, str):
        registry.get(slot, given)
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        registry.get(slot, given[0]).check(given[1])


def restore_stage(
    slot: str, name: str, path: str | Path, options: Mapping[str, Any] | None = None
) -> Any:
    """The stage ``name`` with the weights of a file or training checkpoint, made as it says.

    ``options`` replace those in it. Raises as ``make_stage``.
    """
    if not Path(path).is_file():
        raise WeightsError(f"there is no checkpoint {path}")
    return make_stage(slot, (name, {**(options or {}), "weights": str(path)}))


def describe_stages(stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """``describe_stage`` of each slot's registered name and options; ``UsageError`` for others."""
    return {
        slot: describe_stage(registry.get(slot, n), given) for slot, (n, given) in stages.items()
    }


def describe_stage(entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """Name, options, and the SHA-256 of every file that is loaded, as JSON has it.

    Raises ``WeightsError`` for weights that are neither shipped nor a file.
    """
    paths = {key: Path(value) for key, value in options.items() if isinstance(value, str)}
    if (file := weights_file(entry, options)) is not None:
        paths["weights"] = file
    files = {key: digest(path) for key, path in paths.items() if path.is_file()}
    return {"name": entry.name, "options": dict(options), "sha256": files}


def weights_file(entry: Entry, options: Mapping[str, Any]) -> Path | None:
    """The file of a stage's weights, None where it would stay untrained; WeightsError if gone."""
    given = options.get("weights", next(iter(entry.weights), None))
    if given is None:
        return None
    if given in entry.weights:
        return weights.resolve(entry.model, given)
    return existing_weights(str(given), f"the {entry.slot} {entry.name!r}", entry.weights)


def _by_name(slot: str, name: str, options: dict[str, Any], model: bool) -> Any:
    """The stage ``name`` with its shipped weights, or as a weights file has it."""
    entry = registry.get(slot, name)
    factory = entry.model if model else entry.factory

    def create(options: dict[str, Any]) -> Any:
        check_options(slot, name, factory, options)
        return factory(**options)

    if entry.weights:
        options.setdefault("weights", entry.weights[0])
    given = options.get("weights")
    path = None if given is None or given in entry.weights else Path(str(given)).expanduser()
    if path is None or not path.is_file():  # a name, or what the stage itself says is no file
        return create(options)
    accepted = accepted_options(factory)
    loads_itself = accepted is None or "weights" in accepted[0]
    try:
        hyper = weights.read_hyper_parameters(path)
    except WeightsError:
        if not loads_itself:
            raise
        hyper = {}  # perhaps a file that only the stage itself can read; else it says what is wrong
    taken = set(hyper) if accepted is None else accepted[0]
    hyper = {key: value for key, value in hyper.items() if key in taken}
    hyper |= {key: None for key in weights.BEGINNINGS if key in hyper}
    if wrong := misfit(factory, hyper):
        raise WeightsError(f"{path} holds no {slot} {name!r}: {wrong}")
    if not loads_itself:
        del options["weights"]
    try:
        stage = create({**hyper, **options})
    except UsageError as error:
        if options.keys() - {"weights"}:
            raise
        raise WeightsError(f"{path} holds no {slot} {name!r}: {error}") from None
    if not loads_itself:
        weights.load(stage, path)
    return stage
