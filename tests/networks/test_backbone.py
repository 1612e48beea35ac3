"""Backbones: which features, which weights, what is frozen, and how a mask gets in."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.networks import efficientnet_lite
from deep_image_compositing.networks.backbone import Backbone

NAMES = ["test_efficientnet", "mobilenetv3_small_050", "test_resnet"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole classifier's checkpoint, as timm names its parameters."""
    torch.manual_seed(1)
    model = timm.create_model("test_efficientnet", pretrained=False)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    path = tmp_path / "backbone.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return path


def picture() -> Tensor:
    return torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_stride", [4, 16, 32])
def test_one_feature_a_stride(name: str, max_stride: int) -> None:
    backbone = Backbone(name, max_stride=max_stride)
    assert backbone.strides == [s for s in (2, 4, 8, 16, 32) if s <= max_stride]
    features = backbone(picture())
    shapes = [tuple(f.shape) for f in features]
    expected = zip(backbone.channels, backbone.strides, strict=True)
    assert shapes == [(2, c, -(-64 // s), -(-48 // s)) for c, s in expected]


def test_features_whose_channels_come_last_are_turned() -> None:
    backbone = Backbone("swin_tiny_patch4_window7_224", max_stride=8)
    shapes = [tuple(feature.shape) for feature in backbone(torch.rand(1, 3, 224, 224))]
    assert shapes == [(1, 96, 56, 56), (1, 192, 28, 28)]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_that_no_feature_needs(name: str) -> None:
    backbone = Backbone(name, max_stride=8)
    sum(feature.sum() for feature in backbone(picture())).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (33, 65)])
def test_the_encoder_of_the_shipped_weights_is_timms(size: tuple[int, int], training: bool) -> None:
    torch.manual_seed(0)
    name, indices = efficientnet_lite.NAME, (0, 1, 2, 3, 4)
    theirs = timm.create_model(name, features_only=True, out_indices=indices).train(training)
    ours = efficientnet_lite.EfficientNetLite().train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for own, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert own.shape == their.shape
        assert own.std().item() == pytest.approx(their.std().item(), rel=0.2, abs=1e-6)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 3, *size)
    for own, their in zip(ours(image), theirs(image), strict=True):
        assert torch.equal(own, their)
    described = theirs.feature_info.get_dicts(["module", "num_chs", "reduction"])
    assert list(efficientnet_lite.FEATURES) == described
    config = timm.get_pretrained_cfg(name)
    assert (config.mean, config.std) == (efficientnet_lite.MEAN, efficientnet_lite.STD)


def test_cut_blocks_change_no_feature_and_may_be_in_files() -> None:
    backbone = Backbone("test_efficientnet", max_stride=8).eval()
    whole = timm.create_model(
        "test_efficientnet", pretrained=False, features_only=True, out_indices=(0, 1, 2)
    ).eval()
    state = {f"body.{key}": value for key, value in whole.state_dict().items()}
    assert len(state) > len(backbone.state_dict())
    backbone.load_state_dict(state)
    expected = whole((picture() - backbone.mean) / backbone.std)
    for got, wanted in zip(backbone(picture()), expected, strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(RuntimeError, match="Unexpected"):
        backbone.load_state_dict({**state, "body.blocks.0.other": torch.zeros(1)})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_checkpoint(checkpoint: Path, suffix: str) -> None:
    state = safetensors.torch.load_file(checkpoint)
    if suffix == ".pth":
        torch.save(state, checkpoint.with_suffix(suffix))
    backbone = Backbone("test_efficientnet", str(checkpoint.with_suffix(suffix)), max_stride=16)
    for name, tensor in backbone.body.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_what_cannot_be_had_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no backbone 'lite0'; similar: .*efficientnet_lite0"):
        Backbone("lite0")
    with pytest.raises(WeightsError, match=r"no checkpoint for the backbone.*none\.pth"):
        Backbone("test_efficientnet", str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match=r"does not fit the timm backbone 'test_resnet': .*"):
        Backbone("test_resnet", str(checkpoint))
    state = safetensors.torch.load_file(checkpoint)
    state["conv_stem.weight"] = torch.zeros(24, 4, 3, 3)
    safetensors.torch.save_file(state, checkpoint)
    with pytest.raises(WeightsError, match=r"conv_stem\.weight has shape \(24, 4, 3, 3\), exp"):
        Backbone("test_efficientnet", str(checkpoint))


def test_a_backbone_for_one_size_says_so() -> None:
    backbone = Backbone("test_vit")
    assert len(backbone(torch.rand(1, 3, 160, 160))) == len(backbone.channels)
    with pytest.raises(UsageError, match=r"'test_vit' takes pictures of 160 x 160 .* got 48 x 64"):
        backbone(picture())


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no route to host")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"could not be fetched \(no route to host\); give a"):
        Backbone("test_efficientnet", "pretrained")
    Backbone("test_efficientnet")


def test_a_mask_changes_nothing_at_first_and_then_does(checkpoint: Path) -> None:
    plain = Backbone("test_efficientnet", str(checkpoint)).eval()
    masked = Backbone("test_efficientnet", str(checkpoint), extra_channels=1).eval()
    image, mask = picture(), picture()[:, :1]
    for a, b in zip(plain(image), masked(image, mask), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    masked(image, mask)[0].square().sum().backward()
    weight = masked.body.conv_stem.weight
    assert weight.grad[:, 3].abs().sum() > 0


@pytest.mark.parametrize("extra", [0, 1])
def test_frozen_layers_keep_weights_and_statistics(extra: int) -> None:
    backbone = Backbone("test_efficientnet", extra_channels=extra, freeze_stride=4)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone.train()
    mask = picture()[:, :1] if extra else None
    sum(feature.square().mean() for feature in backbone(picture(), mask)).backward()
    optimizer.step()
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    early = {k for k in before if k.startswith(("body.blocks.0", "body.blocks.1", "body.bn1"))}
    assert early
    assert not changed & early
    # A stem that was given a mask channel has to learn it, whatever is frozen.
    assert ("body.conv_stem.weight" in changed) == bool(extra)
    assert any(k.startswith("body.blocks.2") for k in changed)
    assert any(k.startswith("body.blocks.4") and k.endswith("running_mean") for k in changed)
