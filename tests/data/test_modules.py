"""Data modules: what each slot trains on, aligned, repeatable, from shards and from folders."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deep_image_compositing.data.crops import outline_crop
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.loading import unpack
from deep_image_compositing.data.modules import (
    FusionData,
    HarmonizationData,
    MattingData,
    RefinementData,
    SegmentationData,
    StageData,
    as_sources,
)
from deep_image_compositing.data.modules.labelled import crops_at
from deep_image_compositing.errors import UsageError
from tests.data import trees

CHANNELS: dict[type[StageData], dict[str, int]] = {
    SegmentationData: {"image": 3, "mask": 1, "weight": 1},
    RefinementData: {"image": 3, "mask": 1, "alpha": 1, "weight": 1},
    FusionData: {"foreground": 3, "background": 3, "composite": 3, "mask": 1, "alpha": 1}
    | {"foreground_color": 3},
    HarmonizationData: {"composite": 3, "mask": 1, "image": 3},
    MattingData: {"image": 3, "mask": 1, "alpha": 1, "foreground_color": 3, "background": 3},
}
MODULES = pytest.mark.parametrize("kind", CHANNELS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mattes as shards and as pairs, scenes, and self-taught triplets."""
    root = tmp_path_factory.mktemp("modules")
    trees.shards(root / "mattes", "mattes", 6, 3)
    trees.pairs(root / "pairs", "alpha", kept=3, held_out=2)
    trees.scenes(root / "scenes")
    trees.shards(root / "hard", "triplets", 3)
    x = np.tile(np.linspace(0, 255, 131).round().astype(np.uint8), (97, 1))
    coded, cut, clear = {}, {}, {}
    for i in range(4):
        picture, label = trees.photograph(i, (131, 97))
        alpha = {"alpha.png": trees.encode(label, "PNG")}
        # A photograph that says where it was cut: its label is its red, its green is x.
        code = Image.fromarray(np.stack([np.asarray(label), x, 255 - x], -1))
        coded[f"s{i}"] = {"image.jpg": trees.encode(code, "JPEG"), **alpha}
        # A cut-out whose straight colour is its opacity, and one whose subject is nowhere.
        cut[f"s{i}"] = {"foreground.png": trees.encode(Image.merge("RGBA", [label] * 4), "PNG")}
        picture.putalpha(0)
        clear[f"s{i}"] = {"foreground.png": trees.encode(picture, "PNG")}
    for name, samples in (("coded", coded), ("cut", cut), ("clear", clear)):
        trees.write(root / f"{name}.tar", samples)
    return root


def make(kind: type[StageData], root: Path, name: str = "mattes", **options: Any) -> StageData:
    source = Source(str(root / name), paste=options.pop("paste", 0.5), distrust=10)
    given = {"size": 24, "batch_size": 2, "epoch_length": 4, "num_workers": 0, "shuffle": 2}
    data = kind([source], str(root / "scenes"), **{**given, **options})
    data.setup("fit")
    return data


def finished(data: StageData, loader: Any) -> list[dict[str, Tensor]]:
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


@MODULES
@pytest.mark.parametrize("name", ["mattes", "pairs"])
def test_a_module_makes_what_its_slot_trains_on(
    kind: type[StageData], name: str, root: Path
) -> None:
    data = make(kind, root, name)
    train, held_out = data.train_dataloader(), data.val_dataloader()
    assert (len(train), len(held_out)) == (2, 2 if name == "mattes" else 1)
    for batch in [*finished(data, train), *finished(data, held_out)]:
        valid = batch.pop("valid", None)
        assert valid is None or valid.any()
        assert {key: tensor.shape[1] for key, tensor in batch.items()} == CHANNELS[kind]
        for key, tensor in batch.items():
            assert tensor.shape[2:] == (24, 24)
            assert tensor.dtype == torch.float32
            assert tensor.min() >= 0
            assert tensor.max() <= (4 if key == "weight" else 1)
        if "weight" in batch:
            assert batch["weight"].min() == 0  # the outline of a distrusted source


@MODULES
def test_a_seed_and_a_position_decide_what_is_made(kind: type[StageData], root: Path) -> None:
    def run(seed: int) -> list[dict[str, Tensor]]:
        data = make(kind, root, seed=seed)
        return [*finished(data, data.train_dataloader()), *finished(data, data.val_dataloader())]

    first, again, other = run(0), run(0), run(1)
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    for batches in (first[:2], first[2:]):
        assert not torch.equal(batches[0]["mask"], batches[1]["mask"])
    assert not torch.equal(first[0]["mask"], other[0]["mask"])


