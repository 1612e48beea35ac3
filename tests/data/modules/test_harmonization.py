"""Data of harmonizers: composites made here, composites of data sets, rims that a fuser paints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deep_image_compositing.data.items import Source
from deep_image_compositing.data.modules import HarmonizationData
from deep_image_compositing.errors import DataError, UsageError
from tests.data import published, trees


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with masks, and with composites: in shards, in folders and as published."""
    root = tmp_path_factory.mktemp("harmonization")
    trees.pairs(root / "pairs", kept=4, held_out=1)
    trees.shards(root / "mattes", "mattes", 4, 2)
    trees.shards(root / "made", "harmonization", 4, 2)
    trees.cutouts(root / "cutouts")
    published.make("images and composites", root / "folders")
    published.make("iharmony4", root / "iharmony4")
    return root


def make(root: Path, *names: str, hold_out: float = 0.0, **options: Any) -> HarmonizationData:
    sources: list[str | Source] = [Source(str(root / name), hold_out=hold_out) for name in names]
    given = {"size": 32, "batch_size": 2, "epoch_length": 8, "num_workers": 0}
    data = HarmonizationData(sources, **{**given, **options})
    data.setup("fit")
    return data


def finished(data: HarmonizationData, loader: Any) -> list[dict[str, Tensor]]:
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.mark.parametrize("name", ["pairs", "mattes", "made", "folders", "iharmony4"])
def test_a_composite_differs_under_the_mask_alone(name: str, root: Path) -> None:
    data = make(root, name)
    stored = name in ("made", "folders", "iharmony4")
    changes = []
    for batch in finished(data, data.train_dataloader()):
        assert {key: value.shape[1:] for key, value in batch.items()} == {
            "composite": (3, 32, 32), "mask": (1, 32, 32), "image": (3, 32, 32),
        }  # fmt: skip
        off = (batch["composite"] - batch["image"]).abs()
        outside = (batch["mask"] == 0).expand_as(off)
        assert off[outside].max() < (0.15 if stored else 1e-9)  # compressed each by itself
        assert off[outside].mean() < 0.02
        changes.append(off[~outside].mean())
    assert max(changes) > 0.05


def test_stored_composites_are_kept_as_they_are(root: Path) -> None:
    data = make(root, "made", augment=1.0)
    for batch in data.train_dataloader():
        made = data.on_after_batch_transfer(dict(batch), 0)
        assert bool((batch["stored"] == 255).all())
        for name in ("composite", "image", "mask"):
            assert torch.equal(made[name], batch[name].float() / 255)
        # As it was stored: half as bright where the subject is.
        inside = (batch["mask"] == 255).expand_as(made["image"])
        assert (made["composite"] - made["image"] / 2)[inside].abs().mean() < 0.02


def test_stored_and_made_composites_share_a_batch(root: Path) -> None:
    data = make(root, "made", "pairs", batch_size=8, epoch_length=64)
    kinds = set()
    for batch in data.train_dataloader():
        stored = batch["stored"].view(-1) > 0
        kinds |= set(stored.tolist())
        made = data.on_after_batch_transfer(dict(batch), 0)
        assert torch.equal(made["composite"][stored], batch["composite"][stored].float() / 255)
        outside = (made["mask"] == 0).expand_as(made["image"]) & ~stored.view(-1, 1, 1, 1)
        assert torch.equal(made["composite"][outside], made["image"][outside])
    assert kinds == {True, False}


def test_an_evaluation_moves_every_subject(root: Path) -> None:
    data = make(root, "pairs", validation=[str(root / "pairs")], validation_crops=8)
    others = set()
    for loaded in data.val_dataloader():
        # Colours may come from another photograph, though each is made by itself.
        others |= {tuple(row.flatten(1).float().mean(1).tolist()) for row in loaded["other"]}
        batch = data.on_after_batch_transfer(dict(loaded), 0)
        plain = {**loaded, "other": torch.zeros_like(loaded["other"])}
        assert batch.keys() == {"composite", "mask", "image", "valid"}
        black = data.on_after_batch_transfer(plain, 0)["composite"]
        others |= {"counts"} if not torch.equal(black, batch["composite"]) else set()
        inside = (batch["mask"] > 0.5).expand_as(batch["image"])
        for i in range(len(inside)):
            off = (batch["composite"][i] - batch["image"][i]).abs()
            assert off[inside[i]].mean() > 1e-4
    assert len(others) > 3
    assert "counts" in others


