"""Fusers: ``foreground, background, alpha → composite``."""

from deep_image_compositing.stages.fusion.multi_stream import MultiStreamFuser, SingleStreamFuser

__all__ = ["MultiStreamFuser", "SingleStreamFuser"]
