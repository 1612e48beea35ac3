"""Refiners: ``image, mask → alpha``."""
