"""Serving a study: uvicorn around the application of ``app``."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.study.folder import ANSWERS, Study
from deep_image_compositing.evaluation.study.store import Store
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import check_regular
from deep_image_compositing.messages import show


def serve(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    intro: str | Path | None = None,
    allowed_hosts: Iterable[str] = (),
    say: Callable[[str], None] = show,
) -> None:
    """Serve a study until the process is told to stop; answers go to ``answers.sqlite``.

    Args:
        folder: what ``study make`` made.
        host: address to listen at; ``0.0.0.0`` for the whole network.
        port: 0 for any free one.
        intro: a text file for the first page in place of our text; paragraphs are parted by
            empty lines.
        allowed_hosts: further names under which people reach it; see ``create_app``.
        say: told the address once the server listens.

    Raises:
        UsageError: no finished study, or an address that cannot be had.
        DataError: pictures or answers that cannot be used.
        MissingExtraError: Starlette or uvicorn is not installed.
    """
    uvicorn = import_extra("uvicorn", "study serve")
    import_extra("starlette", "study serve")
    from deep_image_compositing.evaluation.study.app import create_app

    study = Study.open(folder)
    if not 0 <= port <= 65535:
        raise UsageError(f"a port is a number from 0 to 65535, not {port}")
    text = None if intro is None else _paragraphs(Path(intro))
    with Store(Path(folder) / ANSWERS, study.id) as store, _listen(host, port) as listener:
        app = create_app(study, store, folder, intro=text, allowed_hosts=[host, *allowed_hosts])
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        say(
            f"study at http://{shown}:{listener.getsockname()[1]}/ "
            "(Ctrl-C stops the server; answers are kept)"
        )
        sys.stdout.flush()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # told to stop, which is how it is meant to end
            say(f"stopped; people so far: {len(store.people())}")


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is known before anything is announced."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; give another "
            "--host or --port"
        ) from error


def _paragraphs(path: Path) -> list[str]:
    check_regular(path, UsageError)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}") from error
    found = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    if not found:
        raise UsageError(f"{path} is empty; it is to tell people what they take part in")
    return found
