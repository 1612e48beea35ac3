"""Batches on their way from a loader process: one piece of shared memory, without what is empty.

Sending a tensor costs a file descriptor, a connection and the first touch of its memory on both
sides, which together is a good part of what decoding costs. So a batch travels as one buffer, and
rows that are nothing but zeros stay behind. The streams of
:mod:`~deep_image_compositing.data.stream` pack, their loader unpacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNED = 16


def nothing(*shape: int) -> Tensor:
    """8-bit zeros of a shape, which take no memory, nor time to be sent."""
    return torch.zeros((), dtype=torch.uint8).expand(shape)


def is_nothing(tensor: Tensor) -> bool:
    """Whether a tensor was made by :func:`nothing`."""
    return tensor.numel() > 1 and not any(tensor.stride()) and not tensor[(0,) * tensor.ndim]


@dataclass(frozen=True)
class Field:
    """Where a field of a batch lies in the buffer.

    Attributes:
        name: of the field.
        dtype: of its tensor.
        shape: of its tensor, the whole batch.
        rows: those that were sent; None when all were.
        start: first byte.
        stop: after the last byte.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: tuple[int, ...] | None
    start: int
    stop: int


@dataclass(frozen=True)
class Packed:
    """A batch in one buffer.

    Attributes:
        buffer: bytes.
        fields: what is where in it.
    """

    buffer: Tensor
    fields: tuple[Field, ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Tensor]], whole: Mapping[str, Tensor]) -> Packed:
        """Pack samples, and tensors of the whole batch beside them."""
        fields: list[Field] = []
        parts: list[list[Tensor]] = []
        stop = 0
        for name in (*rows[0], *whole):
            each = [row[name] for row in rows] if name in rows[0] else [whole[name]]
            kept = [i for i, tensor in enumerate(each) if not is_nothing(tensor)]
            first = each[0]
            shape = (len(each), *first.shape) if name in rows[0] else tuple(first.shape)
            start = -(-stop // _ALIGNED) * _ALIGNED
            stop = start + len(kept) * first.numel() * first.element_size()
            sent = None if len(kept) == len(each) else tuple(kept)
            fields.append(Field(name, first.dtype, shape, sent, start, stop))
            parts.append([each[i] for i in kept])
        # Shared from the start, as torch's own collate does it: else it would be copied once more.
        storage = torch.UntypedStorage._new_shared(stop)
        buffer = torch.empty(0, dtype=torch.uint8).set_(storage)
        for field, part in zip(fields, parts, strict=True):
            if part:
                goal = buffer[field.start : field.stop].view(field.dtype)
                torch.stack(part, out=goal.view(len(part), *part[0].shape))
        return cls(buffer, tuple(fields))

    def unpack(self) -> dict[str, Tensor]:
        """The batch; tensors without empty rows are views of the buffer."""
        return {field.name: self._tensor(field) for field in self.fields}

    def _tensor(self, field: Field) -> Tensor:
        sent = self.buffer[field.start : field.stop].view(field.dtype)
        if field.rows is None:
            return sent.view(field.shape)
        batch = torch.zeros(field.shape, dtype=field.dtype, pin_memory=self.buffer.is_pinned())
        if field.rows:
            batch[list(field.rows)] = sent.view(len(field.rows), *field.shape[1:])
        return batch

    def pin_memory(self, device: str | None = None) -> Packed:
        """What a DataLoader calls before the batch goes to a GPU."""
        return Packed(self.buffer.pin_memory(), self.fields)
