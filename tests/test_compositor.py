"""The compositor: what goes in, what comes out, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deep_image_compositing import Compositor, UsageError, read_image
from deep_image_compositing.compositor import doubt
from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import CompositingError, ImageError
from deep_image_compositing.functional.compose import unknown_band
from deep_image_compositing.stages.base import Layers
from deep_image_compositing.stages.making import make_stage
from tests.conftest import DiscSegmenter, LayerFuser, PlainFuser, disc, noise


def keep(image: Tensor, mask: Tensor) -> Tensor:
    """The refiner that leaves the mask alone, as a plain function."""
    return mask


def make(
    segmenter: Any = None, refiner: Any = keep, fuser: Any = None, **kwargs: Any
) -> Compositor:
    return Compositor(
        segmenter or DiscSegmenter(), refiner, fuser or LayerFuser(), device="cpu", **kwargs
    )


def bytes_of(planes: Tensor) -> np.ndarray:
    return np.rint(planes.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


# What comes out


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (37, 23), (64, 64), (131, 300)])
@pytest.mark.parametrize("other", [(1, 1), (50, 20)])
def test_everything_has_the_size_of_the_photograph(
    size: tuple[int, int], other: tuple[int, int]
) -> None:
    result = make(DiscSegmenter(0.9), work_side=64)(noise(*size), noise(*other, seed=1))
    assert result.size == size
    channels = {
        "composite": 3,
        "foreground": 3,
        "background": 3,
        "mask": 1,
        "alpha": 1,
        "cutout": 4,
    }
    for name, count in channels.items():
        tensor = getattr(result, name)
        assert tensor.shape == (count, *size), name
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert 0 <= tensor.min() <= tensor.max() <= 1
    assert result.steps().shape[0] == 3


@pytest.mark.parametrize("frame", ["foreground", "background"])
def test_composites_of_a_limited_size(frame: Any) -> None:
    front, back = noise(90, 120), noise(200, 80, seed=1)
    compositor = make(max_side=40)
    result = compositor(front, back, disc(90, 120)[0, 0].numpy(), frame=frame)
    assert result.size == ((30, 40) if frame == "foreground" else (40, 16))
    small = read_image(front, max_side=40), read_image(back, max_side=40)
    if frame == "background":
        again = make()(*small, disc(90, 120)[0, 0].numpy(), frame=frame)
        torch.testing.assert_close(again.composite, result.composite)
    assert make(max_side=200)(front, back).size == (90, 120)


@pytest.mark.parametrize("fuser", [LayerFuser(), PlainFuser()], ids=["layers", "plain"])
@pytest.mark.parametrize("work_side", [1024, 200])
def test_away_from_the_rim_it_is_the_photographs_bit_for_bit(
    fuser: nn.Module, work_side: int
) -> None:
    front, back = noise(600, 800), noise(600, 800, seed=1)

    def nearly(image: Tensor) -> Tensor:  # as a sigmoid does, it never quite arrives
        return disc(image.shape[-2], image.shape[-1], 0.1) * 0.994 + 0.003

    result = make(nearly, fuser=fuser, work_side=work_side)(front, back)
    reach = 22 * max(1, 800 // work_side)  # pixels of the working size
    far = ~unknown_band(result.alpha[None], reach)[0, 0].numpy()
    inside = result.alpha[0].numpy() > 0.5
    got = bytes_of(result.composite)
    assert (far & inside).sum() > 1000
    assert (far & ~inside).sum() > 1000
    np.testing.assert_array_equal(got[far & inside], front[far & inside])
    np.testing.assert_array_equal(got[far & ~inside], back[far & ~inside])
    np.testing.assert_array_equal(bytes_of(result.foreground), front)
    np.testing.assert_array_equal(bytes_of(result.background), back)


def test_layers_give_the_cutout_its_own_alpha_and_colour() -> None:
    front, back = noise(80, 80), noise(80, 80, seed=1)
    result = make()(front, back)
    rim = (result.alpha[0] > 0.05) & (result.alpha[0] < 0.95)
    assert torch.allclose(result.cutout[3][rim], result.alpha[0][rim].sqrt(), atol=1e-6)
    expected = 0.5 * torch.from_numpy(front).permute(2, 0, 1) / 255 + 0.25
    assert torch.allclose(result.cutout[:3, rim], expected[:, rim], atol=1 / 255)
    clear = result.cutout[3] == 0  # where nothing of the old background hides
    assert clear.any()
    assert not result.cutout[:3, clear].any()
    # Without layers it is the photograph under alpha.
    result = make(fuser=PlainFuser())(front, back)
    seen = result.alpha[0] > 0
    np.testing.assert_array_equal(bytes_of(result.cutout[:3])[seen], front[seen])
    assert torch.equal(result.cutout[3:], result.alpha)


@pytest.mark.parametrize("learned", [True, False])
def test_only_learned_stages_see_no_more_than_the_working_size(learned: bool) -> None:
    fuser, seen = LayerFuser().train(), []

    class Refiner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1)) if learned else None

        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            seen.append(tuple(image.shape[-2:]))
            return mask

    mask = disc(256, 512, 0.02)[0]
    compositor = make(refiner=Refiner(), fuser=fuser, work_side=64)
    result = compositor(noise(256, 512), noise(9, 9), mask=mask)
    assert not fuser.training
    assert seen == [(32, 64) if learned else (256, 512)]
    assert max(fuser.sizes[0]) == 64
    assert torch.allclose(result.alpha, mask, atol=0.5 / 255 + 1e-6)
    small = torch.zeros(1, 1000, 1000)
    small[:, 480:520, 480:520] = 1
    make(fuser=fuser, work_side=256)(noise(1000, 1000), noise(9, 9), mask=small)
    assert fuser.sizes[1] == (168, 168)  # the subject and 64 pixels around it, at full size


def test_the_user_s_mask_replaces_the_segmenter() -> None:
    compositor = Compositor("pyramid", keep, PlainFuser(), device="cpu")
    mask = disc(40, 60)[0]
    result = compositor(noise(40, 60), noise(40, 60, seed=1), mask=mask)
    assert "segmenter" not in vars(compositor)  # it is not even made
    assert torch.allclose(result.mask, mask, atol=1e-6)
    result = compositor(noise(40, 60), noise(4, 6), mask=disc(80, 120)[0])
    assert result.mask.shape == (1, 40, 60)
    with pytest.raises(UsageError, match="aspect"):
        compositor(noise(40, 60), noise(4, 6), mask=disc(60, 40)[0])


def test_a_photograph_s_own_alpha_is_the_mask(caplog: pytest.LogCaptureFixture) -> None:
    alpha = (disc(40, 60)[0, 0] * 255).round().byte().numpy()
    rgba = np.dstack([noise(40, 60), alpha])
    with caplog.at_level(logging.INFO, "deep_image_compositing"):
        result = make()(Image.fromarray(rgba), noise(4, 6))
    assert torch.allclose(result.mask[0], torch.from_numpy(alpha) / 255)
    assert "its own alpha is taken as the mask" in caplog.text


def test_what_comes_out_and_went_in_are_ordinary_tensors() -> None:
    given = torch.rand(3, 20, 20), torch.rand(3, 20, 20), disc(20, 20)[0]
    copies = [x.clone() for x in given]
    result = make()(*given)
    result.alpha.add_(0)  # an inference tensor would refuse
    (result.composite * torch.ones(1, requires_grad=True)).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(given, copies, strict=True))


def test_paths_pictures_arrays_and_tensors_give_the_same(save: Callable[..., Path]) -> None:
    front, back = noise(30, 40), noise(50, 40, seed=1)
    compositor = make()
    want = compositor(front, back).composite
    paths = save("front.png", front), save("back.png", back)
    for given in (
        paths,
        [str(path) for path in paths],
        [Image.fromarray(x) for x in (front, back)],
        [torch.from_numpy(x).permute(2, 0, 1) / 255 for x in (front, back)],
        [read_image(path) for path in paths],
    ):
        assert torch.equal(compositor(*given).composite, want)


# The other frame


def test_the_background_s_frame() -> None:
    result = make(fuser=PlainFuser())(
        noise(100, 100), noise(80, 200, seed=1), frame="background", scale=0.5, position="1,1"
    )
    assert result.size == (80, 200)
    rows, columns = (result.alpha[0] > 0.5).nonzero().unbind(1)
    assert int(rows.max()) == 79
    assert int(columns.max()) == 199
    # The disc is half of its photograph, which is half as high as the frame.
    assert abs(int(rows.max() - rows.min()) + 1 - 20) <= 2
    untouched = result.alpha[0] == 0
    np.testing.assert_array_equal(
        bytes_of(result.composite)[untouched], noise(80, 200, seed=1)[untouched]
    )


@pytest.mark.parametrize(
    ("made", "called", "message"),
    [
        ({"max_side": 31}, {}, "must be at least 32 pixels, got 31"),
        ({"work_side": 8}, {}, "work_side"),
        ({"harmonizer": "deep"}, {}, "there is no harmonizer called 'deep'"),
        ({"harmonizer": ("reinhard", {"strength": 2})}, {}, r"lies in \[0, 1\], got 2"),
        ({"refiner": "cascad"}, {}, "did you mean 'cascade'"),
        ({"segmenter": "nobody"}, {}, "there is no segmenter called 'nobody'"),
        ({"segmenter": ("pyramid", {"widht": 1})}, {}, r"no option 'widht'; did you mean 'width'"),
        ({"segmenter": ("onnx", {})}, {}, "needs the option 'path'"),
        ({"segmenter": LayerFuser()}, {}, "LayerFuser is a fuser and cannot be the segmenter"),
        ({}, {"frame": "both"}, "frame must be"),
        ({}, {"scale": 0.5}, "frame='background'"),
        ({}, {"position": (0.0, 1.0)}, "frame='background'"),
        *[({}, {"frame": "background", "position": position}, "position")
          for position in ("0.5", "a,b", "0.5,2", "1,2,3", "", (0.5,), (-0.1, 0.5), None)],
    ],
)  # fmt: skip
def test_what_cannot_be_asked(made: dict[str, Any], called: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**made)(noise(9, 9), noise(9, 9), **called)


# Harmonising


def test_the_strength_of_a_harmonizer_goes_from_nothing_to_all() -> None:
    front, back = noise(80, 80) // 2, 128 + noise(80, 80, seed=1) // 2
    strengths = [("reinhard", {"strength": strength}) for strength in (0.0, 0.5, 1.0)]
    plain, *moved = (make(harmonizer=own)(front, back) for own in ("none", *strengths))
    assert torch.equal(moved[0].composite, plain.composite)
    whole, clear = plain.cutout[3] == 1, plain.cutout[3] == 0
    means = [float(result.composite[:, whole].mean()) for result in moved]
    wanted = float(plain.background[:, clear].mean())
    assert means[0] < means[1] < means[2]
    assert abs(means[2] - wanted) < 0.2 * abs(means[0] - wanted)


@pytest.mark.parametrize("fuser", ["alpha", "feather", "laplacian", "poisson"])
def test_harmonising_in_tiles_is_harmonising_as_a_whole(fuser: str) -> None:
    front, back = noise(150, 220) // 2, 128 + noise(150, 220, seed=1) // 2
    mask = disc(150, 220)[0]
    whole, tiles = (
        make(fuser=fuser, harmonizer="reinhard", work_side=side)(front, back, mask).composite
        for side in (512, 64)
    )
    plain = make(fuser=fuser, work_side=64)(front, back, mask).composite
    assert (whole - tiles).abs().max() < 2.5 / 255
    assert (whole - plain).abs()[:, mask[0] > 0.5].mean() > 1 / 255


def test_a_module_may_have_layers_of_its_own() -> None:
    fuser = PlainFuser()
    fuser.layers = nn.Sequential(nn.Conv2d(3, 3, 1))  # a name that fusers use otherwise
    assert make(fuser=fuser)(noise(40, 50), noise(40, 50, seed=1)).size == (40, 50)


# A trimap for a mask


def test_the_mask_may_be_a_trimap() -> None:
    soft = disc(60, 80, 0.3)
    front = (255 * soft[0, 0, :, :, None].expand(60, 80, 3)).byte().numpy()
    trimap = torch.where((soft > 0.02) & (soft < 0.98), 128 / 255, (soft > 0.5).float())
    given = make(refiner=("guided_filter", {"trimap": "given", "epsilon": 1e-6}))
    result = given(front, noise(60, 80), mask=trimap[0])
    known = trimap[0] != 128 / 255
    assert torch.equal(result.alpha[known], trimap[0][known])
    # Filtered along its own colours, the gray band follows the photograph.
    assert result.alpha[~known].std() > 0.1
    assert torch.equal(result.mask, trimap[0])


# No subject, or nothing else


SPECK = torch.zeros(1, 300, 300)
SPECK[:, :2, :4] = 1  # 8 of 90000
CLEAR = np.dstack([noise(30, 30), np.zeros((30, 30), np.uint8)])


@pytest.mark.parametrize(
    ("stages", "given", "message"),
    [
        ({"segmenter": lambda image: 0.4 * torch.ones_like(image[:, :1])}, (noise(30, 30),),
         "no subject found in array; give a mask"),
        ({}, (noise(300, 300), SPECK), "mask of array is empty"),
        ({}, (noise(30, 30), torch.zeros(1, 30, 30)), "mask of array is empty"),
        ({}, (CLEAR,), "is empty"),
        ({"refiner": lambda image, mask: mask * 0}, (noise(30, 30),), "nothing is left"),
    ],
)  # fmt: skip
def test_no_subject(stages: dict[str, Any], given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CompositingError, match=message):
        make(**stages)(given[0], noise(9, 9), *given[1:])


def test_a_full_mask_gives_the_photograph_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    front, back, full = noise(30, 30), noise(30, 90, seed=1), torch.ones(1, 30, 30)
    result = make()(front, back, mask=full)
    np.testing.assert_array_equal(bytes_of(result.composite), front)
    assert "covers the whole photograph" in caplog.text
    assert result.alpha.all()
    result = make(fuser=PlainFuser())(front, back, mask=full, frame="background")
    got = bytes_of(result.composite)
    np.testing.assert_array_equal(got[:, 30:60], front)
    np.testing.assert_array_equal(got[:, :30], back[:, :30])


# What fills the slots


def test_names_with_options(stub_stages: None) -> None:
    compositor = Compositor(("disc", {"softness": 0.5}), "none", "plain", device="cpu")
    assert compositor.segmenter.softness == 0.5
    assert compositor(noise(9, 9), noise(9, 9)).size == (9, 9)


@pytest.mark.parametrize("given", [3, None, ("disc",), ("disc", 3), DiscSegmenter])
def test_what_cannot_fill_a_slot(given: Any) -> None:
    with pytest.raises(UsageError, match="segmenter"):
        make_stage("segmenter", given)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda image: image, "shape"),
        (lambda image: image[:, :1, ::2], "agree"),
        (lambda image: image[:, :1] * 9, "lie in"),
        (lambda image: image[:, :1] * float("nan"), "lie in"),
        (lambda image: None, "tensor"),
    ],
)
def test_a_wrong_answer_is_named(answer: Callable[[Tensor], Any], reason: str) -> None:
    with pytest.raises(CompositingError, match=f"the segmenter's output is invalid: .*{reason}"):
        make(answer)(noise(20, 20), noise(9, 9))


@pytest.mark.parametrize("error", [None, MemoryError("no room"), torch.OutOfMemoryError("full")])
def test_a_stage_without_memory_is_named(error: Exception | None) -> None:
    def greedy(image: Tensor, mask: Tensor) -> Tensor:
        if error is not None:
            raise error
        return torch.empty(1 << 50)

    with pytest.raises(CompositingError, match="the refiner ran out of memory on cpu at 20 x 30"):
        make(refiner=greedy)(noise(30, 20), noise(9, 9))


def test_wrong_layers_are_named() -> None:
    class Wrong(PlainFuser):
        def layers(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Layers:
            return Layers(alpha, alpha)

    with pytest.raises(CompositingError, match="the fuser's output is invalid"):
        make(fuser=Wrong())(noise(20, 20), noise(9, 9))


# Devices


@pytest.mark.parametrize(
    "name", ["nonsense", "cuda:99", "meta", "xpu", "cuda:-2", "", "cuda", "mps"]
)
def test_a_device_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is no device"):
        choose_device(name)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen", "said"),
    [
        (False, False, "cpu", "running on cpu"),
        (False, True, "mps", "running on mps"),
        (True, True, "cuda:0", "a card"),
    ],
)
def test_auto_prefers_a_gpu_and_says_so(
    cuda: bool, mps: bool, chosen: str, said: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    with caplog.at_level(logging.INFO, "deep_image_compositing"):
        assert choose_device("auto") == torch.device(chosen)
    assert said in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    pair = noise(90, 120), noise(90, 120, seed=1)
    results = [
        Compositor(DiscSegmenter(), keep, LayerFuser(), device=device)(*pair)
        for device in ("cpu", "cuda")
    ]
    assert results[1].device.startswith("cuda")
    assert (results[0].composite - results[1].composite).abs().max() <= 1.5 / 255


# Saving


@pytest.mark.parametrize("which", ["front", "back", "mask"])
def test_what_it_was_made_of_is_not_overwritten(tmp_path: Path, which: str) -> None:
    files = {name: tmp_path / f"{name}.png" for name in ("front", "back", "mask")}
    for number, (name, path) in enumerate(files.items()):
        picture = noise(30, 40, number)
        Image.fromarray(picture[..., 0] if name == "mask" else picture).save(path)
    link = tmp_path / "link.png"
    link.symlink_to(files[which])
    before = files[which].read_bytes()
    result = make()(str(files["front"]), read_image(files["back"]), files["mask"])
    for path in (files[which], link):
        with pytest.raises(UsageError, match="is also an input or another output"):
            result.save(tmp_path / "new.png", alpha=path)
    assert files[which].read_bytes() == before
    assert not (tmp_path / "new.png").exists()


def test_a_mask_that_is_unsure_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    front, back = noise(60, 60), noise(60, 60, seed=1)

    def unsure(image: Tensor) -> Tensor:
        return 0.7 * disc(60, 60)

    with caplog.at_level(logging.WARNING):
        make()(front, back)
        make()(front, back, mask=0.7 * disc(60, 60)[0])  # whoever gives one knows it
        assert not caplog.messages
        made = make(unsure)(front, back)
    assert "it is not clear what the subject is;" in caplog.text
    assert made.size == (60, 60)


def test_doubt_goes_from_0_to_4() -> None:
    assert doubt(torch.tensor([0.0, 1.0, 1.0])) == 0
    assert doubt(torch.tensor([0.5, 0.0])) == pytest.approx(2)
    assert doubt(torch.full((4,), 1e-3)) == pytest.approx(4, rel=0.01)
    assert doubt(torch.zeros(3)) == 0


@pytest.mark.parametrize(
    ("others", "error", "reason"),
    [
        ({"alpha": "no/such/alpha.png"}, ImageError, "no/such"),
        ({"cutout": "cutout.jpg"}, UsageError, "cannot hold an alpha"),
        ({"steps": "steps.txt"}, UsageError, "which format"),
        ({"alpha": "composite.png"}, UsageError, "another output"),
        ({"alpha": "folder"}, ImageError, "is a folder"),
    ],
)
def test_all_is_saved_or_nothing(
    tmp_path: Path, others: dict[str, str], error: type[Exception], reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    result = make()(noise(30, 40), noise(9, 9))
    paths = {name: tmp_path / path for name, path in others.items()}
    with pytest.raises(error, match=reason) as caught:
        result.save(tmp_path / "composite.png", **paths)
    assert ".part" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
