"""Deep Image Matting as a refiner: phases of training, and files that say how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deep_image_compositing import registry
from deep_image_compositing.cli import main
from deep_image_compositing.errors import WeightsError
from deep_image_compositing.stages.making import make_stage
from deep_image_compositing.stages.refinement import DeepImageMattingRefiner
from tests.networks.test_deep_image_matting import as_mmediting, made, reference
from tests.stages.test_trained_matting import scene

SMALL = {"width": 0.1, "batch_norm": True, "skips": True, "context": 3}


@pytest.mark.parametrize(
    ("layout", "context", "refine"),
    [(dict, 1, True), (dict, 7, False), (as_mmediting, 3, True), (as_mmediting, 1, False)],
)
def test_a_published_checkpoint_is_all_it_takes(
    layout: Any, context: int, refine: bool, tmp_path: Path
) -> None:
    state = made(context, refine)
    torch.save({"epoch": 12, "state_dict": layout(state)}, tmp_path / "published.pth")
    weights_file = str(tmp_path / "published.pth")
    refiner = registry.create("refiner", "deep_image_matting", band=0.1, weights=weights_file)
    options = ("width", "context", "refine")
    assert [refiner.hparams[option] for option in options] == [0.125, context, refine]
    image, mask = (scene(4, 32, 32)[key] for key in ("image", "mask"))
    trimap = refiner.make_trimap(mask)
    unknown = trimap == 0.5
    with torch.no_grad():
        expected = reference(state, image, trimap)[1]
    alpha = refiner.eval()(image, mask)
    assert torch.allclose(alpha[unknown], expected[unknown], atol=1e-5)
    assert torch.equal(alpha[~unknown], trimap[~unknown])


def test_a_published_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "published.pth")
    torch.save(made(refine=False), path)
    with pytest.raises(WeightsError, match=r"'refine' is given as True, and .* with False"):
        DeepImageMattingRefiner(refine=True, weights=path)
    state = made()
    for change, said in (
        ({"conv4_2.weight": None}, r"it has no network\.encoder\.3\.1\.0\.weight"),
        ({"conv4_2.weight": torch.zeros(9)}, r"encoder\.3\.1\.0\.weight is \(9,\) in it, and"),
        ({"bn11.weight": torch.zeros(8)}, r"it has network\.bn11\.weight, and the stage does not"),
    ):
        torch.save({k: v for k, v in {**state, **change}.items() if v is not None}, path)
        with pytest.raises(WeightsError, match=said):
            DeepImageMattingRefiner(weights=path)


def test_a_published_checkpoint_becomes_a_weights_file(tmp_path: Path) -> None:
    torch.save({"epoch": 12, "state_dict": made()}, tmp_path / "other.ckpt")
    out = str(tmp_path / "ours.safetensors")
    stage = ["--stage", "refiner/deep_image_matting", "--option", "width=0.125"]
    assert main(["export-weights", str(tmp_path / "other.ckpt"), *stage, "-o", out]) == 0
    again: Any = make_stage("refiner", ("deep_image_matting", {"weights": out}))
    assert again.hparams["width"] == 0.125


def test_a_backbone_is_not_trained_but_what_it_adds_is() -> None:
    torch.manual_seed(0)
    refiner = DeepImageMattingRefiner(**SMALL, backbone="tf_efficientnet_lite0")  # type: ignore[arg-type]
    refiner.train()
    refiner.loss(scene(4, 32, 32)).loss.backward()
    features = refiner.network.features
    assert features is not None
    assert all(parameter.grad is None for parameter in features.parameters())
    assert not features.body.bn1.training
    for projection in refiner.network.projections.values():
        assert projection.weight.grad.abs().max() > 0


def test_phases_train_their_part() -> None:
    batch = scene(4, 32, 32)
    parts = {
        "encoder_decoder": {"alpha", "composition"},
        "refinement": {"refined"},
        "all": {"alpha", "composition", "refined"},
    }
    for phase, names in parts.items():
        refiner = DeepImageMattingRefiner(**SMALL, phase=phase).train()  # type: ignore[arg-type]
        optimizer = torch.optim.SGD([p for p in refiner.parameters() if p.requires_grad], 0.1)
        before = {key: value.clone() for key, value in refiner.network.state_dict().items()}
        for _ in range(2):
            optimizer.zero_grad()
            step = refiner.loss(batch)
            step.loss.backward()
            optimizer.step()
        assert set(step.terms) == names
        changed = {
            key.split(".")[0]
            for key, value in refiner.network.state_dict().items()
            if not torch.equal(value, before[key])
        }
        core = {"encoder", "bottom", "decoder", "head"}
        expected = {"encoder_decoder": core, "refinement": {"refinement"}}
        assert changed == expected.get(phase, core | {"refinement"})
