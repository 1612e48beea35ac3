"""The losses: zero where nothing differs, the stated weights elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from deep_image_compositing.errors import WeightsError
from deep_image_compositing.losses import (
    PerceptualLoss,
    cross_entropy,
    laplacian_loss,
    mask_loss,
    subject_loss,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(1)
    path = tmp_path / "backbone.safetensors"
    model = timm.create_model("test_efficientnet", pretrained=False)
    safetensors.torch.save_file(model.state_dict(), path)
    return str(path)


def test_laplacian_loss_ignores_offsets_and_is_symmetric_and_linear() -> None:
    a, b = noise(2, 3, 17, 23), noise(2, 3, 17, 23, seed=1)
    assert laplacian_loss(a, a) == 0
    assert laplacian_loss(a, a + 0.25) == pytest.approx(0, abs=1e-5)
    assert laplacian_loss(a, b) == pytest.approx(float(laplacian_loss(b, a)), rel=1e-5)
    half = laplacian_loss(a, a + 0.5 * (b - a))
    assert half == pytest.approx(0.5 * float(laplacian_loss(a, b)), rel=1e-4)


def test_laplacian_loss_by_hand() -> None:
    # A checkerboard of ±1 is all in the finest level: its 2 x 2 means are 0.
    board = (torch.arange(8).view(-1, 1) + torch.arange(8)) % 2 * 2.0 - 1
    value = laplacian_loss(board.expand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    assert value == pytest.approx(1.0, abs=1e-6)
    # 2 x 2 blocks of ±1 pass on to the next level, which counts twice.
    blocks = board[:4, :4].repeat_interleave(2, 0).repeat_interleave(2, 1).expand(1, 1, 8, 8)
    first = laplacian_loss(blocks, 0 * blocks, levels=1)
    both = laplacian_loss(blocks, 0 * blocks, levels=2)
    assert both - first == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_laplacian_loss_of_small_pictures(size: tuple[int, int]) -> None:
    value = laplacian_loss(noise(1, 1, *size), noise(1, 1, *size, seed=1))
    assert value.isfinite()
    assert value >= 0


def test_laplacian_loss_in_half_precision_is_computed_in_single() -> None:
    a, b = noise(1, 1, 16, 16).half(), noise(1, 1, 16, 16, seed=1).half()
    assert laplacian_loss(a, b) == laplacian_loss(a.float(), b.float())


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
    target = torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    parts = [0.693147, 0.126928]
    assert cross_entropy(logits, target) == pytest.approx(sum(parts) / 2, abs=1e-5)
    weight = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2)
    assert cross_entropy(logits, target, weight) == pytest.approx(parts[1], abs=1e-5)
    assert cross_entropy(logits, target, 0 * weight) == 0


def test_mask_loss_by_hand() -> None:
    # Pixels of 1, 1, 0, 0; the mask says 1, 0, 0, 0 (up to e⁻²⁰): half of the region is missed,
    # and the step of the outline, one of three differences, lies a pixel off.
    logits = torch.tensor([20.0, -20.0, -20.0, -20.0]).view(1, 1, 1, 4)
    target = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
    terms = mask_loss(logits, target, iou=2.0, gradient=3.0)
    assert terms["cross_entropy"] == pytest.approx(20 / 4, abs=1e-5)
    assert terms["iou"] == pytest.approx(2 * (1 - (1 + 1) / (2 + 1)), abs=1e-5)
    assert terms["gradient"] == pytest.approx(3 * 2 / 4, abs=1e-5)
    # Where nothing is trusted nothing is learned; where all is right nothing is left.
    trusted = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 4)
    assert mask_loss(logits, target, trusted)["cross_entropy"] == pytest.approx(0, abs=1e-5)
    right = mask_loss(40 * target - 20, target)
    assert all(float(term) == pytest.approx(0, abs=1e-5) for term in right.values())


def test_mask_loss_counts_small_and_large_subjects_alike() -> None:
    target = torch.zeros(2, 1, 40, 40)
    target[0, :, :4, :4], target[1, :, :30, :30] = 1, 1
    missed = [mask_loss(torch.full((1, 1, 40, 40), -20.0), t[None]) for t in target]
    assert missed[0]["cross_entropy"] < 0.05 * missed[1]["cross_entropy"]
    assert missed[0]["iou"] > 0.9 * missed[1]["iou"]


def test_perceptual_loss_is_zero_only_for_equal_pictures(checkpoint: str) -> None:
    loss = PerceptualLoss("test_efficientnet", checkpoint)
    a = noise(2, 3, 32, 32)
    assert loss(a, a) == 0
    near, far = loss(a + 0.02 * noise(2, 3, 32, 32, seed=1), a), loss(noise(2, 3, 32, 32), 1 - a)
    assert 0 < near < far


def test_perceptual_loss_is_frozen_but_lets_gradients_through(checkpoint: str) -> None:
    loss = PerceptualLoss("test_efficientnet", checkpoint).train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    output = noise(1, 3, 32, 32).requires_grad_()
    target = noise(1, 3, 32, 32, seed=1).requires_grad_()
    loss(output, target).backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0
    assert target.grad is None
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())


def test_perceptual_loss_never_runs_on_random_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        PerceptualLoss("test_efficientnet", str(tmp_path / "none.safetensors"))
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("offline")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match="could not be fetched"):
        PerceptualLoss("test_efficientnet")


def test_subject_loss_counts_the_subject_alone_and_each_picture_alike() -> None:
    target, mask = torch.full((2, 3, 10, 10), 0.5), torch.zeros(2, 1, 10, 10)
    mask[0, :, :5], mask[1, :, :1] = 1, 0.2  # half of one picture, a tenth of the other
    output = target + 0.1
    terms = subject_loss(output, target, mask)
    assert {name: round(float(value), 5) for name, value in terms.items()} == {
        "l1": 0.1, "mse": 0.1, "log": round(0.05 * math.log(1 + 0.01 * 127.5**2), 5),
    }  # fmt: skip
    outside = torch.where(mask > 0, target, torch.zeros(()))
    assert float(sum(subject_loss(outside, target, mask).values())) == 0
    # A subject of a pixel counts as one of a hundredth of the picture would.
    tiny = torch.zeros(1, 1, 20, 20)
    tiny[..., 3, 4] = 1
    small = subject_loss(torch.full((1, 3, 20, 20), 0.6), torch.full((1, 3, 20, 20), 0.5), tiny)
    assert float(small["l1"]) == pytest.approx(0.1 * (1 / 400) / 0.01)
