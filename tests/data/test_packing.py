"""Packed batches: what is unpacked is what a plain collate gives."""

from __future__ import annotations

import pickle

import torch
from torch.utils.data import default_collate

from deep_image_compositing.data.packing import Packed, is_nothing, nothing


def rows() -> list[dict[str, torch.Tensor]]:
    """Three samples; the second has no background, none has a composite."""
    random = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(1, 256, (3, 5, 7), generator=random, dtype=torch.uint8),
            "background": nothing(3, 5, 7)
            if i == 1
            else torch.randint(1, 256, (3, 5, 7), generator=random, dtype=torch.uint8),
            "composite": nothing(3, 5, 7),
            "paste": torch.full((1, 1, 1), 255 * (i != 1), dtype=torch.uint8),
            "distrust": torch.full((1, 1, 1), i),
            "own": torch.tensor(0.5 + i),
        }
        for i in range(3)
    ]


def test_a_batch_is_unpacked_as_it_was_collated_and_in_its_order() -> None:
    whole = {"seed": torch.tensor(2**62 + 1), "valid": torch.tensor([True, False, True])}
    packed = Packed.of(rows(), whole)
    batch = packed.unpack()
    wanted = {**default_collate(rows()), **whole}
    assert list(batch) == list(wanted)
    for name, value in wanted.items():
        assert batch[name].dtype == value.dtype, name
        assert torch.equal(batch[name], value), name


def test_what_is_empty_is_not_sent_and_the_rest_is_sent_once() -> None:
    packed = Packed.of(rows(), {})
    pictures = 3 * 5 * 7 * (3 + 2)
    assert pictures <= packed.buffer.numel() < pictures + 3 * 5 * 7
    assert packed.buffer.is_shared()
    views = packed.unpack()
    storage = packed.buffer.untyped_storage().data_ptr()
    assert views["image"].untyped_storage().data_ptr() == storage
    assert views["background"].untyped_storage().data_ptr() != storage


def test_only_what_was_made_empty_counts_as_empty() -> None:
    assert is_nothing(nothing(3, 2, 2))
    assert not is_nothing(torch.zeros(3, 2, 2))
    assert not is_nothing(torch.ones(()).expand(3, 2, 2))
    assert not is_nothing(torch.tensor(0))
    assert pickle.loads(pickle.dumps(nothing(2, 2))).tolist() == [[0, 0], [0, 0]]
