"""Stages made from what users give: a name, a name with options, a file, or the stage itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from deep_image_compositing import hub, registry, weights
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.files import at_home
from deep_image_compositing.ledger import digest
from deep_image_compositing.networks.folding import fold_norms
from deep_image_compositing.options import accepted_options, check_options, existing_weights, misfit
from deep_image_compositing.registry import Entry

StageLike: TypeAlias = "str | tuple[str, Mapping[str, Any]] | Callable[..., Tensor]"
"""What can fill a slot: a registered name, a name with options, a module or any callable."""


def make_stage(slot: str, given: StageLike, *, model: bool = False) -> Callable[..., Any]:
    """The stage that ``given`` names or is; with ``model`` one to run, perhaps without Lightning.

    By name, shipped weights are loaded unless the options say ``weights`` themselves; where that is
    a file, the stage is made as the one in the file was, but for the other options.

    Raises ``UsageError`` for an unknown name or option, a stage of another slot, or something else;
    ``WeightsError`` for weights that cannot be loaded, or describe no such stage.
    """
    if isinstance(given, str):
        given = (given, {})
    if isinstance(given, tuple):
        if len(given) != 2 or not isinstance(given[1], Mapping):
            raise UsageError(f"a {slot} with options is a pair (name, dict), got {given!r}")
        if str(given[0]).startswith(registry.HUB):
            return pretrained_stage(given[0], given[1], slot=slot, model=model)
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
        given = (given, {})
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], Mapping):
        return  # told when it is made
    registry.check(slot, str(given[0]), given[1])


def pretrained_stage(
    source: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    slot: str | None = None,
    kind: type | None = None,
    model: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Any:
    """The stage that a folder, or a repository on the Hugging Face Hub, holds.

    Args:
        source: a folder that is there, else ``user/name``, with or without ``hf://``.
        options: replace those that it was saved with.
        slot: that it has to fill.
        kind: the class that it has to be of; one that is not registered is made of this class.
        model: it is only to run, and need be no LightningModule.
        revision: branch, tag or commit of the repository.
        token: of an account that may read it.

    Raises:
        UsageError: ``source`` is neither, the stage is of another class or slot, or an option
            that it does not take.
        WeightsError: the repository cannot be reached, or what it holds is no stage.
    """
    folder = hub.locate(source, revision=revision, token=token)
    config, file = hub.read_config(folder), folder / hub.WEIGHTS
    if not file.is_file():
        raise WeightsError(f"{source} holds no {hub.WEIGHTS}; other kinds of weights are not read")
    if slot not in (None, config["slot"]):
        raise UsageError(f"{source} holds a {config['slot']}, which cannot be the {slot}")
    held, name = config["class_path"], config.get("name")
    if kind is not None and held == f"{kind.__module__}.{kind.__qualname__}" and not name:
        given = {**config["options"], **(options or {})}
        check_options(config["slot"], kind.__name__, kind, given)
        stage = kind(**given)
        weights.load(stage, file)
        return stage
    if not name:
        raise UsageError(
            f"{source} holds a {held}, which is not registered: import that class, and call its "
            "own from_pretrained"
        )
    given = {**(options or {}), "weights": str(file)}
    made = _by_name(config["slot"], name, given, model)
    if kind is not None and not isinstance(made, kind):
        raise UsageError(f"{source} holds the {config['slot']} {name!r}, not a {kind.__name__}")
    return made


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
    """``describe_stage`` of each slot's name and options; ``UsageError`` for unknown names."""
    described = {}
    for slot, (name, options) in stages.items():
        if not name.startswith(registry.HUB):
            described[slot] = describe_stage(registry.get(slot, name), options)
            continue
        folder = hub.locate(name)
        name, file = hub.read_config(folder)["class_path"], folder / hub.WEIGHTS
        files = {"weights": digest(file)} if file.is_file() else {}
        described[slot] = {"name": name, "options": dict(options), "sha256": files}
    return described


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
    """The stage ``name``; one of the library's own that is only to run, in its fastest form."""
    stage = _made(slot, name, options, model)
    if model and registry.get(slot, name).run_by is not None:
        fold_norms(stage)
        stage.folded = True
    return stage


def _made(slot: str, name: str, options: dict[str, Any], model: bool) -> Any:
    """The stage ``name`` with its shipped weights, or as a weights file has it."""
    entry = registry.get(slot, name)
    factory = entry.model if model else entry.factory
    if entry.weights:
        options.setdefault("weights", entry.weights[0])
    given = options.get("weights")
    path = None if given is None or given in entry.weights else at_home(str(given))
    if path is None or not path.is_file():  # a name, or what the stage itself says is no file
        return entry.make(options, model=model)
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
        stage = entry.make({**hyper, **options}, model=model)
    except UsageError as error:
        if options.keys() - {"weights"}:
            raise
        raise WeightsError(f"{path} holds no {slot} {name!r}: {error}") from None
    if not loads_itself:
        weights.load(stage, path)
    return stage
