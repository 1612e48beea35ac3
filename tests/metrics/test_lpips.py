"""LPIPS with a file of AlexNet's shape, against its formula; without a file it says so."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.metrics.lpips import LPIPS, find_lpips

SHAPES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def alexnet() -> dict[str, Tensor]:
    """Random weights by the names and shapes of torchvision's AlexNet, and a part of its head."""
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for number, (out, into, size) in SHAPES.items():
        shape = (out, into, size, size)
        scale = (2 / (into * size * size)) ** 0.5
        state[f"features.{number}.weight"] = scale * torch.randn(shape, generator=generator)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet(), path)
    return path


def pictures(height: int = 70, width: int = 97) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(3, height, width, generator=generator)
    return (truth + 0.2 * torch.rand(3, height, width, generator=generator)).clamp(0, 1), truth


def test_it_is_torchmetrics_own(weights: Path) -> None:
    composite, truth = pictures()
    before = torch.get_rng_state()
    network = LPIPS(weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.train().network.training
    theirs = network.network(composite[None], truth[None], normalize=True)
    value, in_band = network(composite, truth)
    assert value == pytest.approx(float(theirs), rel=1e-5)
    assert math.isnan(in_band)
    band = torch.zeros(1, 70, 97, dtype=torch.bool)
    band[:, 20:40, 30:50] = True
    network.network.spatial = True
    theirs = network.network(composite[None], truth[None], normalize=True)[0, band]
    assert network(composite, truth, band) == pytest.approx((value, float(theirs.mean())), rel=1e-5)
    assert network(truth, truth)[0] == 0


def test_without_weights_it_is_absent_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    network, reason = find_lpips()
    assert network is None
    assert "no alexnet-owt-7be5be79.pth in torch hub's folder; nothing is downloaded" in reason
    (tmp_path / "checkpoints").mkdir()
    torch.save(alexnet(), tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth")
    network, reason = find_lpips()
    assert isinstance(network, LPIPS)
    assert reason == ""


def test_a_file_that_was_named_must_be_right(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*missing\.pth"):
        find_lpips(tmp_path / "missing.pth")
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsError, match=r"other\.pth is no AlexNet of torchvision"):
        find_lpips(other)
    small = alexnet()
    small["features.0.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(small, other)
    with pytest.raises(WeightsError, match=r"other\.pth is no AlexNet of torchvision"):
        find_lpips(other)


def test_pictures_it_cannot_compare(weights: Path) -> None:
    network = LPIPS(weights)
    assert all(map(math.isnan, network(*pictures(63, 80))))
    with pytest.raises(UsageError, match="of the same size"):
        network(torch.zeros(3, 70, 70), torch.zeros(3, 70, 71))
