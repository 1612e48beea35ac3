"""Published segmenters by name: U2-Net, IS-Net, BiRefNet and others, fetched on first use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deep_image_compositing import published
from deep_image_compositing.models.segmentation.onnx import OnnxModel


class PublishedModel(OnnxModel):
    """A published model, run as its authors run it; see ``deep_image_compositing.published``.

    Args:
        model: its name.
        path: its file, taken as it is; by default the one in the folder of models, fetched from
            the authors' address if it is not there yet.
        accept_licence: accept a licence that excludes commercial use; remembered.
        providers: as for ``OnnxModel``.

    Raises:
        UsageError: no such model, or a licence that has to be accepted first.
        WeightsError: a file that cannot be fetched, or is not the model's.
    """

    long_side = 2048
    """Twice what the largest of them look at, so that they see what their authors' code does."""

    def __init__(
        self,
        model: str,
        path: str | None = None,
        accept_licence: bool = False,
        providers: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        chosen = published.get(model)
        self.known_as = model
        if path is None:
            file = str(published.fetch(chosen, accept_licence=accept_licence))
        else:
            published.check_licence(chosen, accept_licence)
            file = path
        super().__init__(file, providers=providers, **{**chosen.options, **kwargs})
        self.save_hyperparameters()
