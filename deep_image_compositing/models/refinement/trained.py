"""Matting refiners with trained networks: Deep Image Matting and IndexNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deep_image_compositing import weights as weight_files
from deep_image_compositing.errors import UsageError
from deep_image_compositing.models.refinement.matting import MattingModel, check_memory
from deep_image_compositing.networks import deep_image_matting as dim
from deep_image_compositing.networks import index_net
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.options import check_choice, check_positive

# Published network options; DIM as in the public implementations, with a fourteenth convolution.
PAPER_DIM: dict[str, Any] = {"width": 1.0, "context": 1, "batch_norm": False, "skips": False}
PAPER_DIM |= {"refine": True, "backbone": None}
PAPER_INDEX_NET = {"width": 1.0, "indexing": "m2o", "context": True, "nonlinear": True}
FEATURES = 8  # maximum stride of the backbone's features


class TrainedMattingModel(MattingModel):
    """A matting refiner that predicts alpha from an image and its trimap by a network.

    Subclasses set ``network``, which takes any size and returns alpha in [0, 1], implement
    ``bytes_per_pixel`` and call ``load_weights`` last.

    Args:
        max_memory: limit in GB for the network's estimated memory.
    """

    network: nn.Module

    def __init__(self, *, max_memory: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(max_memory=max_memory)
        self.max_memory = max_memory

    def bytes_per_pixel(self) -> float:
        """Measured peak memory of the network per image pixel."""
        raise NotImplementedError

    @torch.no_grad()
    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """Run the network in batches that fit into ``max_memory``."""
        size = (image.shape[-2], image.shape[-1])
        needed = self.bytes_per_pixel() * size[0] * size[1]
        check_memory(self.method, needed, self.max_memory, size)
        dtype = next(self.network.parameters()).dtype
        count = int(min(len(image), self.max_memory * 1e9 / needed))
        batches = zip(image.to(dtype).split(count), trimap.to(dtype).split(count), strict=True)
        return torch.cat([self.network(*batch) for batch in batches])


class DeepImageMattingModel(TrainedMattingModel):
    """Deep Image Matting: a VGG-16 encoder, an unpooling decoder and a refinement stage.

    Network options default to the values in the ``weights`` file, or without one to the published
    network.

    Args:
        width: factor on all channels, above 0.
        context: kernel size, odd, of the convolution between encoder and decoder.
        batch_norm: normalise after every convolution.
        skips: add the encoder's features to the decoder's.
        refine: include the refinement stage.
        backbone: timm model whose features up to stride 8 support a narrow encoder; they are not
            trained. None for none, as published.
        phase: what to train: ``all``; or, in the paper's order, ``encoder_decoder`` by alpha and
            composition loss, then the ``refinement`` stage alone by alpha loss, then all.
        pretrained: weights of the backbone, or without one of VGG-16 for the encoder: None,
            ``pretrained``, or a file.
        weights: trained weights: a shipped name, a file saved by this library, a published PyTorch
            checkpoint (see ``networks.deep_image_matting.from_published``), or None.
    """

    method = "deep_image_matting"
    shipped: ClassVar[dict[str, str]] = {"default": "deep_image_matting.safetensors"}
    network: dim.DeepImageMattingNetwork

    def __init__(
        self,
        width: float | None = None,
        context: int | None = None,
        batch_norm: bool | None = None,
        skips: bool | None = None,
        refine: bool | None = None,
        backbone: str | None = None,
        phase: Literal["all", "encoder_decoder", "refinement"] = "all",
        pretrained: str | None = None,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("phase", phase, ("all", "encoder_decoder", "refinement"))
        self.save_hyperparameters()
        layers = None  # published checkpoints reveal their options only by their tensors
        if weights is not None:
            state = weight_files.read_state(weight_files.resolve(type(self), weights))
            layers = dim.published_options(state) if dim.is_published(state) else None
        options = weight_files.describe(self, weights, PAPER_DIM, locals(), layers=layers)
        if phase == "refinement" and not options["refine"]:
            raise UsageError("there is no refinement stage to train: refine is false")
        self.phase = phase
        name = options.pop("backbone")
        features = None
        if name is not None:
            initial = None if weights else pretrained
            features = Backbone(name, initial, max_stride=FEATURES, freeze_stride=FEATURES)
        self.network = dim.DeepImageMattingNetwork(**options, features=features)
        if pretrained is not None and weights is None and name is None:
            self.network.load_vgg(pretrained)
        self.network.to(memory_format=torch.channels_last)
        for module in self._frozen():
            module.requires_grad_(False)
        self.load_weights(weights)

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Translate the parameter names of published checkpoints."""
        if not dim.is_published(state):
            return state
        return {f"network.{key}": x for key, x in dim.from_published(state).items()}

    def bytes_per_pixel(self) -> float:
        """Measured in single precision on a CPU, at 0.25 to 4 megapixels."""
        options = self.hparams
        scale = 1400 if options["skips"] else 1000 if options["batch_norm"] else 800
        return 100 + scale * float(options["width"])

    def _frozen(self) -> list[nn.Module]:
        """Parts of the network that are not trained in this phase."""
        network = self.network
        if self.phase == "encoder_decoder":
            return [] if network.refinement is None else [network.refinement]
        if self.phase == "refinement":
            return [network.encoder, network.bottom, network.decoder, network.head]
        return []

    def train(self, mode: bool = True) -> DeepImageMattingModel:
        """As in torch; frozen parts keep their batch norm statistics."""
        super().train(mode)
        for module in self._frozen() if hasattr(self, "network") else ():
            module.eval()
        return self


class IndexNetModel(TrainedMattingModel):
    """IndexNet matting: a MobileNetV2 with learned indices for pooling and upsampling.

    Network options default to the values in the ``weights`` file, or without one to the published
    network.

    Args:
        width: factor on all channels; 1 is the published network with 5.95 million parameters.
        indexing: kind of index networks: ``m2o`` (many channels to one), ``o2o`` (one to one) or
            ``holistic`` (one index map for all channels).
        context: index networks see 4 x 4 instead of 2 x 2 pixels for each 2 x 2 window.
        nonlinear: index networks have two convolutions instead of one.
        dropout: dropout rate on the coarsest features.
        pretrained: initial weights of the encoder: None, ``pretrained`` for timm's MobileNetV2, or
            a file with timm's names; for ``width=1`` only.
        encoder_rate: factor on the encoder's learning rate; 0.01 in the paper.
        weights: trained weights: a shipped name (``default``, a small network), a file, or None.
            The authors' ``indexnet_matting.pth.tar`` is supported.
    """

    method = "index_net"
    shipped: ClassVar[dict[str, str]] = {"default": "index_net.safetensors"}
    network: index_net.IndexNetwork

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
        options = weight_files.describe(self, weights, PAPER_INDEX_NET, locals())
        self.network = index_net.IndexNetwork(**options, dropout=dropout)
        if pretrained is not None and weights is None:
            self.network.load_encoder(pretrained)
        self.network.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.load_weights(weights)

    def bytes_per_pixel(self) -> float:
        """Measured: nine full-size feature maps with the stem's channels."""
        return 9.0 * self.network.channels[0] * next(self.network.parameters()).element_size()

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Translate the parameter names of the authors' checkpoint."""
        if not index_net.is_published(state):
            return state
        translated = index_net.from_published(self.network, state)
        return {f"network.{key}": x for key, x in translated.items()}
