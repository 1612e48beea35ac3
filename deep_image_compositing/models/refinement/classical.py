"""Refiners without training: closed form, KNN and information flow, the guided filter, none."""

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

_FACTOR = 150  # most entries a row of the incomplete Cholesky factor; photographs have about 80


class NoModel(RefinerModel):
    """Returns the mask unchanged."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return mask


class ClosedFormModel(SolvedMattingModel):
    """Finds the alpha that is locally an affine function of the colour, by a sparse solve.

    The answer is that of pymatting's ``estimate_alpha_cf``, from the part of the matting Laplacian
    that touches what is unknown: narrow bands of large photographs stay affordable.

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
        """By measurement: the system while it is collected, or with its Cholesky factor."""
        neighbours = (4 * self.radius + 1) ** 2
        return unknown * max(65 * neighbours, 28 * neighbours + 16 * 100)

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        import scipy.sparse

        height, width = trimap.shape
        least = 2 * self.radius + 1
        room = ((0, max(0, least - height)), (0, max(0, least - width)))
        # A picture narrower than a window has none: its border is repeated.
        image = np.pad(image, (*room, (0, 0)), mode="edge")
        trimap = np.pad(trimap, room, mode="edge")
        unknown = trimap == 0.5
        rows = matting_laplacian(image, unknown, self.epsilon, self.radius)
        right = -(rows @ np.where(unknown, 0, trimap).ravel())
        matrix = scipy.sparse.csr_matrix(rows[:, unknown.ravel()])
        alpha = trimap.copy()
        alpha[unknown] = self.iterate(matrix.dot, right, self._precondition(matrix))
        return alpha[:height, :width]

    @staticmethod
    def _precondition(matrix: Any) -> Callable[[Vector], Vector]:
        """An incomplete Cholesky factor, or the diagonal where there is none of bounded size."""
        from pymatting.preconditioner.ichol import ichol

        try:
            # It prints when it tries again with a larger diagonal; the residual tells the rest.
            with contextlib.redirect_stdout(io.StringIO()):
                factor: Callable[[Vector], Vector] = ichol(
                    matrix, max_nnz=_FACTOR * matrix.shape[0] + 1000
                )
        except ValueError:
            diagonal = matrix.diagonal()
            return lambda x: x / diagonal
        return factor


class KnnModel(SolvedMattingModel):
    """Makes alpha alike where colour and place are alike, by a sparse solve.

    The answer is that of pymatting's ``estimate_alpha_knn`` with its binary kernel. Neighbours
    are sought in the whole picture, so all of it is solved, however narrow the band.

    Args:
        neighbours: how many, in each search.
        distance_weights: how much place counts against colour in each search.
        weight: of the known pixels against the neighbours.
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
                "neighbours and distance_weights give one number a search, got "
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
        """By measurement: the graph's edges in both directions while its matrix is made."""
        return pixels * (200 + 60 * sum(self.neighbours))

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        import scipy.sparse

        affinity = knn_affinity(image, self.neighbours, self.distance_weights)
        degree = np.asarray(affinity.sum(1)).ravel()
        # pymatting divides each row by its degree; left as it is, the system is symmetric.
        hold = self.weight * degree * (trimap != 0.5).ravel()
        matrix = scipy.sparse.diags(degree + hold) - affinity
        diagonal = matrix.diagonal()
        answer = self.iterate(matrix.dot, hold * trimap.ravel(), lambda x: x / diagonal)
        return answer.reshape(trimap.shape)


class InformationFlowModel(SolvedMattingModel):
    """Lets opacity flow into the unknown pixels along four kinds of affinity, by a sparse solve.

    The method is ``functional.information_flow``. Colours are compared over the whole picture, so
    all of it is solved, however narrow the band.

    Args:
        transparent: whether the subject is glass, gauze or smoke rather than hair or fur: then
            the flow from the known pixels, which takes most pixels for either subject or
            background, is left out. None decides by the colours, as the paper does.
        trim: whether unknown pixels next to known ones of the same colour become known at the end.
        mixture_neighbours: similar pixels that each unknown one is mixed from.
        known_neighbours: pixels of each known region that each unknown one is linked to.
        unknown_neighbours: similar unknown pixels that each is linked to.
        known_weight: of the flow from known pixels, against 1 for that of colour mixtures.
        unknown_weight: of the flow among unknown pixels.
        spatial_weight: of the flow between neighbours in space.
        epsilon: regularisation of the colour lines of neighbours in space.
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
        """By measurement: search trees over the picture, and the flows while they are collected."""
        return 500 * pixels + 3200 * unknown

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        system = build_system(image, trimap, *self.options)
        diagonal = system.diagonal()
        return system.matte(self.iterate(system.product, system.right, lambda x: x / diagonal))


class GuidedFilterModel(MattingModel):
    """Smooths the mask along the picture's colours where the trimap does not know alpha.

    Args:
        radius: half width of the filter's windows as a share of the picture's long side: 0.05
            is 25 pixels at 512.
        epsilon: variance of colour, in squared units of [0, 1], below which a window counts as
            flat and is smoothed over.
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
    """Symmetric sparse matrix (H · W, H · W): which pixels are alike in colour and place.

    In each search a pixel has so many ``neighbours``, itself included; the picture's sides have the
    length ``distance_weights`` in units of colour.
    """
    import scipy.sparse
    from pymatting.util.kdtree import knn

    height, width = image.shape[:2]
    count = height * width
    features = np.empty((count, 5), np.float32)
    features[:, :3] = image.reshape(-1, 3)
    place = np.arange(count, dtype=np.int32)
    affinity = scipy.sparse.csr_matrix((count, count))
    for wanted, weight in zip(neighbours, distance_weights, strict=True):
        features[:, 3] = weight * np.tile(np.linspace(0, 1, width), height)
        features[:, 4] = weight * np.repeat(np.linspace(0, 1, height), width)
        each = min(wanted, count)
        found = knn(features, features, k=each)[1].astype(np.int32).ravel()
        edges = (np.ones(count * each), (np.repeat(place, each), found))
        directed = scipy.sparse.csr_matrix(edges, (count, count))
        affinity = affinity + directed + directed.T
    return affinity
