"""Refiners without training: closed-form, KNN and information-flow matting, guided filter, none."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.compose import pixels_of_share
from deep_image_compositing.functional.information_flow import build_system, matting_laplacian
from deep_image_compositing.functional.matting import guided_filter
from deep_image_compositing.models.base import RefinerModel
from deep_image_compositing.models.refinement.matting import (
    MattingModel,
    Picture,
    SolvedMattingModel,
    Vector,
)
from deep_image_compositing.options import check_positive, check_range

_FACTOR = 150  # maximum entries per row of the incomplete Cholesky factor; photographs need ~80


class NoModel(RefinerModel):
    """Returns the mask unchanged."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return mask


class ClosedFormModel(SolvedMattingModel):
    """Closed-form matting: alpha as a locally affine function of the colour, by a sparse solve.

    Gives the result of pymatting's ``estimate_alpha_cf``, but builds only those rows of the matting
    Laplacian that concern unknown pixels, so that narrow bands in large photographs stay cheap.

    Args:
        epsilon: regularisation of the colour lines; larger converges faster and smooths alpha.
        radius: half width in pixels of the windows in which alpha is affine.
    """

    method = "closed_form"

    def __init__(self, epsilon: float = 1e-7, radius: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(epsilon=epsilon, radius=radius)
        import_extra("pymatting", "the refiner 'closed_form'")
        self.save_hyperparameters()
        self.epsilon = epsilon
        self.radius = radius
        self.reach = 2 * radius

    def bytes_needed(self, pixels: int, unknown: int) -> float:
        """Measured: the system during assembly, or with its Cholesky factor."""
        neighbours = (4 * self.radius + 1) ** 2
        return unknown * max(65 * neighbours, 28 * neighbours + 16 * 100)

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        import scipy.sparse

        height, width = trimap.shape
        window = 2 * self.radius + 1
        padding = ((0, max(0, window - height)), (0, max(0, window - width)))
        # Pad images smaller than a window, which would hold none.
        image = np.pad(image, (*padding, (0, 0)), mode="edge")
        trimap = np.pad(trimap, padding, mode="edge")
        unknown = trimap == 0.5
        rows = matting_laplacian(image, unknown, self.epsilon, self.radius)
        right = -(rows @ np.where(unknown, 0, trimap).ravel())
        matrix = scipy.sparse.csr_matrix(rows[:, unknown.ravel()])
        alpha = trimap.copy()
        alpha[unknown] = self.iterate(matrix.dot, right, self._precondition(matrix))
        return alpha[:height, :width]

    @staticmethod
    def _precondition(matrix: Any) -> Callable[[Vector], Vector]:
        """Incomplete Cholesky preconditioner, or Jacobi if the factor exceeds its size limit."""
        from pymatting.preconditioner.ichol import ichol

        try:
            # Silence its messages about retries with a larger diagonal.
            with contextlib.redirect_stdout(io.StringIO()):
                factor: Callable[[Vector], Vector] = ichol(
                    matrix, max_nnz=_FACTOR * matrix.shape[0] + 1000
                )
        except ValueError:
            diagonal = matrix.diagonal()
            return lambda x: x / diagonal
        return factor


class KnnModel(SolvedMattingModel):
    """KNN matting: similar alpha for pixels of similar colour and position, by a sparse solve.

    Gives the result of pymatting's ``estimate_alpha_knn`` with its binary kernel. Neighbours may
    be anywhere, so the full image is solved, however narrow the band.

    Args:
        neighbours: number of neighbours in each search.
        distance_weights: weight of position relative to colour in each search.
        weight: of the known pixels relative to the neighbours.
    """

    method = "knn"

    def __init__(
        self,
        neighbours: Sequence[int] = (20, 10),
        distance_weights: Sequence[float] = (2.0, 0.1),
        weight: float = 100.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not neighbours or len(neighbours) != len(distance_weights):
            raise UsageError(
                "neighbours and distance_weights must have one number per search, got "
                f"{neighbours} and {distance_weights}"
            )
        check_positive(neighbours=min(neighbours), weight=weight)
        check_range("each of distance_weights", tuple(distance_weights), 0, math.inf)
        import_extra("pymatting", "the refiner 'knn'")
        self.save_hyperparameters()
        self.neighbours = tuple(neighbours)
        self.distance_weights = tuple(distance_weights)
        self.weight = weight

    def bytes_needed(self, pixels: int, unknown: int) -> float:
        """Measured: the graph's edges in both directions during assembly."""
        return pixels * (200 + 60 * sum(self.neighbours))

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        import scipy.sparse

        affinity = knn_affinity(image, self.neighbours, self.distance_weights)
        degree = np.asarray(affinity.sum(1)).ravel()
        # Unlike in pymatting, rows are not divided by their degree, which keeps A symmetric.
        hold = self.weight * degree * (trimap != 0.5).ravel()
        matrix = scipy.sparse.diags(degree + hold) - affinity
        diagonal = matrix.diagonal()
        alpha = self.iterate(matrix.dot, hold * trimap.ravel(), lambda x: x / diagonal)
        return alpha.reshape(trimap.shape)


class InformationFlowModel(SolvedMattingModel):
    """Information-flow matting: four kinds of pixel affinities, combined in one sparse solve.

    See ``functional.information_flow``. Colours are compared across the image, so the full image is
    solved, however narrow the band.

    Args:
        transparent: whether the subject is glass, gauze or smoke rather than hair or fur; if so,
            the flow from known pixels is left out, as it assumes that most pixels are opaque or
            clear. None decides by the colours, as in the paper.
        trim: settle unknown pixels next to known ones of nearly the same colour.
        mixture_neighbours: similar pixels in each unknown pixel's colour mixture.
        known_neighbours: pixels of each known region linked to each unknown pixel.
        unknown_neighbours: similar unknown pixels linked to each unknown pixel.
        known_weight: of the flow from known pixels, relative to 1 for colour mixtures.
        unknown_weight: of the flow among unknown pixels.
        spatial_weight: of the flow between spatial neighbours.
        epsilon: regularisation of the colour lines of spatial neighbours.
    """

    method = "information_flow"

    def __init__(
        self,
        transparent: bool | None = None,
        trim: bool = True,
        mixture_neighbours: int = 20,
        known_neighbours: int = 7,
        unknown_neighbours: int = 5,
        known_weight: float = 0.05,
        unknown_weight: float = 0.01,
        spatial_weight: float = 1.0,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        counts = (mixture_neighbours, known_neighbours, unknown_neighbours)
        weights = (known_weight, unknown_weight, spatial_weight)
        check_positive(neighbours=min(counts), epsilon=epsilon)
        check_range("each of the weights", weights, 0, math.inf)
        import_extra("scipy", "the refiner 'information_flow'")
        self.save_hyperparameters()
        self.options = (transparent, trim, *counts, *weights, epsilon)

    def bytes_needed(self, pixels: int, unknown: int) -> float:
        """Measured: search trees over the image, and the flows during assembly."""
        return 500 * pixels + 3200 * unknown

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        system = build_system(image, trimap, *self.options)
        diagonal = system.diagonal()
        return system.matte(self.iterate(system.product, system.right, lambda x: x / diagonal))


class GuidedFilterModel(MattingModel):
    """Smooths the mask along the image's colours in the unknown region of the trimap.

    Args:
        radius: half width of the windows as a fraction of the image's long side: 0.05 is
            25 pixels at 512.
        epsilon: colour variance, in squared units of [0, 1], below which windows count as flat and
            are smoothed.
    """

    def __init__(self, radius: float = 0.05, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pixels_of_share(radius, (1, 1))
        check_positive(epsilon=epsilon)
        self.save_hyperparameters()
        self.radius = radius
        self.epsilon = epsilon

    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        size = (image.shape[-2], image.shape[-1])
        return guided_filter(image, mask, pixels_of_share(self.radius, size), self.epsilon)


def knn_affinity(
    image: Picture, neighbours: Sequence[int], distance_weights: Sequence[float]
) -> Any:
    """Symmetric sparse matrix (H · W, H · W) of pixels of similar colour and position.

    Each search finds ``neighbours`` of a pixel, itself included; image coordinates span
    ``distance_weights`` in units of colour.
    """
    import scipy.sparse
    from pymatting.util.kdtree import knn

    height, width = image.shape[:2]
    count = height * width
    features = np.empty((count, 5), np.float32)
    features[:, :3] = image.reshape(-1, 3)
    pixels = np.arange(count, dtype=np.int32)
    affinity = scipy.sparse.csr_matrix((count, count))
    for k, weight in zip(neighbours, distance_weights, strict=True):
        features[:, 3] = weight * np.tile(np.linspace(0, 1, width), height)
        features[:, 4] = weight * np.repeat(np.linspace(0, 1, height), width)
        k = min(k, count)
        matches = knn(features, features, k=k)[1].astype(np.int32).ravel()
        edges = (np.ones(count * k), (np.repeat(pixels, k), matches))
        directed = scipy.sparse.csr_matrix(edges, (count, count))
        affinity = affinity + directed + directed.T
    return affinity
