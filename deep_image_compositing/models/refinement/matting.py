"""What matting refiners share: the trimap, the region, memory, convergence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deep_image_compositing.errors import CompositingError
from deep_image_compositing.functional.boxes import bounding_box, grow
from deep_image_compositing.functional.compose import (
    pixels_of_share,
    resize_trimap,
    trimap_from_levels,
    trimap_from_mask,
)
from deep_image_compositing.functional.lift import guided_factors
from deep_image_compositing.functional.resize import fit_long_side, resize
from deep_image_compositing.models.base import RefinerModel
from deep_image_compositing.options import check_choice, check_positive

Picture = NDArray[np.float64]
Vector = NDArray[np.float64]

BAND = 0.02  # half width of the unknown band as a share of the long side: 10 pixels at 512


class MattingModel(RefinerModel):
    """A refiner that finds alpha where a trimap does not know it.

    A filler implements ``matte``. Known pixels keep their value whatever it answers, and it
    is not asked at all when nothing is unknown.

    Args:
        trimap: where the trimap comes from. ``from_mask``: unknown is what lies within ``band``
            of the mask's outline, the mask's level 0.5. ``given``: the mask is a trimap itself,
            background up to a level of 0.1, subject from 0.9 on, unknown between them.
        band: half width of the unknown band as a share of the picture's long side, in [0, 1]:
            0.02 is 10 pixels on either side of the outline at 512. At 0 nothing is unknown, and
            alpha is the mask cut at 0.5.
        max_side: work at no more than this many pixels on the long side, and carry the alpha up
            along the picture's own colours; None for the picture's own size.
    """

    method: ClassVar[str] = "matting"  # what messages call this refiner

    def __init__(
        self,
        *,
        trimap: Literal["from_mask", "given"] = "from_mask",
        band: float = BAND,
        max_side: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("trimap", trimap, ("from_mask", "given"))
        pixels_of_share(band, (1, 1))
        check_positive(max_side=1 if max_side is None else max_side)
        self.trimap = trimap
        self.band = band
        self.max_side = max_side

    def make_trimap(self, mask: Tensor) -> Tensor:
        """The trimap (B, 1, H, W) in {0, 0.5, 1} that ``mask`` (B, 1, H, W) means."""
        if self.trimap == "given":
            return trimap_from_levels(mask)
        return trimap_from_mask(mask, pixels_of_share(self.band, (mask.shape[-2], mask.shape[-1])))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Alpha (B, 1, H, W) in [0, 1]; exactly the trimap's where that is known."""
        trimap = self.make_trimap(mask)
        open_items = (trimap == 0.5).flatten(1).any(1)
        if not open_items.any():
            return trimap
        # Covariances of small windows cancel in single precision, which MPS is limited to.
        dtype = image.dtype if image.device.type == "mps" else torch.float64
        picture, rough = (x.detach()[open_items].to(dtype).clamp(0, 1) for x in (image, mask))
        alpha = trimap.clone()
        found = self._matte_small(picture, trimap[open_items].to(dtype), rough)
        alpha[open_items] = found.to(alpha.dtype)
        return torch.where(trimap == 0.5, alpha.clamp(0, 1), trimap)

    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """Alpha (B, 1, H, W), of which only what is unknown counts.

        Double precision wherever the device has it; every item of the trimap has unknown pixels.
        """
        raise NotImplementedError

    def _matte_small(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """``matte`` at no more than ``max_side``, its answer at the picture's size."""
        size = (image.shape[-2], image.shape[-1])
        small = fit_long_side(*size, self.max_side or max(size))
        if small == size:
            return self.matte(image, trimap, mask)
        reduced = resize(image, small)
        coarse = resize_trimap(trimap, small)
        alpha = self.matte(reduced, coarse, resize(mask, small))
        alpha = torch.where(coarse == 0.5, alpha.clamp(0, 1), coarse)
        # What the picture shows beyond its reduced self becomes alpha, as in ``follow_alpha``.
        factors = resize(guided_factors(reduced, alpha), size)
        detail = image - resize(reduced, size)
        return resize(alpha, size) + (factors * detail).sum(1, keepdim=True)


class SolvedMattingModel(MattingModel):
    """A matting refiner that solves one large sparse system a picture, in NumPy on the CPU.

    A filler implements ``solve``, which calls ``iterate``, and ``bytes_needed``, and states its
    ``reach``. Where a trimap lacks known subject or background, the mask is kept, with a warning.

    Args:
        max_memory: memory in GB that one solve may take by its own estimate.
        iterations: steps of conjugate gradients after which a solve ends; if it has not converged,
            a warning says so, and its best alpha is used.
        tolerance: residual, relative to the right-hand side, at which a solve has converged.
    """

    reach: int | None = None
    """Pixels around what is unknown on which the answer depends; None for the whole picture."""

    def __init__(
        self,
        *,
        max_memory: float = 4.0,
        iterations: int = 2000,
        tolerance: float = 1e-7,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_memory = max_memory
        self.iterations = iterations
        self.tolerance = tolerance
        check_positive(max_memory=max_memory, iterations=iterations, tolerance=tolerance)

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        """Alpha (H, W), of which only what is unknown counts.

        ``image`` is (H, W, 3), C-contiguous. With a ``reach``, the trimap is a part of the
        picture's and may lack a class of known pixels; else it has all three.
        """
        raise NotImplementedError

    def bytes_needed(self, pixels: int, unknown: int) -> float:
        """Estimated peak memory of ``solve`` for so many pixels, so many of them unknown."""
        raise NotImplementedError

    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """``solve`` for each picture, over the part of it that matters."""
        alpha = mask.clone()
        for index in range(len(image)):
            plane = trimap[index, 0]
            lacking = [name for name, v in (("subject", 1), ("background", 0)) if v not in plane]
            if lacking:
                known = lacking[0] if len(lacking) == 1 else "pixel"
                warnings.warn(
                    f"{self.method}: the trimap has no known {known}, so the mask is kept as it "
                    "is; " + ("mark some" if self.trimap == "given" else "use a smaller band"),
                    stacklevel=2,
                )
                continue
            height, width = plane.shape
            box = bounding_box(plane == 0.5)
            if box is None:  # max_side left nothing unknown
                continue
            margin = max(height, width) if self.reach is None else self.reach
            box = grow(box, margin, (height, width))
            part = plane[box]
            unknown = int((part == 0.5).sum())
            needed, more = self.bytes_needed(part.numel(), unknown), f", {unknown} of them unknown"
            check_memory(self.method, needed, self.max_memory, (height, width), more)
            arrays = (image[index][:, *box].permute(1, 2, 0), part, mask[index, 0][box])
            answer = self.solve(*(np.ascontiguousarray(x.cpu().double().numpy()) for x in arrays))
            alpha[index, 0][box] = torch.from_numpy(answer).to(alpha)
        return alpha

    def iterate(
        self,
        product: Callable[[Vector], Vector],
        b: Vector,
        precondition: Callable[[Vector], Vector],
    ) -> Vector:
        """Solve by conjugate gradients within the refiner's limits; warns when they were met."""
        solution = conjugate_gradients(
            product, b, precondition, tolerance=self.tolerance, iterations=self.iterations
        )
        if not solution.converged:
            warnings.warn(
                f"{self.method}: the solve did not converge: after {solution.iterations} "
                f"iterations (of at most {self.iterations}) its best residual is "
                f"{solution.residual:.1e}, not {self.tolerance:.1e}; alpha may be off, give it "
                "more iterations or a narrower band",
                stacklevel=2,
            )
        return solution.x


def check_memory(
    method: str, needed: float, limit: float, size: tuple[int, int], more: str = ""
) -> None:
    """``CompositingError`` with a long side that fits if ``needed`` bytes exceed ``limit`` GB."""
    gigabytes = needed / 1e9
    if gigabytes <= limit:
        return
    side = max(1, int(0.98 * max(size) * (limit / gigabytes) ** 0.5))
    raise CompositingError(
        f"{method} would take about {gigabytes:.1f} GB for {size[1]} x {size[0]} pixels{more}; "
        f"max_memory is {limit:g} GB, into which a long side of {side} pixels would fit: set "
        f"max_side={side}, or raise max_memory"
    )


class Solution(NamedTuple):
    """Result of an iterative solve; ``residual`` is relative to the right-hand side."""

    x: Vector
    residual: float
    iterations: int
    converged: bool


def conjugate_gradients(
    product: Callable[[Vector], Vector],
    b: Vector,
    precondition: Callable[[Vector], Vector],
    *,
    tolerance: float = 1e-7,
    iterations: int = 2000,
) -> Solution:
    """Solve ``A x = b``, (N,), for a symmetric positive matrix, given by its ``product``.

    ``precondition`` is an approximate inverse. The solve ends at a residual of ``tolerance``, or
    after ``iterations`` steps with the best solution so far.
    """
    x = np.zeros_like(b)
    scale = float(np.linalg.norm(b))
    if scale == 0:
        return Solution(x, 0.0, 0, True)
    best, least = x.copy(), 1.0
    r = b.copy()
    z = precondition(r)
    p = z.copy()
    rho = float(r @ z)
    for step in range(1, iterations + 1):
        q = product(p)
        curvature = float(p @ q)
        if not curvature > 0:  # rounding is all that is left, or A is not positive
            break
        x += rho / curvature * p
        r -= rho / curvature * q
        residual = float(np.linalg.norm(r)) / scale
        if residual <= tolerance:
            return Solution(x, residual, step, True)
        if residual < least:
            best[:], least = x, residual
        z = precondition(r)
        before, rho = rho, float(r @ z)
        p *= rho / before
        p += z
    else:
        step = iterations
    return Solution(best, least, step, False)
