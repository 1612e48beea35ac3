"""Named stages: what can fill a slot, and how to make one.

The compositor, the command line and the evaluation look stages up with ``create``, ``get`` and
``list_stages``. The library's own stand in the table ``BUILT_IN`` and are imported when they are
made; others register themselves with the ``register`` decorator. Other packages publish stages
through the entry-point group ``deep_image_compositing.stages``: each entry point names a module
(imported for its ``register`` calls), the stage class itself, or a table of ``Entry``.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.metadata
import json
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deep_image_compositing import published
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.files import at_home
from deep_image_compositing.options import (
    check_names,
    check_options,
    declared_options,
    existing_weights,
)
from deep_image_compositing.published import Published

SLOTS = ("segmenter", "refiner", "fuser", "harmonizer")
"""The slots, in the order in which a composite passes through them."""

DEFAULTS = {
    "segmenter": "pyramid",
    "refiner": "cascade",
    "fuser": "multi_stream",
    "harmonizer": "none",
}
"""What fills the slots unless somebody says otherwise."""

HUB = "hf://"
"""What a repository's name begins with where a stage can also be a registered name."""

ENTRY_POINT_GROUP = "deep_image_compositing.stages"

_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered stage.

    Attributes:
        slot: one of ``deep_image_compositing.registry.SLOTS``.
        name: the name users type.
        description: one line that says what it is.
        source: the paper or package it comes from, or an empty string.
        made_by: a class or another factory; or ``module:Class``, imported on first use.
        run_by: what makes it where it is only to run, without Lightning; by default ``made_by``.
        trained: of one that is imported on first use, the names of its trained weights.
        file: an option that must name a file.
        fixed: options that the name stands for.
    """

    slot: str
    name: str
    description: str
    source: str
    made_by: Callable[..., Any] | str
    run_by: str | None = None
    trained: tuple[str, ...] = ()
    file: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def factory(self) -> Callable[..., Any]:
        """What is called with the user's keyword arguments to make the stage."""
        return _imported(self.made_by)

    @property
    def model(self) -> Callable[..., Any]:
        """Likewise, where it is only to run: a plain module, if there is one."""
        return _imported(self.run_by or self.made_by)

    @property
    def published(self) -> Published | None:
        """The published model that it runs, whose file is fetched; None for all others."""
        return published.get(self.fixed["model"]) if "model" in self.fixed else None

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the trained weights that ship for this stage, ``default`` first."""
        if isinstance(self.made_by, str):
            return self.trained
        return tuple(getattr(self.made_by, "shipped", {}))

    def make(self, options: Mapping[str, Any], *, model: bool = False) -> Any:
        """The stage, or with ``model`` what only runs; raises as ``create``."""
        factory = self.model if model else self.factory
        options = {**self.fixed, **options}
        check_options(self.slot, self.name, factory, options)
        return factory(**options)

    def check(self, options: Mapping[str, Any]) -> None:
        """Find what cannot be right about options without importing the stage.

        Raises:
            UsageError: an option that it does not take, or one that it lacks; or the licence of a
                published model that has to be accepted.
            WeightsError: a file that is not there.
        """
        if isinstance(self.made_by, str):
            known = {**self.fixed, **options}
            check_names(self.slot, self.name, declared_options(self.made_by), known)
        if self.published is not None:
            published.check_licence(self.published, options.get("accept_licence") is True)
        given, file = options.get("weights"), options.get(self.file or "")
        # What is no path at all is found when the stage is made.
        if isinstance(given, (str, os.PathLike)) and given not in self.weights:
            existing_weights(given, f"the {self.slot} {self.name!r}", self.weights)
        if isinstance(file, (str, os.PathLike)) and not at_home(file).is_file():
            raise WeightsError(f"there is no {self.name.upper()} file {file}")


def _imported(target: Callable[..., Any] | str) -> Callable[..., Any]:
    """What ``module:Class`` names; anything else as it is."""
    return pkgutil.resolve_name(target) if isinstance(target, str) else target


def _own(
    slot: str, where: str, name: str, description: str, source: str = "", **more: Any
) -> Entry:
    """One of the library's own: ``where`` is the module and the name of its classes.

    The plain module is ``models.<room>.<module>:<Name>Model``, the LightningModule around it
    ``stages.<room>:<Name><Slot>``; ``more`` are fields of ``Entry``.
    """
    room, (module, kind) = _ROOMS[slot], where.split(":")
    made_by = f"deep_image_compositing.stages.{room}:{kind}{slot.title()}"
    run_by = f"deep_image_compositing.models.{room}.{module}:{kind}Model"
    return Entry(slot, name, description, source, made_by, run_by, **more)


_ROOMS = {
    "segmenter": "segmentation",
    "refiner": "refinement",
    "fuser": "fusion",
    "harmonizer": "harmonization",
}
_TRAINED: dict[str, Any] = {"trained": ("default",)}

# fmt: off
BUILT_IN: tuple[Entry, ...] = (
    _own("segmenter", "grabcut:GrabCut", "grabcut",
         "what differs in colour from the picture's rim, by OpenCV; nothing is learned",
         "Rother, Kolmogorov and Blake, SIGGRAPH 2004"),
    _own("segmenter", "onnx:Onnx", "onnx",
         "any segmentation model exported to ONNX; options say how it takes its input",
         "onnxruntime", file="path"),
    _own("segmenter", "pyramid:Pyramid", "pyramid",
         "timm backbone + pyramid pooling + light decoder; salient subjects",
         "Zhang et al., WACV 2021, section 3.1; Zhao et al., CVPR 2017", **_TRAINED),
    _own("refiner", "cascade:Cascade", "cascade",
         "refinement network on RGB + mask, run at one size or more, up to 640 pixels",
         "Zhang et al., WACV 2021, section 3.2", **_TRAINED),
    _own("refiner", "classical:ClosedForm", "closed_form",
         "closed-form matting inside a trimap, by pymatting; slow and exact",
         "Levin, Lischinski and Weiss, CVPR 2006"),
    _own("refiner", "trained:DeepImageMatting", "deep_image_matting",
         "encoder-decoder on RGB + trimap, and a refinement stage (DIM)",
         "Xu et al., CVPR 2017", **_TRAINED),
    _own("refiner", "classical:GuidedFilter", "guided_filter",
         "the mask follows the picture's edges inside a trimap; fast, on any device",
         "He, Sun and Tang, Guided Image Filtering, PAMI 2013"),
    _own("refiner", "trained:IndexNet", "index_net",
         "IndexNet matting inside a trimap: pooling and upsampling by learned indices",
         "Lu, Dai, Shen and Xu, ICCV 2019", **_TRAINED),
    _own("refiner", "classical:InformationFlow", "information_flow",
         "information flow matting inside a trimap; hair and holes, slow",
         "Aksoy, Aydin and Pollefeys, CVPR 2017"),
    _own("refiner", "classical:Knn", "knn",
         "KNN matting inside a trimap, neighbours by pymatting; far regions help each other",
         "Chen, Li and Tang, CVPR 2012"),
    _own("refiner", "onnx:Onnx", "onnx",
         "the network of cascade, exported to ONNX, and what is around it",
         "onnxruntime", file="path"),
    _own("refiner", "classical:No", "none", "the mask itself is the alpha"),
    _own("fuser", "classical:Alpha", "alpha",
         "alpha blending, with the subject's true colour on request"),
    _own("fuser", "classical:CopyPaste", "copy_paste",
         "hard cut at a level of alpha, no blending"),
    _own("fuser", "classical:Feather", "feather",
         "hard cut whose outline is softened by a Gaussian"),
    _own("fuser", "classical:Laplacian", "laplacian",
         "multi-band blending in Laplacian pyramids", "Burt and Adelson, 1983"),
    _own("fuser", "multi_stream:MultiStream", "multi_stream",
         "multi-stream fusion network (MLF): two encoders, one decoder for every scale",
         "Zhang et al., WACV 2021, section 3.3", **_TRAINED),
    _own("fuser", "poisson:Poisson", "poisson",
         "Poisson cloning: the subject's gradients, the background's colours (OpenCV)",
         "Perez, Gangnet and Blake, SIGGRAPH 2003"),
    _own("fuser", "multi_stream:SingleStream", "single_stream",
         "the same network with one encoder for both pictures (the paper's ablation)",
         "Zhang et al., WACV 2021, section 4.4", **_TRAINED),
    _own("harmonizer", "color_map:ColorMap", "color_map",
         "a small network finds one smooth colour transform, applied at any size", **_TRAINED),
    _own("harmonizer", "classical:No", "none", "the subject keeps its colours"),
    _own("harmonizer", "classical:Reinhard", "reinhard",
         "the subject's colours take the mean and deviation of the scene's",
         "Reinhard et al., Color Transfer between Images, 2001"),
    _own("harmonizer", "classical:WhiteBalance", "white_balance",
         "the subject's average tint becomes the scene's, in linear light; brightness stays",
         "von Kries, 1902"),
    *(_own("segmenter", "published:Published", one.name, one.description, one.source,
           file="path", fixed={"model": one.name}) for one in published.PUBLISHED),
)
# fmt: on
"""The stages of the library, published models last."""

_entries: dict[tuple[str, str], Entry] = {(one.slot, one.name): one for one in BUILT_IN}
_discovered = False


def register(slot: str, name: str, *, description: str, source: str = "") -> Callable[[_T], _T]:
    """Register a stage class (or any factory) under ``name`` in ``slot``.

    Raises:
        UsageError: for an unknown slot, or a name that the slot already has.
    """

    def decorator(factory: _T) -> _T:
        _add(Entry(slot, name, description, source, factory))
        return factory

    return decorator


def get(slot: str, name: str) -> Entry:
    """The entry called ``name`` in ``slot``.

    Raises:
        UsageError: when there is none; the message names the nearest ones.
    """
    if (found := _entries.get((slot, name))) is not None:
        return found
    names = [entry.name for entry in list_stages(slot)]  # with those of other packages
    if name in names:
        return _entries[slot, name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if near:
        rest = f"did you mean {' or '.join(map(repr, near))}? There are: {', '.join(names)}"
    else:
        rest = (
            f"there are: {', '.join(names)}. To add one, decorate its class with "
            f"@register({slot!r}, {name!r}, description=...)"
        )
    raise UsageError(f"there is no {slot} called {name!r}; {rest}")


def check(slot: str, name: str, options: Mapping[str, Any]) -> None:
    """Find what cannot be right about a stage without importing it; see ``Entry.check``.

    A repository (``hf://user/name``) is looked at when the stage is made.
    """
    if not name.startswith(HUB):
        get(slot, name).check(options)


def create(slot: str, name: str, **kwargs: Any) -> Any:
    """Make the stage ``name`` of ``slot`` with the constructor arguments ``kwargs``.

    Learned stages start untrained; ``weights="default"`` loads the shipped weights and
    ``weights="file.safetensors"`` one's own. An error inside the constructor stays that error.

    Raises:
        UsageError: when the name or an argument is unknown, or a value is of the wrong kind.
    """
    return get(slot, name).make(kwargs)


def list_stages(slot: str | None = None, pattern: str = "*") -> list[Entry]:
    """Entries whose name matches the shell-style ``pattern``, by slot, then by name."""
    if slot is not None:
        _check_slot(slot)
    _discover()
    found = [
        entry
        for entry in _entries.values()
        if slot in (None, entry.slot) and fnmatch.fnmatchcase(entry.name, pattern)
    ]
    return sorted(found, key=lambda entry: (SLOTS.index(entry.slot), entry.name))


def key_values(where: str, given: Iterable[str]) -> dict[str, Any]:
    """Options of a stage as people type them, ``KEY=VALUE`` each, JSON where it parses.

    ``where`` is what messages say takes them. Raises ``UsageError`` for one without a key or an
    equals sign.
    """
    values: dict[str, Any] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise UsageError(f"{where} takes KEY=VALUE, got {item!r}")
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError):
            values[key] = text
    return values


def _add(entry: Entry) -> None:
    _check_slot(entry.slot)
    if (there := _entries.get((entry.slot, entry.name))) is not None:
        raise UsageError(
            f"{entry.slot} {entry.name!r} is already registered (by {there.made_by!r}); "
            "choose another name"
        )
    _entries[entry.slot, entry.name] = entry


def _check_slot(slot: str) -> None:
    if slot not in SLOTS:
        raise UsageError(f"there is no slot {slot!r}; the slots are {', '.join(SLOTS)}")


def _discover() -> None:
    """Import what the entry points name, once; a broken plug-in only warns."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            found = point.load()
            for entry in found if isinstance(found, (list, tuple)) else ():
                _add(entry)
        except Exception as error:
            warnings.warn(
                f"the stage plug-in {point.name!r} ({point.value}) could not be loaded: {error}",
                stacklevel=3,
            )
