"""Base classes of the four slots: segmenter, refiner, fuser and harmonizer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from deep_image_compositing import weights as weight_files
from deep_image_compositing.conventions import checked
from deep_image_compositing.functional.compose import over
from deep_image_compositing.settings import check_strength

_CAST_METHODS = {"forward", "layers", "finer_layers", "recoloring"}
_F = TypeVar("_F", bound=Callable[..., Any])

Recoloring: TypeAlias = Callable[[Tensor, tuple[float, float, float, float]], Tensor]
"""A smooth colour transform of an image region (B, 3, h, w), sRGB in [0, 1], at any resolution.

The second argument locates the region: top, left, bottom and right as fractions of the full
image's height and width.
"""

WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The region that covers the full image."""


@dataclass
class Layers:
    """Layers of a composite, ``alpha · foreground_color + (1 − alpha) · background``.

    Colours are straight. ``old_background`` is the estimated colour behind the subject in the
    foreground photograph; ``finer_layers`` needs it.
    """

    alpha: Tensor
    foreground_color: Tensor
    old_background: Tensor | None = None


def run_in_working_dtype(method: _F) -> _F:
    """Make a method compute in ``working_dtype`` and return its first argument's dtype."""
    first = list(inspect.signature(method).parameters)[1]

    @functools.wraps(method)
    def wrapper(self: StageModel, *args: Any, **kwargs: Any) -> Any:
        image = args[0] if args else kwargs.get(first)
        if not isinstance(image, Tensor):
            return method(self, *args, **kwargs)
        dtype = self.working_dtype(image.dtype)
        result = method(
            self,
            *(_cast(value, dtype) for value in args),
            **{name: _cast(value, dtype) for name, value in kwargs.items()},
        )
        return _cast(result, image.dtype)

    return wrapper  # type: ignore[return-value]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast floating-point tensors and ``Layers``; return anything else unchanged."""
    if isinstance(value, Layers):
        parts = (value.alpha, value.foreground_color, value.old_background)
        return Layers(*(_cast(part, dtype) for part in parts))
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def freeze_norm_stats(module: nn.Module) -> None:
    """Put batch norms in evaluation mode, which freezes their running statistics."""
    for submodule in module.modules():
        if isinstance(submodule, nn.modules.batchnorm._BatchNorm):
            submodule.eval()


class StageModel(nn.Module):
    """Base of ``SegmenterModel``, ``RefinerModel``, ``FuserModel`` and ``HarmonizerModel``.

    Constructors raise ``UsageError`` for an option outside its range, ``WeightsError`` for weights
    that cannot be read or do not fit, and ``MissingExtraError`` for a missing package.
    """

    slot: ClassVar[str]
    shipped: ClassVar[dict[str, str]] = {}
    """Weights that ship with the package: name to file name."""

    folded = False
    """Whether batch norms have been folded, so that the stage can only run inference.

    See ``networks.folding``.
    """

    tile_context: int | None = None
    """Pixels of context that an output pixel depends on; None if it depends on the full image.

    Stages that set it process large photographs in tiles along the rim, which blend over half of
    it. For an exact match to full-image output, set twice the receptive radius, and a multiple of
    the network's strides.
    """

    def __init__(self) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _CAST_METHODS & vars(cls).keys():
            setattr(cls, name, run_in_working_dtype(vars(cls)[name]))
        if "forward" in vars(cls):
            cls.forward = checked(cls.forward)

    @property
    def hparams(self) -> Any:
        """Constructor arguments, which are stored in weights files."""
        return self._arguments

    def save_hyperparameters(self) -> None:
        """Store the arguments of the calling constructor, as Lightning's method does."""
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        call = inspect.getargvalues(frame.f_back)
        self._arguments = {name: call.locals[name] for name in call.args if name != "self"}
        self._arguments |= call.locals.get(call.keywords or "", {})

    @property
    def trainable(self) -> bool:
        """Whether the stage has parameters to train."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def logits(self, *inputs: Any, **named: Any) -> Tensor:
        """Mask or alpha before the sigmoid, at the size of the image."""
        raise NotImplementedError(f"{type(self).__name__} has no logits, so it cannot be trained")

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Dtype in which ``forward`` computes for inputs of ``dtype``.

        The dtype of the parameters. A stage without any uses ``dtype``, or float32 for half
        precision.
        """
        for parameter in self.parameters():
            return parameter.dtype
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

    def use(self, device: torch.device) -> None:
        """Select a device that the user named explicitly; for stages that run outside torch.

        Raises:
            UsageError: the stage cannot run on it.
        """

    def load_weights(self, weights: str | None) -> None:
        """Load weights by shipped name or file path; None loads nothing.

        Constructors call this last.
        """
        if weights is not None:
            weight_files.load(self, weights)

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``state`` under this library's names; override to read others' checkpoints."""
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but ``num_batches_tracked`` may be missing, as in shipped weights."""
        state_dict = self.renamed(state_dict)
        current = self.state_dict()
        counters = {k: v for k, v in current.items() if k.endswith("num_batches_tracked")}
        return super().load_state_dict({**counters, **state_dict}, strict=strict, assign=assign)


