"""Segmenters: ``image → mask``."""
