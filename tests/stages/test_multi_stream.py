"""The learned fusers beyond their contract: the band, the heads, wrong options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing.functional.compose import over
from deep_image_compositing.models.fusion.multi_stream import FINE_RADIUS, band_trimap
from deep_image_compositing.registry import create
from deep_image_compositing.stages.base import Layers
from tests.contract.test_stages import inputs, training_batch
from tests.functional.test_exactness import rough, strands


def test_the_band_is_as_wide_as_its_radius() -> None:
    alpha = torch.zeros(1, 1, 3, 20)
    alpha[..., 10:] = 1
    for radius in (1, 3):
        expected = (torch.arange(20) >= 10).float()
        expected[10 - radius : 10 + radius] = 0.5
        assert torch.equal(band_trimap(alpha, radius)[0, 0, 1], expected)
    almost = torch.tensor([0.0, 0.04, 0.5, 0.96, 1.0]).view(5, 1, 1, 1)
    assert band_trimap(almost, 1).flatten().tolist() == [0, 0, 0.5, 1, 1]


def test_given_start_before_training_is_alpha_blending() -> None:
    fuser = create("fuser", "multi_stream", widths=(4, 6), radius=3, start="given").eval()
    tensors = inputs("fuser", 2, 16, 40)
    assert torch.allclose(fuser(*tensors.values()), plain(tensors), atol=1e-6)


def plain(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return over(tensors["foreground"], tensors["alpha"], tensors["background"])


def test_an_exact_alpha_is_kept() -> None:
    torch.manual_seed(0)
    fuser = create("fuser", "multi_stream", widths=(4, 6), radius=3).eval()
    torch.nn.init.normal_(fuser.network.head.weight)
    photograph, alpha = strands()
    known = band_trimap(alpha, 3)
    kept = torch.where(known == 0.5, alpha, known)
    behind = torch.rand_like(photograph)
    assert torch.allclose(fuser.layers(photograph, behind, alpha).alpha, kept, atol=1e-6)
    soft = rough(alpha)
    assert (fuser.layers(photograph, behind, soft).alpha - soft).abs().max() > 0.1
    half = fuser.to(torch.bfloat16).layers(photograph, behind, alpha)
    assert torch.allclose(half.alpha, kept, atol=0.01)
    fuser.float().keep_exact = False
    assert (fuser.layers(photograph, behind, alpha).alpha - kept).abs().max() > 0.1


FINER: dict[str, Any] = {"widths": (4, 6), "radius": 3, "finer_widths": (4, 6)}


def lifted(size: int = 40) -> tuple[Tensor, Tensor, Layers]:
    """A photograph, a new background, and layers as they come from a smaller size."""
    given = inputs("fuser", 2, size, size)
    photograph = given["foreground"]
    return photograph, given["background"], Layers(given["alpha"], photograph, 1 - photograph)


def test_untrained_the_finer_step_changes_nothing() -> None:
    fuser = create("fuser", "multi_stream", **FINER).eval()
    photograph, new, coarse = lifted()
    coarse.alpha = (coarse.alpha * 4 - 1.5).clamp(0, 1)
    answer = fuser.finer_layers(photograph, new, coarse)
    known = band_trimap(coarse.alpha, FINE_RADIUS)
    expected = torch.where(known == 0.5, coarse.alpha, known)
    assert torch.allclose(answer.alpha, expected)
    assert torch.allclose(answer.foreground_color, photograph)


def test_there_is_no_finer_step_without_a_network_or_the_old_background() -> None:
    photograph, new, coarse = lifted()
    plain = create("fuser", "multi_stream", widths=(4, 6)).eval()
    assert plain.finer_layers(photograph, new, coarse) is None
    coarse.old_background = None
    assert create("fuser", "multi_stream", **FINER).finer_layers(photograph, new, coarse) is None
    rgb = create("fuser", "multi_stream", head="rgb", widths=(4, 6))
    assert rgb.tile_context is None


def test_the_first_pass_knows_what_was_behind_the_subject() -> None:
    fuser = create("fuser", "multi_stream", **FINER).eval()
    answer = fuser.layers(*inputs("fuser", 1, 40, 40).values())
    assert answer.old_background.shape == (1, 3, 40, 40)
    clear = answer.alpha.expand(-1, 3, -1, -1) == 0
    photograph = inputs("fuser", 1, 40, 40)["foreground"]
    assert torch.equal(answer.old_background[clear], photograph[clear])


@pytest.mark.parametrize("size", [1, 2, 8])
def test_both_networks_learn_at_every_step(size: int) -> None:
    fuser = create("fuser", "multi_stream", two_sizes=0.25, **FINER).train()
    for network in (fuser.network, fuser.finer):
        torch.nn.init.normal_(network.head.weight, std=0.1)
    step = fuser.loss(training_batch("fuser", batch=size))
    step.loss.backward()
    for name, parameter in fuser.named_parameters():
        assert parameter.grad is not None, name
    assert fuser.network.training
