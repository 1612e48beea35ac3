"""What a client may ask for: fields of a form become a job for a worker; imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from deep_image_compositing import published, registry
from deep_image_compositing.errors import UsageError
from deep_image_compositing.settings import SHADOWS, Shadow, check_placement, check_strength

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
OUTPUTS = ("composite", "cutout", "alpha")

PICTURES = {
    "composite": ("foreground", "background", "mask"),
    "cutout": ("foreground", "mask"),
    "mask": ("foreground", "mask", "strokes"),
}
"""Fields that are files, by what is asked for; ``mask`` and ``strokes`` may be left out."""

_PLACING = ("shadow", "shadow_option", "frame", "scale", "position", "output")
OPTIONS = {
    kind: (*slots, *(f"{slot}_option" for slot in slots), *more, "format")
    for kind, slots, more in (
        ("composite", registry.SLOTS, _PLACING),
        ("cutout", registry.SLOTS[:3], ()),
        ("mask", registry.SLOTS[:2], ()),
    )
}
"""Fields that are text, likewise."""

SAFE_OPTIONS = {
    ("segmenter", "grabcut"): ("margin",),
    ("segmenter", "pyramid"): ("margin", "sure"),
    ("refiner", "cascade"): ("confidence", "keep_good", "margin", "trust", "zoom"),
    ("refiner", "closed_form"): ("epsilon",),
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
    ("harmonizer", "color_map"): ("strength",),
    ("harmonizer", "reinhard"): ("strength",),
    ("harmonizer", "white_balance"): ("strength",),
}
"""Options of stages that clients may set: none names a file, none makes the work larger."""

Stage: TypeAlias = tuple[str, tuple[tuple[str, Any], ...]]
"""Name and options of what is to fill a slot."""

DEFAULTS: dict[str, Stage] = {slot: (name, ()) for slot, name in registry.DEFAULTS.items()}


@dataclass(frozen=True)
class Settings:
    """What whoever runs the server decides."""

    token: str | None = None  # what clients must know; None for whoever comes
    names: tuple[str, ...] = ()  # under which it is reached, besides addresses and its machine's
    defaults: Mapping[str, Stage] = field(default_factory=DEFAULTS.copy)  # options of any kind
    max_bytes: int = 100_000_000  # of a request
    max_pixels: int = 50_000_000  # of a photograph, also as it is placed
    seconds: float = 120.0  # in which a request must have arrived, and again be worked off


@dataclass(frozen=True)
class Job:
    """One picture to make of files, empty where there is none; equal jobs make equal pictures."""

    foreground: bytes
    background: bytes = b""
    mask: bytes = b""
    strokes: bytes = b""  # a picture in which green belongs to the subject and red does not
    stages: tuple[Stage, ...] = tuple(DEFAULTS.values())
    frame: str = "foreground"
    scale: float = 1.0
    position: tuple[float, float] = (0.5, 0.5)
    output: str = "composite"  # or cutout, alpha, mask
    form: str = "png"  # a key of FORMATS
    max_pixels: int | None = None  # of each file, and of the subject's photograph as placed
    shadow: Shadow | None = None


@dataclass(frozen=True)
class Answer:
    """What a worker gives back: an HTTP status, and a picture's file or a sentence."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def read_job(
    kind: str,
    pictures: Mapping[str, bytes],
    given: Sequence[tuple[str, str]],
    settings: Settings,
) -> Job:
    """The job that a form's files and texts mean; ``UsageError`` for what is wrong with them."""
    fields: dict[str, list[str]] = {}
    for name, text in given:
        fields.setdefault(name, []).append(text.strip())
    _check_names(kind, pictures, fields)
    single = {name: texts[0] for name, texts in fields.items()}
    form = _choice(single, "format", FORMATS)
    output = _choice(single, "output", OUTPUTS) if kind == "composite" else kind
    if output == "cutout" and form == "jpeg":
        raise UsageError("JPEG cannot hold the transparency of a cut-out; use png or webp")
    frame = _choice(single, "frame", ("foreground", "background"))
    scale = _number(single, "scale", 1.0)
    place = check_placement(frame, scale, single.get("position", "0.5,0.5"))
    return Job(
        **pictures,
        stages=tuple(_stage(slot, fields, settings.defaults[slot]) for slot in registry.SLOTS),
        frame=frame,
        scale=scale,
        position=place,
        output=output,
        form=form,
        max_pixels=settings.max_pixels,
        shadow=_shadow(single, fields.get("shadow_option", ())),
    )


