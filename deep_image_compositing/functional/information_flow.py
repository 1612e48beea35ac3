"""Information flow matting (Aksoy, Aydin and Pollefeys, CVPR 2017) with NumPy and scipy.

Opacity flows into unknown pixels along four kinds of affinity, whose energies add up to a sparse
linear system. Section numbers are the paper's. Here ``image`` is (H, W, 3) in [0, 1], ``trimap``
(H, W) in {0, 0.5, 1} and ``unknown`` (H, W) boolean.
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

WINDOW = 9  # pixels of the 3 x 3 windows of patch trimming
QUANTUM = (1 / 255) ** 2 / 12  # variance that rounding to 8 bits leaves in a flat patch


def is_unknown(trimap: Array) -> Bools:
    return (trimap > 0) & (trimap < 1)


def features(image: Array, weight: float) -> Array:
    """Colour of every pixel and its place in [0, 1] times ``weight``, (H W, 5)."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    place = weight * np.stack([x / width, y / height], -1)
    return np.concatenate([image, place], -1).reshape(-1, 5)


def nearest(pool: Array, queries: Array, count: int) -> Indices:
    """Rows of ``pool`` (P, D) nearest to each of ``queries`` (Q, D), (Q, min(count, P))."""
    from scipy.spatial import cKDTree

    count = min(count, len(pool))
    if count == 0 or len(queries) == 0:
        return np.zeros((len(queries), count), np.int64)
    _, found = cKDTree(pool).query(queries, k=count, workers=-1)
    return found.reshape(len(queries), count).astype(np.int64)


def nearest_others(pool: Array, rows: Indices, count: int) -> Indices:
    """As ``nearest``, for ``rows`` of a pool without duplicates; none is its own neighbour."""
    found = nearest(pool, pool[rows], count + 1)
    # No two pixels share a place, so each finds itself once.
    return found[found != rows[:, None]].reshape(len(rows), max(0, found.shape[1] - 1))


def embedding_weights(targets: Array, neighbours: Array, ridge: float = 1e-6) -> Array:
    """Weights (N, K) that sum to one and best mix ``targets`` (N, C) from ``neighbours`` (N, K, C).

    Section 3.1. The correlation matrix of K neighbours in three channels has rank 3; with the ridge
    on its diagonal, needed as they may share a colour, 3 x 3 systems invert it (Woodbury's
    identity).
    """
    offset = neighbours - targets[:, None]
    inner = np.einsum("nkc,nkd->ncd", offset, offset) + ridge * np.eye(offset.shape[2])
    slope = np.linalg.solve(inner, offset.sum(1)[..., None])[..., 0]
    weights = 1 - np.einsum("nkc,nc->nk", offset, slope)
    return weights / weights.sum(1, keepdims=True)


def color_mixture_flow(image: Array, unknown: Bools, count: int = 20) -> csr_array:
    """How each unknown pixel's colour is mixed from ``count`` similar ones anywhere (section 3.1).

    Returns (U, H W), a row an unknown pixel in reading order; each sums to one.
    """
    from scipy.sparse import csr_array

    rows = np.flatnonzero(unknown)
    found = nearest_others(features(image, 1.0), rows, count)
    colors = image.reshape(-1, 3)
    weights = embedding_weights(colors[rows], colors[found])
    starts = np.arange(len(rows) + 1) * found.shape[1]
    return csr_array((weights.ravel(), found.ravel(), starts), shape=(len(rows), unknown.size))


def known_to_unknown_flow(image: Array, trimap: Array, count: int = 7) -> tuple[Array, Array]:
    """Opacity of each unknown pixel as a mixture of ``count`` pixels of either known region.

    Section 3.2. Returns the foreground's share and the confidence in it, (H, W) in [0, 1] each: the
    squared distance of the two colours in the mixture, 0 where a region is empty. Where the trimap
    knows, they are the trimap and 1.
    """
    share, confidence = trimap.copy(), np.ones(trimap.shape)
    unknown = is_unknown(trimap)
    place = features(image, 10.0)
    sides = [np.flatnonzero(trimap == value) for value in (1, 0)]
    if min(map(len, sides)) == 0:
        confidence[unknown] = 0
        return share, confidence
    colors, targets = image.reshape(-1, 3), place[unknown.ravel()]
    picked = [colors[side[nearest(place[side], targets, count)]] for side in sides]
    weights = embedding_weights(targets[:, :3], np.concatenate(picked, 1))
    both = np.split(weights, [picked[0].shape[1]], axis=1)
    mixed = [_mixed_color(w, c) for w, c in zip(both, picked, strict=True)]
    share[unknown] = both[0].sum(1).clip(0, 1)
    confidence[unknown] = np.square(mixed[0] - mixed[1]).sum(1) / 3
    return share, confidence


def intra_unknown_flow(image: Array, unknown: Bools, count: int = 5) -> csr_array:
    """Affinity (U, U), symmetric in [0, 1], of each unknown pixel and its ``count`` nearest."""
    from scipy.sparse import csr_array

    place = features(image, 1 / 20)[unknown.ravel()]
    size = len(place)
    found = nearest_others(place, np.arange(size), count)
    weights = 1 - np.abs(place[found] - place[:, None]).sum(2)
    starts = np.arange(size + 1) * found.shape[1]
    flow = csr_array((weights.clip(0).ravel(), found.ravel(), starts), shape=(size, size))
    return ((flow + flow.T) / 2).tocsr()


