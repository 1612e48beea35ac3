"""The command ``serve``: a web page and an HTTP interface for composites."""

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
    add("--token", str, "", "access token of the clients; default: the environment variable "
        "DEEP_IMAGE_COMPOSITING_TOKEN, or a random one if one is needed")
    add("--device", list, "DEVICE",
        "auto, cpu, cuda, cuda:1, mps; one worker for each; default: auto")
    add_stages(parser.add_argument_group("stages (defaults for requests)"))
    add = argument_adder(parser.add_argument_group("limits"))
    add("--queue", 32, "N", "maximum number of waiting requests; others are rejected")
    add("--max-bytes", Settings.max_bytes, "N", "maximum size of a request in bytes")
    add("--max-pixels", Settings.max_pixels, "N", "maximum size of a photograph in pixels")
    add("--seconds", Settings.seconds, "",
        "time limit for receiving a request, and again for processing it")


def add_address(add: Callable[..., None], note: str = "") -> None:
    """Add the options for the address and the host names of a server."""
    add("--host", "127.0.0.1", "",
        f"address to listen on; 0.0.0.0 for the whole network{note}")
    add("--port", 8000, "", "port to listen on; 0 for any free port")
    add("--allowed-host", list, "NAME",
        "another host name of the server, for instance that of a reverse proxy")
# fmt: on


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit code."""
    for package in ("starlette", "uvicorn", "python_multipart"):
        import_extra(package, "serve", "serve")
    from deep_image_compositing.serving.server import serve

    devices = args.device or ["auto"]
    for device in devices:
        settings.check_device(device)
    defaults = {
        slot: (name, tuple((key, _frozen(options[key])) for key in sorted(options)))
        for slot, (name, options) in named_stages(args).items()
    }
    limits = {name: getattr(args, name) for name in _SETTINGS}
    server_settings = Settings(names=tuple(args.allowed_host), defaults=defaults, **limits)
    serve(server_settings, args.host, args.port, devices, args.queue)
    return 0


def _frozen(value: Any) -> Any:
    """A JSON value with tuples for lists, so that options are hashable."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