def list_choices(defaults: Mapping[str, Stage]) -> dict[str, list[dict[str, Any]]]:
    """The stages that clients may name, by slot, as ``/api/stages`` tells them."""
    return {slot: _choices_of(slot, defaults[slot][0]) for slot in registry.SLOTS}


def _choices_of(slot: str, own: str) -> list[dict[str, Any]]:
    entries = [entry for entry in registry.list_stages(slot) if _is_offered(entry, own)]
    if own.startswith(registry.HUB):
        about = "from the Hugging Face Hub"
        entries.append(registry.Entry(slot, own, about, "", own, trained=("default",)))
    return [
        {
            "name": entry.name,
            "description": entry.description,
            "source": entry.source,
            "trained": bool(entry.weights),
            "default": entry.name == own,
            "options": list(SAFE_OPTIONS.get((slot, entry.name), ())),
        }
        for entry in entries
    ]


def _is_offered(entry: registry.Entry, own: str) -> bool:
    """Whether clients may name a stage, where ``own`` is the default; nothing is fetched."""
    if entry.published is not None and published.path_of(entry.published).is_file():
        return True
    return entry.file is None or entry.name == own


def _check_names(kind: str, pictures: Mapping[str, bytes], fields: Mapping[str, list[str]]) -> None:
    files, texts = PICTURES[kind], OPTIONS[kind]
    for name, known, others, form in (
        *((name, files, texts, "text") for name in pictures),
        *((name, texts, files, "a file") for name in fields),
    ):
        if name not in known:
            near = difflib.get_close_matches(name, (*known, *others), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            if name in others:
                hint = f"send it as {form}. "
            raise UsageError(
                f"the field {name!r} is none of these; {hint}There are the files "
                f"{', '.join(files)} and the texts {', '.join(texts)}"
            )
    for name in files:
        if name not in ("mask", "strokes") and not pictures.get(name):
            raise UsageError(f"the field {name!r} is missing: send a photograph in it, as a file")
    for name, values in fields.items():
        if len(values) > 1 and not name.endswith("_option"):
            raise UsageError(f"the field {name!r} is given {len(values)} times")


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


def _shadow(given: Mapping[str, str], options: Sequence[str]) -> Shadow | None:
    kind = _choice(given, "shadow", ("none", *SHADOWS))
    values = registry.key_values("shadow_option", options)
    if kind != "none":
        return Shadow.of((kind, values))
    if values:
        raise UsageError("shadow_option takes effect only with shadow=contact or shadow=cast")
    return None


def _stage(slot: str, fields: Mapping[str, list[str]], default: Stage) -> Stage:
    own, preset = default
    name = fields.get(slot, [""])[0] or own
    if name != own and not _is_offered(registry.get(slot, name), own):
        raise UsageError(f"the {slot} {name!r} needs a file that is not on the server")
    options = registry.key_values(f"{slot}_option", fields.get(f"{slot}_option", ()))
    safe = SAFE_OPTIONS.get((slot, name), ())
    for key, value in options.items():
        if key not in safe or not isinstance(value, (bool, float, int, str)):
            raise UsageError(
                f"the {slot} {name!r} takes no {key}={value!r} from a form, but single values of: "
                f"{', '.join(safe) or 'nothing'}"
            )
    if slot == "harmonizer" and "strength" in options:
        check_strength(options["strength"])
    return name, tuple(sorted({**(dict(preset) if name == own else {}), **options}.items()))
