"""The training commands ``fit``, ``validate`` and ``test``: a LightningCLI for all four slots.

A run writes its resolved configuration, log, contact sheets and checkpoints to one folder. After
any interruption, ``--resume`` continues it with the same result as an uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml  # type: ignore[import-untyped]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from deep_image_compositing.data.modules import StageData, batches_trained
from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.messages import show
from deep_image_compositing.resuming import (
    CHECKPOINTS,
    Interruptible,
    Reseed,
    check_hyper_parameters,
    checkpoints,
    newest_checkpoint,
)
from deep_image_compositing.running import quiet
from deep_image_compositing.stages import (  # noqa: F401
    fusion,
    harmonization,
    refinement,
    segmentation,
)  # fmt: skip
from deep_image_compositing.stages.base import Stage

_log = logging.getLogger("deep_image_compositing")


class RunProgress(TQDMProgressBar):
    """One progress bar over the whole run, including the steps before a resume."""

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        bar = self.train_progress_bar
        steps = float(trainer.estimated_stepping_batches)
        bar.total = int(steps) * trainer.accumulate_grad_batches if math.isfinite(steps) else None
        bar.initial = bar.n = batches_trained(trainer)
        bar.set_description("training")

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Do not start a new bar for each epoch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(
            trainer, pl_module, outputs, batch, batch_idx=batches_trained(trainer) - 1
        )


_MAX_VALUES, _MAX_DEPTH = 10_000, 50

_HINT = " (fit --help lists all options)"

_SENTENCES = (
    # Sentences that replace jsonargparse's errors, which list every attempt at a type. The second
    # pattern matches a sentence from the parser of nested options.
    (r"(?:[Oo]ption|no option) '([\w.]+)'", "{place}there is no option {0!r}"),
    (r"([\w.]+: (?:\S+ is not (?:of type \w+|one of .+)|invalid value .+))", "{0}"),
    (r"Expected a typing\.Literal\[(.+?)\]\. Got value: (\S+)", "{place}{1} is not one of {0}"),
    (r"Expected a <class '(\w+)'>\. Got value: (\S+)", "{place}{1} is not of type {0}"),
    (r"arguments are required: (.*)",
     "missing {0}; give a recipe: --config recipes/NAME.yaml"),
    (r"Problem with given class_path '(.+)':\n\s*(.*[^:\s])\n", "{place}{0} cannot be used: {1}"),
    (r"- .* expects a .+?: (.{1,200}?)(?:\. Got value.*)?\n[\s\S]*Given value: (.{0,200})",
     "{place}invalid value {1}: {0}"),
    (r"Given value: (.{0,200})", "{place}invalid value {0}"),
)  # fmt: skip


class _Parser(LightningArgumentParser):
    """A parser that raises ``UsageError`` with one sentence instead of printing its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(_condense(message.replace(_HINT, "")) + _HINT) from None

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parse the arguments; the ``UsageError`` for a file that is not UTF-8 names the file."""
        try:
            return super().parse_args(args, *rest, **options)
        except UnicodeDecodeError as error:
            paths = [argument.rpartition("=")[2] for argument in args or ()]
            files = [path for path in paths if os.path.isfile(path) and os.access(path, os.R_OK)]
            matches = (path for path in files if error.object in Path(path).read_bytes())
            file = next(matches, "a configuration file")
            raise UsageError(f"{file} is not UTF-8 text: {error}") from None


def _condense(message: str) -> str:
    key = re.search(r'Parser key "([\w.]+)"', message)
    for pattern, sentence in _SENTENCES:
        if matches := list(re.finditer(pattern, message)):
            return sentence.format(*matches[-1].groups(), place=f"{key[1]}: " if key else "")
    return " ".join(line.strip() for line in message.splitlines())[:300]


_parse_yaml: Callable[[str], Any] = jsonargparse.get_loader("yaml")


def _load_yaml(text: str) -> Any:
    """Parse YAML as jsonargparse does, after limiting its depth and its size with aliases expanded.

    Raises ``UsageError`` for text beyond these limits, or with null characters.
    """
    sizes: dict[str, int] = {}  # values that each anchor stands for
    counts, anchors = [0], [""]  # of the collections that are still open
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            counts[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if "\0" in event.value:  # jsonargparse would look for a file of this name
                raise UsageError(
                    f"a configuration cannot hold null characters: {event.value[:40]!r}"
                )
            counts[-1] += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            anchors.append(event.anchor)
            sizes[event.anchor] = _MAX_VALUES  # an alias of a collection in itself has no end
        elif isinstance(event, yaml.CollectionEndEvent):
            sizes[anchors.pop()] = size = counts.pop()
            counts[-1] += size
        if counts[-1] > _MAX_VALUES or len(counts) > _MAX_DEPTH:
            raise UsageError(
                f"a configuration has at most {_MAX_VALUES:,} values, aliases counted as what "
                f"they stand for, and {_MAX_DEPTH} levels; this one has more ({text[:40]!r} ...)"
            )
    return _parse_yaml(text)


class TrainingCLI(LightningCLI):
    """LightningCLI in subclass mode: a recipe names the stage and the data module by class path."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0, "trainer.default_root_dir": "runs/run"})
        text = "continue from the newest checkpoint in trainer.default_root_dir, if there is one"
        parser.add_argument("--resume", type=bool, nargs="?", const=True, default=False, help=text)

    def before_instantiate_classes(self) -> None:
        """Choose the checkpoint to resume from, before anything is created or written."""
        config = self.config[self.subcommand]
        if not isinstance(config["trainer"], jsonargparse.Namespace):
            raise UsageError(f"trainer must be a mapping of options, not {config['trainer']!r}")
        run = config["trainer"]["default_root_dir"]
        if run is None:
            raise UsageError("trainer.default_root_dir is the run's folder and cannot be null")
        if self.subcommand != "fit":
            self.save_config_callback = None
            return
        if config["ckpt_path"] is not None:
            return
        if config["resume"]:
            checkpoint = newest_checkpoint(run)
            if checkpoint is not None:
                config["ckpt_path"] = str(checkpoint)
                _log.info("continuing from %s", checkpoint)
        elif existing := checkpoints(run):
            raise UsageError(
                f"{run} holds a run already ({existing[0].name}): continue it with --resume, or "
                "name another folder with --trainer.default_root_dir"
            )

    def before_fit(self) -> None:
        """Reject settings that Lightning would reject only after the run has written files."""
        trainer, data = self.trainer, self.datamodule
        for part in (self.model, data):
            check_hyper_parameters(part)
        if not isinstance(data, StageData):
            return
        batches, limit = data.epoch_batches(trainer), trainer.limit_train_batches
        interval = trainer.val_check_interval
        validates = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
        if not validates or not isinstance(interval, int):  # then a fraction of an epoch or a time
            return
        if 0 < batches < interval:
            raise UsageError(
                f"an epoch has {batches} batches (epoch_length {data.epoch_length} / batch_size "
                f"{data.batch_size} / {trainer.world_size} devices, limit_train_batches {limit}), "
                f"and validation runs every {interval} batches: raise --data.epoch_length, or "
                "lower --trainer.val_check_interval"
            )
        steps = trainer.accumulate_grad_batches
        if interval % steps:
            _log.warning(
                f"a validation every {interval} batches can fall inside a step of {steps} "
                "accumulated batches: a run resumed from a checkpoint of such a validation does "
                "not repeat that step exactly; make --trainer.val_check_interval a multiple of "
                f"{steps}"
            )

    def after_fit(self) -> None:
        """Print the run's folder and the last validation's metrics."""
        if not self.trainer.is_global_zero or self.trainer.logger is None:
            return
        values = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k[:4] == "val/"}
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
        show(f"the run is in {self.trainer.default_root_dir}" + (metrics and f": {metrics}"))

    def instantiate_classes(self) -> None:
        """Create the configured objects; the library's errors propagate unchanged."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what a constructor raises in errors about types that do not fit.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, CompositingError):
                cause = cause.__cause__
            raise cause or error from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, by default with a TensorBoard log in the run's folder."""
        config = self.config_init[self.subcommand]["trainer"]
        if config["logger"] is None or config["logger"] is True:
            fitting = self.subcommand == "fit" and not config["fast_dev_run"]
            root = config["default_root_dir"]
            kwargs["logger"] = TensorBoardLogger(root, name="", version="") if fitting else False
        callbacks = config["callbacks"] or []
        if config["fast_dev_run"] or not kwargs.get("logger", config["logger"]):
            # LearningRateMonitor, which every recipe has, fails without a logger.
            callbacks = [x for x in callbacks if not isinstance(x, LearningRateMonitor)]
        show_progress = config["enable_progress_bar"] is not False
        if show_progress and not any(isinstance(x, ProgressBar) for x in callbacks):
            callbacks = [*callbacks, RunProgress()]
        kwargs["callbacks"] = callbacks
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(f"invalid options of the trainer: {error}") from error
        if config["accelerator"] == "auto" and trainer.is_global_zero:
            choose_device("auto")  # logs its choice
        for callback in trainer.checkpoint_callbacks:
            # With other loggers, Lightning would save checkpoints to the logger's folder.
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(Path(config["default_root_dir"], CHECKPOINTS))
        return trainer


