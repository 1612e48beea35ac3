"""Methods: what fills the three slots, by name; the bench and the study choose theirs here.

A method is a triple of stages as people type them, ``multi_stream(weights=runs/mine.ckpt)``. The
paper's comparison, its ablations and a fast set are named. Before anything runs, :func:`choose`
finds what is wrong with any of them: above all a learned stage that has no weights, which would
otherwise be measured as its random numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing import registry
from deep_image_compositing.entries import Entry
from deep_image_compositing.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from deep_image_compositing.compositor import Compositor
    from deep_image_compositing.entries import Entry

RUNS = "runs"
"""Folder below which the recipes put their runs."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_STAGE = re.compile(r"\s*([^\s(),=]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_CLOSES = {")": "(", "]": "[", "}": "{"}
_PLAIN = re.compile(r"[^\s,()\[\]{}\"]+")


@dataclass(frozen=True)
class Method:
    """A whole way from two photographs to a composite.

    Attributes:
        name: shown in tables and used for files: letters, digits and ``_ . + -``.
        segmenter: a registered name, with options if need be: ``onnx(path=u2net.onnx, size=320)``.
            Values are JSON or plain text; text with a comma or a bracket in it goes in quotes.
        refiner: likewise.
        fuser: likewise. ``weights`` may be a shipped name, a file, or the folder of a training
            run, which means its newest checkpoint.

    Raises:
        UsageError: a name that is none for a file, or stages that cannot be read.
    """

    name: str
    segmenter: str
    refiner: str
    fuser: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot name a method: up to 64 letters, digits and _ . + -, the "
                "first a letter or a digit"
            )
        for _, text in self.stages():
            parse_stage(text)

    def __str__(self) -> str:
        return f"{self.name}={self.segmenter},{self.refiner},{self.fuser}"

    def stages(self) -> Iterator[tuple[str, str]]:
        """Slot and stage, in the order of the slots."""
        return zip(registry.SLOTS, (self.segmenter, self.refiner, self.fuser), strict=True)

    def settled(self) -> Method:
        """The method with the newest checkpoint in the place of a run's folder.

        Raises:
            UsageError: a run without checkpoints.
        """
        return replace(self, **{slot: _settled(slot, text) for slot, text in self.stages()})

    def check(self) -> None:
        """Find out what would keep the method from running, without running it.

        Raises:
            UsageError: a stage that is not registered, an option or value that it does not take,
                or a learned stage without weights.
            WeightsError: weights that are neither shipped nor a file.
            MissingExtraError: a package that a stage needs is not installed.
        """
        stages = [(slot, *parse_stage(text)) for slot, text in self.settled().stages()]
        for slot, name, options in stages:
            registry.get(slot, name).check(options)
        from deep_image_compositing.options import accepted_options, check_options
        from deep_image_compositing.stages.making import make_stage

        for slot, name, options in stages:
            entry = registry.get(slot, name)
            check_options(slot, name, entry.factory, options)
            accepted = accepted_options(entry.factory)
            if not entry.weights and (accepted is None or "weights" not in accepted[0]):
                make_stage(slot, (name, options))  # nothing is learned: this costs no time
        _check_trained([self])

    def untrained(self) -> Method | None:
        """The method with ``weights=FILE`` where a learned stage has none; None where all have.

        Raises:
            UsageError: a stage that is not registered, or a run without checkpoints.
            WeightsError: weights that are neither shipped nor a file.
        """
        from deep_image_compositing.options import accepted_options

        lacking = {}
        for slot, text in self.settled().stages():
            name, options = parse_stage(text)
            entry = registry.get(slot, name)
            accepted = accepted_options(entry.factory)
            learned = entry.weights or (accepted is not None and "weights" in accepted[0])
            if learned and _weights_file(entry, options) is None:
                lacking[slot] = stage_text(name, {**options, "weights": "FILE"})
        return replace(self, **lacking) if lacking else None

    def compositor(self, device: str = "auto", **kwargs: Any) -> Compositor:
        """The compositor of these stages.

        A stage whose weights are a training checkpoint, or were exported from one, is made as it
        was made for training, but for the options that are given here.

        Args:
            device: as for :class:`~deep_image_compositing.compositor.Compositor`.
            **kwargs: likewise.

        Raises:
            UsageError: as :meth:`check`.
            WeightsError: weights that could not be loaded.
            MissingExtraError: a package that a stage needs is not installed.
        """
        from deep_image_compositing.compositor import Compositor

        self.check()
        parsed = (parse_stage(text) for _, text in self.settled().stages())
        # A name alone, such as the segmenter's, is made when it is needed.
        segmenter, refiner, fuser = (one if one[1] else one[0] for one in parsed)
        return Compositor(segmenter, refiner, fuser, device=device, **kwargs)

    def describe(self) -> dict[str, Any]:
        """The method as JSON has it: names, options, and the SHA-256 of every file it loads.

        Raises:
            UsageError: a stage that is not registered.
        """
        about: dict[str, Any] = {"name": self.name}
        for slot, text in self.settled().stages():
            name, options = parse_stage(text)
            weights = _weights_file(registry.get(slot, name), options)
            paths = {key: Path(v) for key, v in options.items() if isinstance(v, str)}
            if weights is not None:
                paths["weights"] = weights
            files = {key: _digest(path) for key, path in paths.items() if path.is_file()}
            about[slot] = {"name": name, "options": options, "sha256": files}
        return about