class SegmenterModel(StageModel):
    """``image → mask``: find the subject."""

    slot = "segmenter"

    long_side: int | None = None
    """Maximum long side in pixels of the input; None for the compositor's ``work_side``."""

    def forward(self, image: Tensor) -> Tensor:
        """Probability (B, 1, H, W) that each pixel of ``image`` (B, 3, H, W) is subject."""
        raise NotImplementedError


class RefinerModel(StageModel):
    """``image, mask → alpha``: turn a rough mask into an accurate alpha."""

    slot = "refiner"

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Alpha (B, 1, H, W) in [0, 1] of the subject of ``image`` marked by ``mask``."""
        raise NotImplementedError


class FuserModel(StageModel):
    """``foreground, background, alpha → composite``: place the subject on the new background.

    Subclasses implement ``layers``, which also yield the cut-out, or override ``forward``.
    """

    slot = "fuser"

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        """Composite (B, 3, H, W) of the subject under ``alpha`` over ``background``."""
        layers = self.layers(foreground, background, alpha)
        if layers is None:
            raise NotImplementedError(
                f"{type(self).__name__} implements neither forward nor layers"
            )
        return over(layers.foreground_color, layers.alpha, background)

    def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers | None:
        """Layers of the composite, or None if the fuser paints the composite directly."""
        return None

    def finer_layers(self, foreground: Tensor, background: Tensor, coarse: Layers) -> Layers | None:
        """Refine the layers at full size, or return None to keep ``coarse``.

        Called for tiles along the rim of photographs larger than the working size. ``coarse`` is
        the output of ``layers`` at the working size, upsampled along the photograph's detail.
        """
        return None


class HarmonizerModel(StageModel):
    """``composite, mask → composite``: match the subject's lighting to the scene's.

    Outside the mask the composite stays bit-identical. Subclasses implement ``recoloring``, which
    is computed on a small image and applied at any size, or override ``forward``.

    Args:
        strength: blend factor in [0, 1]; 0 leaves colours unchanged.
    """

    slot = "harmonizer"

    long_side: int | None = 512
    """Maximum long side in pixels of the input; None for the compositor's ``work_side``."""

    def __init__(self, *, strength: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_strength(strength)
        self.strength = strength

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Recolor ``composite`` (B, 3, H, W) where ``mask`` (B, 1, H, W) is not 0."""
        recolor = self.recoloring(composite, mask)
        if recolor is None:
            raise NotImplementedError(
                f"{type(self).__name__} implements neither forward nor recoloring"
            )
        recolored = torch.lerp(composite, recolor(composite, WHOLE), self.strength)
        return torch.lerp(composite, recolored, mask)

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring | None:
        """Full-strength colour transform for the subject, or None if there is none."""
        return None
