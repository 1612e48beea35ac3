"""Methods that the bench and the user study compare: their syntax, the named sets, and checks.

``choose`` finds mistakes before anything runs, above all learned stages without weights, whose
random output must not be measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deep_image_compositing import registry
from deep_image_compositing.errors import UsageError
from deep_image_compositing.files import at_home
from deep_image_compositing.options import accepted_options, check_options
from deep_image_compositing.registry import Entry
from deep_image_compositing.stages.making import describe_stages, make_stage, weights_file

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor

RUNS = "runs"  # folder of the recipes' training runs

ALONE = ("harmonizer",)
"""Slots of a harmonizer alone, whose input is a finished composite and its mask."""

Stage: TypeAlias = tuple[str, dict[str, Any]]
"""A registered name and options."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_STAGE = re.compile(r"\s*([^\s(),=]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True)
class Method:
    """Stages that make a composite of two photographs, or a harmonizer alone."""

    name: str  # for tables and file names: letters, digits and _ . + -
    stages: dict[str, Stage]  # by slot: all slots, or ``ALONE``

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that the method fills."""
        return tuple(self.stages)

    def entries(self) -> Iterator[tuple[Entry, dict[str, Any]]]:
        """The registry entry and options of each stage; UsageError for an unknown name."""
        stages = self.stages.items()
        return ((registry.get(slot, name), options) for slot, (name, options) in stages)

    def compositor(self, device: str = "auto", **kwargs: Any) -> Compositor:
        """A compositor of these stages; arguments and errors are those of ``Compositor``.

        For a harmonizer alone, pass the composite as both photographs. UsageError also if a
        learned stage has no weights.
        """
        from deep_image_compositing.compositor import Compositor

        _check_trained([self])
        others = {"refiner": "none", "fuser": "alpha"} if self.slots == ALONE else {}
        # A name without options lets the compositor build the stage only when it is needed.
        stages = {slot: stage if stage[1] else stage[0] for slot, stage in self.stages.items()}
        return Compositor(**others, **stages, device=device, **kwargs)  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """The method as JSON: names, options, and the SHA-256 of every file it loads."""
        return {"name": self.name, **describe_stages(self.stages)}


# Syntax


def parse_method(text: str) -> Method:
    """Parse ``NAME=SEGMENTER,REFINER,FUSER[,HARMONIZER]`` or ``NAME=HARMONIZER``.

    Raises ``UsageError`` for other text, and for a name that is unfit for files.
    """
    name, equals, rest = text.partition("=")
    name, parts = name.strip(), _split(rest)
    if not equals or len(parts) not in (1, 3, len(registry.SLOTS)):
        raise UsageError(
            "a method is NAME=SEGMENTER,REFINER,FUSER[,HARMONIZER], or NAME=HARMONIZER for a "
            f"harmonizer alone, got {text!r}"
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a method: up to 64 letters, digits and _ . + -, the first a "
            "letter or a digit"
        )
    if len(parts) == 3:
        parts.append(registry.DEFAULTS["harmonizer"])
    slots = ALONE if len(parts) == 1 else registry.SLOTS
    return Method(name, dict(zip(slots, map(parse_stage, parts), strict=True)))


def parse_stage(text: str) -> Stage:
    """Parse ``name`` or ``name(key=value, key=value)``; UsageError for other text.

    Values are JSON or plain text; text with a comma or a bracket needs quotes. ``weights`` may be
    a shipped name, a file, or the folder of a training run, whose newest checkpoint is used.
    """
    match = _STAGE.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is no stage; expected NAME or NAME(KEY=VALUE, KEY=VALUE)")
    parts = (re.sub(r"\s*=\s*", "=", part, count=1) for part in _split(match[2] or ""))
    return match[1], registry.key_values(f"{match[1]}()", filter(None, parts))


def _split(text: str) -> list[str]:
    """Split at commas that are not inside brackets or quotes."""
    parts: list[str] = []
    open_ = False
    for piece in text.split(","):
        parts = [*parts[:-1], f"{parts[-1]},{piece}"] if open_ else [*parts, piece]
        bare = _QUOTED.sub("", parts[-1])
        open_ = '"' in bare or any(bare.count(a) != bare.count(b) for a, b in ("()", "[]", "{}"))
    if open_:
        raise UsageError(f"{text!r}: a bracket or a quotation mark has no partner")
    return [part.strip() for part in parts]


# The named sets

_ABLATIONS = (
    ("no_self_taught", "cascade", "multi_stream", "fusion_easy"),
    ("one_stream", "cascade", "single_stream", "fusion_single_stream"),
    ("no_refinement", "none", "multi_stream", "no_refinement"),
    ("full", "cascade", "multi_stream", "fusion_hard"),
)


def _ablations(runs: str | Path) -> list[Method]:
    return [
        parse_method(f"{name}=pyramid,{refiner},{fuser}(weights={json.dumps(f'{runs}/{run}')})")
        for name, refiner, fuser, run in _ABLATIONS
    ]


def _rows(pattern: str, *names: str) -> list[Method]:
    """A method for each name, which replaces the braces of the pattern."""
    return [parse_method(pattern.format(name)) for name in names]


_FUSER = "{0}=pyramid,cascade,{0}"
_REFINER = "{0}=pyramid,{0},alpha(foreground_color=multilevel)"
_OURS = parse_method("ours=pyramid,cascade,multi_stream")

METHODS: dict[str, list[Method]] = {
    "paper": [
        *_rows(_FUSER, "copy_paste", "feather", "laplacian", "poisson", "alpha"),
        *_rows(_REFINER, "closed_form", "knn", "information_flow"),
        *_rows(_REFINER, "deep_image_matting", "index_net"),
        *_rows(_FUSER, "single_stream"),
        _OURS,
    ],
    "ablations": _ablations(RUNS),
    "fast": [
        *_rows(_FUSER, "copy_paste", "feather", "laplacian"),
        parse_method("alpha_multilevel=pyramid,cascade,alpha(foreground_color=multilevel)"),
        *_rows(_REFINER, "guided_filter"),
        _OURS,
    ],
    "harmonize": _rows("{0}={0}", "none", "reinhard", "white_balance", "color_map"),
}
"""The named sets.

