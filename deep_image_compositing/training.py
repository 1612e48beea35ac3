"""The training command: LightningCLI over the four slots; the command line calls it.

One run, one folder: the resolved configuration, the log, contact sheets and checkpoints. A run that
was stopped in any way goes on with ``--resume``, and makes what it would have made anyway.
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
    """A bar over the whole run, resumed or not: batches done, rate and time left."""

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        bar = self.train_progress_bar
        steps = float(trainer.estimated_stepping_batches)
        bar.total = int(steps) * trainer.accumulate_grad_batches if math.isfinite(steps) else None
        bar.initial = bar.n = batches_trained(trainer)
        bar.set_description("training")

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """An epoch is no more than a part of the run."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batches_trained(trainer) - 1  # what it is told is the number of the batch
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done)


_MOST_VALUES, _DEEPEST = 10_000, 50

_HINT = " (fit --help lists all options)"

_SENTENCES = (
    # What matters of an error of jsonargparse, whose every attempt at a type adds lines, and how it
    # is said; parsers of nested options have said their part already.
    (r"(?:[Oo]ption|no option) '([\w.]+)'", "{place}there is no option {0!r}"),
    (r"([\w.]+: (?:\S+ is (?:no \w+|none of .+)|it cannot be .+))", "{0}"),
    (r"Expected a typing\.Literal\[(.+?)\]\. Got value: (\S+)", "{place}{1} is none of {0}"),
    (r"Expected a <class '(\w+)'>\. Got value: (\S+)", "{place}{1} is no {0}"),
    (r"arguments are required: (.*)",
     "nothing says {0}; give a recipe: --config recipes/NAME.yaml"),
    (r"Problem with given class_path '(.+)':\n\s*(.*[^:\s])\n", "{place}{0} cannot be used: {1}"),
    (r"- .* expects a .+?: (.{1,200}?)(?:\. Got value.*)?\n[\s\S]*Given value: (.{0,200})",
     "{place}it cannot be {1}: {0}"),
    (r"Given value: (.{0,200})", "{place}it cannot be {0}"),
)  # fmt: skip


