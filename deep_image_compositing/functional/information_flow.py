"""Information-flow matting (Aksoy, Aydin and Pollefeys, CVPR 2017) with NumPy and scipy.

The energies of four kinds of pixel affinities add up to a sparse linear system for the unknown
opacities. Section numbers refer to the paper. ``image`` is (H, W, 3) in [0, 1], ``trimap`` (H, W)
in {0, 0.5, 1} and ``unknown`` (H, W) boolean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

WINDOW = 9  # pixels in the 3 x 3 windows of patch trimming
QUANTUM = (1 / 255) ** 2 / 12  # variance of a flat patch due to rounding to 8 bits


def is_unknown(trimap: Array) -> Bools:
    return (trimap > 0) & (trimap < 1)


def features(image: Array, weight: float) -> Array:
    """Features (H W, 5) of every pixel: colour, and position in [0, 1] times ``weight``."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    position = weight * np.stack([x / width, y / height], -1)
    return np.concatenate([image, position], -1).reshape(-1, 5)


def nearest(pool: Array, queries: Array, count: int) -> Indices:
    """Rows of ``pool`` (P, D) nearest to each of ``queries`` (Q, D), (Q, min(count, P))."""
    from scipy.spatial import cKDTree

    count = min(count, len(pool))
    if count == 0 or len(queries) == 0:
        return np.zeros((len(queries), count), np.int64)
    _, indices = cKDTree(pool).query(queries, k=count, workers=-1)
    return indices.reshape(len(queries), count).astype(np.int64)


def nearest_others(pool: Array, rows: Indices, count: int) -> Indices:
    """As ``nearest``, for ``rows`` of a pool without duplicates, excluding each row itself."""
    indices = nearest(pool, pool[rows], count + 1)
    # Positions are unique, so each row finds itself exactly once.
    return indices[indices != rows[:, None]].reshape(len(rows), max(0, indices.shape[1] - 1))


def embedding_weights(targets: Array, neighbours: Array, ridge: float = 1e-6) -> Array:
    """Weights (N, K) that best mix ``targets`` (N, C) from ``neighbours`` (N, K, C); sum to one.

    Section 3.1. The correlation matrix has rank 3 for K neighbours in three channels; ``ridge`` on
    its diagonal allows for equal colours. Woodbury's identity reduces it to 3 x 3 systems.
    """
    offset = neighbours - targets[:, None]
    inner = np.einsum("nkc,nkd->ncd", offset, offset) + ridge * np.eye(offset.shape[2])
    slope = np.linalg.solve(inner, offset.sum(1)[..., None])[..., 0]
    weights = 1 - np.einsum("nkc,nc->nk", offset, slope)
    return weights / weights.sum(1, keepdims=True)


def color_mixture_flow(image: Array, unknown: Bools, count: int = 20) -> csr_array:
    """Mixture of each unknown pixel's colour from ``count`` similar pixels (section 3.1).

    Returns (U, H W), one row per unknown pixel in row-major order; rows sum to one.
    """
    from scipy.sparse import csr_array

    rows = np.flatnonzero(unknown)
    similar = nearest_others(features(image, 1.0), rows, count)
    colors = image.reshape(-1, 3)
    weights = embedding_weights(colors[rows], colors[similar])
    starts = np.arange(len(rows) + 1) * similar.shape[1]
    return csr_array((weights.ravel(), similar.ravel(), starts), shape=(len(rows), unknown.size))


def known_to_unknown_flow(image: Array, trimap: Array, count: int = 7) -> tuple[Array, Array]:
    """Opacity of each unknown pixel as a mixture of ``count`` pixels from each known region.

    Section 3.2. Returns the foreground's share and its confidence, (H, W) in [0, 1] each. The
    confidence is the squared distance of the two mixed colours, 0 if a region is empty. For known
    pixels, they are the trimap and 1.
    """
    share, confidence = trimap.copy(), np.ones(trimap.shape)
    unknown = is_unknown(trimap)
    points = features(image, 10.0)
    regions = [np.flatnonzero(trimap == value) for value in (1, 0)]
    if min(map(len, regions)) == 0:
        confidence[unknown] = 0
        return share, confidence
    colors, targets = image.reshape(-1, 3), points[unknown.ravel()]
    neighbours = [colors[region[nearest(points[region], targets, count)]] for region in regions]
    weights = embedding_weights(targets[:, :3], np.concatenate(neighbours, 1))
    parts = np.split(weights, [neighbours[0].shape[1]], axis=1)
    mixed = [_mixed_color(w, c) for w, c in zip(parts, neighbours, strict=True)]
    share[unknown] = parts[0].sum(1).clip(0, 1)
    confidence[unknown] = np.square(mixed[0] - mixed[1]).sum(1) / 3
    return share, confidence


