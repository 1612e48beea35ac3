"""Matting refiners with a trained network: Deep Image Matting and IndexNet."""

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

# The networks of the papers; of DIM, with the public versions' fourteenth convolution.
PAPER_DIM: dict[str, Any] = {"width": 1.0, "context": 1, "batch_norm": False, "skips": False}
PAPER_DIM |= {"refine": True, "backbone": None}
PAPER_INDEX_NET = {"width": 1.0, "indexing": "m2o", "context": True, "nonlinear": True}
FEATURES = 8  # coarsest stride of the backbone's features


class TrainedMattingModel(MattingModel):
    """A matting refiner that answers with a network of an image and its trimap.

    A filler sets ``network``, which takes any size and gives alpha in [0, 1], states
    ``bytes_per_pixel`` and calls ``load_weights`` last.

    Args:
        max_memory: memory in GB that the network may take by its own estimate.
    """

    network: nn.Module

    def __init__(self, *, max_memory: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(max_memory=max_memory)
        self.max_memory = max_memory

    def bytes_per_pixel(self) -> float:
        """Peak memory of the network for each pixel of a picture, by measurement."""
        raise NotImplementedError

    @torch.no_grad()
    def matte(self, image: Tensor, trimap: Tensor, mask: Tensor) -> Tensor:
        """The network's alpha, of as many pictures at a time as ``max_memory`` holds."""
        size = (image.shape[-2], image.shape[-1])
        needed = self.bytes_per_pixel() * size[0] * size[1]
        check_memory(self.method, needed, self.max_memory, size)
        dtype = next(self.network.parameters()).dtype
        rows = int(min(len(image), self.max_memory * 1e9 / needed))
        parts = zip(image.to(dtype).split(rows), trimap.to(dtype).split(rows), strict=True)
        return torch.cat([self.network(*part) for part in parts])


class DeepImageMattingModel(TrainedMattingModel):
    """Predicts alpha inside the trimap with a VGG-16 encoder, an unpooling decoder and a refiner.

    What describes the network is by default as in the file of ``weights``, else as published.

    Args:
        width: factor of all channels, above 0.
        context: side of the kernel between encoder and decoder, odd.
        batch_norm: normalise after every convolution.
        skips: add the encoder's features to the decoder's.
        refine: have the refinement stage.
        backbone: timm model whose features up to stride 8, which are not trained, help the encoder;
            for narrow dim. None for none, as published.
        phase: what is trained: ``all``; or in the paper's order the ``encoder_decoder``, by alpha
            and composition loss, then the ``refinement`` stage alone, by alpha loss, then all.
        pretrained: weights of the backbone, or where there is none, of VGG-16 for the encoder:
            None, ``pretrained``, or a file.
        weights: trained weights: a shipped name, a file of ours, or a published PyTorch checkpoint
            (see ``networks.deep_image_matting.from_published``); or None.
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
        layers = None  # published files show by their layers what they are for
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
            found = None if weights else pretrained
            features = Backbone(name, found, max_stride=FEATURES, freeze_stride=FEATURES)
        self.network = dim.DeepImageMattingNetwork(**options, features=features)
        if pretrained is not None and weights is None and name is None:
            self.network.load_vgg(pretrained)
        self.network.to(memory_format=torch.channels_last)
        for module in self._frozen():
            module.requires_grad_(False)
        self.load_weights(weights)

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As for every stage; published names are translated."""
        if not dim.is_published(state):
            return state
        return {f"network.{key}": x for key, x in dim.from_published(state).items()}

    def bytes_per_pixel(self) -> float:
        """By measurement in single precision on a CPU, at 0.25 to 4 megapixels."""
        options = self.hparams
        scale = 1400 if options["skips"] else 1000 if options["batch_norm"] else 800
        return 100 + scale * float(options["width"])

    def _frozen(self) -> list[nn.Module]:
        """Parts of the network that this phase leaves alone."""
        network = self.network
        if self.phase == "encoder_decoder":
            return [] if network.refinement is None else [network.refinement]
        if self.phase == "refinement":
            return [network.encoder, network.bottom, network.decoder, network.head]
        return []

    def train(self, mode: bool = True) -> DeepImageMattingModel:
        """Frozen parts keep their statistics."""
        super().train(mode)
        for module in self._frozen() if hasattr(self, "network") else ():
            module.eval()
        return self


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
        """By measurement: nine maps of the picture's size, as wide as the stem."""
        return 9.0 * self.network.channels[0] * next(self.network.parameters()).element_size()

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As for every stage; the authors' names are translated."""
        if not index_net.is_published(state):
            return state
        found = index_net.from_published(self.network, state)
        return {f"network.{key}": x for key, x in found.items()}
