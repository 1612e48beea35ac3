"""Validation of requests: turns form fields into a job for a worker; does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from deep_image_compositing import published, registry
from deep_image_compositing.errors import UsageError, choices
from deep_image_compositing.settings import SHADOWS, Shadow, check_placement, check_strength

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
OUTPUTS = ("composite", "cutout", "alpha")

PICTURES = {
    "composite": ("foreground", "background", "mask"),
    "cutout": ("foreground", "mask"),
    "mask": ("foreground", "mask", "strokes"),
}
"""File fields of each kind of request; ``mask`` and ``strokes`` are optional."""

_PLACING = ("shadow", "shadow_option", "frame", "scale", "position", "output")
OPTIONS = {
    kind: (*slots, *(f"{slot}_option" for slot in slots), *more, "format")
    for kind, slots, more in (
        ("composite", registry.SLOTS, _PLACING),
        ("cutout", registry.SLOTS[:3], ()),
        ("mask", registry.SLOTS[:2], ()),
    )
}
"""Text fields of each kind of request."""

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
"""Stage options that clients may set; none refers to a file or increases the amount of work."""

Stage: TypeAlias = tuple[str, tuple[tuple[str, Any], ...]]
"""Name and options of a stage, hashable."""

DEFAULTS: dict[str, Stage] = {slot: (name, ()) for slot, name in registry.DEFAULTS.items()}


@dataclass(frozen=True)
class Settings:
    """The server's configuration."""

    token: str | None = None  # required from clients; None for no authentication
    names: tuple[str, ...] = ()  # allowed host names besides IP addresses and the machine's names
    defaults: Mapping[str, Stage] = field(default_factory=DEFAULTS.copy)  # with any options
    max_bytes: int = 100_000_000  # per request
    max_pixels: int = 50_000_000  # per photograph, also as placed
    seconds: float = 120.0  # to receive a request, and again to process it


@dataclass(frozen=True)
class Job:
    """One image to make from files (empty if not sent); equal jobs give equal images."""

    foreground: bytes
    background: bytes = b""
    mask: bytes = b""
    strokes: bytes = b""  # an image: green belongs to the subject, red does not
    stages: tuple[Stage, ...] = tuple(DEFAULTS.values())
    frame: str = "foreground"
    scale: float = 1.0
    position: tuple[float, float] = (0.5, 0.5)
    output: str = "composite"  # or cutout, alpha, mask
    form: str = "png"  # a key of FORMATS
    max_pixels: int | None = None  # per file, and for the subject's photograph as placed
    shadow: Shadow | None = None


@dataclass(frozen=True)
class Answer:
    """A worker's result: an HTTP status with an encoded image or an error message."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def read_job(
    kind: str,
    pictures: Mapping[str, bytes],
    texts: Sequence[tuple[str, str]],
    settings: Settings,
) -> Job:
    """Create a job from a form's files and text fields; raises ``UsageError`` for invalid ones."""
    fields: dict[str, list[str]] = {}
    for name, text in texts:
        fields.setdefault(name, []).append(text.strip())
    _check_names(kind, pictures, fields)
    single = {name: values[0] for name, values in fields.items()}
    form = _choice(single, "format", FORMATS)
    output = _choice(single, "output", OUTPUTS) if kind == "composite" else kind
    if output == "cutout" and form == "jpeg":
        raise UsageError("JPEG cannot hold the transparency of a cut-out; use png or webp")
    frame = _choice(single, "frame", ("foreground", "background"))
    try:
        scale = float(single.get("scale") or 1.0)
    except ValueError:
        raise UsageError(f"scale must be a number, not {single['scale']!r}") from None
    return Job(
        **pictures,
        stages=tuple(_stage(slot, fields, settings.defaults[slot]) for slot in registry.SLOTS),
        frame=frame,
        scale=scale,
        position=check_placement(frame, scale, single.get("position", "0.5,0.5")),
        output=output,
        form=form,
        max_pixels=settings.max_pixels,
        shadow=_shadow(single, fields.get("shadow_option", ())),
    )


def list_choices(defaults: Mapping[str, Stage]) -> dict[str, list[dict[str, Any]]]:
    """List the stages that clients may choose, by slot, as ``/api/stages`` returns them."""
    return {slot: _choices_of(slot, defaults[slot][0]) for slot in registry.SLOTS}


def _choices_of(slot: str, default: str) -> list[dict[str, Any]]:
    entries = [entry for entry in registry.list_stages(slot) if _is_offered(entry, default)]
    if default.startswith(registry.HUB):
        about = "from the Hugging Face Hub"
        entries.append(registry.Entry(slot, default, about, "", default, trained=("default",)))
    return [
        {
            "name": entry.name,
            "description": entry.description,
            "source": entry.source,
            "trained": bool(entry.weights),
            "default": entry.name == default,
            "options": list(SAFE_OPTIONS.get((slot, entry.name), ())),
        }
        for entry in entries
    ]


def _is_offered(entry: registry.Entry, default: str) -> bool:
    """Whether clients may choose a stage, so that nothing needs to be downloaded."""
    if entry.published is not None and published.path_of(entry.published).is_file():
        return True
    return entry.file is None or entry.name == default


def _check_names(kind: str, pictures: Mapping[str, bytes], fields: Mapping[str, list[str]]) -> None:
    files, texts = PICTURES[kind], OPTIONS[kind]
    for name, known in (*((x, files) for x in pictures), *((x, texts) for x in fields)):
        if name not in (*files, *texts):
            raise UsageError(f"unknown field {name!r}; {choices(name, (*files, *texts))}")
        if name not in known:
            form = "a file" if name in files else "text"
            raise UsageError(f"the field {name!r} has the wrong type; send it as {form}")
    for name in files:
        if name not in ("mask", "strokes") and not pictures.get(name):
            raise UsageError(f"the field {name!r} is missing: send a photograph in it, as a file")
    for name, values in fields.items():
        if len(values) > 1 and not name.endswith("_option"):
            raise UsageError(f"the field {name!r} is given {len(values)} times")


def _choice(
    fields: Mapping[str, str], name: str, choices: Sequence[str] | Mapping[str, Any]
) -> str:
    """The value of a field, by default the first choice."""
    value = fields.get(name) or next(iter(choices))
    if value not in choices:
        raise UsageError(f"{name} must be {' or '.join(choices)}, not {value!r}")
    return value


def _shadow(fields: Mapping[str, str], options: Sequence[str]) -> Shadow | None:
    kind = _choice(fields, "shadow", ("none", *SHADOWS))
    values = registry.key_values("shadow_option", options)
    if kind != "none":
        return Shadow.of((kind, values))
    if values:
        raise UsageError("shadow_option takes effect only with shadow=contact or shadow=cast")
    return None


def _stage(slot: str, fields: Mapping[str, list[str]], default: Stage) -> Stage:
    default_name, default_options = default
    name = fields.get(slot, [""])[0] or default_name
    if name != default_name and not _is_offered(registry.get(slot, name), default_name):
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
    if name == default_name:
        options = {**dict(default_options), **options}
    return name, tuple(sorted(options.items()))
