"""The training command: LightningCLI over the three slots; the command line calls it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import deep_image_compositing.stages  # noqa: F401  (registers the stages by their class paths)
from deep_image_compositing.data.modules import FolderData
from deep_image_compositing.stages.base import Stage


class TrainingCLI(LightningCLI):
    """LightningCLI in subclass mode: a recipe names the stage and the data module by class path."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0})


def run(subcommand: str, arguments: Sequence[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` with LightningCLI's own arguments."""
    args: ArgsType = [subcommand, *arguments]
    with warnings.catch_warnings():
        # Lightning warns whenever arguments are passed beside sys.argv, which is what we are for.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        TrainingCLI(
            Stage,
            FolderData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "deep-image-compositing"},
            args=args,
        )