def intra_unknown_flow(image: Array, unknown: Bools, count: int = 5) -> csr_array:
    """Symmetric affinity (U, U) in [0, 1] of unknown pixels and their ``count`` nearest."""
    from scipy.sparse import csr_array

    points = features(image, 1 / 20)[unknown.ravel()]
    size = len(points)
    similar = nearest_others(points, np.arange(size), count)
    weights = 1 - np.abs(points[similar] - points[:, None]).sum(2)
    starts = np.arange(size + 1) * similar.shape[1]
    flow = csr_array((weights.clip(0).ravel(), similar.ravel(), starts), shape=(size, size))
    return ((flow + flow.T) / 2).tocsr()


def matting_laplacian(
    image: Array, unknown: Bools, epsilon: float = 1e-6, radius: int = 1
) -> csr_array:
    """Rows (U, H W) of the matting Laplacian for unknown pixels (section 3.4; Levin et al., 2008).

    Windows, of half width ``radius``, lie fully inside the image; ``epsilon`` regularises the
    colour lines, in squared colour units.
    """
    from scipy.sparse import csr_array

    height, width = unknown.shape
    side, reach = 2 * radius + 1, 2 * radius
    area = side**2
    rows = np.flatnonzero(unknown)
    shape = (len(rows), unknown.size)
    if min(height, width) < side:
        return csr_array(shape)
    index = np.arange(unknown.size).reshape(unknown.shape)
    view = np.lib.stride_tricks.sliding_window_view
    # Pixels (M, area) of every window that contains an unknown pixel.
    windows = view(index, (side, side))[view(unknown, (side, side)).any((2, 3))].reshape(-1, area)
    offset = image.reshape(-1, 3)[windows]
    offset -= offset.mean(1, keepdims=True)
    covariance = np.einsum("mic,mid->mcd", offset, offset) / area
    lines = offset @ np.linalg.inv(covariance + epsilon / area * np.eye(3))
    # Each relative position of two pixels in a window is a band of the Laplacian.
    position = np.full(unknown.size, len(rows))  # all known pixels share the last slot
    position[rows] = np.arange(len(rows))
    bands = np.zeros((2 * reach + 1, 2 * reach + 1, len(rows) + 1))
    for i in range(area):
        at = position[windows[:, i]]
        affinity = (1 + np.einsum("mc,mjc->jm", lines[:, i], offset)) / area
        affinity[i] -= 1
        for j in range(area):
            down, right = j // side - i // side + reach, j % side - i % side + reach
            # For one i, each window has a different pixel, so unknown pixels do not repeat.
            bands[down, right][at] -= affinity[j]
    y, x = np.divmod(rows, width)
    steps = np.arange(-reach, reach + 1)
    to_y, to_x = y + steps[:, None, None], x + steps[:, None]
    inside = (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
    inside, columns = (x.reshape(-1, len(rows)).T for x in (inside, to_y * width + to_x))
    data = bands.reshape(-1, len(rows) + 1).T[:-1][inside]
    starts = np.concatenate([[0], inside.sum(1).cumsum()])
    return csr_array((data, columns[inside], starts), shape=shape)


def trim_patches(
    image: Array, trimap: Array, match: float = 0.25, other: float = 0.9, count: int = 10
) -> Array:
    """Settle unknown pixels whose patches resemble one known region only (section 3.2.1).

    3 x 3 patches are modelled as normal distributions of colour and compared by Bhattacharyya
    distance to the ``count`` patches of most similar mean in each region: below ``match`` to one
    and above ``other`` to the other. Used only for the flow from known pixels.
    """
    unknown = np.flatnonzero(is_unknown(trimap))
    mean, covariance = _patches(image)
    # Position only breaks ties between equal colours.
    points = features(mean.reshape(image.shape), 0.01)
    log_det = np.log(np.linalg.det(covariance))
    distances = []
    for value in (1, 0):
        region = np.flatnonzero(trimap == value)
        best = np.full(len(unknown), np.inf)
        for column in nearest(points[region], points[unknown], count).T:
            other_pixel = region[column]
            average = (covariance[unknown] + covariance[other_pixel]) / 2
            offset = mean[unknown] - mean[other_pixel]
            scaled = np.linalg.solve(average, offset[..., None])[..., 0]
            spread = np.log(np.linalg.det(average)) - (log_det[unknown] + log_det[other_pixel]) / 2
            best = np.minimum(best, (offset * scaled).sum(1) / 8 + spread / 2)
        distances.append(best)
    to_foreground, to_background = distances
    trimmed = trimap.copy().ravel()
    trimmed[unknown[(to_foreground < match) & (to_background > other)]] = 1
    trimmed[unknown[(to_background < match) & (to_foreground > other)]] = 0
    return trimmed.reshape(trimap.shape)


def trim_edges(image: Array, trimap: Array, reach: float = 9.0) -> Array:
    """Grow both known regions into unknown pixels of nearly the same colour.

    Shahrian et al. (CVPR 2013): an unknown pixel takes the value of the nearest known pixel, at a
    distance d below ``reach``, whose colour differs by at most ``reach - d`` of 255 levels.
    """
    from scipy.ndimage import distance_transform_edt

    height, width = trimap.shape
    known = ~is_unknown(trimap)
    trimmed = trimap.copy()
    if not known.any():
        return trimmed
    y, x = np.nonzero(~known)
    away = distance_transform_edt(~known)[y, x]
    open_ = np.ones(len(y), bool)
    radius = int(reach)
    offsets = np.indices((2 * radius + 1, 2 * radius + 1)).reshape(2, -1).T - radius
    lengths = np.hypot(offsets[:, 0], offsets[:, 1])
    for number in np.argsort(lengths, kind="stable"):
        length = lengths[number]
        if not 0 < length < reach:
            continue
        y_there, x_there = y + offsets[number, 0], x + offsets[number, 1]
        usable = open_ & (away <= length)
        usable &= (y_there >= 0) & (y_there < height) & (x_there >= 0) & (x_there < width)
        at = np.flatnonzero(usable)
        at = at[known[y_there[at], x_there[at]]]
        difference = image[y[at], x[at]] - image[y_there[at], x_there[at]]
        at = at[np.linalg.norm(difference, axis=-1) <= (reach - length) / 255]
        trimmed[y[at], x[at]] = trimap[y_there[at], x_there[at]]
        open_[at] = False
    return trimmed


def is_highly_transparent(image: Array, trimap: Array, misfit: float = 0.3) -> bool:
    """Whether most colours of unknown pixels are mixtures, as in glass (section 3.5).

    Fits their histogram by those of both known regions within 20 pixels; a residual norm above
    ``misfit`` means transparent. Hair stays below.
    """
    from scipy.ndimage import distance_transform_edt

    unknown = is_unknown(trimap)
    near = distance_transform_edt(~unknown) <= 20
    regions = [near & (trimap == value) for value in (1, 0)]
    if not all(region.any() for region in (unknown, *regions)):
        return False
    known = np.stack([_histogram(image[region]) for region in regions], 1)
    target = _histogram(image[unknown])
    fitted = known @ np.linalg.lstsq(known, target, rcond=None)[0]
    return bool(np.linalg.norm(fitted - target) > misfit)


@dataclass(frozen=True)
class FlowSystem:
    """The linear system ``A alpha = right``, (U,), for the unknown opacities (section 3.5).

    ``A = mixture^T mixture + rest`` is symmetric and positive semidefinite. Known pixels are fixed
    (in the paper, constrained with a weight of 100). ``settled`` (H, W) is the trimap, with the
    pixels settled by ``trim_edges``; if ``transparent``, the flow from known pixels is left out.
    """

    mixture: csr_array
    rest: csr_array
    right: Array
    unknown: Bools
    settled: Array
    transparent: bool

    def product(self, alpha: Array) -> Array:
        """A times ``alpha`` (U,), without forming the dense square of ``mixture``."""
        return self.mixture.T @ (self.mixture @ alpha) + self.rest @ alpha

    def diagonal(self) -> Array:
        """Diagonal of A, (U,)."""
        return self.mixture.power(2).sum(0) + self.rest.diagonal()

    def matte(self, alpha: Array) -> Array:
        """Full matte (H, W) in [0, 1] from the unknown opacities ``alpha`` (U,)."""
        matte = np.zeros(self.unknown.shape)
        matte[self.unknown] = alpha.clip(0, 1)
        return np.where(is_unknown(self.settled), matte, self.settled)


def build_system(
    image: Array,
    trimap: Array,
    transparent: bool | None = None,
    trim: bool = True,
    mixture_neighbours: int = 20,  # the paper's K_CM, K_KU and K_UU
    known_neighbours: int = 7,
    unknown_neighbours: int = 5,
    known_weight: float = 0.05,  # sigma_KU, sigma_UU and sigma_L
    unknown_weight: float = 0.01,
    spatial_weight: float = 1.0,
    epsilon: float = 1e-6,
) -> FlowSystem:
    """Assemble the system from all flows; defaults are the paper's. Needs a known pixel."""
    from scipy.sparse import diags_array, eye_array

    if transparent is None:
        transparent = is_highly_transparent(image, trimap)
    unknown = is_unknown(trimap)
    columns, known = np.flatnonzero(unknown), np.flatnonzero(~unknown)
    fixed = trimap.ravel()[known]
    mixing = color_mixture_flow(image, unknown, mixture_neighbours).tocsc()
    mixture = (eye_array(len(columns)) - mixing[:, columns]).tocsr()
    right = mixture.T @ (mixing[:, known] @ fixed)
    similar = intra_unknown_flow(image, unknown, unknown_neighbours)
    rest = unknown_weight * (diags_array(similar.sum(1)) - similar)
    local = spatial_weight * matting_laplacian(image, unknown, epsilon).tocsc()
    rest = rest + local[:, columns]
    right -= local[:, known] @ fixed
    edges = trim_edges(image, trimap) if trim or not transparent else trimap
    if not transparent:
        share, confidence = known_to_unknown_flow(
            image, trim_patches(image, trimap), known_neighbours
        )
        trust = known_weight * np.where(is_unknown(edges), confidence, 1)[unknown]
        rest = rest + diags_array(trust)
        right += trust * np.where(is_unknown(edges), share, edges)[unknown]
    settled = edges if trim else trimap
    return FlowSystem(mixture, rest.tocsr(), right, unknown, settled, transparent)


def _mixed_color(weights: Array, colors: Array) -> Array:
    """Weighted mean colour (N, 3) in [0, 1] of neighbours (N, K, 3)."""
    total = weights.sum(1, keepdims=True)
    # If the total weight is negligible, use the unweighted mean.
    tiny = np.abs(total) < 1e-2
    weights = np.where(tiny, 1 / weights.shape[1], weights / np.where(tiny, 1, total))
    return np.einsum("nk,nkc->nc", weights, colors).clip(0, 1)


def _patches(image: Array) -> tuple[Array, Array]:
    """Mean (N, 3) and covariance (N, 3, 3) of the 3 x 3 window at every pixel."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    shifts = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    mean = np.mean(shifts, 0).reshape(-1, 3)
    covariance = np.tile(QUANTUM * np.eye(3), (len(mean), 1, 1))
    for shift in shifts:
        offset = shift.reshape(-1, 3) - mean
        covariance += offset[:, :, None] * offset[:, None, :] / WINDOW
    return mean, covariance


def _histogram(colors: Array) -> Array:
    """Histogram (30,) of colours (N, 3): 10 bins per channel, with sum 1 each."""
    counts = [np.histogram(colors[:, c], bins=10, range=(0, 1))[0] for c in range(3)]
    return np.concatenate(counts) / len(colors)
