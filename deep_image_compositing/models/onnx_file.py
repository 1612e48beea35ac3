"""An ONNX file and the onnxruntime session that runs it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deep_image_compositing.errors import MissingExtraError, UsageError, WeightsError, first_line
from deep_image_compositing.files import at_home

METADATA = "deep_image_compositing"
"""Key of a file's metadata under which an exported stage is described, as JSON."""

_CUDA = "CUDAExecutionProvider"
_log = logging.getLogger("deep_image_compositing")


class OnnxFile:
    """An ONNX file, whose session is opened on first use and again after unpickling.

    Args:
        path: the ``.onnx`` file.
        providers: onnxruntime's execution providers, in order of preference; the first has to
            work. By default that of the device on which it is run.
        feature: what messages say needs onnxruntime.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None, feature: str) -> None:
        self.path = at_home(path)
        self.providers = None if providers is None else tuple(providers)
        self.feature = feature
        self.device = torch.device("cpu")
        self.asked = False
        self._session: Any = None

    def move(self, device: torch.device, asked: bool = False) -> None:
        """Run on another device from now on, unless ``providers`` say where.

        Where it has been ``asked`` for, that onnxruntime cannot use it is an error and no warning.
        """
        before, after = ((one.type, one.index or 0) for one in (self.device, device))
        if after != before and self.providers is None:
            self._session = None
        self.device, self.asked = device, self.asked or asked
        if asked and self._session is None:
            self._session = self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    @property
    def session(self) -> Any:
        """The onnxruntime session.

        Raises ``MissingExtraError`` without onnxruntime, ``UsageError`` for a provider that is not
        there or does not work, ``WeightsError`` for no such file, or one that cannot be read.
        """
        if self._session is None:
            self._session = self._open()
        return self._session

    @property
    def described(self) -> dict[str, Any]:
        """Slot and options of the stage that was exported to it; empty for any other file."""
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA, "{}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}

    def run(self, output: str, feed: dict[str, Any]) -> Any:
        """The output of this name for these inputs; ``WeightsError`` if it cannot run on them."""
        try:
            (answer,) = self.session.run([output], feed)
        except Exception as error:  # its own classes share no base but Exception
            shapes = ", ".join(str(array.shape) for array in feed.values())
            raise WeightsError(
                f"{self.path} could not run on {shapes}: {first_line(error)}"
            ) from error
        return answer

    def _open(self) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError(self.feature, "onnxruntime", "onnx") from None
        if not self.path.is_file():
            raise WeightsError(f"there is no ONNX file {self.path}")
        there = onnxruntime.get_available_providers()
        wanted: list[Any] = list(self.providers or ["CPUExecutionProvider"])
        if absent := sorted(set(wanted) - set(there)):
            raise UsageError(
                f"onnxruntime has no provider {absent[0]!r} here; it has: {', '.join(there)}"
            )
        if self.providers is None and self.device.type == "cuda":
            wanted.insert(0, (_CUDA, {"device_id": self.device.index or 0}))
            if _CUDA not in there:
                wanted = wanted[1:]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()  # as all other stages
        try:
            session = onnxruntime.InferenceSession(str(self.path), options, providers=wanted)
        except Exception as error:
            raise WeightsError(
                f"{self.path} is not a readable ONNX model: {first_line(error)}"
            ) from error
        used = session.get_providers()[0]  # one that cannot start is passed over in silence
        if self.providers and used != self.providers[0]:
            raise UsageError(
                f"{self.path} does not run on {self.providers[0]}: onnxruntime fell back to "
                f"{used}; mend its installation, or ask for that one"
            )
        if self.providers is None and self.device.type == "cuda" and used != _CUDA:
            said = (
                f"{self.path.name} cannot run on {self.device}: onnxruntime has no CUDA that works "
                'here; install onnxruntime-gpu, or set providers=["CPUExecutionProvider"]'
            )
            if self.asked:
                raise UsageError(said)
            _log.warning("%s; it runs on the CPU", said)
        else:
            _log.info("%s runs on onnxruntime's %s", self.path.name, used)
        return session
