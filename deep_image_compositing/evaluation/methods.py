"""Methods: what fills the slots, by name; the bench and the study choose theirs here.

A method names a stage a slot as people type them, ``multi_stream(weights=runs/mine.ckpt)``. Before
anything runs, ``choose`` finds what is wrong with any of them: above all a learned stage without
weights, which would otherwise be measured as its random numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing import registry
from deep_image_compositing.errors import UsageError
from deep_image_compositing.options import accepted_options, check_options
from deep_image_compositing.registry import Entry
from deep_image_compositing.stages.making import describe_stage, make_stage, weights_file

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor

RUNS = "runs"  # folder below which the recipes put their runs

ALONE = ("harmonizer",)
"""Slots of a method that is given a finished composite and its mask."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_STAGE = re.compile(r"\s*([^\s(),=]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PLAIN = re.compile(r"[^\s,()\[\]{}\"]+")


@dataclass(frozen=True)
class Method:
    """A whole way from two photographs to a composite, or a harmonizer alone.

    A stage is a registered name, with options if need be: ``onnx(path=u2net.onnx, size=320)``.
    Values are JSON or plain text; text with a comma or a bracket in it goes in quotes. ``weights``
    may be a shipped name, a file, or the folder of a training run: its newest checkpoint.
    UsageError for a name that is none for a file, and for stages that cannot be read.
    """

    name: str  # in tables and of files: letters, digits and _ . + -
    segmenter: str = ""  # as the next two, empty where the harmonizer is alone
    refiner: str = ""
    fuser: str = ""
    harmonizer: str = registry.DEFAULTS["harmonizer"]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot name a method: up to 64 letters, digits and _ . + -, the "
                "first a letter or a digit"
            )
        for slot in self.slots:
            parse_stage(getattr(self, slot))

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that it fills: all of them, or ``ALONE``."""
        given = any((self.segmenter, self.refiner, self.fuser))
        return registry.SLOTS if given else ALONE

    def __str__(self) -> str:
        stages = [getattr(self, slot) for slot in self.slots]
        if self.slots != ALONE and stages[-1] == registry.DEFAULTS["harmonizer"]:
            stages.pop()
        return f"{self.name}={','.join(stages)}"

    def stages(self) -> Iterator[tuple[Entry, dict[str, Any]]]:
        """Entry and options of each slot, with the newest checkpoint in place of a run's folder."""
        for slot in self.slots:
            name, options = parse_stage(getattr(self, slot))
            entry = registry.get(slot, name)
            yield entry, {**options, **_newest(entry, options.get("weights"))}

    def check(self) -> None:
        """Find out what would keep the method from running, without running it.

        Raises:
            UsageError: a stage that is not registered, options that it does not take, a run
                without checkpoints, or a learned stage without weights.
            WeightsError: weights that are neither shipped nor a file.
            MissingExtraError: a package that a stage needs is not installed.
        """
        stages = list(self.stages())
        for entry, options in stages:
            entry.check(options)
        for entry, options in stages:
            check_options(entry.slot, entry.name, entry.factory, options)
            if not _learned(entry):
                make_stage(entry.slot, (entry.name, options))  # this costs no time
        _check_trained([self])

    def compositor(self, device: str = "auto", **kwargs: Any) -> Compositor:
        """The compositor of these stages; arguments as for ``Compositor``, errors as ``check``.

        That of a harmonizer alone gives composites back when they are both of its photographs.
        """
        from deep_image_compositing.compositor import Compositor

        self.check()
        # A name alone, such as the segmenter's, is made when it is needed.
        stages: dict[str, Any] = {} if self.fuser else {"refiner": "none", "fuser": "alpha"}
        for entry, options in self.stages():
            stages[entry.slot] = (entry.name, options) if options else entry.name
        return Compositor(**stages, device=device, **kwargs)

    def describe(self) -> dict[str, Any]:
        """The method as JSON has it: names, options, and the SHA-256 of every file it loads."""
        stages = {entry.slot: describe_stage(entry, options) for entry, options in self.stages()}
        return {"name": self.name, **stages}


