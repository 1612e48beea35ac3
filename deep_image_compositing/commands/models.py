"""The command ``models``: which published models there are, and their files on this machine."""

from __future__ import annotations

import argparse
import os

from deep_image_compositing import published
from deep_image_compositing.errors import UsageError
from deep_image_compositing.messages import show


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``models`` to its parser."""
    add = parser.add_argument
    add("action", choices=("list", "fetch", "path"),
        help="list them with size and licence, fetch some, or say where their files are")
    add("names", nargs="*", metavar="NAME", help="of which models; for list and path, default: all")
    add_models_arguments(parser)


def add_models_arguments(parser: argparse._ActionsContainer) -> None:
    """Add what every command takes that uses published models."""
    add = parser.add_argument
    add("--models", metavar="FOLDER",
        help="where fetched models are kept; default: $DIC_MODELS, or the user's cache")
    add("--accept-licence", action="store_true",
        help="accept the licence of a published model that excludes commercial use; once is enough")
# fmt: on


def use_folder(options: argparse.Namespace) -> None:
    """Let ``--models`` hold for this process and those that it starts."""
    if options.models is not None:
        os.environ[published.VARIABLE] = options.models


def run(options: argparse.Namespace) -> int:
    """Do what the action says; returns the exit code."""
    use_folder(options)
    chosen = [published.get(name) for name in options.names]
    if options.action == "fetch":
        if not chosen:
            raise UsageError("name the models to fetch; `models list` shows them")
        for model in chosen:
            show(published.fetch(model, accept_licence=options.accept_licence))
        return 0
    for model in chosen or published.PUBLISHED:
        path = published.path_of(model)
        if options.action == "path":
            show(path)
            continue
        here = "here" if path.is_file() else "not fetched"
        size = f"{model.megabytes} MB"
        show(f"{model.name:18}{size:>8}  {here:12}{model.description}; {model.licence}")
    return 0