def test_the_test_part_of_a_published_set_is_left_out(root: Path) -> None:
    train, held_out = make(root, "iharmony4", hold_out=0.0).open_main()
    names = {Path(str(pair.composite)).stem for pair in train.datasets[0].pairs}  # type: ignore[union-attr]
    assert "c100300_1602094_1" in names
    assert not {"c5_18_1", "a3630_1_5"} & names
    assert not held_out.datasets
    # All views of a scene are on one side, whatever the share is.
    for share in (0.2, 0.5, 0.8):
        parts = make(root, "iharmony4", hold_out=share).open_main()
        groups = [
            {pair.group for dataset in part.datasets for pair in dataset.pairs}  # type: ignore[union-attr]
            for part in parts
        ]
        assert not groups[0] & groups[1]
        assert sum(map(len, groups)) == 4


def test_a_composite_of_another_size_is_named(root: Path, tmp_path: Path) -> None:
    published.make("images and composites", tmp_path)
    trees.photograph(0, (20, 20))[0].save(tmp_path / "composites/a.png")
    data = make(tmp_path, ".", tolerance=0.0)
    with pytest.raises(DataError, match=r"a\.png is 20 x 20 pixels, its photograph 72 x 56"):
        list(data.train_dataloader())


def test_subjects_without_their_photographs_are_refused(root: Path) -> None:
    data = make(root, "cutouts")
    with pytest.raises(UsageError, match=r"without its photograph.*leave .*cutouts out"):
        list(data.train_dataloader())


# Rims


class Dark(torch.nn.Module):
    """A fuser that paints everything black, and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, ...]] = []

    def forward(self, foreground: Tensor, background: Tensor, alpha: Tensor) -> Tensor:
        self.given.append((foreground, background, alpha))
        return torch.zeros_like(foreground)


def test_a_share_of_composites_is_the_fuser_s(root: Path) -> None:
    data = make(
        root, "pairs", batch_size=8, epoch_length=64, fused=0.5, fuser="alpha", fuser_weights=None
    )
    data.fuse.network = dark = Dark()
    fused = 0
    for loaded in data.train_dataloader():
        batch = data.on_after_batch_transfer(loaded, 0)
        inside, outside = (
            x.expand_as(batch["image"]) for x in (batch["mask"] > 0, batch["mask"] == 0)
        )
        assert torch.equal(batch["composite"][outside], batch["image"][outside])
        black = [bool((x[i] == 0).all()) for x, i in zip(batch["composite"], inside, strict=True)]
        fused += sum(black)
        foreground, background, alpha = dark.given[-1]
        assert len(foreground) == len(background) == len(alpha) == sum(black)
        assert torch.equal(background, batch["image"][torch.tensor(black)])
        assert torch.equal(alpha, batch["mask"][torch.tensor(black)])
    assert 16 < fused < 48


def test_the_rim_is_what_the_fuser_makes_of_the_moved_photograph(root: Path) -> None:
    plain = make(root, "pairs")
    fused = make(root, "pairs", fused=1.0, fuser="alpha", fuser_weights=None)
    batches = finished(plain, plain.train_dataloader()), finished(fused, fused.train_dataloader())
    for one, other in zip(*batches, strict=True):
        # Alpha blending does what is done without a fuser.
        assert torch.allclose(one["composite"], other["composite"], atol=1e-6)


def test_composites_of_data_sets_are_not_fused(root: Path) -> None:
    data = make(root, "made", fused=1.0, fuser="alpha", fuser_weights=None)
    data.fuse.network = Dark()
    for batch in finished(data, data.train_dataloader()):
        assert batch["composite"].mean() > 0.05


@pytest.mark.slow
def test_the_shipped_fuser_makes_rims_of_its_own(root: Path) -> None:
    plain, fused = make(root, "pairs"), make(root, "pairs", fused=1.0, fuser="multi_stream")
    batches = finished(plain, plain.train_dataloader()), finished(fused, fused.train_dataloader())
    for one, other in zip(*batches, strict=True):
        off = (one["composite"] - other["composite"]).abs().amax(1, keepdim=True)
        soft = (one["mask"] > 0) & (one["mask"] < 1)
        assert off[one["mask"] == 0].max() == 0
        assert off[soft].max() > 1 / 255
        assert off.mean() < 0.05


def test_a_network_is_not_sent_to_another_process(root: Path) -> None:
    data = make(root, "pairs", fused=0.5, fuser="alpha", fuser_weights=None)
    data.fuse.network = Dark()
    samples = pickle.loads(pickle.dumps(data.train_dataloader().dataset))
    assert samples.make.__self__.fuse.network is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fused": 0.5}, r"fused composites need a fuser: name one as --data\.fuser"),
        ({"fused": 1.5, "fuser": "alpha"}, r"fused is a share in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], said: str, root: Path) -> None:
    with pytest.raises(UsageError, match=said):
        make(root, "pairs", **options)
