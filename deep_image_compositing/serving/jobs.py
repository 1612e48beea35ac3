"""What a client may ask for: fields of a form become a job for a worker; imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from deep_image_compositing import registry
from deep_image_compositing.errors import UsageError
from deep_image_compositing.settings import check_placement, check_strength

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
OUTPUTS = ("composite", "cutout", "alpha")

PICTURES = {
    "composite": ("foreground", "background", "mask"),
    "cutout": ("foreground", "mask"),
    "mask": ("foreground", "mask", "strokes"),
}
"""Fields that are files, by what is asked for; ``mask`` and ``strokes`` may be left out."""

OPTIONS = {
    "composite": (
        *registry.SLOTS, *(f"{slot}_option" for slot in registry.SLOTS), "harmonize",
        "harmonize_strength", "frame", "scale", "position", "format", "output",
    ),
    "cutout": ("segmenter", "refiner", "segmenter_option", "refiner_option", "format"),
    "mask": ("segmenter", "refiner", "segmenter_option", "refiner_option", "format"),
}  # fmt: skip
"""Fields that are text, likewise."""

SAFE_OPTIONS = {
    ("segmenter", "grabcut"): ("margin",),
    ("segmenter", "pyramid"): ("looks", "margin", "sure"),
    ("refiner", "cascade"): ("confidence", "keep_good", "margin", "trust", "zoom"),
    ("refiner", "closed_form"): ("epsilon", "radius"),
    ("refiner", "guided_filter"): ("epsilon", "radius"),
    ("refiner", "information_flow"): ("transparent", "trim"),
    ("refiner", "knn"): ("weight",),
    ("fuser", "alpha"): ("foreground_color",),
    ("fuser", "copy_paste"): ("threshold",),
    ("fuser", "feather"): ("sigma",),
    ("fuser", "laplacian"): ("levels",),
    ("fuser", "multi_stream"): ("keep_exact",),
    ("fuser", "poisson"): ("mode", "threshold"),
    ("fuser", "single_stream"): ("keep_exact",),
}
"""Options of stages that clients may set: none that names a file or makes a network larger."""

Stage: TypeAlias = tuple[str, tuple[tuple[str, Any], ...]]
"""Name and options of what is to fill a slot."""

DEFAULTS: dict[str, Stage] = {
    "segmenter": ("pyramid", ()),
    "refiner": ("cascade", ()),
    "fuser": ("multi_stream", ()),
}


@dataclass(frozen=True)
class Job:
    """One picture to make; equal jobs make equal pictures.

    Attributes:
        foreground: the file with the subject.
        background: the file of the new background; empty where only the subject matters.
        mask: the file of a mask; empty for the segmenter's.
        strokes: a PNG in which green belongs to the subject and red does not; empty for none.
        stages: what fills the slots, in their order.
        output: ``composite``, ``cutout``, ``alpha`` or ``mask``.
        form: a key of ``FORMATS``.
        max_pixels: of each file, and of the subject's photograph as placed.
    """

    foreground: bytes
    background: bytes = b""
    mask: bytes = b""
    strokes: bytes = b""
    stages: tuple[Stage, ...] = tuple(DEFAULTS.values())
    harmonize: str | None = None
    harmonize_strength: float = 0.5
    frame: str = "foreground"
    scale: float = 1.0
    position: tuple[float, float] = (0.5, 0.5)
    output: str = "composite"
    form: str = "png"
    max_pixels: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a worker gives back: a picture, or why there is none.

    Attributes:
        status: of HTTP.
        body: the file of the picture, or a sentence.
        headers: of the answer.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def read_job(
    kind: str,
    pictures: Mapping[str, bytes],
    given: Sequence[tuple[str, str]],
    defaults: Mapping[str, Stage],
    max_pixels: int | None,
) -> Job:
    """The job that a form means.

    Args:
        kind: a key of ``PICTURES``.
        pictures: files by their fields.
        given: the other fields, as text.
        defaults: what fills the slots unless the form says otherwise, with the options that
            whoever runs the server has set.
        max_pixels: as in ``Job``.

    Raises:
        UsageError: fields that are unknown, missing, given twice or wrong.
    """
    fields: dict[str, list[str]] = {}
    for name, text in given:
        fields.setdefault(name, []).append(text)
    _check_fields(kind, pictures, fields)
    single = {name: texts[0].strip() for name, texts in fields.items()}
    form = _choice(single, "format", FORMATS)
    output = _choice(single, "output", OUTPUTS) if kind == "composite" else kind
    if output == "cutout" and form == "jpeg":
        raise UsageError("JPEG cannot hold the transparency of a cut-out; use png or webp")
    harmonize = _choice(single, "harmonize", ("none", "reinhard"))
    strength = _number(single, "harmonize_strength", 0.5)
    check_strength(strength)
    frame = _choice(single, "frame", ("foreground", "background"))
    scale = _number(single, "scale", 1.0)
    place = check_placement(frame, scale, single.get("position", "0.5,0.5"))
    return Job(
        **{name: data for name, data in pictures.items() if data},
        stages=tuple(_stage(slot, single, fields, defaults) for slot in registry.SLOTS),
        harmonize=None if harmonize == "none" else harmonize,
        harmonize_strength=strength,
        frame=frame,
        scale=scale,
        position=place,
        output=output,
        form=form,
        max_pixels=max_pixels,
    )


def list_choices(defaults: Mapping[str, Stage]) -> dict[str, list[dict[str, Any]]]:
    """The stages that clients may name, by slot, as ``/api/stages`` tells them."""
    return {
        slot: [
            {
                "name": entry.name,
                "description": entry.description,
                "source": entry.source,
                "trained": bool(entry.weights),
                "default": entry.name == defaults[slot][0],
                "options": list(SAFE_OPTIONS.get((slot, entry.name), ())),
            }
            for entry in registry.list_stages(slot)
            if entry.file is None or entry.name == defaults[slot][0]
        ]
        for slot in registry.SLOTS
    }


def _check_fields(
    kind: str, pictures: Mapping[str, bytes], fields: Mapping[str, list[str]]
) -> None:
    for names, known, what in (
        (pictures, PICTURES[kind], "file"),
        (fields, OPTIONS[kind], "text"),
    ):
        for name in names:
            if name in known:
                continue
            if name in (*PICTURES[kind], *OPTIONS[kind]):
                raise UsageError(f"the field {name!r} is not a {what}")
            near = difflib.get_close_matches(name, [*PICTURES[kind], *OPTIONS[kind]], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            every = ", ".join((*PICTURES[kind], *OPTIONS[kind]))
            raise UsageError(f"there is no field {name!r}; {hint}There are: {every}")
    for name in PICTURES[kind]:
        if name not in ("mask", "strokes") and not pictures.get(name):
            raise UsageError(f"the field {name!r} is missing: send a photograph in it, as a file")
    for name, texts in fields.items():
        if len(texts) > 1 and not name.endswith("_option"):
            raise UsageError(f"the field {name!r} is given {len(texts)} times")


def _choice(given: Mapping[str, str], name: str, choices: Sequence[str] | Mapping[str, Any]) -> str:
    """The value of a field; the first choice where it is not given."""
    value = given.get(name) or next(iter(choices))
    if value not in choices:
        raise UsageError(f"{name} is {' or '.join(choices)}, not {value!r}")
    return value


def _number(given: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(given.get(name) or default)
    except ValueError:
        raise UsageError(f"{name} is a number, not {given[name]!r}") from None


def _stage(
    slot: str,
    single: Mapping[str, str],
    fields: Mapping[str, list[str]],
    defaults: Mapping[str, Stage],
) -> Stage:
    own, preset = defaults[slot]
    name = single.get(slot) or own
    entry = registry.get(slot, name)
    if entry.file is not None and name != own:
        raise UsageError(f"the {slot} {name!r} needs a file, which only this server can be given")
    options = registry.key_values(f"{slot}_option", fields.get(f"{slot}_option", ()))
    safe = SAFE_OPTIONS.get((slot, name), ())
    for key, value in options.items():
        if key not in safe:
            allowed = f"it takes: {', '.join(safe)}" if safe else "it takes none here"
            raise UsageError(f"the {slot} {name!r} takes no option {key!r} from a form; {allowed}")
        if not isinstance(value, (bool, float, int, str)):
            raise UsageError(f"the option {key!r} of the {slot} {name!r} is one value")
    merged = {**dict(preset), **options} if name == own else options
    return name, tuple(sorted(merged.items()))