- ``paper``: every row of the comparison in Zhang et al. (WACV 2021), all with our segmenter. A
  matting method replaces the refiner ``cascade``, and an estimated colour is blended.
- ``ablations``: the paper's ablations and its full method, trained with the recipes.
- ``fast``: methods that need seconds per picture on a CPU.
- ``harmonize``: harmonizers alone.
"""


def choose(
    sets: Sequence[str], extra: Sequence[str] = (), *, runs: str | Path = RUNS
) -> list[Method]:
    """Select methods by name, with all checks that are possible without running them.

    Args:
        sets: names of sets or methods, or several joined by commas; ``-`` before a name excludes
            it: ``paper,-knn``. If both ``sets`` and ``extra`` are empty, ``paper`` is used.
        extra: more methods, in the syntax of ``parse_method``.
        runs: folder of the training runs with the checkpoints of ``ablations``.

    Raises:
        UsageError: an unknown name or option, a duplicate name, no method at all, a run without
            checkpoints, or a learned stage without weights.
        WeightsError: weights that are neither shipped nor a file.
        MissingExtraError: a package that a stage needs is not installed.
    """
    groups = {**METHODS, "ablations": _ablations(runs)}
    single = {method.name: [method] for group in groups.values() for method in group}
    members = {**single, **groups}
    chosen: dict[str, Method] = {}
    sets = sets or ([] if extra else ["paper"])
    for name in filter(None, (part.strip() for names in sets for part in names.split(","))):
        if name.removeprefix("-") not in members:
            raise UsageError(
                f"there is no method and no set of methods called {name!r}; the sets are "
                f"{', '.join(groups)}, the methods {', '.join(single)}; others are given as "
                "--method NAME=SEGMENTER,REFINER,FUSER, or NAME=HARMONIZER"
            )
        for method in members[name.removeprefix("-")]:
            if not name.startswith("-"):
                chosen[method.name] = method
            elif chosen.pop(method.name, None) is None:
                raise UsageError(f"{name!r} leaves out what was not chosen before it")
    for method in map(parse_method, extra):
        if method.name.casefold() in map(str.casefold, chosen):
            raise UsageError(
                f"there are two methods called {method.name!r}: rename the one of --method, or "
                "leave out the other"
            )
        chosen[method.name] = method
    if not chosen:
        raise UsageError("there is no method to run: name some with --methods or --method")
    methods = [
        replace(method, stages={entry.slot: _newest(entry, o) for entry, o in method.entries()})
        for method in chosen.values()
    ]
    _check_trained(methods)
    for entry, options in (stage for method in methods for stage in method.entries()):
        entry.check(options)
        check_options(entry.slot, entry.name, entry.factory, options)
        if not _learned(entry):
            make_stage(entry.slot, (entry.name, options))  # fast, and checks the values
    return methods


# Weights


def _learned(entry: Entry) -> bool:
    accepted = accepted_options(entry.factory)
    return bool(entry.weights) or (accepted is not None and "weights" in accepted[0])


def _check_trained(methods: Iterable[Method]) -> None:
    """Raise ``UsageError`` for methods that would run a learned stage untrained."""
    untrained = {
        method.name: f"{entry.name}(weights=FILE)"
        for method in methods
        for entry, options in method.entries()
        if _learned(entry) and weights_file(entry, options) is None
    }
    if untrained:
        raise UsageError(
            f"no weights ship for {', '.join(untrained)}, or none were asked for, and random "
            "weights are not worth measuring: leave them out with --methods "
            f"SET,{','.join(f'-{name}' for name in untrained)}, or give them weights with "
            f"--method: {', '.join(dict.fromkeys(untrained.values()))}"
        )


def _newest(entry: Entry, options: dict[str, Any]) -> Stage:
    """The stage, with a training run's folder as weights replaced by its newest checkpoint."""
    weights = options.get("weights")
    if not isinstance(weights, str) or weights in entry.weights:
        return entry.name, options
    run = at_home(weights)
    recipes = {recipe for *_, recipe in _ABLATIONS}
    if run.is_file() or not (run.is_dir() or run.name in recipes):
        return entry.name, options
    from deep_image_compositing.resuming import newest_checkpoint

    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        recipe = run.name if run.name in recipes else "NAME"
        raise UsageError(
            f"there is no checkpoint of a training run in {run}; make one: "
            f"deep-image-compositing fit --config recipes/{recipe}.yaml"
            + ("" if run == Path(RUNS, recipe) else f" --trainer.default_root_dir {run}")
        )
    return entry.name, {**options, "weights": checkpoint.as_posix()}
