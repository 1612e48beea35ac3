"""Create stages from names, options, weights files, folders and Hub repositories."""

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
"""Ways to specify a stage: a registered name, a name with options, a module or any callable."""


def make_stage(slot: str, spec: StageLike, *, model: bool = False) -> Callable[..., Any]:
    """Create the stage that ``spec`` names, or return ``spec`` if it is a stage itself.

    A stage by name has its shipped weights unless the options set ``weights``. If that is a file,
    the file's hyper-parameters are the defaults of the other options. With ``model``, the stage is
    for inference only and may be a plain module.

    Raises ``UsageError`` for an unknown name or option, a stage of another slot, or anything else;
    ``WeightsError`` for weights that cannot be loaded or do not describe such a stage.
    """
    if (named := _name_and_options(slot, spec)) is not None:
        name, options = named
        if name.startswith(registry.HUB):
            return pretrained_stage(name, options, slot=slot, model=model)
        return _stage_by_name(slot, name, options, model)
    if isinstance(spec, type) or not callable(spec):
        hint = "make an instance of it" if isinstance(spec, type) else "see Compositor"
        raise UsageError(
            f"a {slot} is a registered name, a module or a callable, not {spec!r}; {hint}"
        )
    stage_slot = getattr(spec, "slot", slot)
    if stage_slot in registry.SLOTS and stage_slot != slot:
        raise UsageError(f"{type(spec).__name__} is a {stage_slot} and cannot be the {slot}")
    return spec


def check_stage(slot: str, spec: StageLike) -> None:
    """Raise ``make_stage``'s errors on names and options, without creating the stage."""
    if (named := _name_and_options(slot, spec)) is not None:
        registry.check(slot, *named)


def _name_and_options(slot: str, spec: StageLike) -> tuple[str, dict[str, Any]] | None:
    """Name and options of a stage; None if ``spec`` is to be the stage itself."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, tuple):
        return None
    if len(spec) != 2 or not isinstance(spec[1], Mapping):
        raise UsageError(f"a {slot} with options is a pair (name, dict), got {spec!r}")
    return str(spec[0]), dict(spec[1])


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
    """Load a stage from a folder or a repository on the Hugging Face Hub.

    Args:
        source: an existing folder, else ``user/name``, with or without ``hf://``.
        options: replace the saved options.
        slot: the slot that the stage must fill.
        kind: the class of which the stage must be an instance; needed for a stage whose class is
            not registered.
        model: load for inference only; the stage may be a plain module.
        revision: branch, tag or commit of the repository.
        token: access token for the repository.

    Raises:
        UsageError: ``source`` is neither a folder nor a repository, the stage has another class or
            slot, or an option is unknown.
        WeightsError: the repository cannot be downloaded, or does not hold a stage.
    """
    folder = hub.locate(source, revision=revision, token=token)
    config, file = hub.read_config(folder), folder / hub.WEIGHTS
    if not file.is_file():
        raise WeightsError(f"{source} holds no {hub.WEIGHTS}; other kinds of weights are not read")
    if slot not in (None, config["slot"]):
        raise UsageError(f"{source} holds a {config['slot']}, which cannot be the {slot}")
    class_path, name = config["class_path"], config.get("name")
    if kind is not None and class_path == f"{kind.__module__}.{kind.__qualname__}" and not name:
        merged = {**config["options"], **(options or {})}
        check_options(config["slot"], kind.__name__, kind, merged)
        stage = kind(**merged)
        weights.load(stage, file)
        return stage
    if not name:
        raise UsageError(
            f"{source} holds a {class_path}, which is not registered: import that class, and call "
            "its from_pretrained"
        )
    stage = _stage_by_name(config["slot"], name, {**(options or {}), "weights": str(file)}, model)
    if kind is not None and not isinstance(stage, kind):
        raise UsageError(f"{source} holds the {config['slot']} {name!r}, not a {kind.__name__}")
    return stage


def describe_stages(stages: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """For each slot, JSON of a stage's name, options and the SHA-256 of every file that it loads.

    Raises ``UsageError`` for an unknown name, ``WeightsError`` for missing weights.
    """
    descriptions = {}
    for slot, (name, options) in stages.items():
        if name.startswith(registry.HUB):
            folder = hub.locate(name)
            name, paths = hub.read_config(folder)["class_path"], {"weights": folder / hub.WEIGHTS}
        else:
            entry = registry.get(slot, name)
            paths = {key: Path(value) for key, value in options.items() if isinstance(value, str)}
            if (file := weights_file(entry, options)) is not None:
                paths["weights"] = file
        digests = {key: digest(path) for key, path in paths.items() if path.is_file()}
        descriptions[slot] = {"name": name, "options": dict(options), "sha256": digests}
    return descriptions


def weights_file(entry: Entry, options: Mapping[str, Any]) -> Path | None:
    """The file of a stage's weights; None for untrained ones, ``WeightsError`` if missing."""
    name = options.get("weights", next(iter(entry.weights), None))
    if name is None:
        return None
    if name in entry.weights:
        return weights.resolve(entry.model, name)
    return existing_weights(str(name), f"the {entry.slot} {entry.name!r}", entry.weights)


def _stage_by_name(slot: str, name: str, options: dict[str, Any], model: bool) -> Any:
    """Create the stage ``name``; a built-in one for inference has its batch norms folded."""
    stage = _load_stage(slot, name, options, model)
    if model and registry.get(slot, name).run_by is not None:
        fold_norms(stage)
        stage.folded = True
    return stage


def _load_stage(slot: str, name: str, options: dict[str, Any], model: bool) -> Any:
    """Create the stage ``name`` with its shipped weights, or from a weights file."""
    entry = registry.get(slot, name)
    factory = entry.model if model else entry.factory
    if entry.weights:
        options.setdefault("weights", entry.weights[0])
    source = options.get("weights")
    path = None if source is None or source in entry.weights else at_home(str(source))
    if path is None or not path.is_file():  # the stage reports a missing file itself
        return entry.make(options, model=model)
    accepted = accepted_options(factory)
    loads_itself = accepted is None or "weights" in accepted[0]
    try:
        hyper = weights.read_hyper_parameters(path)
    except WeightsError:
        if not loads_itself:
            raise
        hyper = {}  # the stage may read other formats, or else reports what is wrong
    names = set(hyper) if accepted is None else accepted[0]
    hyper = {key: value for key, value in hyper.items() if key in names}
    hyper |= {key: None for key in weights.BEGINNINGS if key in hyper}
    if problem := misfit(factory, hyper):
        raise WeightsError(f"{path} holds no {slot} {name!r}: {problem}")
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