class _Parser(LightningArgumentParser):
    """A parser that says what is wrong in a sentence, instead of printing its whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(_condense(message.replace(_HINT, "")) + _HINT) from None

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """The configuration; what reading a file for it raises is an error in a sentence too."""
        try:
            return super().parse_args(args, *rest, **options)
        except UnicodeDecodeError as error:
            names = [argument.rpartition("=")[2] for argument in args or ()]
            files = [name for name in names if os.path.isfile(name) and os.access(name, os.R_OK)]
            bad = [name for name in files if error.object in Path(name).read_bytes()]
            name = bad[0] if bad else "a file of the configuration"
            raise UsageError(f"{name} is no text in UTF-8: {error}") from None


def _condense(message: str) -> str:
    where = re.search(r'Parser key "([\w.]+)"', message)
    for pattern, sentence in _SENTENCES:
        if found := list(re.finditer(pattern, message)):
            return sentence.format(*found[-1].groups(), place=f"{where[1]}: " if where else "")
    return " ".join(line.strip() for line in message.splitlines())[:300]


_parse_yaml: Callable[[str], Any] = jsonargparse.get_loader("yaml")


def _load_yaml(text: str) -> Any:
    """What jsonargparse makes of YAML, whose aliases could stand for more values than memory."""
    known: dict[str, int] = {}
    values, unfinished = [0], [""]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            values[-1] += known.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if "\0" in event.value:  # jsonargparse would look for a file of this name
                raise UsageError(f"a configuration holds no null characters: {event.value[:40]!r}")
            values[-1] += 1
            known[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            values.append(1)
            unfinished.append(event.anchor)
            known[event.anchor] = _MOST_VALUES  # inside itself it would have no end
        elif isinstance(event, yaml.CollectionEndEvent):
            known[unfinished.pop()] = size = values.pop()
            values[-1] += size
        if values[-1] > _MOST_VALUES or len(values) > _DEEPEST:
            raise UsageError(
                f"a configuration has at most {_MOST_VALUES:,} values, aliases counted as what "
                f"they stand for, and {_DEEPEST} levels: this is none ({text[:40]!r} ...)"
            )
    return _parse_yaml(text)


class TrainingCLI(LightningCLI):
    """LightningCLI in subclass mode: a recipe names the stage and the data module by class path."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"seed_everything": 0, "trainer.default_root_dir": "runs/run"})
        text = "go on from the newest checkpoint in trainer.default_root_dir, or begin"
        parser.add_argument("--resume", type=bool, nargs="?", const=True, default=False, help=text)

    def before_instantiate_classes(self) -> None:
        """Find what to resume, before anything is made or written."""
        config = self.config[self.subcommand]
        if not isinstance(config["trainer"], jsonargparse.Namespace):
            raise UsageError(f"trainer is options by their names, not {config['trainer']!r}")
        run = config["trainer"]["default_root_dir"]
        if run is None:
            raise UsageError("trainer.default_root_dir is the run's folder, and cannot be null")
        if self.subcommand != "fit":
            self.save_config_callback = None
            return
        if config["ckpt_path"] is not None:
            return
        if config["resume"]:
            checkpoint = newest_checkpoint(run)
            if checkpoint is not None:
                config["ckpt_path"] = str(checkpoint)
                _log.info("going on from %s", checkpoint)
        elif found := checkpoints(run):
            raise UsageError(
                f"{run} holds a run already ({found[0].name}): go on with --resume, or name "
                "another folder with --trainer.default_root_dir"
            )

    def before_fit(self) -> None:
        """Refuse what Lightning would only find when the run has written its first files."""
        trainer, data = self.trainer, self.datamodule
        for part in (self.model, data):
            check_hyper_parameters(part)
        if not isinstance(data, StageData):
            return
        batches, limit = data.epoch_batches(trainer), trainer.limit_train_batches
        interval = trainer.val_check_interval
        every = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
        if every and isinstance(interval, int) and 0 < batches < interval:
            raise UsageError(
                f"an epoch has {batches} batches (epoch_length {data.epoch_length} / batch_size "
                f"{data.batch_size} / {trainer.world_size} devices, limit_train_batches {limit}), "
                f"and validation is to follow every {interval}: raise --data.epoch_length, or "
                "lower --trainer.val_check_interval"
            )
        steps = trainer.accumulate_grad_batches
        if every and isinstance(interval, int) and interval % steps:
            _log.warning(
                f"validations every {interval} batches fall inside the steps of {steps} "
                "accumulated batches: a run that is resumed from a checkpoint of such a validation "
                "repeats no such step exactly; make --trainer.val_check_interval a multiple"
            )

    def after_fit(self) -> None:
        """Say where everything is, and how good the last validation was."""
        if not self.trainer.is_global_zero or self.trainer.logger is None:
            return
        found = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k[:4] == "val/"}
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(found.items()))
        show(f"the run is in {self.trainer.default_root_dir}" + (metrics and f": {metrics}"))

    def instantiate_classes(self) -> None:
        """Make what the configuration names; an error in making it stays that error."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse hides what a constructor raised behind the types that did not fit.
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
        given = config["callbacks"] or []
        if config["fast_dev_run"] or not kwargs.get("logger", config["logger"]):
            # It would refuse to run, though every recipe has it.
            given = [each for each in given if not isinstance(each, LearningRateMonitor)]
        wanted = config["enable_progress_bar"] is not False
        if wanted and not any(isinstance(callback, ProgressBar) for callback in given):
            given = [*given, RunProgress()]
        kwargs["callbacks"] = given
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(f"such a trainer cannot be: {error}") from error
        if config["accelerator"] == "auto" and trainer.is_global_zero:
            choose_device("auto")  # which says what it is
        for callback in trainer.checkpoint_callbacks:
            # Other loggers than the default one would draw them into folders of their own.
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(Path(config["default_root_dir"], CHECKPOINTS))
        return trainer


_EXPECTED = (
    # --optimizer and --lr_scheduler are there to take the place of the stage's own.
    ".*configure_optimizers` will be overridden",
    # Data modules of others may have nothing to validate on.
    "You defined a `validation_step` but have no",
    # Lightning warns whenever arguments are passed beside sys.argv, which is what we do.
    "LightningCLI's args parameter",
    # That a run has a folder with checkpoints is what --resume is for.
    "Checkpoint directory .* exists",
    # Our loaders know their length on every rank and divide it among their processes.
    "Your `IterableDataset` has `__len__` defined",
    # Stages override configure_model to compile their networks; nothing is sharded.
    "You're using the WeightAveraging callback with",
)


def run(subcommand: str, arguments: Sequence[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` with LightningCLI's own arguments."""
    args: ArgsType = [subcommand, *arguments]
    if os.getcwd() not in sys.path:  # where people keep stages and data modules of their own
        sys.path.append(os.getcwd())
    # By default it takes any value that could be an URL for a file of options, and transfers it.
    jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled=False)
    jsonargparse.set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError,))
    # Lightning's log is for whoever programs with it, but for the table of the model's parts.
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
