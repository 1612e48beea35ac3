"""The command ``study``: its arguments and its work; imports nothing heavy before it runs."""

from __future__ import annotations

import argparse

from deep_image_compositing.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``study`` to its parser."""


def run(options: argparse.Namespace) -> int:
    """Do what ``study`` was asked for; returns the exit code."""
    raise UsageError("study is not there yet")
