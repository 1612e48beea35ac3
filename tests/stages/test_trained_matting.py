"""What matting refiners with a trained network share, on one whose network is a single layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deep_image_compositing.stages.matting import TrainedMattingRefiner, trimap_from_alpha


class RedNetwork(nn.Module):
    """Alpha is a share of the red channel."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[torch.dtype, torch.Size]] = []

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        assert set(trimap.unique().tolist()) <= {0, 0.5, 1}
        self.seen.append((image.dtype, image.shape))
        return (self.share * image[:, :1]).clamp(0, 1)


class TrainedRed(TrainedMattingRefiner):
    """Takes 1 MB a pixel."""

    method = "red"
    network: RedNetwork

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = RedNetwork()

    def bytes_per_pixel(self) -> float:
        return 1e6


def scene(batch: int = 1, height: int = 30, width: int = 40) -> dict[str, Tensor]:
    """Noise over noise under a soft edge, and the edge cut as its mask."""
    generator = torch.Generator().manual_seed(0)
    color, old = torch.rand((2, batch, 3, height, width), generator=generator)
    alpha = ((torch.arange(width) - width / 2 + 0.5) / 8 + 0.5).clamp(0, 1)
    alpha = alpha.expand(batch, 1, height, width)
    image = old + alpha * (color - old)
    mask = (alpha > 0.5).float()
    parts = {"image": image, "mask": mask, "alpha": alpha}
    return {**parts, "foreground_color": color, "background": old}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_network_works_in_its_own_precision_and_fills_what_is_unknown(
    dtype: torch.dtype,
) -> None:
    batch = scene()
    refiner = TrainedRed(band=0.1).to(dtype)
    alpha = refiner(batch["image"], batch["mask"])
    unknown = refiner.make_trimap(batch["mask"]) == 0.5
    assert refiner.network.seen == [(dtype, batch["image"].shape)]
    assert alpha.dtype == torch.float32
    assert not alpha.requires_grad
    assert torch.equal(alpha[~unknown], batch["mask"][~unknown])
    red = batch["image"][:, :1].to(dtype).float()
    assert torch.equal(alpha[unknown], red[unknown])


def test_as_many_at_a_time_as_memory_holds() -> None:
    batch = scene(5)
    refiner = TrainedRed(max_memory=2.5)
    alpha = refiner(batch["image"], batch["mask"])
    assert [shape[0] for _, shape in refiner.network.seen] == [2, 2, 1]
    assert torch.equal(alpha, TrainedRed(max_memory=100)(batch["image"], batch["mask"]))


def test_the_loss_is_the_paper_s_over_what_is_unknown() -> None:
    batch = scene(4)
    refiner = TrainedRed(widths=(3, 3))
    torch.manual_seed(0)
    step = refiner.loss(batch)
    torch.manual_seed(0)
    trimap = refiner.random_trimap(batch)
    unknown = (trimap == 0.5).expand(4, 1, 30, 40)
    off = (batch["image"][:, :1] - batch["alpha"]).abs()
    assert step.terms["alpha"].item() == pytest.approx(off[unknown].mean().item() / 2, rel=1e-4)
    apart = (batch["foreground_color"] - batch["background"]).abs() * off
    expected = apart[unknown.expand_as(apart)].mean().item() / 2
    assert step.terms["composition"].item() == pytest.approx(expected, rel=1e-4)
    assert step.loss.item() == pytest.approx(sum(v.item() for v in step.terms.values()))
    step.loss.backward()
    assert refiner.network.share.grad is not None
    assert refiner.network.share.grad.abs() > 0


def test_with_nothing_unknown_the_loss_is_zero_and_has_a_gradient() -> None:
    batch = scene()
    colorless = {key: value for key, value in batch.items() if key != "background"}
    assert list(TrainedRed().loss(colorless).terms) == ["alpha"]
    batch["alpha"] = batch["mask"] = torch.ones_like(batch["mask"])
    refiner = TrainedRed()
    step = refiner.loss(batch)
    step.loss.backward()
    assert step.loss == 0
    assert refiner.network.share.grad == 0


def test_random_trimaps_come_from_alphas_and_from_masks() -> None:
    batch = scene(40)
    batch["mask"] = torch.roll(batch["mask"], 9, -1)
    batch["mask"][..., :9] = 0
    torch.manual_seed(0)
    trimaps = TrainedRed(widths=(2, 4)).random_trimap(batch)
    widths = (trimaps == 0.5)[:, 0, 0].sum(1)
    # The alpha is between 0 and 1 over 8 columns, to which twice 2 to 4 are added.
    assert set(widths.tolist()) == {4, 6, 8, 12, 14, 16}
    exact = widths >= 12
    assert 10 < int(exact.sum()) < 30
    wrong = (trimaps != 0.5) & ((trimaps - batch["alpha"]).abs() > 0.02)
    assert not wrong[exact].any()
    assert wrong[~exact].any()


def test_the_trimap_of_an_alpha() -> None:
    alpha = torch.tensor([0.0, 0, 0, 0.3, 1, 1, 1, 1, 0, 0]).expand(1, 1, 1, 10)
    assert trimap_from_alpha(alpha, 0).flatten().tolist() == [0, 0, 0, 0.5, 1, 1, 1, 1, 0, 0]
    expected = [0, 0, 0.5, 0.5, 0.5, 1, 1, 0.5, 0.5, 0]
    assert trimap_from_alpha(alpha, 1).flatten().tolist() == expected
