"""Published segmentation models, and the local folder into which their files are downloaded.

A file is downloaded once, only from the URL in the table, and verified by its hash.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from deep_image_compositing.errors import UsageError, WeightsError, choices, reason_of
from deep_image_compositing.files import remove_abandoned, write_bytes
from deep_image_compositing.messages import PROGRAM, progress

VARIABLE = "DIC_MODELS"
"""Environment variable for the folder of downloaded models."""

TIMEOUT = 30.0
"""Seconds without a response after which a download fails."""

CHUNK = 1 << 20


@dataclass(frozen=True)
class Published:
    """A published model."""

    name: str
    description: str
    source: str  # paper or author
    address: str  # URL of the file
    hash: str  # md5:... or sha256:...
    megabytes: int
    licence: str  # of the weights, as the authors state it
    options: Mapping[str, Any]  # of OnnxModel: pre- and postprocessing
    commercial: bool = True  # whether the licence allows commercial use

    @property
    def file(self) -> str:
        """File name in the folder of models."""
        return self.address.rpartition("/")[2]


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_REMBG = {"scale": "maximum", "resample": "lanczos"}
_U2NET = {**_REMBG, **_IMAGENET, "size": 320, "min_max": True}
_ISNET = {**_REMBG, "mean": 0.5, "std": 1.0, "size": 1024, "min_max": True}
_BIREFNET = {**_REMBG, **_IMAGENET, "size": 1024, "logits": True}
_RMBG2 = {**_REMBG, **_IMAGENET, "size": 1024, "logits": "auto", "min_max": True}
_BEN2 = {**_IMAGENET, "resample": "lanczos", "size": 1024, "min_max": True}
_WITHOUTBG = {"size": 1024, "fit": "pad", "padding": "black"}

_FROM_REMBG = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"
_HUB = "https://huggingface.co/"
_APACHE_DATA = "Apache-2.0; its author asks to check the data sets' terms"
_MIT_DATA = "MIT; its author admits restricted data sets"

# fmt: off
PUBLISHED: tuple[Published, ...] = (
    Published("ben2", "salient subjects, fine edges", "Prama LLC, 2025",
        _HUB + "PramaLLC/BEN2/resolve/d66d54ef23eedc4b4406e5fb42bc022957cb160f/BEN2_Base.onnx",
        "sha256:22cea62108ff53b7ccc20f7a008bf30494228d84b1687f29ecbe76936a998101", 223,
        "MIT", _BEN2),
    Published("birefnet", "salient subjects, fine structures", "Zheng et al., CAAI AIR 2024",
        _FROM_REMBG + "BiRefNet-general-epoch_244.onnx",
        "md5:7a35a0141cbbc80de11d9c9a28f52697", 973, _MIT_DATA, _BIREFNET),
    Published("birefnet_lite", "salient subjects; a small encoder", "Zheng et al., CAAI AIR 2024",
        _FROM_REMBG + "BiRefNet-general-bb_swin_v1_tiny-epoch_232.onnx",
        "md5:4fab47adc4ff364be1713e97b7e66334", 224, _MIT_DATA, _BIREFNET),
    Published("birefnet_massive", "salient subjects; more data", "Zheng et al., CAAI AIR 2024",
        _FROM_REMBG + "BiRefNet-massive-TR_DIS5K_TR_TEs-epoch_420.onnx",
        "md5:33e726a2136a3d59eb0fdf613e31e3e9", 973, _MIT_DATA, _BIREFNET),
    Published("birefnet_portrait", "people", "Zheng et al., CAAI AIR 2024",
        _FROM_REMBG + "BiRefNet-portrait-epoch_150.onnx",
        "md5:c3a64a6abf20250d090cd055f12a3b67", 973, _MIT_DATA, _BIREFNET),
    Published("isnet", "salient subjects, fine structures", "Qin et al., ECCV 2022",
        _FROM_REMBG + "isnet-general-use.onnx",
        "md5:fc16ebd8b0c10d971d3513d564d01e29", 179,
        "Apache-2.0; its data set has terms of its own", _ISNET),
    Published("rmbg2", "salient subjects", "BRIA AI, 2024",
        _FROM_REMBG + "bria-rmbg-2.0.onnx",
        "sha256:5b486f08200f513f460da46dd701db5fbb47d79b4be4b708a19444bcd4e79958", 1024,
        "CC BY-NC 4.0, non-commercial", _RMBG2, commercial=False),
    Published("silueta", "salient subjects; a reduced U2-Net", "rembg, 2022",
        _FROM_REMBG + "silueta.onnx",
        "md5:55e59e0d8062d2f5d013f4725ee84782", 44, "none stated", _U2NET),
    Published("u2net", "salient subjects", "Qin et al., Pattern Recognition 2020",
        _FROM_REMBG + "u2net.onnx",
        "md5:60024c5c889badc19c04ad937298a77b", 176, _APACHE_DATA, _U2NET),
    Published("u2net_human_seg", "people", "Qin et al., Pattern Recognition 2020",
        _FROM_REMBG + "u2net_human_seg.onnx",
        "md5:c09ddc2e0104f800e3e1bb4652583d1f", 176, _APACHE_DATA, _U2NET),
    Published("u2netp", "salient subjects; small and fast", "Qin et al., Pattern Recognition 2020",
        _FROM_REMBG + "u2netp.onnx",
        "sha256:309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8", 5,
        _APACHE_DATA, _U2NET),
    Published("withoutbg", "salient subjects, soft edges", "withoutBG, 2025",
        _HUB + "withoutbg/withoutbg-openweights-onnx/resolve/main/withoutbg-open-weights.onnx",
        "sha256:7873ec427ac6928bc91a3b6e1ddd32715a02d4b85836e78f0afacacee533b82f", 454,
        "Apache-2.0 and Meta's DINOv3 licence", _WITHOUTBG),
)
# fmt: on
"""All published models, sorted by name. The pre- and postprocessing follow the authors' code, or
rembg at commit 684f8e9; BiRefNet's output passes through a sigmoid, as in its authors' code."""

NAMES = tuple(model.name for model in PUBLISHED)


def get(name: str) -> Published:
    """The published model ``name``; the ``UsageError`` if there is none suggests the closest."""
    if name not in NAMES:
        raise UsageError(f"there is no model {name!r}; {choices(name, NAMES)}")
    return PUBLISHED[NAMES.index(name)]


def folder() -> Path:
    """The folder of downloaded models: ``DIC_MODELS``, or one in the user's cache directory."""
    if path := os.environ.get(VARIABLE):
        return Path(path).expanduser()
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        cache = "~/Library/Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "deep_image_compositing" / "models"