def matting_laplacian(
    image: Array, unknown: Bools, epsilon: float = 1e-6, radius: int = 1
) -> csr_array:
    """Rows (U, H W) of the matting Laplacian of whole windows (section 3.4; Levin et al., 2008).

    ``radius`` is the windows' half width, ``epsilon`` regularises the lines in colour units².
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
    # Pixels (M, area) of every window that holds an unknown one.
    windows = view(index, (side, side))[view(unknown, (side, side)).any((2, 3))].reshape(-1, area)
    offset = image.reshape(-1, 3)[windows]
    offset -= offset.mean(1, keepdims=True)
    covariance = np.einsum("mic,mid->mcd", offset, offset) / area
    lines = offset @ np.linalg.inv(covariance + epsilon / area * np.eye(3))
    # One relative position of two window pixels is one band of the Laplacian.
    position = np.full(unknown.size, len(rows))  # known pixels share one place beyond the others
    position[rows] = np.arange(len(rows))
    bands = np.zeros((2 * reach + 1, 2 * reach + 1, len(rows) + 1))
    for i in range(area):
        at = position[windows[:, i]]
        affinity = (1 + np.einsum("mc,mjc->jm", lines[:, i], offset)) / area
        affinity[i] -= 1
        for j in range(area):
            down, right = j // side - i // side + reach, j % side - i % side + reach
            # For one i every window has another pixel, so no unknown one repeats.
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
    """Settle unknown pixels whose surroundings occur in one known region only (section 3.2.1).

    Surroundings are normal distributions of the colours of 3 x 3 windows, compared by Bhattacharyya
    distance to the ``count`` windows of most similar mean in either region: at most ``match`` to
    one, at least ``other`` to the other. Only the flow from known pixels uses the answer.
    """
    unknown = np.flatnonzero(is_unknown(trimap))
    mean, covariance = _patches(image)
    # The place only breaks ties between equal colours.
    place = features(mean.reshape(image.shape), 0.01)
    volume = np.log(np.linalg.det(covariance))
    distances = []
    for value in (1, 0):
        side = np.flatnonzero(trimap == value)
        best = np.full(len(unknown), np.inf)
        for column in nearest(place[side], place[unknown], count).T:
            there = side[column]
            middle = (covariance[unknown] + covariance[there]) / 2
            offset = mean[unknown] - mean[there]
            along = np.linalg.solve(middle, offset[..., None])[..., 0]
            spread = np.log(np.linalg.det(middle)) - (volume[unknown] + volume[there]) / 2
            best = np.minimum(best, (offset * along).sum(1) / 8 + spread / 2)
        distances.append(best)
    to_foreground, to_background = distances
    trimmed = trimap.copy().ravel()
    trimmed[unknown[(to_foreground < match) & (to_background > other)]] = 1
    trimmed[unknown[(to_background < match) & (to_foreground > other)]] = 0
    return trimmed.reshape(trimap.shape)


def trim_edges(image: Array, trimap: Array, reach: float = 9.0) -> Array:
    """Grow both known regions over unknown pixels of nearly the same colour.

    Shahrian et al. (CVPR 2013): a known pixel at a distance d below ``reach`` settles an unknown
    one whose colour differs by at most ``reach - d`` of 255 levels; the nearest decides.
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
    """Whether the unknown pixels' colours are largely mixtures (section 3.5), as of glass.

    Their histogram is fitted by those of the known ones within 20 pixels; ``misfit`` is the largest
    norm of what remains for an opaque subject, such as hair.
    """
    from scipy.ndimage import distance_transform_edt

    unknown = is_unknown(trimap)
    near = distance_transform_edt(~unknown) <= 20
    sides = [near & (trimap == value) for value in (1, 0)]
    if not all(part.any() for part in (unknown, *sides)):
        return False
    known = np.stack([_histogram(image[side]) for side in sides], 1)
    wanted = _histogram(image[unknown])
    fitted = known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
    return bool(np.linalg.norm(fitted - wanted) > misfit)


@dataclass(frozen=True)
class FlowSystem:
    """The energy of the unknown pixels' opacity (section 3.5): ``A alpha = right``, (U,), in parts.

    ``A = mixture^T mixture + rest`` is symmetric and positive semidefinite, known pixels held fast
    (in the paper, tied by a weight of 100). ``settled`` (H, W) is the trimap and what
    ``trim_edges`` settled; ``transparent`` says whether the flow from known pixels was left out.
    """

    mixture: csr_array
    rest: csr_array
    right: Array
    unknown: Bools
    settled: Array
    transparent: bool

    def product(self, alpha: Array) -> Array:
        """A times ``alpha`` (U,); the dense square of ``mixture`` is never formed."""
        return self.mixture.T @ (self.mixture @ alpha) + self.rest @ alpha

    def diagonal(self) -> Array:
        """Of A, (U,)."""
        return self.mixture.power(2).sum(0) + self.rest.diagonal()

    def matte(self, alpha: Array) -> Array:
        """The opacities ``alpha`` (U,) put where nothing is settled, (H, W) in [0, 1]."""
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
    """Collect the flows into one system; at least one pixel is known. Defaults are published."""
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
    """The colour (N, 3) in [0, 1] that neighbours (N, K, 3) put into a mixture."""
    total = weights.sum(1, keepdims=True)
    # A side that is hardly in the mixture has no colour of its own there: take its mean.
    slight = np.abs(total) < 1e-2
    weights = np.where(slight, 1 / weights.shape[1], weights / np.where(slight, 1, total))
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
    """Of (N, 3) colours: 10 bins a channel, (30,), each channel's with the sum 1."""
    counts = [np.histogram(colors[:, c], bins=10, range=(0, 1))[0] for c in range(3)]
    return np.concatenate(counts) / len(colors)
