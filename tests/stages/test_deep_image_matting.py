"""Deep Image Matting as a refiner: phases of training, and files that say how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing import registry, weights
from deep_image_compositing.cli import main
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.stages.making import restore_stage
from deep_image_compositing.stages.refinement import DeepImageMattingRefiner
from tests.networks.test_deep_image_matting import as_mmediting, made, reference

SMALL = {"width": 0.1, "batch_norm": True, "skips": True, "context": 3}


def scene(side: int = 32) -> dict[str, Tensor]:
    """Bright noise before dark noise, with a soft edge."""
    generator = torch.Generator().manual_seed(0)
    color, old = torch.rand((2, 4, 3, side, side), generator=generator)
    color, old = 0.6 + 0.4 * color, 0.4 * old
    place = side * torch.rand((4, 1, 1, 1), generator=generator)
    alpha = ((torch.arange(side) - place) / 6 + 0.5).clamp(0, 1).expand(4, 1, side, side)
    mask = (alpha > 0.5).float()
    image = old + alpha * (color - old)
    return {"image": image, "mask": mask, "alpha": alpha} | {
        "foreground_color": color,
        "background": old,
    }


def published(folder: Path, **options: Any) -> Path:
    """A checkpoint as it is published."""
    path = folder / "stage1_sad.pth"
    torch.save({"epoch": 12, "state_dict": made(**options)}, path)
    return path


def test_without_weights_it_is_the_published_network() -> None:
    refiner = DeepImageMattingRefiner()
    assert refiner.hparams["width"] == 1
    assert not refiner.hparams["skips"]
    assert refiner.network.head.in_channels == 64


@pytest.mark.parametrize("layout", [dict, as_mmediting])
@pytest.mark.parametrize("refine", [True, False])
def test_a_published_checkpoint_is_all_it_takes(layout: Any, refine: bool, tmp_path: Path) -> None:
    state = made(refine=refine)
    torch.save({"epoch": 12, "state_dict": layout(state)}, tmp_path / "published.pth")
    weights_file = str(tmp_path / "published.pth")
    refiner = registry.create("refiner", "deep_image_matting", band=0.1, weights=weights_file)
    assert refiner.hparams["refine"] == refine
    image, mask = (scene()[key] for key in ("image", "mask"))
    trimap = refiner.make_trimap(mask)
    unknown = trimap == 0.5
    with torch.no_grad():
        expected = reference(state, image, trimap)[1]
    alpha = refiner.eval()(image, mask)
    assert torch.allclose(alpha[unknown], expected[unknown], atol=1e-5)
    assert torch.equal(alpha[~unknown], trimap[~unknown])


def test_a_published_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = str(published(tmp_path, refine=False))
    with pytest.raises(WeightsError, match=r"'refine' is given as True, and .* with False"):
        DeepImageMattingRefiner(refine=True, weights=path)
    state = made()
    del state["conv4_2.weight"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"lacks conv4_2\.weight"):
        DeepImageMattingRefiner(weights=path)


@pytest.mark.parametrize("backbone", [None, "tf_efficientnet_lite0"])
def test_a_file_says_how_its_network_is_made(backbone: str | None, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "backbone": backbone}
    refiner = DeepImageMattingRefiner(**options)
    weights.save(refiner, tmp_path / "small.safetensors")
    again = DeepImageMattingRefiner(weights=str(tmp_path / "small.safetensors"))
    assert {key: again.hparams[key] for key in options} == options
    for key, value in refiner.network.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(again.network.state_dict()[key], value.half().float()), key
    with pytest.raises(WeightsError, match="does not fit DeepImageMattingRefiner"):
        DeepImageMattingRefiner(width=0.3, weights=str(tmp_path / "small.safetensors"))


def test_checkpoints_become_weights(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    refiner = DeepImageMattingRefiner(**SMALL)  # type: ignore[arg-type]
    trainer.strategy.connect(refiner)
    trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    published(tmp_path).rename(tmp_path / "other.ckpt")
    for name, options in (("own", []), ("other", ["--option", "width=0.125"])):
        out = str(tmp_path / f"{name}.safetensors")
        stage = ["--stage", "refiner/deep_image_matting", *options]
        assert main(["export-weights", str(tmp_path / f"{name}.ckpt"), *stage, "-o", out]) == 0
        restored = restore_stage("refiner", "deep_image_matting", out)
        assert restored.hparams["width"] == (0.1 if name == "own" else 0.125)
    own = restore_stage("refiner", "deep_image_matting", tmp_path / "own.safetensors")
    for key, value in refiner.network.named_parameters():
        assert torch.equal(own.network.get_parameter(key), value.half().float()), key


def test_a_backbone_is_not_trained_but_what_it_adds_is() -> None:
    torch.manual_seed(0)
    refiner = DeepImageMattingRefiner(**SMALL, backbone="tf_efficientnet_lite0")  # type: ignore[arg-type]
    refiner.train()
    refiner.loss(scene()).loss.backward()
    features = refiner.network.features
    assert features is not None
    assert all(parameter.grad is None for parameter in features.parameters())
    assert not features.body.bn1.training
    for projection in refiner.network.projections.values():
        assert projection.weight.grad.abs().max() > 0


def test_phases_train_their_part() -> None:
    batch = scene()
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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"phase": "both"}, "'all', 'encoder_decoder' or 'refinement', got 'both'"),
        ({"phase": "refinement", "refine": False}, "no refinement stage to train"),
        ({"width": -1}, "width must be above 0"),
        ({"width": 0.5, "pretrained": "vgg.pth"}, "need width"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DeepImageMattingRefiner(**wrong)


@pytest.mark.slow
def test_it_learns() -> None:
    torch.manual_seed(0)
    batch = scene(64)
    refiner = DeepImageMattingRefiner(**SMALL, widths=(3, 6)).train()  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(refiner.parameters(), 2e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = refiner.loss(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
