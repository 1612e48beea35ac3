"""Published segmenters by name: U2-Net, IS-Net, BiRefNet and others, downloaded on first use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deep_image_compositing import published
from deep_image_compositing.models.segmentation.onnx import OnnxModel


class PublishedModel(OnnxModel):
    """A published model with its authors' preprocessing; see ``deep_image_compositing.published``.

    Args:
        model: name of the model.
        path: model file, used without verification. Defaults to the one in the models folder,
            downloaded from the authors' address on first use.
        accept_licence: accept a licence that excludes commercial use; remembered.
        providers: as for ``OnnxModel``.

    Raises:
        UsageError: no such model, or a licence that has not been accepted.
        WeightsError: the file cannot be downloaded, or is not the expected one.
    """

    long_side = 2048  # twice the largest input size, so that resizing matches the authors' code

    def __init__(
        self,
        model: str,
        path: str | None = None,
        accept_licence: bool = False,
        providers: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        entry = published.get(model)
        self.known_as = model
        if path is None:
            file = str(published.fetch(entry, accept_licence=accept_licence))
        else:
            published.check_licence(entry, accept_licence)
            file = path
        super().__init__(file, providers=providers, **{**entry.options, **kwargs})
        self.save_hyperparameters()
