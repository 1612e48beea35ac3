"""Losses that need more than one line of torch; the stages' training losses are made of these."""

from deep_image_compositing.losses.laplacian import laplacian_loss
from deep_image_compositing.losses.masks import cross_entropy, mask_loss
from deep_image_compositing.losses.perceptual import PerceptualLoss

__all__ = ["PerceptualLoss", "cross_entropy", "laplacian_loss", "mask_loss"]
