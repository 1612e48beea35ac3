"""The command ``serve``: a page and an interface for composites; imports nothing heavy itself."""

from __future__ import annotations

import argparse
from typing import Any

from deep_image_compositing import registry, settings
from deep_image_compositing.commands import models
from deep_image_compositing.commands.composite import add_stages, check_harmonizer, named_stage
from deep_image_compositing.extras import import_extra
from deep_image_compositing.serving.jobs import Settings


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``serve`` to its parser."""
    add = parser.add_argument
    add("--host", default="127.0.0.1",
        help="address to listen at, 0.0.0.0 for the whole network, which needs a token; default: "
             "127.0.0.1, this machine only")
    add("--port", type=int, default=8000, help="0 for any free one; default: 8000")
    add("--token",
        help="what clients must know; default: the environment variable "
             "DEEP_IMAGE_COMPOSITING_TOKEN, or a random one where one is needed")
    add("--allowed-host", action="append", default=[], metavar="NAME",
        help="one more name under which it is reached, that of a web server in front of it, say; "
             "repeatable")
    add("--device", action="append", metavar="DEVICE",
        help="auto, cpu, cuda, cuda:1, mps; repeatable, with one worker for each; default: auto")
    add_stages(parser.add_argument_group("stages, unless a client names others"))
    add = parser.add_argument_group("limits").add_argument
    add("--queue", type=int, default=32, metavar="N",
        help="requests that may wait before others are turned away; default: 32")
    add("--max-bytes", type=int, default=Settings.max_bytes, metavar="N",
        help="of a request; default: 100 million")
    add("--max-pixels", type=int, default=Settings.max_pixels, metavar="N",
        help="of a photograph; default: 50 million")
    add("--seconds", type=float, default=Settings.seconds,
        help="in which a request must have arrived, and then be worked off; default: 120")
# fmt: on


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code."""
    for package in ("starlette", "uvicorn", "python_multipart"):
        import_extra(package, "serve", "serve")
    from deep_image_compositing.serving.server import serve

    devices = options.device or ["auto"]
    for device in devices:
        settings.check_device(device)
    defaults = {}
    models.use_folder(options)
    check_harmonizer(options)
    for slot in registry.SLOTS:
        name, given = named_stage(options, slot)
        registry.check(slot, name, given)
        defaults[slot] = (name, tuple((key, _frozen(given[key])) for key in sorted(given)))
    chosen = Settings(
        token=options.token,
        names=tuple(options.allowed_host),
        defaults=defaults,
        max_bytes=options.max_bytes,
        max_pixels=options.max_pixels,
        seconds=options.seconds,
    )
    serve(chosen, options.host, options.port, devices, options.queue)
    return 0


def _frozen(value: Any) -> Any:
    """A value of JSON with tuples for lists, so that stages are told apart by their options."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
