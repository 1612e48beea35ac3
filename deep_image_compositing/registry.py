"""The registry of stages: which stages can fill a slot, and how to create one by name.

The built-in stages are listed in ``BUILT_IN`` and imported on first use. Users' stages are added
with the ``register`` decorator; other packages' through the entry-point group
``deep_image_compositing.stages``, whose entry points name a module (imported for its ``register``
calls), a decorated class, or a list of ``Entry``.
"""

from __future__ import annotations

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
from deep_image_compositing.errors import UsageError, WeightsError, choices
from deep_image_compositing.files import at_home
from deep_image_compositing.options import (
    check_names,
    check_options,
    declared_options,
    existing_weights,
)
from deep_image_compositing.published import Published

SLOTS = ("segmenter", "refiner", "fuser", "harmonizer")
"""The slots in the order in which a composite passes through them."""

DEFAULTS = {
    "segmenter": "pyramid",
    "refiner": "cascade",
    "fuser": "multi_stream",
    "harmonizer": "none",
}
"""The default stage of each slot."""

HUB = "hf://"
"""Prefix of a repository on the Hugging Face Hub, where a stage's name is expected."""

ENTRY_POINT_GROUP = "deep_image_compositing.stages"

_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered stage.

    Attributes:
        slot: one of ``deep_image_compositing.registry.SLOTS``.
        name: the name in its slot.
        description: one line.
        source: the paper or package it comes from, or an empty string.
        made_by: a class or another factory; or ``module:Class``, imported on first use.
        run_by: a factory for inference only, without Lightning; by default ``made_by``.
        trained: names of the shipped weights, where ``made_by`` is imported on first use.
        file: the name of an option whose value is the path of an existing file.
        fixed: options that are set by the choice of this entry.
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
        """The callable that takes the user's options and returns the stage."""
        return _imported(self.made_by)

    @property
    def model(self) -> Callable[..., Any]:
        """Like ``factory``, for inference only: a plain module where there is one."""
        return _imported(self.run_by or self.made_by)

    @property
    def published(self) -> Published | None:
        """The published model that the stage runs; None for all other stages."""
        return published.get(self.fixed["model"]) if "model" in self.fixed else None

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the shipped weights, ``default`` first."""
        if isinstance(self.made_by, str):
            return self.trained
        return tuple(getattr(self.made_by, "shipped", {}))

    def make(self, options: Mapping[str, Any], *, model: bool = False) -> Any:
        """Create the stage, with ``model`` for inference only; raises like ``create``."""
        factory = self.model if model else self.factory
        options = {**self.fixed, **options}
        check_options(self.slot, self.name, factory, options)
        return factory(**options)

    def check(self, options: Mapping[str, Any]) -> None:
        """Check options as far as possible without importing the stage.

        Raises:
            UsageError: an unknown or a missing option, or the licence of a published model that
                must be accepted first.
            WeightsError: a file that does not exist.
        """
        if isinstance(self.made_by, str):
            names = {**self.fixed, **options}
            check_names(self.slot, self.name, declared_options(self.made_by), names)
        if self.published is not None:
            published.check_licence(self.published, options.get("accept_licence") is True)
        weights, file = options.get("weights"), options.get(self.file or "")
        # Values of other types are rejected when the stage is created.
        if isinstance(weights, (str, os.PathLike)) and weights not in self.weights:
            existing_weights(weights, f"the {self.slot} {self.name!r}", self.weights)
        if isinstance(file, (str, os.PathLike)) and not at_home(file).is_file():
            raise WeightsError(f"there is no {self.name.upper()} file {file}")


def _imported(target: Callable[..., Any] | str) -> Callable[..., Any]:
    return pkgutil.resolve_name(target) if isinstance(target, str) else target


def _own(
    slot: str, where: str, name: str, description: str, source: str = "", **more: Any
) -> Entry:
    """A built-in stage; ``where`` is ``module:Class``, and ``more`` are fields of ``Entry``.

    The plain module is ``models.<package>.<module>:<Class>Model``, the LightningModule
    ``stages.<package>:<Class><Slot>``.
    """
    package, (module, prefix) = _PACKAGES[slot], where.split(":")
    made_by = f"deep_image_compositing.stages.{package}:{prefix}{slot.title()}"
    run_by = f"deep_image_compositing.models.{package}.{module}:{prefix}Model"
    return Entry(slot, name, description, source, made_by, run_by, **more)


_PACKAGES = {
    "segmenter": "segmentation",
    "refiner": "refinement",
    "fuser": "fusion",
    "harmonizer": "harmonization",
}
_TRAINED: dict[str, Any] = {"trained": ("default",)}

# fmt: off
BUILT_IN: tuple[Entry, ...] = (
    _own("segmenter", "grabcut:GrabCut", "grabcut",
         "what differs in colour from the image border, by OpenCV; nothing is learned",
         "Rother, Kolmogorov and Blake, SIGGRAPH 2004"),
    _own("segmenter", "onnx:Onnx", "onnx",
         "any segmentation model exported to ONNX; options describe its preprocessing",
         "onnxruntime", file="path"),
    _own("segmenter", "pyramid:Pyramid", "pyramid",
         "timm backbone + pyramid pooling + light decoder; salient subjects",
         "Zhang et al., WACV 2021, section 3.1; Zhao et al., CVPR 2017", **_TRAINED),
    _own("refiner", "cascade:Cascade", "cascade",
         "refinement network on RGB + mask, at one or several sizes up to 640 pixels",
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
         "the refiner cascade with its network exported to ONNX",
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
         "a small network predicts one smooth colour transform for any size", **_TRAINED),
    _own("harmonizer", "classical:No", "none", "the subject keeps its colours"),
    _own("harmonizer", "classical:Reinhard", "reinhard",
         "the subject's colours take the mean and deviation of the scene's",
         "Reinhard et al., Color Transfer between Images, 2001"),
    _own("harmonizer", "classical:WhiteBalance", "white_balance",
         "the subject's average tint becomes the scene's, in linear light; brightness stays",
         "von Kries, 1902"),
    *(_own("segmenter", "onnx:Published", model.name, model.description, model.source,
           file="path", fixed={"model": model.name}) for model in published.PUBLISHED),
)
# fmt: on
"""The built-in stages, published models last."""

_entries: dict[tuple[str, str], Entry] = {(entry.slot, entry.name): entry for entry in BUILT_IN}
_discovered = False


def register(slot: str, name: str, *, description: str, source: str = "") -> Callable[[_T], _T]:
    """Register a stage class (or any factory) under ``name`` in ``slot``.

    Raises:
        UsageError: the slot is unknown, or the name is already registered in it.
    """

    def decorator(factory: _T) -> _T:
        _add(Entry(slot, name, description, source, factory))
        return factory

    return decorator


def get(slot: str, name: str) -> Entry:
    """The entry called ``name`` in ``slot``.

    Raises:
        UsageError: there is none; the message suggests the closest names.
    """
    if (slot, name) not in _entries:
        _discover()
    if (entry := _entries.get((slot, name))) is not None:
        return entry
    names = [entry.name for entry in list_stages(slot)]
    raise UsageError(
        f"there is no {slot} called {name!r}; {choices(name, names)}. To add one, decorate its "
        f"class with @register({slot!r}, {name!r}, description=...)"
    )


def check(slot: str, name: str, options: Mapping[str, Any]) -> None:
    """Check a stage's name and options without importing it; see ``Entry.check``.

    A repository (``hf://user/name``) is only checked when the stage is created.
    """
    if not name.startswith(HUB):
        get(slot, name).check(options)


def create(slot: str, name: str, **kwargs: Any) -> Any:
    """Create the stage ``name`` of ``slot`` with the constructor arguments ``kwargs``.

    Learned stages are untrained by default; ``weights="default"`` loads the shipped weights and
    ``weights="file.safetensors"`` your own. Errors from the constructor propagate unchanged.

    Raises:
        UsageError: the name or an argument is unknown, or a value has the wrong type.
    """
    return get(slot, name).make(kwargs)


def list_stages(slot: str | None = None, pattern: str = "*") -> list[Entry]:
    """Entries whose names match the shell-style ``pattern``, sorted by slot and name.

    Raises ``UsageError`` for an unknown slot; None lists all slots.
    """
    if slot is not None:
        _check_slot(slot)
    _discover()
    matches = [
        entry
        for entry in _entries.values()
        if slot in (None, entry.slot) and fnmatch.fnmatchcase(entry.name, pattern)
    ]
    return sorted(matches, key=lambda entry: (SLOTS.index(entry.slot), entry.name))


def key_values(where: str, items: Iterable[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` items; a value that is not valid JSON is text.

    Raises ``UsageError``, naming the option ``where``, for an item without a key or equals sign.
    """
    values: dict[str, Any] = {}
    for item in items:
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
    if (existing := _entries.get((entry.slot, entry.name))) is not None:
        raise UsageError(
            f"{entry.slot} {entry.name!r} is already registered (by {existing.made_by!r}); "
            "choose another name"
        )
    _entries[entry.slot, entry.name] = entry


def _check_slot(slot: str) -> None:
    if slot not in SLOTS:
        raise UsageError(f"there is no slot {slot!r}; the slots are {', '.join(SLOTS)}")


def _discover() -> None:
    """Load the entry points once; a broken plug-in only causes a warning."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            plugin = point.load()
            for entry in plugin if isinstance(plugin, (list, tuple)) else ():
                _add(entry)
        except Exception as error:
            warnings.warn(
                f"the stage plug-in {point.name!r} ({point.value}) could not be loaded: {error}",
                stacklevel=3,
            )
