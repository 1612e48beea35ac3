"""Shared base of matting refiners: trimaps, cropping, memory limits and sparse solves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deep_image_compositing.errors import CompositingError
from deep_image_compositing.extras import import_extra
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
    """A refiner that estimates alpha in the unknown region of a trimap.

    Subclasses implement ``matte``, which is called only if there are unknown pixels. Known pixels
    keep the trimap's value.

    Args:
        trimap: ``from_mask``: pixels within ``band`` of the mask's outline at 0.5 are unknown.
            ``given``: the mask is a trimap: background up to 0.1, subject from 0.9, else unknown.
        band: half width of the unknown band as a fraction of the image's long side, in [0, 1]:
            0.02 is 10 pixels on either side of the outline at 512. At 0 nothing is unknown, and
            alpha is the mask thresholded at 0.5.
        max_side: maximum long side in pixels for matting; alpha is upsampled guided by the image's
            colours. None for the image's own size.
    """

    method: ClassVar[str] = "matting"  # name of the refiner in messages

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
        """Trimap (B, 1, H, W) in {0, 0.5, 1} from ``mask`` (B, 1, H, W)."""
        if self.trimap == "given":
            return trimap_from_levels(mask)
        return trimap_from_mask(mask, pixels_of_share(self.band, (mask.shape[-2], mask.shape[-1])))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Alpha (B, 1, H, W) in [0, 1], equal to the trimap where that is known."""
        trimap = self.make_trimap(mask)
        open_items = (trimap == 0.5).flatten(1).any(1)
        if not open_items.any():
            return trimap
        # Covariances of small windows need double precision, which MPS does not have.
        dtype = image.dtype if image.device.type == "mps" else torch.float64
        picture, rough = (x.detach()[open_items].to(dtype).clamp(0, 1) for x in (image, mask))
        alpha = trimap.clone()
        matte = self._matte_small(picture, trimap[open_items].to(dtype), rough)
        alpha[open_items] = matte.to(alpha.dtype)
        return torch.where(trimap == 0.5, alpha.clamp(0, 1), trimap)

    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """Alpha (B, 1, H, W); only unknown pixels are used.

        Inputs are in double precision except on MPS. Every trimap in the batch has unknown pixels.
        """
        raise NotImplementedError

    def _matte_small(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """Run ``matte`` at no more than ``max_side`` and return its result at full size."""
        size = (image.shape[-2], image.shape[-1])
        small = fit_long_side(*size, self.max_side or max(size))
        if small == size:
            return self.matte(image, trimap, mask)
        reduced = resize(image, small)
        coarse = resize_trimap(trimap, small)
        alpha = self.matte(reduced, coarse, resize(mask, small))
        alpha = torch.where(coarse == 0.5, alpha.clamp(0, 1), coarse)
        # Detail lost in the reduced image is added to alpha, as in ``follow_alpha``.
        factors = resize(guided_factors(reduced, alpha), size)
        detail = image - resize(reduced, size)
        return resize(alpha, size) + (factors * detail).sum(1, keepdim=True)


class SolvedMattingModel(MattingModel):
    """A matting refiner that solves one large sparse system per image, in NumPy on the CPU.

    Subclasses implement ``solve``, which calls ``iterate``, and ``bytes_needed``, and set
    ``reach``. If a trimap has no known subject or background, the mask is returned with a warning.

    Args:
        max_memory: limit in GB for the estimated memory of a solve.
        iterations: maximum number of conjugate gradient steps; a solve that does not converge
            returns the last one's alpha with a warning.
        tolerance: residual, relative to the right-hand side, at which a solve has converged.
    """

    reach: int | None = None
    """Pixels around the unknown region that affect the result; None for the full image."""

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
        """Alpha (H, W); only unknown pixels are used.

        ``image`` is (H, W, 3), C-contiguous. If ``reach`` is set, inputs are crops, whose trimap
        may lack known subject or background.
        """
        raise NotImplementedError

    def bytes_needed(self, pixels: int, unknown: int) -> float:
        """Estimated peak memory of ``solve`` for this many pixels and unknown pixels."""
        raise NotImplementedError

    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """Call ``solve`` on the relevant crop of each image."""
        alpha = mask.clone()
        for index in range(len(image)):
            plane = trimap[index, 0]
            missing = [name for name, v in (("subject", 1), ("background", 0)) if v not in plane]
            if missing:
                known = missing[0] if len(missing) == 1 else "pixel"
                warnings.warn(
                    f"{self.method}: the trimap has no known {known}, so the mask is kept as it "
                    "is; " + ("mark some" if self.trimap == "given" else "use a smaller band"),
                    stacklevel=2,
                )
                continue
            height, width = plane.shape
            box = bounding_box(plane == 0.5)
            if box is None:  # none is left at max_side
                continue
            margin = max(height, width) if self.reach is None else self.reach
            box = grow(box, margin, (height, width))
            crop = plane[box]
            unknown = int((crop == 0.5).sum())
            needed = self.bytes_needed(crop.numel(), unknown)
            detail = f", {unknown} of them unknown"
            check_memory(self.method, needed, self.max_memory, (height, width), detail)
            arrays = (image[index][:, *box].permute(1, 2, 0), crop, mask[index, 0][box])
            solved = self.solve(*(np.ascontiguousarray(x.cpu().double().numpy()) for x in arrays))
            alpha[index, 0][box] = torch.from_numpy(solved).to(alpha)
        return alpha

    def iterate(
        self,
        product: Callable[[Vector], Vector],
        b: Vector,
        precondition: Callable[[Vector], Vector],
    ) -> Vector:
        """Solve ``A x = b``, (N,), by conjugate gradients, for a symmetric positive definite A.

        ``product`` multiplies by A and ``precondition`` by an approximate inverse. Warns if the
        solve does not converge in ``iterations`` steps, and returns the last one's result.
        """
        linalg = import_extra("scipy.sparse.linalg", f"the refiner {self.method!r}")
        a, m = (
            linalg.LinearOperator((len(b), len(b)), matvec=apply, dtype=b.dtype)
            for apply in (product, precondition)
        )
        x, unfinished = linalg.cg(a, b, M=m, rtol=self.tolerance, maxiter=self.iterations)
        if unfinished:
            residual = np.linalg.norm(b - product(x)) / np.linalg.norm(b)
            warnings.warn(
                f"{self.method}: the solve did not converge: after {self.iterations} iterations "
                f"its residual is {residual:.1e}, not {self.tolerance:.1e}; alpha may be off, "
                "give it more iterations or a narrower band",
                stacklevel=2,
            )
        return x


def check_memory(
    method: str, needed: float, limit: float, size: tuple[int, int], detail: str = ""
) -> None:
    """Raise ``CompositingError`` with a side that fits if ``needed`` bytes exceed ``limit`` GB."""
    gigabytes = needed / 1e9
    if gigabytes <= limit:
        return
    side = max(1, int(0.98 * max(size) * (limit / gigabytes) ** 0.5))
    raise CompositingError(
        f"{method} would take about {gigabytes:.1f} GB for {size[1]} x {size[0]} pixels{detail}; "
        f"max_memory is {limit:g} GB, which fits a long side of {side} pixels: set "
        f"max_side={side}, or raise max_memory"
    )