# How methods are written


def parse_stage(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``name`` or ``name(key=value, key=value)``.

    Raises:
        UsageError: anything else.
    """
    found = _STAGE.fullmatch(text)
    if not found:
        raise UsageError(f"{text!r} is no stage; expected NAME or NAME(KEY=VALUE, KEY=VALUE)")
    given = [re.sub(r"\s*=\s*", "=", part, count=1) for part in _split(found[2] or "")]
    return found[1], registry.key_values(f"{found[1]}()", [part for part in given if part])


def stage_text(name: str, options: Mapping[str, Any]) -> str:
    """What :func:`parse_stage` reads back as ``name`` and ``options``."""
    if not options:
        return name
    return f"{name}({', '.join(f'{key}={_value_text(v)}' for key, v in options.items())})"


def _value_text(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def _split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket and no quotes."""
    parts, open_, start, quoted = [], [], 0, False
    for i, character in enumerate(text):
        if character == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif character in _CLOSES.values():
            open_.append(character)
        elif character in _CLOSES:
            if not open_ or open_.pop() != _CLOSES[character]:
                raise UsageError(f"{text!r} closes a bracket that is not open: {character}")
        elif character == "," and not open_:
            parts.append(text[start:i])
            start = i + 1
    if quoted or open_:
        raise UsageError(f"{text!r} does not close {'its quotes' if quoted else open_[-1]}")
    return [part.strip() for part in (*parts, text[start:])]


def parse_method(text: str) -> Method:
    """The method that ``NAME=SEGMENTER,REFINER,FUSER`` means.

    Raises:
        UsageError: anything else, or as :class:`Method`.
    """
    name, equals, rest = text.partition("=")
    stages = _split(rest)
    if not equals or len(stages) != len(registry.SLOTS):
        raise UsageError(f"a method is NAME=SEGMENTER,REFINER,FUSER, got {text!r}")
    return Method(name.strip(), *stages)


# The named sets


def _blend(name: str, fuser: str) -> Method:
    return Method(name, "pyramid", "cascade", fuser)


def _matting(refiner: str) -> Method:
    # The mask that is given, or the segmenter's, becomes the trimap: a matting method takes the
    # place of our refiner, and is not run after it.
    return Method(refiner, "pyramid", refiner, "alpha(foreground_color=multilevel)")


_COPY_PASTE, _FEATHER = _blend("copy_paste", "copy_paste"), _blend("feather", "feather")
_LAPLACIAN, _OURS = _blend("laplacian", "laplacian"), _blend("ours", "multi_stream")

_ABLATIONS = (
    ("no_self_taught", "cascade", "multi_stream", "fusion_easy"),
    ("one_stream", "cascade", "single_stream", "fusion_single_stream"),
    ("no_refinement", "none", "multi_stream", "no_refinement"),
    ("full", "cascade", "multi_stream", "fusion_hard"),
)


def _ablations(runs: str | Path) -> tuple[Method, ...]:
    return tuple(
        Method(
            name, "pyramid", refiner, stage_text(fuser, {"weights": Path(runs, recipe).as_posix()})
        )
        for name, refiner, fuser, recipe in _ABLATIONS
    )


METHODS: dict[str, tuple[Method, ...]] = {
    "paper": (
        _COPY_PASTE,
        _FEATHER,
        _LAPLACIAN,
        _blend("poisson", "poisson"),
        _blend("alpha", "alpha"),
        *map(
            _matting, ("closed_form", "knn", "information_flow", "deep_image_matting", "index_net")
        ),
        _blend("single_stream", "single_stream"),
        _OURS,
    ),
    "ablations": _ablations(RUNS),
    "fast": (
        _COPY_PASTE,
        _FEATHER,
        _LAPLACIAN,
        _blend("alpha_multilevel", "alpha(foreground_color=multilevel)"),
        _matting("guided_filter"),
        _OURS,
    ),
}
"""The named sets.

- ``paper``: every row of the comparison in Zhang et al. (WACV 2021), all with our segmenter. Blends
  and fusers are given what the refiner ``cascade`` makes of the mask; a matting method takes its
  place, and blends the subject's colour as pymatting's multi-level method estimates it.
- ``ablations``: what the paper leaves out of its method, and the whole, from runs of the recipes.
- ``fast``: what takes seconds a picture on a CPU.
"""


def choose(
    sets: Sequence[str], extra: Sequence[str] = (), *, runs: str | Path = RUNS
) -> list[Method]:
    """The methods that a command names, each checked.

    Args:
        sets: names of sets or of single methods, also several joined by commas; with ``-`` before
            it, a method to leave out: ``paper,-knn``. What two sets share counts once.
        extra: more methods, as :func:`parse_method` takes them.
        runs: folder of the training runs from which ``ablations`` takes its checkpoints.

    Raises:
        UsageError: an unknown name, a name twice, nothing at all, or as :meth:`Method.check`.
        WeightsError: as :meth:`Method.check`.
        MissingExtraError: likewise.
    """
    known = {**METHODS, "ablations": _ablations(runs)}
    single = {method.name: method for group in known.values() for method in group}
    chosen: dict[str, Method] = {}
    for name in (part.strip() for names in sets for part in names.split(",")):
        if name.removeprefix("-") not in {**known, **single, "": None}:
            raise UsageError(
                f"there is no method and no set of methods called {name!r}; the sets are "
                f"{', '.join(known)}, the methods {', '.join(single)}; others are given as "
                "--method NAME=SEGMENTER,REFINER,FUSER"
            )
        if name.startswith("-"):
            for method in known.get(name[1:], (single.get(name[1:]),)):
                if method is None or chosen.pop(method.name, None) is None:
                    raise UsageError(f"{name!r} leaves out what was not chosen before it")
        elif name:
            chosen |= {method.name: method for method in known.get(name) or (single[name],)}
    for method in map(parse_method, extra):
        taken = next((n for n in chosen if n.casefold() == method.name.casefold()), None)
        if taken is not None:
            raise UsageError(
                f"there are two methods called {taken!r}: rename the one of --method, or leave "
                f"out the other with --methods {','.join(sets)},-{taken}"
            )
        chosen[method.name] = method
    if not chosen:
        raise UsageError("there is no method to run: name some with --methods or --method")
    _check_trained(chosen.values())
    for method in chosen.values():
        method.check()
    return [method.settled() for method in chosen.values()]


# Weights


def _check_trained(methods: Iterable[Method]) -> None:
    """Raise :class:`UsageError` for methods that would run a learned stage untrained."""
    found = [(method, given) for method in methods if (given := method.untrained())]
    if found:
        names = [method.name for method, _ in found]
        some = " ".join(f"--method '{with_weights}'" for _, with_weights in found)
        raise UsageError(
            f"no weights ship for {', '.join(names)}, or none were asked for, and random numbers "
            "are not worth measuring: leave out what has none, --methods "
            f"SET,{','.join(f'-{name}' for name in names)}, and, to measure it all the same, give "
            f"it some: {some}"
        )


def _settled(slot: str, text: str) -> str:
    """The stage with the newest checkpoint in the place of a run's folder."""
    name, options = parse_stage(text)
    given = options.get("weights")
    if not isinstance(given, str) or given in registry.get(slot, name).weights:
        return text
    run = Path(given).expanduser()
    recipes = {recipe for *_, recipe in _ABLATIONS}
    if run.is_file() or not (run.is_dir() or run.name in recipes):
        return text
    from deep_image_compositing.training import newest_checkpoint

    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        recipe = run.name if run.name in recipes else "NAME"
        raise UsageError(
            f"there is no checkpoint of a training run in {run}; make one: "
            f"deep-image-compositing fit --config recipes/{recipe}.yaml"
            + ("" if run == Path(RUNS, recipe) else f" --trainer.default_root_dir {run}")
        )
    return stage_text(name, {**options, "weights": checkpoint.as_posix()})


def _weights_file(entry: Entry, options: Mapping[str, Any]) -> Path | None:
    """The file that a stage's weights come from; None where it would stay untrained.

    Raises:
        WeightsError: when there is no such file.
    """
    given = options.get("weights", entry.weights[0] if entry.weights else None)
    if given is None:
        return None
    from deep_image_compositing.weights import FOLDER

    shipped: Mapping[str, str] = getattr(entry.factory, "shipped", {})
    path = FOLDER / shipped[given] if given in shipped else Path(str(given)).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"there are no weights {str(given)!r} for the {entry.slot} {entry.name!r}: {path} is "
            f"no file, and those that ship are: {', '.join(entry.weights) or 'none'}"
        )
    return path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
