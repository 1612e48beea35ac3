"""Trained weights: the files that ship with the package, and reading and writing such files.

A weights file is safetensors: tensors by their name in the stage's ``state_dict`` (stored in half
precision where they are floating point), and the stage's hyper-parameters as JSON in the header.
No file is ever unpickled with code in it.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deep_image_compositing.errors import UsageError, WeightsError
from deep_image_compositing.images import write_bytes

if TYPE_CHECKING:
    from deep_image_compositing.stages.base import Stage

FOLDER = Path(__file__).parent


def resolve(stage: Stage, weights: str | Path) -> Path:
    """The file that ``weights`` means for ``stage``: a shipped name, or a path.

    Raises:
        WeightsError: when there is no such shipped name and no such file.
    """
    shipped = type(stage).shipped
    if str(weights) in shipped:
        path = FOLDER / shipped[str(weights)]
        if not path.is_file():
            raise WeightsError(
                f"the weights {str(weights)!r} of {type(stage).__name__} are missing from this "
                f"installation ({path}); reinstall the package"
            )
        return path
    path = Path(weights).expanduser()
    if not path.is_file():
        names = ", ".join(map(repr, shipped)) or "none"
        raise WeightsError(
            f"no weights {str(weights)!r} for {type(stage).__name__}: not a file, and the weights "
            f"that ship for it are: {names}"
        )
    return path


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a Lightning/torch checkpoint that holds no code.

    Raises:
        WeightsError: when the file is neither, is damaged, or would run code when loaded.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError) as error:
            raise _unreadable(path, error) from None
    content = _read_checkpoint(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds no state_dict of tensors")
    return state


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is not a readable safetensors file: {error}")


def _read_checkpoint(path: Path) -> Any:
    """What torch.save wrote; :class:`WeightsError` when it could run code, or is damaged."""
    try:
        with warnings.catch_warnings():
            # torch guesses at files it does not know; what is wrong with them is said below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return _load(path)
    except OSError as error:
        raise WeightsError(f"{path} could not be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file may fail anywhere inside the unpickler
        called = re.search(r"(?:GLOBAL|function|class) ([\w.]+\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and called:
            raise WeightsError(
                f"{path} was not loaded, because loading it could run code: it calls "
                f"{called[1]}. Export the weights as safetensors instead"
            ) from None
        raise WeightsError(
            f"{path} is not a checkpoint, or a damaged one; expected .safetensors or what "
            "torch.save writes"
        ) from None


def _load(path: Path) -> Any:
    """What torch.save wrote, as far as it is tensors, plain values and NumPy's single numbers.

    Those numbers are what older training code noted its metrics in, next to the weights.
    """
    make: Any = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    # Pickles of NumPy 1 and of NumPy 2 call the same function by different names.
    names = [(make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, np.dtype, *numbers]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """What the stage in a weights file or checkpoint was made with; empty when it does not say.

    Raises:
        WeightsError: as :func:`read_state`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        import safetensors

        try:
            with safetensors.safe_open(path, framework="pt") as file:  # reads no more than its head
                header = file.metadata() or {}
            return dict(json.loads(header.get("hyper_parameters", "{}")))
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None
    content = _read_checkpoint(path)
    return dict(content.get("hyper_parameters", {})) if isinstance(content, dict) else {}


def load(stage: Stage, weights: str | Path) -> None:
    """Load ``weights`` (a shipped name or a file) into ``stage``, in place.

    Raises:
        WeightsError: as :func:`resolve` and :func:`read_state`, or when names or shapes differ.
    """
    path = resolve(stage, weights)
    state = read_state(path)
    try:
        stage.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        short = [line if len(line) < 200 else f"{line[:160]} ..." for line in lines]
        raise WeightsError(
            f"{path} does not fit {type(stage).__name__} with these hyper-parameters: "
            + " ".join(short)
        ) from None


def save(stage: Stage, path: str | Path) -> None:
    """Write the weights of ``stage`` as half-precision safetensors with its hyper-parameters.

    The file appears whole or not at all.

    Raises:
        UsageError: when the path does not end in ``.safetensors``.
    """
    import safetensors.torch

    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"weights are written as .safetensors, not {path.suffix or 'no suffix'}")
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in stage.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    header = {
        "stage": type(stage).__name__,
        "hyper_parameters": json.dumps(dict(stage.hparams), default=str, sort_keys=True),
    }
    # Bytes through images.write_bytes, which writes aside, renames and keeps the usual file mode.
    write_bytes(path, safetensors.torch.save(tensors, metadata=header))


def describe(
    stage: Stage, weights: str | Path | None, published: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """What a stage's networks are to be made with: as given, else as its weights file says.

    Args:
        stage: that is being made; its class knows the shipped names.
        weights: a shipped name, a file, or None.
        published: the options, with the values that hold where neither says anything.
        given: the options that the caller may have given; None where not.

    Raises:
        WeightsError: as :func:`resolve` and :func:`read_hyper_parameters`.
    """
    hyper = {} if weights is None else read_hyper_parameters(resolve(stage, weights))
    found = {key: hyper.get(key, value) for key, value in published.items()}
    return {**found, **{key: value for key, value in given.items() if value is not None}}