def path_of(model: Published) -> Path:
    """The path of the model's file, downloaded or not."""
    return folder() / model.file


def check_licence(model: Published, accepted: bool = False) -> None:
    """Raise ``UsageError`` for a non-commercial licence that was not accepted, now or before."""
    marker = path_of(model).with_name(f"{model.file}.licence-accepted")
    if model.commercial or marker.is_file():
        return
    if not accepted:
        raise UsageError(
            f"the model {model.name!r} is under {model.licence}: to accept that, give "
            "--accept-licence (accept_licence=True) once"
        )
    _make_folder(marker.parent)
    write_bytes(marker, f"{model.licence}\n".encode())


def fetch(model: Published, *, accept_licence: bool = False, show: bool = True) -> Path:
    """Download the model unless its file exists, verify the file's hash, and return its path.

    Args:
        model: the model.
        accept_licence: accept a licence that excludes commercial use; the choice is stored.
        show: display a progress bar.

    Raises:
        UsageError: the licence must be accepted first.
        WeightsError: the file cannot be downloaded or written, or its hash differs; a failed
            download leaves no file.
    """
    check_licence(model, accept_licence)
    path = path_of(model)
    if path.is_file():
        _check(model, path, str(path), "delete it, and it is fetched again")
        return path
    _make_folder(path.parent)
    remove_abandoned(path.parent)
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        _download(model, partial, show)
        _check(model, partial, f"the file from {model.address}", "try again later")
        os.replace(partial, path)
    except (OSError, HTTPException) as error:  # the disk's errors, too, say what is wrong
        reason = reason_of(getattr(error, "reason", None) or error)
        raise WeightsError(
            f"the model {model.name!r} could not be fetched from {model.address}: {reason}. "
            f"Without a connection, put that file at {path}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _download(model: Published, path: Path, show: bool) -> None:
    request = urllib.request.Request(model.address, headers={"User-Agent": PROGRAM})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, open(path, "xb") as file:
        length = int(response.headers.get("Content-Length") or 0)
        total = max(1, (length or model.megabytes * 1_000_000) // CHUNK)
        with progress(f"fetching {model.name}", total, show, "MiB") as advance:
            received = 0
            while chunk := response.read(CHUNK):
                received += file.write(chunk)
                advance(1)
    if length and received != length:
        raise OSError(f"the connection ended after {received} of {length} bytes")


def _check(model: Published, path: Path, what: str, remedy: str) -> None:
    """Raise ``WeightsError`` unless the file's hash is the model's."""
    algorithm, _, expected = model.hash.partition(":")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    if (actual := digest.hexdigest()) != expected:
        raise WeightsError(
            f"{what} is not the model {model.name!r}: its {algorithm} is {actual}, not {expected}; "
            f"{remedy}"
        )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # otherwise the download would be blamed
    except OSError as error:
        raise WeightsError(
            f"the folder of models {path} cannot be made or written to: {reason_of(error)}; name "
            f"another with --models, or by the environment variable {VARIABLE}"
        ) from error
