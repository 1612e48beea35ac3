"""The command ``serve``: a page and an interface for composites; imports nothing heavy itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from deep_image_compositing import settings
from deep_image_compositing.commands.arguments import add_stages, argument_adder, named_stages
from deep_image_compositing.extras import import_extra
from deep_image_compositing.serving.jobs import Settings

_SETTINGS = ("token", "max_bytes", "max_pixels", "seconds")


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = argument_adder(parser)
    add_address(add, ", which needs a token")
    add("--token", str, "", "what clients must know; default: the environment variable "
        "DEEP_IMAGE_COMPOSITING_TOKEN, or a random one where one is needed")
    add("--device", list, "DEVICE",
        "auto, cpu, cuda, cuda:1, mps; one worker for each; default: auto")
    add_stages(parser.add_argument_group("stages, unless a client names others"))
    add = argument_adder(parser.add_argument_group("limits"))
    add("--queue", 32, "N", "requests that may wait before others are turned away")
    add("--max-bytes", Settings.max_bytes, "N", "of a request")
    add("--max-pixels", Settings.max_pixels, "N", "of a photograph")
    add("--seconds", Settings.seconds, "",
        "in which a request must have arrived, and then be worked off")


def add_address(add: Callable[..., None], more: str = "") -> None:
    """Add where a server listens, and the names to which it answers."""
    add("--host", "127.0.0.1", "",
        f"address to listen at: this machine only, or 0.0.0.0 for the whole network{more}")
    add("--port", 8000, "", "0 for any free one")
    add("--allowed-host", list, "NAME",
        "one more name under which it is reached, that of a web server in front of it, say")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit code."""
    for package in ("starlette", "uvicorn", "python_multipart"):
        import_extra(package, "serve", "serve")
    from deep_image_compositing.serving.server import serve

    devices = args.device or ["auto"]
    for device in devices:
        settings.check_device(device)
    defaults = {
        slot: (name, tuple((key, _frozen(chosen[key])) for key in sorted(chosen)))
        for slot, (name, chosen) in named_stages(args).items()
    }
    own = {name: getattr(args, name) for name in _SETTINGS}
    chosen = Settings(names=tuple(args.allowed_host), defaults=defaults, **own)
    serve(chosen, args.host, args.port, devices, args.queue)
    return 0


def _frozen(value: Any) -> Any:
    """A value of JSON with tuples for lists, so that stages are told apart by their options."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