@MODULES
def test_an_evaluation_does_not_depend_on_the_batches(kind: type[StageData], root: Path) -> None:
    def run(batch_size: int) -> dict[str, Tensor]:
        data = make(kind, root, batch_size=batch_size, validation_crops=2)
        batches = finished(data, data.val_dataloader())
        assert all(bool(batch.pop("valid").all()) for batch in batches)
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    whole, single = run(3), run(1)
    assert len(whole["mask"]) == 6
    assert all(torch.equal(whole[key], single[key]) for key in whole)


@MODULES
def test_a_module_can_be_sent_to_another_process(kind: type[StageData], root: Path) -> None:
    data = make(kind, root)
    loader = data.train_dataloader()
    made = list(zip(loader.sampler, loader, strict=True))
    data.trainer = SimpleNamespace(lock=(i for i in ()))  # type: ignore[assignment]  # cannot be
    samples = pickle.loads(pickle.dumps(loader.dataset))
    for draws, one in made:
        two = unpack(samples[draws])
        assert all(torch.equal(one[key], two[key]) for key in one)


# What lies on top of each other stays there


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("kind", [SegmentationData, RefinementData, HarmonizationData])
def test_photograph_and_label_are_cut_alike(
    kind: type[StageData], size: int, root: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("deep_image_compositing.data.modules.labelled.ACCOMPANIED", 0.0)
    monkeypatch.setattr("deep_image_compositing.data.modules.harmonization.SCENES", 0.0)
    data = make(kind, root, "coded.tar", size=size, epoch_length=24, augment=0.0, paste=0.0)
    mirrored = 0
    for batch in finished(data, data.train_dataloader()):
        label = batch["alpha" if kind is RefinementData else "mask"]
        off = (batch["image"][:, :1] - label).abs()
        assert off.mean() < 0.02
        assert off.amax() < 0.25  # what JPEG does to edges; one pixel off is far more
        slope = batch["image"][:, 1, :, -1].mean(1) - batch["image"][:, 1, :, 0].mean(1)
        mirrored += int((slope < 0).sum())
    assert 4 < mirrored < 20


class Red(torch.nn.Module):
    """A segmenter that finds what is red, and notes what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.shown.append(image)
        return image[:, :1]


@pytest.mark.parametrize("own", [0.5, 1.0])
def test_masks_of_a_segmenter_lie_where_it_saw_them(own: float, root: Path) -> None:
    options: dict[str, Any] = {"segmenter": "pyramid", "own": own, "augment": 0.0, "paste": 0.0}
    data = make(RefinementData, root, "coded.tar", size=64, epoch_length=24, **options)
    assert isinstance(data, RefinementData)
    data.segment.network = red = Red()
    batches = [batch for batch in data.train_dataloader() if "place" in batch]
    assert own < 1 or len(batches) == 12
    for batch in batches:
        rows = batch["place"].flatten(1).any(1)
        assert own < 1 or bool(rows.all())
        made = data.on_after_batch_transfer(batch, 0)
        assert set(made) == {"image", "mask", "alpha", "weight"}
        off = (made["mask"] - made["alpha"])[rows].abs()
        assert not len(off) or (off.mean() < 0.02 and off.quantile(0.99) < 0.2)
    count = sum(len(shown) for shown in red.shown)
    assert count == sum(int(batch["place"].flatten(1).any(1).sum()) for batch in batches)
    assert 0 < count <= 24


def test_a_segmenter_sees_the_scene_that_its_crop_shows(root: Path) -> None:
    options: dict[str, Any] = {"segmenter": "pyramid", "own": 1.0, "augment": 0.0, "paste": 1.0}
    data = make(RefinementData, root, "coded.tar", size=64, epoch_length=12, **options)
    for batch in data.train_dataloader():
        place = batch["place"].flatten(1)
        wide = crops_at(batch["around_background"].float() / 255, place, 64)
        off = (wide - batch["background"].float() / 255).abs()
        assert off.mean() < 0.05


def test_crops_lie_where_their_place_says() -> None:
    picture = torch.arange(64.0).view(1, 1, 8, 8)
    place = torch.tensor([[0.25, 0.5, 0.5, 0.75]])
    assert torch.allclose(crops_at(picture, place, 2), picture[..., 4:6, 2:4], atol=1e-4)


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
def test_stored_masks_are_kept_for_the_share_that_is_told(own: float, root: Path) -> None:
    data = make(FusionData, root, "hard", size=32, batch_size=4, epoch_length=48, own=own)
    kept = []
    for batch in data.train_dataloader():
        made = data.on_after_batch_transfer(batch, 0)
        stored = batch["mask"].float() / 255
        kept += [torch.equal(a, b) for a, b in zip(made["mask"], stored, strict=True)]
    # A degraded mask may be left as exact as the stored ones are here.
    assert len(kept) == 48
    assert (sum(kept) < 20, 20 <= sum(kept) < 45, sum(kept) == 48)[round(2 * own)]


def test_own_masks_need_a_segmenter(root: Path) -> None:
    with pytest.raises(UsageError, match=r"name one as --data\.segmenter"):
        make(RefinementData, root, own=0.5)
    with pytest.raises(UsageError, match="own is a share"):
        make(RefinementData, root, own=2.0)
    with pytest.raises(UsageError, match="no segmenter called 'pyramids'"):
        make(RefinementData, root, own=0.5, segmenter="pyramids")


def test_masks_for_refiners_get_as_rough_as_told(root: Path) -> None:
    errors, areas = [], []
    for told in ({}, {"degrade": 3.0}, {"degrade": 3.0, "closed": 1.0}):
        data = make(RefinementData, root, "coded.tar", size=64, epoch_length=48, **told)
        made = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
        errors.append(sum(float((b["mask"] - b["alpha"]).abs().mean()) for b in made))
        areas.append(sum(float(b["mask"].mean()) for b in made))
    assert errors[0] < errors[1]
    assert areas[1] < areas[2]
    with pytest.raises(UsageError, match="degrade must be"):
        make(RefinementData, root, degrade=-1.0)
    with pytest.raises(UsageError, match="closed is a share"):
        make(RefinementData, root, closed=1.5)


def test_colour_and_alpha_turn_and_mirror_together(root: Path) -> None:
    # Wherever the cut-out goes, its red is its alpha.
    data = make(FusionData, root, "cut.tar", size=32, epoch_length=32, blending=0.0)
    seen = []
    for batch in data.train_dataloader():
        floats = {k: v.float() / 255 for k, v in batch.items() if k != "seed"}
        assert (floats["color"][:, :1] - floats["alpha"]).abs().max() < 0.01
        made = data.finish(floats, torch.Generator().manual_seed(int(batch["seed"][0])), True)
        seen.append((made["alpha"] - floats["alpha"]).abs().amax((1, 2, 3)) > 0)
        # Without jitter, what was turned would still be its own alpha.
        data.augment = 1e-6
        still = data.finish(floats, torch.Generator().manual_seed(int(batch["seed"][0])), True)
        assert (still["foreground_color"][:, :1] - still["alpha"]).abs().max() < 0.02
        data.augment = 1.0
    assert 0 < torch.cat(seen).float().mean() < 1  # some are turned


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_a_matting_photograph_is_the_sum_of_its_parts(augment: float, root: Path) -> None:
    data = make(MattingData, root, augment=augment, epoch_length=8)
    for batch in [*finished(data, data.train_dataloader()), *finished(data, data.val_dataloader())]:
        color, old, alpha = (batch[key] for key in ("foreground_color", "background", "alpha"))
        off = (alpha * color + (1 - alpha) * old - batch["image"]).abs()
        # Grain that a part has no room for, below black or above white, is cut from it.
        assert off.mean() < (0.01 if augment else 1e-6)
        assert batch["mask"].sub(alpha).abs().mean() < 0.2


# Hard triplets


def test_hard_triplets_are_mixed_with_easy_ones(root: Path) -> None:
    sources = [Source(str(root / "mattes"), 1.0), Source(str(root / "hard"), 1.0)]
    data = FusionData(
        sources, str(root / "scenes"), size=24, batch_size=8, epoch_length=40, num_workers=0
    )
    data.setup("fit")
    hard = 0
    for batch in data.train_dataloader():
        made = data.on_after_batch_transfer(dict(batch), 0)
        assert set(made) == set(CHANNELS[FusionData])
        rows = batch["hard"].view(-1) > 0
        hard += int(rows.sum())
        # Nothing is done to what was taught: the pictures are those of the shard.
        for name, key in (("foreground", "old"), ("background", "new"), ("composite",) * 2):
            assert torch.equal(made[name][rows], batch[key][rows].float() / 255)
        assert torch.equal(made["alpha"][rows], batch["alpha"][rows].float() / 255)
        # Theirs is the colour of which the composite was made.
        again = made["alpha"] * made["foreground_color"] + (1 - made["alpha"]) * made["background"]
        assert ((again - made["composite"])[rows].abs() < 0.02).float().mean() > 0.95
        # What is measured is measured with the mask that is stored.
        measured = data.on_after_batch_transfer({**batch, "valid": rows}, 0)
        assert torch.equal(measured["mask"][rows], batch["mask"][rows].float() / 255)
    assert 10 < hard < 30


# Settings


def test_sources_are_given_in_many_ways() -> None:
    assert as_sources(None) == []
    assert as_sources("a") == as_sources(["a"]) == as_sources(Source("a")) == [Source("a")]
    assert as_sources(["a", Source("b", 2.0)]) == [Source("a"), Source("b", 2.0)]


def test_a_list_and_a_pattern_are_drawn_from_by_weight(root: Path) -> None:
    sources: list[str | Source] = [
        Source(f"{root}/mattes/train-{{000000..000001}}.tar", 3.0),
        str(root / "pairs"),
    ]
    data = SegmentationData(sources, str(root / "scenes"), num_workers=0)
    data.setup("fit")
    train, _ = data.open_main()
    assert [dataset.source.weight for dataset in train.datasets] == [3.0, 1.0]
    assert [dataset.blocks() for dataset in train.datasets] == [[4, 2], [3]]


def test_weights_are_checked_before_a_loader_process_starts(root: Path) -> None:
    sources = [Source(str(root / "mattes"), weight=0), Source(str(root / "pairs"), weight=0)]
    data = SegmentationData(sources, str(root / "scenes"), num_workers=1)
    data.setup("fit")
    with pytest.raises(UsageError, match="the weights must not all be 0"):
        data.train_dataloader()


@pytest.mark.parametrize("size", [(80, 12), (9, 60), (3, 2)])
@pytest.mark.parametrize("kind", [FusionData, MattingData])
def test_narrow_mattes_are_magnified(
    kind: type[StageData], size: tuple[int, int], root: Path, tmp_path: Path
) -> None:
    picture, label = trees.photograph(0, size)
    picture.save(tmp_path / "a.png")
    label.save(tmp_path / "a.alpha.png")
    data = kind([Source(str(tmp_path), hold_out=0)], str(root / "scenes"), size=24, tolerance=0)
    data.setup("fit")
    item = data._mixtures["subject"][0][0]
    for seed in range(20):
        box, _ = outline_crop(np.random.default_rng(seed), item.label(), 24)
        assert box[2] - box[0] == pytest.approx(min(size))


def test_validation_may_be_named(root: Path) -> None:
    data = make(SegmentationData, root, validation=[str(root / "pairs")], batch_size=4)
    batches = list(data.val_dataloader())
    assert sum(int(batch["valid"].sum()) for batch in batches) == 5
    none = SegmentationData(f"{root}/mattes/*.tar", str(root / "scenes"))
    none.setup("fit")
    assert none.val_dataloader() == none.test_dataloader() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 4}, "size must be at least 8, got 4"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"augment": -0.5}, "augment must be at least 0, got -0.5"),
        ({"tolerance": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ({"train": []}, "no source to train on: name one as --data.train"),
        ({"backgrounds": None}, "name some as --data.backgrounds"),
        ({"epoch_length": 7}, "epoch_length 7 is less than one batch of 8"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], said: str, root: Path) -> None:
    given = {"train": str(root / "mattes"), "backgrounds": str(root / "scenes")}
    with pytest.raises(UsageError, match=said):
        open_and_load(given | wrong)


def open_and_load(given: dict[str, Any]) -> None:
    data = SegmentationData(**given)
    data.setup("fit")
    data.train_dataloader()


def test_a_share_of_alphas_is_procedural(root: Path) -> None:
    options: dict[str, Any] = {"size": 32, "epoch_length": 64, "procedural": 0.5}
    data = make(FusionData, root, "clear.tar", **options)
    alphas = torch.cat([batch["alpha"] for batch in data.train_dataloader()])
    drawn = (alphas.amax((1, 2, 3)) > 0).float().mean()
    assert 0.25 < drawn < 0.75
    with pytest.raises(UsageError, match=r"procedural is a share in \[0, 1\], got 2"):
        make(FusionData, root, "clear.tar", procedural=2)


def test_a_helper_is_made_when_first_asked_also_where_no_share_needs_it(root: Path) -> None:
    find = make(RefinementData, root, segmenter="pyramid").segment
    assert find.network is None
    assert find(torch.rand(1, 3, 32, 32)).shape == (1, 1, 32, 32)
