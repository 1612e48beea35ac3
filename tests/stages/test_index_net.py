"""The refiner index_net: the published checkpoint, what describes the network, rates, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from deep_image_compositing.errors import CompositingError, WeightsError
from deep_image_compositing.stages.making import make_stage
from deep_image_compositing.stages.refinement import IndexNetRefiner
from tests.stages.published_index_net import published_alpha, published_state


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the authors' training writes it, of an old torch and two devices."""
    state = {f"module.{name}": value for name, value in published_state().items()}
    content = {"state_dict": state, "epoch": 30, "measure": {"sad": [np.float64(45.8)]}}
    path = tmp_path_factory.mktemp("published") / "indexnet_matting.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def scene() -> tuple[Tensor, Tensor]:
    """Noise, and a mask with an upright outline."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return image, (torch.arange(64) > 30).float().expand(1, 1, 64, 64)


def test_the_published_checkpoint_loads_as_it_is(published: Path) -> None:
    refiner = IndexNetRefiner(weights=str(published), band=0.1).eval()
    image, mask = scene()
    trimap = refiner.make_trimap(mask)
    expected = torch.where(trimap == 0.5, published_alpha(published_state(), image, trimap), trimap)
    torch.testing.assert_close(refiner(image, mask), expected, rtol=1e-3, atol=1e-4)
    options = {"weights": str(published), "band": 0.1}
    again: Any = make_stage("refiner", ("index_net", options))
    assert torch.equal(again.eval()(image, mask), refiner(image, mask))


def test_a_published_checkpoint_that_does_not_fit_is_named(published: Path, tmp_path: Path) -> None:
    said = r"encoder\.0\.0\.weight is \(32, 4, 3, 3\) in it, and \(16, 4, 3, 3\) in the stage, and"
    with pytest.raises(WeightsError, match=said):
        IndexNetRefiner(width=0.5, weights=str(published))
    state = published_state()
    del state["index3.indexnet2.0.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"has no network\.indices\.3\.layers\.0\.weight, and"):
        IndexNetRefiner(weights=str(tmp_path / "part.pth"))


def test_the_encoder_begins_as_mobilenet_and_learns_slower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("mobilenetv2_100", pretrained=False)
    torch.save(source.state_dict(), tmp_path / "mobilenetv2.pth")
    refiner = IndexNetRefiner(
        pretrained=str(tmp_path / "mobilenetv2.pth"), encoder_rate=0.01, learning_rate=0.01
    )
    encoder = refiner.network.encoder
    stem = encoder[0][0].weight  # type: ignore[index]
    assert torch.equal(stem[:, :3], source.conv_stem.weight)
    assert not stem[:, 3].any()
    block, own = source.blocks[5][2], encoder[6][2].layers  # type: ignore[index]
    assert torch.equal(own[3].weight, block.conv_dw.weight)
    assert torch.equal(own[7].running_var, block.bn3.running_var)
    groups = refiner.configure_optimizers().param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-2, 1e-2, 1e-4, 1e-4])
    slow = {id(p) for group in groups[2:] for p in group["params"]}
    assert slow == {id(p) for p in encoder.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(refiner.parameters()))


def test_memory_follows_the_width() -> None:
    image, mask = scene()
    assert IndexNetRefiner().bytes_per_pixel() == 2 * IndexNetRefiner(0.5).bytes_per_pixel()
    refiner = IndexNetRefiner(0.1, max_memory=0.001)
    with pytest.raises(CompositingError, match=r"index_net would take about .* set max_side="):
        refiner(image, mask)
