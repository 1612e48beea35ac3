"""Deep Image Matting's networks: the published shape, and weights of other implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.networks.deep_image_matting import DeepImageMattingNetwork

State = dict[str, Tensor]

# What the public implementations call their convolutions, and the channels of VGG-16.
VGG = {1: (64, 2), 2: (128, 2), 3: (256, 3), 4: (512, 3), 5: (512, 3)}
DECODER = {"deconv6_1": 512, "deconv5_1": 512, "deconv4_1": 256, "deconv3_1": 128, "deconv2_1": 64}
DECODER |= {"deconv1_1": 64, "deconv1": 8}  # an eighth of it is 1


def made(context: int = 1, refine: bool = True, shrink: int = 8) -> State:
    """A published state with the flat names and random values, an eighth as wide."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> int:
        shape = (outputs, inputs, kernel, kernel)
        scale = (2 / (inputs * kernel**2)) ** 0.5
        state[f"{name}.weight"] = scale * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
        return outputs

    last = 4
    for scale, (channels, count) in VGG.items():
        for i in range(count):
            last = convolution(f"conv{scale}_{i + 1}", last, channels // shrink, 3)
    last = convolution("conv6_1", last, last, context)
    for name, channels in DECODER.items():
        last = convolution(name, last, channels // shrink, 1 if name == "deconv6_1" else 5)
    if refine:
        last = 4
        for i in range(3):
            last = convolution(f"refine_conv{i + 1}", last, 64 // shrink, 3)
        convolution("refine_pred", last, 1, 3)
    return state


def as_mmediting(state: State) -> State:
    """The same state under MMEditing's names."""

    def renamed(key: str) -> str:
        name, _, parameter = key.partition(".")
        if name.startswith("refine"):
            return f"refiner.{key}"
        if name.startswith("deconv"):
            return f"backbone.decoder.{key}"
        if name == "conv6_1":
            return f"backbone.encoder.conv6.{parameter}"
        scale, place = name.removeprefix("conv").split("_")
        return f"backbone.encoder.layer{scale}.{2 * (int(place) - 1)}.{parameter}"

    return {renamed(key): value for key, value in state.items()}


def reference(state: State, image: Tensor, trimap: Tensor) -> tuple[Tensor, Tensor]:
    """What the public implementations compute, written down once more."""

    def convolve(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = given = torch.cat([(image - mean) / std, trimap], 1)
    indices = []
    for scale, (_, count) in VGG.items():
        for i in range(count):
            x = convolve(f"conv{scale}_{i + 1}", x).relu()
        x, index = F.max_pool2d(x, 2, 2, return_indices=True)
        indices.append(index)
    x = convolve("deconv6_1", convolve("conv6_1", x).relu()).relu()
    for scale in (5, 4, 3, 2, 1):
        x = convolve(f"deconv{scale}_1", F.max_unpool2d(x, indices[scale - 1], [2, 2])).relu()
    logits = convolve("deconv1", x)
    alpha = logits.sigmoid()
    if "refine_pred.weight" not in state:
        return alpha, alpha
    x = torch.cat([given[:, :3], alpha], 1)
    for i in (1, 2, 3):
        x = convolve(f"refine_conv{i}", x).relu()
    return alpha, (logits + convolve("refine_pred", x)).sigmoid()


def picture(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand((2, 3, height, width), generator=generator)
    return image, torch.randint(0, 3, (2, 1, height, width), generator=generator) / 2


def count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def test_the_published_network_has_vgg_s_size() -> None:
    network = DeepImageMattingNetwork()
    # torchvision's vgg16().features has 14 714 688; the trimap adds a channel to 64 kernels.
    assert count(network.encoder) == 14_714_688 + 64 * 9
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 14 + 7 + 4
    assert [layer.kernel_size[0] for layer in layers[13:21]] == [1, 1, 5, 5, 5, 5, 5, 5]
    assert count(network.refinement) == 64 * (4 + 64 + 64) * 9 + 3 * 64 + 64 * 9 + 1


def test_what_pads_is_cropped_again() -> None:
    network = DeepImageMattingNetwork(0.1).eval()
    image, trimap = picture(40, 50)
    padded = [F.pad(x, (0, 14, 0, 24), mode="replicate") for x in (image, trimap)]
    assert torch.allclose(network(image, trimap), network(*padded)[..., :40, :50], atol=1e-6)
    assert torch.equal(*network.stages(image, trimap))  # refinement begins with nothing


# VGG-16


def test_the_encoder_can_begin_with_vgg(tmp_path: Path) -> None:
    from torchvision.models import vgg

    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True).eval()
    state = {
        f"features.{key}": torch.rand(value.shape) / 50
        for key, value in features.state_dict().items()
        if value.ndim
    }
    features.load_state_dict(
        {key.removeprefix("features."): value for key, value in state.items()}, strict=False
    )
    torch.save(state, tmp_path / "vgg.pth")
    network = DeepImageMattingNetwork(batch_norm=True, refine=False).eval()
    network.load_vgg(str(tmp_path / "vgg.pth"))
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected, own = features(x), torch.cat([x, torch.rand(1, 1, 32, 32)], 1)
        for scale in network.encoder:
            own = F.max_pool2d(scale(own), 2)
    assert torch.allclose(own, expected, rtol=1e-4)
    del state["features.0.weight"]
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match=r"backbone 'vgg16_bn': features_0\.weight is missing"):
        network.load_vgg(str(tmp_path / "vgg.pth"))


def test_vgg_needs_its_width() -> None:
    with pytest.raises(UsageError, match=r"weights of vgg16 need width=1\.0"):
        DeepImageMattingNetwork(0.5).load_vgg("pretrained")


def test_a_backbone_s_features_change_nothing_at_first() -> None:
    torch.manual_seed(0)
    plain = DeepImageMattingNetwork(width=0.125).eval()
    features = Backbone("tf_efficientnet_lite0", max_stride=8, freeze_stride=8)
    helped = DeepImageMattingNetwork(width=0.125, features=features).eval()
    helped.load_state_dict(plain.state_dict(), strict=False)
    image, trimap = picture(45, 70)
    assert torch.equal(helped(image, trimap), plain(image, trimap))
    for projection in helped.projections.values():
        torch.nn.init.normal_(projection.weight, std=0.1)
    assert (helped(image, trimap) - plain(image, trimap)).abs().max() > 1e-3
    # Each scale but the first is helped, by features of its own size.
    assert list(helped.projections) == ["1", "2", "3"]
