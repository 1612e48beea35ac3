"""Harmonizers: ``composite, mask → composite``."""
