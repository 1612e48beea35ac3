"""LightningModules around the models of ``deep_image_compositing.models``."""
