"""IndexNet matting as a refiner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from deep_image_compositing.models.refinement.matting import TrainedMattingModel
from deep_image_compositing.networks.index_net import IndexNetwork, from_published, is_published
from deep_image_compositing.options import check_positive

PUBLISHED: dict[str, Any] = {"width": 1.0, "indexing": "m2o", "context": True, "nonlinear": True}
"""The network of the paper."""


class IndexNetModel(TrainedMattingModel):
    """Alpha by a MobileNetV2 that learns where its upsampling should put what it pooled.

    What describes the network is by default as in the file of ``weights``, else as published.

    Args:
        width: factor of all channels; 1 is the published network, of 5.95 million parameters.
        indexing: which index networks: ``m2o`` (many channels decide for one), ``o2o`` (each for
            itself) or ``holistic`` (one index map for all).
        context: whether the index networks see 4 x 4 pixels for each 2 x 2 window.
        nonlinear: whether they are two convolutions, not one.
        dropout: share of the coarsest features that are dropped in training.
        pretrained: weights that the encoder begins with: None, ``pretrained`` for timm's
            MobileNetV2, or a file with timm's names; for ``width=1`` only.
        encoder_rate: factor of the learning rate for the encoder; published is 0.01.
        weights: trained weights: a shipped name (``default``, a small network trained here), a
            file, or None. The authors' ``indexnet_matting.pth.tar`` loads as it is.
    """

    method = "index_net"
    shipped: ClassVar[dict[str, str]] = {"default": "index_net.safetensors"}
    network: IndexNetwork

    def __init__(
        self,
        width: float | None = None,
        indexing: Literal["m2o", "o2o", "holistic"] | None = None,
        context: bool | None = None,
        nonlinear: bool | None = None,
        dropout: float = 0.5,
        pretrained: str | None = None,
        encoder_rate: float = 1.0,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(encoder_rate=encoder_rate)
        self.save_hyperparameters()
        self.encoder_rate = encoder_rate
        options = self.describe(weights, PUBLISHED, locals())
        self.network = IndexNetwork(**options, dropout=dropout)
        if pretrained is not None and weights is None:
            self.network.load_encoder(pretrained)
        self.network.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.load_weights(weights)

    def bytes_per_pixel(self) -> float:
        """By measurement: nine maps of the picture's size, as wide as the stem."""
        return 9.0 * self.network.channels[0] * next(self.network.parameters()).element_size()

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As for every stage; the authors' names are translated."""
        if not is_published(state):
            return state
        return {f"network.{key}": x for key, x in from_published(self.network, state).items()}