# How methods are written


def parse_stage(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``name`` or ``name(key=value, key=value)``; UsageError for others."""
    match = _STAGE.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is no stage; expected NAME or NAME(KEY=VALUE, KEY=VALUE)")
    parts = (re.sub(r"\s*=\s*", "=", part, count=1) for part in _split(match[2] or ""))
    return match[1], registry.key_values(f"{match[1]}()", filter(None, parts))


def stage_text(name: str, options: Mapping[str, Any]) -> str:
    """What ``parse_stage`` reads back as ``name`` and ``options``."""
    values = ", ".join(f"{key}={_value_text(value)}" for key, value in options.items())
    return f"{name}({values})" if values else name


def _value_text(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def _split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket and no quotes."""
    parts: list[str] = []
    open_ = False
    for piece in text.split(","):
        parts = [*parts[:-1], f"{parts[-1]},{piece}"] if open_ else [*parts, piece]
        bare = _QUOTED.sub("", parts[-1])
        open_ = '"' in bare or any(bare.count(a) != bare.count(b) for a, b in ("()", "[]", "{}"))
    if open_:
        raise UsageError(f"{text!r}: a bracket or a quotation mark has no partner")
    return [part.strip() for part in parts]


def parse_method(text: str) -> Method:
    """The method that ``NAME=SEGMENTER,REFINER,FUSER[,HARMONIZER]`` means, or ``NAME=HARMONIZER``.

    Raises ``UsageError`` for what is neither.
    """
    name, equals, rest = text.partition("=")
    stages = _split(rest)
    if not equals or len(stages) not in (1, 3, len(registry.SLOTS)):
        raise UsageError(
            "a method is NAME=SEGMENTER,REFINER,FUSER[,HARMONIZER], or NAME=HARMONIZER for a "
            f"harmonizer alone, got {text!r}"
        )
    if len(stages) == 1:
        return Method(name.strip(), harmonizer=stages[0])
    return Method(name.strip(), *stages)


# The named sets


def _method(name: str, refiner: str = "cascade", fuser: str = "") -> Method:
    return Method(name, "pyramid", refiner, fuser or name)


_ABLATIONS = (
    ("no_self_taught", "cascade", "multi_stream", "fusion_easy"),
    ("one_stream", "cascade", "single_stream", "fusion_single_stream"),
    ("no_refinement", "none", "multi_stream", "no_refinement"),
    ("full", "cascade", "multi_stream", "fusion_hard"),
)


def _ablations(runs: str | Path) -> list[Method]:
    return [
        _method(name, refiner, stage_text(fuser, {"weights": Path(runs, run).as_posix()}))
        for name, refiner, fuser, run in _ABLATIONS
    ]


_OURS = _method("ours", fuser="multi_stream")
_BLENDED = "alpha(foreground_color=multilevel)"
_MATTING = ("closed_form", "knn", "information_flow", "deep_image_matting", "index_net")

METHODS: dict[str, list[Method]] = {
    "paper": [
        *map(_method, ("copy_paste", "feather", "laplacian", "poisson", "alpha")),
        *(_method(name, name, _BLENDED) for name in _MATTING),
        _method("single_stream"),
        _OURS,
    ],
    "ablations": _ablations(RUNS),
    "fast": [
        *map(_method, ("copy_paste", "feather", "laplacian")),
        _method("alpha_multilevel", fuser=_BLENDED),
        _method("guided_filter", "guided_filter", _BLENDED),
        _OURS,
    ],
    "harmonize": [
        Method(name, harmonizer=name) for name in ("none", "reinhard", "white_balance", "color_map")
    ],
}
"""The named sets.

- ``paper``: every row of the comparison in Zhang et al. (WACV 2021), all with our segmenter. A
  matting method takes the place of the refiner ``cascade``, and blends an estimated colour.
- ``ablations``: what the paper leaves out of its method, and the whole, from runs of the recipes.
- ``fast``: what takes seconds a picture on a CPU.
- ``harmonize``: harmonizers alone.
"""


def choose(
    sets: Sequence[str], extra: Sequence[str] = (), *, runs: str | Path = RUNS
) -> list[Method]:
    """The methods that a command names, each checked; errors also as ``Method.check``.

    Args:
        sets: names of sets or of single methods, also several joined by commas; with ``-`` before
            it, a method to leave out: ``paper,-knn``. What two sets share counts once. Nothing
            here nor in ``extra`` means ``paper``.
        extra: more methods, as ``parse_method`` takes them.
        runs: folder of the training runs from which ``ablations`` takes its checkpoints.

    Raises:
        UsageError: an unknown name, a name twice, or nothing at all.
    """
    groups = {**METHODS, "ablations": _ablations(runs)}
    single = {method.name: method for group in groups.values() for method in group}
    members = {**{name: [method] for name, method in single.items()}, **groups}
    chosen: dict[str, Method] = {}
    words = sets or ([] if extra else ["paper"])
    for name in filter(None, (part.strip() for word in words for part in word.split(","))):
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
        twin = next((n for n in chosen if n.casefold() == method.name.casefold()), None)
        if twin is not None:
            raise UsageError(
                f"there are two methods called {twin!r}: rename the one of --method, or leave "
                f"out the other with --methods {','.join(sets)},-{twin}"
            )
        chosen[method.name] = method
    if not chosen:
        raise UsageError("there is no method to run: name some with --methods or --method")
    if len({method.slots for method in chosen.values()}) > 1:
        alone = [name for name, method in chosen.items() if method.slots == ALONE]
        raise UsageError(
            f"{', '.join(alone)} are harmonizers alone, which are not compared with whole methods: "
            "leave out either"
        )
    _check_trained(chosen.values())
    for method in chosen.values():
        method.check()
    return [
        replace(method, **{entry.slot: stage_text(entry.name, o) for entry, o in method.stages()})
        for method in chosen.values()
    ]


# Weights


def _learned(entry: Entry) -> bool:
    accepted = accepted_options(entry.factory)
    return bool(entry.weights) or (accepted is not None and "weights" in accepted[0])


def _check_trained(methods: Iterable[Method]) -> None:
    """Raise ``UsageError`` for methods that would run a learned stage untrained."""
    trainable = {}
    for method in methods:
        lacking = {
            entry.slot: stage_text(entry.name, {**options, "weights": "FILE"})
            for entry, options in method.stages()
            if _learned(entry) and weights_file(entry, options) is None
        }
        if lacking:
            trainable[method.name] = replace(method, **lacking)
    if trainable:
        examples = " ".join(f"--method '{method}'" for method in trainable.values())
        raise UsageError(
            f"no weights ship for {', '.join(trainable)}, or none were asked for, and random "
            "numbers are not worth measuring: leave out what has none, --methods "
            f"SET,{','.join(f'-{name}' for name in trainable)}, and, to measure it all the same, "
            f"give it some: {examples}"
        )


def _newest(entry: Entry, weights: Any) -> dict[str, Any]:
    """The newest checkpoint as the option ``weights`` where that names a training run."""
    if not isinstance(weights, str) or weights in entry.weights:
        return {}
    run = Path(weights).expanduser()
    recipes = {recipe for *_, recipe in _ABLATIONS}
    if run.is_file() or not (run.is_dir() or run.name in recipes):
        return {}
    from deep_image_compositing.resuming import newest_checkpoint

    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        recipe = run.name if run.name in recipes else "NAME"
        raise UsageError(
            f"there is no checkpoint of a training run in {run}; make one: "
            f"deep-image-compositing fit --config recipes/{recipe}.yaml"
            + ("" if run == Path(RUNS, recipe) else f" --trainer.default_root_dir {run}")
        )
    return {"weights": checkpoint.as_posix()}
