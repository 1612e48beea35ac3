"""Each flow against loops over the paper's formulas, and the mattes they make together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("scipy")

from deep_image_compositing.functional import information_flow as flow
from deep_image_compositing.models.refinement.classical import InformationFlowModel

Array = NDArray[np.float64]


def noise(height: int = 6, width: int = 7, seed: int = 0) -> tuple[Array, Array]:
    """8-bit noise and a trimap with a band of three unknown columns."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)) / 255
    trimap = np.zeros((height, width))
    trimap[:, width // 2 :] = 1
    trimap[:, width // 2 - 1 : width // 2 + 2] = 0.5
    return image, trimap


def scene(height: int = 40, width: int = 52, soft: float = 8) -> tuple[Array, Array, Array]:
    """A warm soft-edged disc on a cold textured background: image, trimap and alpha."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    distance = np.hypot(y - 0.45 * height, x - 0.4 * width) - 0.3 * height
    alpha = (0.5 - distance / soft).clip(0, 1)
    texture = 0.15 * random.random((2, height, width, 3))
    front, back = texture[0] + [0.8, 0.4, 0.1], texture[1] + [0.1, 0.3, 0.7]
    image = back + alpha[..., None] * (front - back)
    trimap = np.where(abs(distance) < 0.6 * soft, 0.5, (alpha > 0.5).astype(float))
    return np.round(image * 255) / 255, trimap, alpha


def solve(image: Array, trimap: Array, **options: Any) -> tuple[Array, flow.FlowSystem]:
    system = flow.build_system(image, trimap, **options)
    iterate = InformationFlowModel().iterate  # warns if it does not converge
    return system.matte(
        iterate(system.product, system.right, lambda x: x / system.diagonal())
    ), system


def points(image: Array, weight: float) -> dict[tuple[int, int], Array]:
    """Colour and weighted place of each pixel."""
    height, width = image.shape[:2]
    return {
        (y, x): np.array([*image[y, x], weight * x / width, weight * y / height])
        for y in range(height)
        for x in range(width)
    }


def mixing(target: Array, neighbours: list[Array], ridge: float) -> Array:
    """Constrained least squares by its Lagrangian."""
    offset = np.stack(neighbours) - target
    size = len(offset)
    system = np.ones((size + 1, size + 1))
    system[:size, :size] = offset @ offset.T + ridge * np.eye(size)
    system[size, size] = 0
    return np.linalg.solve(system, [0.0] * size + [1.0])[:size]


def test_color_mixture_flow() -> None:
    image, trimap = noise()
    unknown = trimap == 0.5
    weights = flow.color_mixture_flow(image, unknown, 4).toarray()
    assert np.allclose(weights.sum(1), 1)
    place = points(image, 1)
    for row, (y, x) in zip(weights, np.argwhere(unknown), strict=True):
        others = [q for q in place if q != (y, x)]
        others.sort(key=lambda q: np.linalg.norm(place[q] - place[y, x]))
        expected = np.zeros(trimap.shape)
        parts = mixing(image[y, x], [image[q] for q in others[:4]], 1e-6)
        for q, weight in zip(others, parts, strict=False):
            expected[q] = weight
        assert np.allclose(row, expected.ravel(), atol=1e-6)


def mixed(weights: Array, colors: Array) -> Array:
    """The colour that a side puts into a mixture, its mean where that is hardly any."""
    total = weights.sum()
    return colors.mean(0) if abs(total) < 1e-2 else (weights @ colors / total).clip(0, 1)


def test_known_to_unknown_flow() -> None:
    image, trimap = noise()
    share, confidence = flow.known_to_unknown_flow(image, trimap, 3)
    place = points(image, 10)
    for y, x in np.argwhere(trimap == 0.5):
        near = []
        for value in (1, 0):
            side = [q for q in place if trimap[q] == value]
            side.sort(key=lambda q: np.linalg.norm(place[q] - place[y, x]))
            near += [image[q] for q in side[:3]]
        weights = mixing(image[y, x], near, 1e-6)
        front, back = weights[:3], weights[3:]
        colors = [mixed(front, np.stack(near[:3])), mixed(back, np.stack(near[3:]))]
        assert share[y, x] == pytest.approx(front.sum().clip(0, 1), abs=1e-6)
        difference = np.sum((colors[0] - colors[1]) ** 2) / 3
        assert confidence[y, x] == pytest.approx(difference, abs=1e-5)
    assert np.array_equal(share[trimap != 0.5], trimap[trimap != 0.5])
    assert (confidence[trimap != 0.5] == 1).all()


def test_intra_unknown_flow() -> None:
    image, trimap = noise()
    unknown = trimap == 0.5
    weights = flow.intra_unknown_flow(image, unknown, 4).toarray()
    place = [points(image, 1 / 20)[tuple(q)] for q in np.argwhere(unknown)]
    expected = np.zeros_like(weights)
    for p, here in enumerate(place):
        order = sorted(range(len(place)), key=lambda q: np.linalg.norm(place[q] - here))
        for q in order[1:5]:
            expected[p, q] = max(0, 1 - abs(place[q] - here).sum())
    assert np.allclose(weights, (expected + expected.T) / 2)


def test_spatial_flow_is_the_matting_laplacian() -> None:
    image, trimap = noise()
    height, width = trimap.shape
    unknown = trimap == 0.5
    expected = np.zeros((trimap.size, trimap.size))
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            colors = image[y - 1 : y + 2, x - 1 : x + 2].reshape(9, 3)
            offset = colors - colors.mean(0)
            inverse = np.linalg.inv(offset.T @ offset / 9 + 1e-3 / 9 * np.eye(3))
            at = [v * width + u for v in range(y - 1, y + 2) for u in range(x - 1, x + 2)]
            expected[np.ix_(at, at)] += np.eye(9) - (1 + offset @ inverse @ offset.T) / 9
    rows = flow.matting_laplacian(image, unknown, 1e-3).toarray()
    assert np.allclose(rows, expected[unknown.ravel()], atol=1e-10)


def test_trim_patches() -> None:
    image, trimap = noise(7, 12)
    image = np.round((0.1 * image + 0.5 * (np.arange(12) > 5)[:, None]) * 255) / 255
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")

    def patch(y: int, x: int) -> tuple[Array, Array]:
        colors = padded[y : y + 3, x : x + 3].reshape(9, 3)
        return colors.mean(0), np.cov(colors.T, bias=True) + flow.QUANTUM * np.eye(3)

    expected = trimap.copy()
    for y, x in np.argwhere(trimap == 0.5):
        mean, spread = patch(y, x)
        least = {}
        for value in (0.0, 1.0):
            distances = []
            for v, u in np.argwhere(trimap == value):
                there, around = patch(v, u)
                both = (spread + around) / 2
                offset = mean - there
                ratio = np.linalg.det(both) / np.sqrt(np.linalg.det(spread) * np.linalg.det(around))
                distances.append(offset @ np.linalg.inv(both) @ offset / 8 + np.log(ratio) / 2)
            least[value] = min(distances)
        for value in (0.0, 1.0):
            if least[value] < 0.4 and least[1 - value] > 0.9:
                expected[y, x] = value
    assert (expected != trimap).sum() > 2
    assert np.array_equal(flow.trim_patches(image, trimap, 0.4, 0.9, 1000), expected)


def test_trim_edges() -> None:
    image, trimap = noise(9, 20, seed=1)
    image = np.round((0.15 * image + 0.5 * (np.arange(20) > 10)[:, None]) * 255) / 255
    expected = trimap.copy()
    known = np.argwhere(trimap != 0.5)
    for y, x in np.argwhere(trimap == 0.5):
        near = sorted(known, key=lambda q: np.hypot(q[0] - y, q[1] - x))
        for v, u in near:
            length = np.hypot(v - y, u - x)
            levels = 255 * np.linalg.norm(image[y, x] - image[v, u])
            if length < 9 and levels <= 9 - length + 1e-9:
                expected[y, x] = trimap[v, u]
                break
    assert (expected != trimap).any()
    assert (expected == 0.5).any()
    assert np.array_equal(flow.trim_edges(image, trimap), expected)


def test_mixed_colors_are_taken_for_transparency() -> None:
    image, trimap = noise(30, 60)
    image = 0.1 * image + np.where(np.arange(60) < 30, 0.1, 0.8)[:, None]
    assert not flow.is_highly_transparent(image, trimap)
    image[trimap == 0.5] = 0.5
    assert flow.is_highly_transparent(image, trimap)


@pytest.mark.parametrize("transparent", [True, False])
def test_the_system_is_the_papers_energy(transparent: bool) -> None:
    image, trimap, _ = scene(14, 18, soft=5)
    alpha, system = solve(image, trimap, transparent=transparent, trim=False)
    size = len(system.right)
    matrix = np.stack([system.product(column) for column in np.eye(size)])
    assert np.allclose(matrix, matrix.T, atol=1e-9)
    assert np.allclose(np.diag(matrix), system.diagonal())
    assert np.linalg.eigvalsh(matrix)[0] > -1e-9
    # The same energy over all pixels, densely, the known ones tied to the trimap by 100.
    unknown = (trimap == 0.5).ravel()
    mixture = np.diag(unknown.astype(float))
    mixture[unknown] -= flow.color_mixture_flow(image, trimap == 0.5).toarray()
    affinity = np.zeros_like(mixture)
    affinity[np.ix_(unknown, unknown)] = flow.intra_unknown_flow(image, trimap == 0.5).toarray()
    everywhere = flow.matting_laplacian(image, np.ones_like(trimap, bool)).toarray()
    energy = mixture.T @ mixture + 0.01 * (np.diag(affinity.sum(1)) - affinity) + everywhere
    energy += 100 * np.diag(~unknown)
    right = 100 * (trimap == 1).ravel().astype(float)
    if not transparent:
        share, trust = flow.known_to_unknown_flow(image, flow.trim_patches(image, trimap))
        edges = flow.trim_edges(image, trimap)
        share, trust = np.where(edges == 0.5, share, edges), np.where(edges == 0.5, trust, 1)
        energy += 0.05 * np.diag(trust.ravel() * unknown)
        right += 0.05 * (trust * share).ravel() * unknown
    expected = np.linalg.solve(energy, right).reshape(trimap.shape).clip(0, 1)
    assert abs(alpha - expected).max() < 0.02


@pytest.mark.parametrize("transparent", [None, True, False])
def test_a_known_matte_is_recovered(transparent: bool | None) -> None:
    image, trimap, truth = scene()
    unknown = trimap == 0.5
    alpha, system = solve(image, trimap, transparent=transparent)
    error = abs(alpha - truth)[unknown].mean()
    assert error < 0.06
    assert error < abs(trimap - truth)[unknown].mean() / 4
    assert np.array_equal(alpha[~unknown], trimap[~unknown])
    assert transparent in (None, system.transparent)
