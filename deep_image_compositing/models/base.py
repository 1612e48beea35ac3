"""One base class a slot: what every segmenter, refiner, fuser and harmonizer needs to run."""

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

_ANSWERS = {"forward", "layers", "finer_layers", "recoloring"}  # what ``own_precision`` wraps
_F = TypeVar("_F", bound=Callable[..., Any])

Recoloring: TypeAlias = Callable[[Tensor, tuple[float, float, float, float]], Tensor]
"""A smooth transform of colours (B, 3, h, w), sRGB in [0, 1], to such colours.

The second argument is the place of the colours: top, left, bottom and right as shares of the
picture's height and width. The size does not matter.
"""

WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The place of a whole picture."""


@dataclass
class Layers:
    """A fuser's answer in parts: the composite is ``alpha · color + (1 − alpha) · background``.

    Colours are straight. ``finer_layers`` needs ``old_background``, what was behind the subject.
    """

    alpha: Tensor
    foreground_color: Tensor
    old_background: Tensor | None = None


def own_precision(method: _F) -> _F:
    """Wrap a method to work in ``working_dtype`` and answer in the dtype of its first argument."""
    first = list(inspect.signature(method).parameters)[1]

    @functools.wraps(method)
    def wrapper(self: StageModel, *args: Any, **kwargs: Any) -> Any:
        picture = args[0] if args else kwargs.get(first)
        if not isinstance(picture, Tensor):
            return method(self, *args, **kwargs)
        own = self.working_dtype(picture.dtype)
        result = method(
            self,
            *(_cast(value, own) for value in args),
            **{name: _cast(value, own) for name, value in kwargs.items()},
        )
        return _cast(result, picture.dtype)

    return wrapper  # type: ignore[return-value]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """``value`` in ``dtype`` when it is a floating tensor or layers, itself otherwise."""
    if isinstance(value, Layers):
        parts = (value.alpha, value.foreground_color, value.old_background)
        return Layers(*(_cast(part, dtype) for part in parts))
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
        return value
    return value.to(dtype)


def stop_norms(module: nn.Module) -> None:
    """Set batch norms to evaluation mode: their statistics stay."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


class StageModel(nn.Module):
    """Base of ``SegmenterModel``, ``RefinerModel``, ``FuserModel`` and ``HarmonizerModel``.

    Constructors raise ``UsageError`` for an option outside its range, ``WeightsError`` for weights
    that cannot be read or do not fit, and ``MissingExtraError`` for a package that is missing.
    """

    slot: ClassVar[str]
    shipped: ClassVar[dict[str, str]] = {}
    """Trained weights in the package: name to file name."""

    folded = False
    """Whether it can only run, since its norms have been folded; see ``networks.folding``."""

    tile_context: int | None = None
    """Pixels around a part of the picture that its answer depends on; None when on the whole.

    Stages that state it run on large photographs in tiles along the rim, which blend over half of
    it: state twice what must match the whole exactly, and a multiple of the strides.
    """

    def __init__(self) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _ANSWERS & vars(cls).keys():
            setattr(cls, name, own_precision(vars(cls)[name]))
        if "forward" in vars(cls):
            cls.forward = checked(cls.forward)

    @property
    def hparams(self) -> Any:
        """What the model was made with; weights files hold it."""
        return self._arguments

    def save_hyperparameters(self) -> None:
        """Remember the arguments of the constructor that calls this, as Lightning's method does."""
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
        """The answer of a mask or alpha before its sigmoid, at the size of the image."""
        raise NotImplementedError(f"{type(self).__name__} has no logits, so it cannot be trained")

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which ``forward`` works when it is given tensors of ``dtype``.

        It is that of the parameters; without any, ``dtype`` itself, half precision as float32.
        """
        for parameter in self.parameters():
            return parameter.dtype
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

    def use(self, device: torch.device) -> None:
        """Told the device that a user has named; for stages that run outside of torch.

        Raises:
            UsageError: it cannot run there.
        """

    def load_weights(self, weights: str | None) -> None:
        """Load shipped weights by name or a file's, unless None. A constructor calls this last."""
        if weights is not None:
            weight_files.load(self, weights)

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``state`` by our own names; for fillers that also read what others published."""
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but counters of batch norms may be missing: they are not shipped."""
        state_dict = self.renamed(state_dict)
        own = self.state_dict()
        counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
        return super().load_state_dict({**counters, **state_dict}, strict=strict, assign=assign)


class SegmenterModel(StageModel):
    """``image → mask``: find the subject."""

    slot = "segmenter"

    long_side: int | None = None
    """Pixels of the picture it is given, at most; None for the compositor's ``work_side``."""

    def forward(self, image: Tensor) -> Tensor:
        """Belief (B, 1, H, W) in [0, 1] that a pixel of ``image`` (B, 3, H, W) is subject."""
        raise NotImplementedError


class RefinerModel(StageModel):
    """``image, mask → alpha``: make a rough mask exact."""

    slot = "refiner"

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Alpha (B, 1, H, W) in [0, 1] of the subject of ``image`` that ``mask`` points at."""
        raise NotImplementedError


class FuserModel(StageModel):
    """``foreground, background, alpha → composite``: set the subject into the new background.

    A filler implements ``layers``, from which the cut-out is made, or paints in ``forward``.
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
        """The composite's layers, or None when the fuser paints the composite directly."""
        return None

    def finer_layers(self, foreground: Tensor, background: Tensor, coarse: Layers) -> Layers | None:
        """The layers at a larger size, given those that ``layers`` found at a smaller one.

        Called for tiles along the rim of photographs beyond the working size, to which ``coarse``
        was carried up along the photograph's own detail; it stays where the answer is None.
        """
        return None


class HarmonizerModel(StageModel):
    """``composite, mask → composite``: make the subject's light agree with the scene's.

    Outside the mask the composite stays as it is, bit for bit. A filler implements ``recoloring``,
    which is found on a small picture and applied at any size, or else ``forward``.

    Args:
        strength: how far to go, in [0, 1]; at 0 colours stay as they are.
    """

    slot = "harmonizer"

    long_side: int | None = 512
    """Pixels of the composite it is given, at most; None for the compositor's ``work_side``."""

    def __init__(self, *, strength: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_strength(strength)
        self.strength = strength

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """``composite`` (B, 3, H, W) with other colours where ``mask`` (B, 1, H, W) is not 0."""
        recolor = self.recoloring(composite, mask)
        if recolor is None:
            raise NotImplementedError(
                f"{type(self).__name__} implements neither forward nor recoloring"
            )
        moved = torch.lerp(composite, recolor(composite, WHOLE), self.strength)
        return torch.lerp(composite, moved, mask)

    def recoloring(self, composite: Tensor, mask: Tensor) -> Recoloring | None:
        """The transform of the subject's colours at full strength; None for no such transform."""
        return None
