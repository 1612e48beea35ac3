"""Deep Image Matting: alpha from an image and a trimap by a trained encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deep_image_compositing import weights as weight_files
from deep_image_compositing.errors import UsageError
from deep_image_compositing.models.refinement.matting import TrainedMattingModel
from deep_image_compositing.networks import deep_image_matting as networks
from deep_image_compositing.networks.backbone import Backbone
from deep_image_compositing.options import check_choice

PUBLISHED: dict[str, Any] = {"width": 1.0, "context": 1, "batch_norm": False, "skips": False}
PUBLISHED |= {"refine": True, "backbone": None}
"""The network of the paper, with the fourteenth convolution of the public PyTorch versions."""

FEATURES = 8  # coarsest stride of the backbone's features


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
            for narrow networks. None for none, as published.
        phase: what is trained: ``all``; or in the paper's order the ``encoder_decoder``, by alpha
            and composition loss, then the ``refinement`` stage alone, by alpha loss, then all.
        pretrained: weights of the backbone, or where there is none, of VGG-16 for the encoder:
            None, ``pretrained``, or a file.
        weights: trained weights: a shipped name, a file of ours, or a published PyTorch checkpoint
            (see ``networks.deep_image_matting.from_published``); or None.
    """

    method = "deep_image_matting"
    shipped: ClassVar[dict[str, str]] = {"default": "deep_image_matting.safetensors"}
    network: networks.DeepImageMattingNetwork

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
            layers = networks.published_options(state) if networks.is_published(state) else None
        options = self.describe(weights, PUBLISHED, locals(), layers=layers)
        if phase == "refinement" and not options["refine"]:
            raise UsageError("there is no refinement stage to train: refine is false")
        self.phase = phase
        name = options.pop("backbone")
        features = None
        if name is not None:
            found = None if weights else pretrained
            features = Backbone(name, found, max_stride=FEATURES, freeze_stride=FEATURES)
        self.network = networks.DeepImageMattingNetwork(**options, features=features)
        if pretrained is not None and weights is None and name is None:
            self.network.load_vgg(pretrained)
        self.network.to(memory_format=torch.channels_last)
        for module in self._frozen():
            module.requires_grad_(False)
        self.load_weights(weights)

    def renamed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As for every stage; published names are translated."""
        if not networks.is_published(state):
            return state
        return {f"network.{key}": x for key, x in networks.from_published(state).items()}

    def bytes_per_pixel(self) -> float:
        """By measurement in single precision on a CPU, at 0.25 to 4 megapixels.

        The network of the paper took 820, a quarter of it with sums and batch norm 370.
        """
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
