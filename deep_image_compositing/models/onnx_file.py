"""An ONNX file and the onnxruntime session that runs it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deep_image_compositing.errors import UsageError, WeightsError, reason_of
from deep_image_compositing.extras import import_extra
from deep_image_compositing.files import at_home

METADATA = "deep_image_compositing"
"""Metadata key of the JSON description of an exported stage."""

_CUDA = "CUDAExecutionProvider"
_log = logging.getLogger("deep_image_compositing")


class OnnxFile:
    """An ONNX file whose session opens on first use, and again after unpickling.

    Args:
        path: the ``.onnx`` file.
        providers: onnxruntime execution providers in order of preference; the first must work.
            Defaults to the provider of the device in use.
        feature: name of the feature that needs onnxruntime, for error messages.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None, feature: str) -> None:
        self.path = at_home(path)
        self.providers = None if providers is None else tuple(providers)
        self.feature = feature
        self.device = torch.device("cpu")
        self.required = False
        self._session: Any = None

    def move(self, device: torch.device, required: bool = False) -> None:
        """Run on another device from now on, unless ``providers`` are set.

        If onnxruntime cannot use the device, that is an error if ``required``, else a warning.
        """
        before, after = ((x.type, x.index or 0) for x in (self.device, device))
        if after != before and self.providers is None:
            self._session = None
        self.device, self.required = device, self.required or required
        if required and self._session is None:
            self._session = self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    @property
    def session(self) -> Any:
        """The onnxruntime session.

        Raises ``MissingExtraError`` without onnxruntime, ``UsageError`` for a provider that is
        missing or does not work, ``WeightsError`` for a missing or unreadable file.
        """
        if self._session is None:
            self._session = self._open()
        return self._session

    @property
    def metadata(self) -> dict[str, Any]:
        """Slot and options of the exported stage; empty if this library did not export the file."""
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA, "{}")
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return metadata if isinstance(metadata, dict) else {}

    def run(self, output: str, feed: dict[str, Any]) -> Any:
        """Run on ``feed`` and return the named output; ``WeightsError`` if onnxruntime fails."""
        session = self.session  # opening it raises errors of its own
        try:
            return session.run([output], feed)[0]
        except Exception as error:  # onnxruntime's exceptions have no other common base class
            shapes = ", ".join(str(array.shape) for array in feed.values())
            raise WeightsError(
                f"{self.path} could not run on {shapes}: {reason_of(error)}"
            ) from error

    def _open(self) -> Any:
        onnxruntime = import_extra("onnxruntime", self.feature)
        if not self.path.is_file():
            raise WeightsError(f"there is no ONNX file {self.path}")
        available = onnxruntime.get_available_providers()
        providers: list[Any] = list(self.providers or ["CPUExecutionProvider"])
        if missing := sorted(set(providers) - set(available)):
            raise UsageError(
                f"onnxruntime has no provider {missing[0]!r} here; it has: {', '.join(available)}"
            )
        if self.providers is None and self.device.type == "cuda" and _CUDA in available:
            providers.insert(0, (_CUDA, {"device_id": self.device.index or 0}))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()  # as all other stages
        try:
            session = onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:
            raise WeightsError(
                f"{self.path} is not a readable ONNX model: {reason_of(error)}"
            ) from error
        used = session.get_providers()[0]  # onnxruntime silently skips one that fails to start
        if self.providers and used != self.providers[0]:
            raise UsageError(
                f"{self.path} does not run on {self.providers[0]}: onnxruntime fell back to "
                f"{used}; repair its installation, or set providers=[{used!r}]"
            )
        if self.providers is None and self.device.type == "cuda" and used != _CUDA:
            message = (
                f"{self.path.name} cannot run on {self.device}: onnxruntime has no working CUDA "
                'here; install onnxruntime-gpu, or set providers=["CPUExecutionProvider"]'
            )
            if self.required:
                raise UsageError(message)
            _log.warning("%s; it runs on the CPU", message)
        else:
            _log.info("%s runs on onnxruntime's %s", self.path.name, used)
        return session