_EXPECTED = (
    # --optimizer and --lr_scheduler replace those of the stage on purpose.
    ".*configure_optimizers` will be overridden",
    # Users' data modules may have no validation data.
    "You defined a `validation_step` but have no",
    # Lightning warns whenever arguments are passed besides sys.argv, as here.
    "LightningCLI's args parameter",
    # A resumed run has a folder of checkpoints.
    "Checkpoint directory .* exists",
    # The loaders' length is that of their rank, and divided among their workers.
    "Your `IterableDataset` has `__len__` defined",
    # Stages override configure_model only to compile their networks, not to shard them.
    "You're using the WeightAveraging callback with",
)


def run(subcommand: str, arguments: Sequence[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` with LightningCLI's own arguments."""
    args: ArgsType = [subcommand, *arguments]
    if os.getcwd() not in sys.path:  # where users keep their own stages and data modules
        sys.path.append(os.getcwd())
    # By default jsonargparse downloads a value that looks like a URL, as a configuration file.
    jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled=False)
    jsonargparse.set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError,))
    # Of Lightning's log, only the model summary is of interest to users of the command line.
    logging.getLogger("lightning.pytorch.callbacks").setLevel(logging.INFO)
    with quiet(logging.WARNING):
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        TrainingCLI(
            Stage,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [Reseed(), Interruptible()]},
            parser_class=_Parser,
            parser_kwargs={"prog": "deep-image-compositing"},
            args=args,
        )
