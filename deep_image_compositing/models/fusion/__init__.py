"""Fusers: ``foreground, background, alpha → composite``."""
