"""The command line, ``deep-image-compositing``; its ``main`` is also what the tests call.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once. Exit
codes: 0 done, 1 work that failed, 2 a call that cannot be right, 130 interrupted.
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
from typing import Any, NoReturn

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
from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.messages import PROGRAM, say, show

TRAINING = ("fit", "validate", "test")
"""Commands whose arguments are LightningCLI's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; messages go to standard error.

    Args:
        argv: the arguments after the program's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _messages(logging.DEBUG if debug else logging.INFO):
            if arguments[:1] == ["--debug"] and arguments[1:2] and arguments[1] in TRAINING:
                arguments = arguments[1:]
            if arguments and arguments[0] in TRAINING:
                return _train(arguments)
            options = _parse(arguments)
            code: int = options.run(options)
            return code
    except SystemExit as stop:  # argparse after --help, LightningCLI after a wrong argument
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except (CompositingError, OSError, MemoryError) as error:
        if debug:
            show(traceback.format_exc(), file=sys.stderr, lines=True)
        say(f"error: {error or 'out of memory'}")
        return 2 if isinstance(error, UsageError) else 1


def _train(arguments: list[str]) -> int:
    from deep_image_compositing.training import run

    run(arguments[0], arguments[1:])
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing its whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command.

    Raises:
        UsageError: arguments that are wrong; of unknown ones it names the nearest that there are.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    command: _Parser = vars(options).pop("parser", parser)
    if unknown:
        known = re.findall(r"--[\w-]+", command.format_help())
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near and unknown[0].startswith("-") else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Two photographs in, one finished composite out.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    composite.add_arguments(
        command(
            "composite", composite.run, "set the subject of a photograph into another photograph"
        )
    )
    serve.add_arguments(
        command("serve", serve.run, "open a page, and an interface for programs, for composites")
    )
    stages.add_stages_arguments(
        command("stages", stages.list_stages, "list what can fill the three slots")
    )
    for name, summary in (
        ("fit", "train a stage: fit --config recipes/fusion_easy.yaml"),
        ("validate", "measure a stage on a recipe's validation data"),
        ("test", "measure a stage on a recipe's test data"),
    ):
        commands.add_parser(name, help=summary, add_help=False)
    stages.add_export_arguments(
        command("export-weights", stages.export_weights, "turn a training checkpoint into weights")
    )
    shards.add_arguments(command("shards", shards.run, "turn data sets into shards for training"))
    teach.add_arguments(
        command("teach", teach.run, "let a trained fuser make hard training triplets")
    )
    benchmark.add_arguments(
        command("benchmark", benchmark.run, "time composites, loading or training, as ratios")
    )
    evaluate.add_arguments(
        command("evaluate", evaluate.run, "compare whole methods on a test set, with a report")
    )
    study.add_arguments(command("study", study.run, "ask people which method's pictures are best"))
    return parser


class _Messages(logging.Handler):
    """Shows the library's log as messages on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        say(kind + record.getMessage(), lines=record.levelno < logging.INFO)


@contextlib.contextmanager
def _messages(least: int) -> Iterator[None]:
    """While a command runs, its log from ``least`` on and its warnings are messages of a line."""
    log, handler = logging.getLogger("deep_image_compositing"), _Messages()
    level = log.level
    log.addHandler(handler)
    log.setLevel(least)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **more: say(f"warning: {message}")
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
