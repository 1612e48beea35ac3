"""The command line, ``deep-image-compositing``.

Heavy modules are imported only when a command needs them, so that ``--help`` answers at once.
Exit codes: 0 success, 1 failure, 2 invalid arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from deep_image_compositing import __version__
from deep_image_compositing.commands import (
    benchmark,
    composite,
    evaluate,
    serve,
    shards,
    stages,
    study,
    teach,
)
from deep_image_compositing.commands.arguments import Parser
from deep_image_compositing.errors import CompositingError, UsageError, choices
from deep_image_compositing.messages import PROGRAM, say, show

COMMANDS: dict[str, tuple[Any, Any, str]] = {
    # name: (function that adds its arguments, function that runs it, summary)
    "composite": (composite.add_arguments, composite.run,
                  "place the subject of one photograph into another"),
    "cutout": (composite.add_cutout_arguments, composite.run_cutout,
               "cut the subject out of a photograph"),
    "serve": (serve.add_arguments, serve.run,
              "serve composites through a web page and an HTTP interface"),
    "stages": (stages.add_stages_arguments, stages.list_stages,
               "list the stages that can fill the four slots"),
    "models": (stages.add_models_arguments, stages.manage_models,
               "list, fetch and find published segmenters"),
    "fit": (None, None, "train a stage: fit --config recipes/fusion_easy.yaml"),
    "validate": (None, None, "measure a stage on a recipe's validation data"),
    "test": (None, None, "measure a stage on a recipe's test data"),
    "export-weights": (stages.add_weights_arguments, stages.export_weights,
                       "turn a training checkpoint into weights"),
    "export": (stages.add_export_arguments, stages.export_stage,
               "write a stage's network as ONNX or for torch.export"),
    "shards": (shards.add_arguments, shards.run, "turn data sets into shards for training"),
    "teach": (teach.add_arguments, teach.run, "make hard training triplets with a trained fuser"),
    "benchmark": (benchmark.add_arguments, benchmark.run,
                  "time composites, loading or training, as ratios"),
    "evaluate": (evaluate.add_arguments, evaluate.run,
                 "compare whole methods on a test set, with a report"),
    "study": (study.add_arguments, study.run, "ask people which method's pictures are best"),
}  # fmt: skip
"""Every command; those without functions are LightningCLI's."""

TRAINING = tuple(name for name, (_, run, _) in COMMANDS.items() if run is None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; messages go to standard error.

    Args:
        argv: the arguments after the program's name; by default ``sys.argv[1:]``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _console_messages(logging.DEBUG if debug else logging.INFO):
            name, *rest = [x for x in arguments if x != "--debug"] or [""]
            if name in TRAINING:
                from deep_image_compositing.training import run

                run(name, rest)
                return 0
            options = _parse(arguments)
            code: int = options.run(options)
            return code
    except SystemExit as stop:  # argparse after --help, LightningCLI after a wrong argument
        if not isinstance(stop.code, int | None):  # a message
            say(str(stop.code))
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except (CompositingError, OSError, MemoryError) as error:
        if debug:
            show(traceback.format_exc(), file=sys.stderr, lines=True)
        say(f"error: {error or 'out of memory'}")
        return 2 if isinstance(error, UsageError) else 1


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description="Two photographs in, one finished composite out.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (add_arguments, run, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if run is not None:
            command.set_defaults(run=run)
            add_arguments(command)
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse ``arguments``; the ``UsageError`` for an unknown name suggests the closest one."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        hint = choices(arguments[0], list(COMMANDS))
        raise UsageError(f"there is no command {arguments[0]!r}; {hint}")
    options, unknown = _parser().parse_known_args(arguments)
    command: Parser = vars(options).pop("parser")
    if unknown:
        known = re.findall(r"--[\w-]+", command.format_help())
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near and unknown[0].startswith("-") else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


class _ConsoleHandler(logging.Handler):
    """Writes log records to standard error in the form of the program's messages."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        say(prefix + record.getMessage(), lines=record.levelno < logging.INFO)


@contextlib.contextmanager
def _console_messages(level: int) -> Iterator[None]:
    """Print log records of at least ``level``, and warnings, as one-line messages.

    Characters that standard output cannot encode, for instance in a pipe, are escaped.
    """
    previous_errors = getattr(sys.stdout, "errors", None)
    reconfigure = getattr(sys.stdout, "reconfigure", lambda **_: None)
    reconfigure(errors="backslashreplace")
    log, handler = logging.getLogger("deep_image_compositing"), _ConsoleHandler()
    previous_level = log.level
    log.addHandler(handler)
    log.setLevel(level)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: say(f"warning: {message}")
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(previous_level)
            reconfigure(errors=previous_errors)
