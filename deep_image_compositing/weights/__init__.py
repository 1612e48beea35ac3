"""The shipped weights, and reading and writing weights files.

A weights file is safetensors: the stage's ``state_dict`` in half precision, with the stage's
hyper-parameters as JSON in the header. Pickles that contain code are never loaded.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deep_image_compositing.errors import CompositingError, UsageError, WeightsError
from deep_image_compositing.files import write_bytes
from deep_image_compositing.options import accepted_options, existing_weights, misfit

if TYPE_CHECKING:
    from deep_image_compositing.models.base import StageModel

FOLDER = Path(__file__).parent

BEGINNINGS = frozenset(("weights", "pretrained"))
"""Hyper-parameters that name initial weights; files that hold the weights do not keep them."""

_MAX_DEPTH = 20
_TRAINING = {"learning_rate", "weight_decay", "schedule", "warmup_steps"}
_TRAINING |= {"picture_every", "compile"}


def resolve(stage: Any, weights: str | Path) -> Path:
    """The file of ``weights``, a shipped name or a path, for a stage or its class.

    Raises ``WeightsError`` if it is neither a shipped name nor a file.
    """
    shipped = getattr(stage, "shipped", {})
    class_name = getattr(stage, "__name__", type(stage).__name__)
    if str(weights) not in shipped:
        return existing_weights(weights, class_name, shipped)
    path = FOLDER / str(shipped[str(weights)])
    if not path.is_file():
        raise WeightsError(
            f"the weights {str(weights)!r} of {class_name} are missing from this installation "
            f"({path}); reinstall the package"
        )
    return path


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or a Lightning/torch checkpoint, by name.

    Raises ``WeightsError`` for another file, a damaged one, or one that could run code.
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
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise WeightsError(f"{path} holds no state_dict of tensors")
    return state


def _unreadable(path: Path, error: Exception | str) -> WeightsError:
    return WeightsError(f"{path} is not a readable safetensors file: {error}")


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict that ``torch.save`` wrote; ``WeightsError`` if it could run code or is damaged.

    It may hold tensors, plain values, and NumPy scalars, which older training code saved.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    # NumPy 1 and NumPy 2 pickle the same function under different names.
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    safe = torch.serialization.safe_globals([*scalars, np.dtype, *dtypes])
    try:
        with warnings.catch_warnings(), safe:
            # torch warns about unknown formats, which are reported below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content if isinstance(content, dict) else {"state_dict": None}
    except OSError as error:
        raise WeightsError(f"{path} could not be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file may fail anywhere inside the unpickler
        call = re.search(r"(?:GLOBAL|function|class) ([\w.]+\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and call:
            raise WeightsError(
                f"{path} was not loaded, because loading it could run code: it calls "
                f"{call[1]}. Export the weights as safetensors instead"
            ) from None
        raise WeightsError(
            f"{path} is not a checkpoint, or a damaged one; expected .safetensors or what "
            "torch.save writes"
        ) from None


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """The hyper-parameters in a weights file or checkpoint; empty if it holds none.

    Raises ``WeightsError`` like ``read_state``, or if they are not a dict of plain values.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        import safetensors

        try:
            with safetensors.safe_open(path, framework="pt") as file:  # reads only the header
                header = file.metadata() or {}
            hyper = json.loads(header.get("hyper_parameters", "{}"))
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None
        except RecursionError:
            raise _unreadable(path, "its hyper_parameters are nested too deeply") from None
    else:
        hyper = _read_checkpoint(path).get("hyper_parameters", {})
    if not isinstance(hyper, dict) or not all(isinstance(name, str) for name in hyper):
        raise WeightsError(f"{path}: its hyper_parameters are not a dict of values by name")
    if not _is_shallow(hyper):
        raise WeightsError(f"{path}: its hyper_parameters are nested too deeply")
    return dict(hyper)


def _is_shallow(value: Any) -> bool:
    """Whether lists and dicts are nested at most ``_MAX_DEPTH`` levels deep."""
    containers = [value]
    for _ in range(_MAX_DEPTH):
        items = [x.values() if isinstance(x, dict) else x for x in containers]
        containers = [x for part in items for x in part if isinstance(x, (dict, list, tuple))]
        if not containers:
            return True
    return False


def load(stage: StageModel, weights: str | Path) -> None:
    """Load ``weights`` (a shipped name or a file) into ``stage``, in place.

    Raises ``WeightsError`` like ``resolve`` and ``read_state``, or if names or shapes differ or a
    tensor holds NaN or infinite values.
    """
    _check_not_folded(stage)
    path = resolve(stage, weights)
    _fill(stage, path, read_state(path))


def _fill(stage: StageModel, path: Path, state: dict[str, Tensor], assign: bool = False) -> None:
    """Load ``state``, read from ``path``, into ``stage``; ``WeightsError`` if it does not fit."""
    check_finite(path, state)
    try:
        stage.load_state_dict(state, strict=True, assign=assign)
    except CompositingError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = (
            _difference(stage, path, stage.renamed(state))
            or str(error).strip().splitlines()[-1].strip()
        )
        raise WeightsError(f"{path} does not fit {type(stage).__name__}: {reason}") from None


def check_finite(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Raise ``WeightsError`` if a tensor read from ``path`` holds NaN or infinite values."""
    for name, value in state.items():
        if value.is_floating_point() and not (finite := value.float().isfinite()).all():
            raise WeightsError(
                f"{path} cannot be used: {int((~finite).sum())} of the {value.numel()} values of "
                f"{name!r} are NaN or infinite; take an earlier checkpoint of its training"
            )


def _difference(stage: StageModel, path: Path, state: Mapping[str, Tensor]) -> str:
    """Why ``state`` does not fit ``stage``: options that differ, else the first such tensor."""
    options = {k: v for k, v in stage.hparams.items() if k not in BEGINNINGS | _TRAINING}
    if conflicts := _conflicts(read_hyper_parameters(path), options):
        return conflicts
    expected = stage.state_dict()
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    problems = [
        f"{name} is {tuple(state[name].shape)} in it, and {tuple(value.shape)} in the stage"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems += [f"it has no {name}" for name in missing]
    problems += [f"it has {name}, and the stage does not" for name in state if name not in expected]
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return problems[0] + more if problems else ""


def _conflicts(described: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """A message on the options that differ from those in a file; empty if all agree."""
    return "; ".join(
        f"the option {name!r} is given as {_format(value)}, and the file was made with "
        f"{_format(described[name])}"
        for name, value in options.items()
        if name in described and _format(described[name]) != _format(value)
    )


def _format(value: Any) -> str:
    """A value for messages and comparison: lists equal tuples, and 1 equals 1.0."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_format, value))}]"[:80]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e6 else repr(value)[:80]
    return repr(value)[:80]


def save(stage: StageModel, path: str | Path) -> None:
    """Write the weights of ``stage`` as half-precision safetensors with its hyper-parameters.

    The file is written atomically. Tensors beyond the range of half precision keep their dtype.
    Raises ``UsageError`` for another suffix, ``WeightsError`` for NaN or infinite values.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"weights are written as .safetensors, not {path.suffix or 'no suffix'}")
    write_bytes(path, encode(stage))


def encode(stage: StageModel) -> bytes:
    """The contents of the file that ``save`` writes; raises ``WeightsError`` like ``save``."""
    import safetensors.torch

    _check_not_folded(stage)
    state = stage.state_dict()
    check_finite(f"the weights of {type(stage).__name__}", state)
    tensors = {
        name: _to_half(value).contiguous()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    hyper = {name: None if name in BEGINNINGS else v for name, v in stage.hparams.items()}
    header = {
        "stage": type(stage).__name__,
        "hyper_parameters": json.dumps(hyper, default=str, sort_keys=True),
    }
    data: bytes = safetensors.torch.save(tensors, metadata=header)
    return data


def _check_not_folded(stage: StageModel) -> None:
    if stage.folded:
        raise WeightsError(
            f"this {type(stage).__name__} was made only to run: its weights can be neither saved "
            "nor loaded; make one with deep_image_compositing.create"
        )


def _to_half(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if bool(half.isfinite().all()) else value


def describe(
    stage: StageModel,
    weights: str | Path | None,
    defaults: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    free: Collection[str] = (),
    layers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options of a stage's networks: the arguments, else the weights file's, else defaults.

    For constructors, after ``save_hyperparameters``; the result is also stored in ``hparams``.
    Weights that are not shipped are first loaded into a stage on the meta device.

    Args:
        stage: the stage under construction.
        weights: a shipped name, a file, or None.
        defaults: the default value of each option.
        arguments: the constructor's arguments (``locals()``); None means the option is not set.
        free: options that no tensor depends on, which may differ from those in the file.
        layers: options inferred from the file's tensors, for files without hyper-parameters.

    Raises ``WeightsError`` like ``load``, for an argument that differs from the file's option, or
    for a file whose options are invalid.
    """
    chosen = {name: arguments[name] for name in defaults if arguments[name] is not None}
    if weights is None:
        stage.hparams.update(defaults, **chosen)
        return {**defaults, **chosen}
    path, cls = resolve(stage, weights), type(stage)
    hyper = {**(layers or {}), **read_hyper_parameters(path)}
    described = {name: hyper[name] for name in defaults if hyper.get(name) is not None}
    if problem := misfit(cls, described):
        raise WeightsError(f"{path} does not describe a valid {cls.__name__}: {problem}")
    fixed = {name: value for name, value in chosen.items() if name not in free}
    if conflicts := _conflicts(described, fixed):
        raise WeightsError(
            f"{path} does not fit {cls.__name__}: {conflicts}; leave the option out (null) to use "
            "the file's"
        )
    options = {**defaults, **described, **chosen}
    if str(weights) not in cls.shipped:
        _try_on_meta_device(cls, path, options)
    stage.hparams.update(options)
    return options


def _try_on_meta_device(cls: type[StageModel], path: Path, options: Mapping[str, Any]) -> None:
    """Load a file into a stage of class ``cls`` whose tensors take no memory."""
    accepted = accepted_options(cls)
    if accepted is None or not accepted[0].issuperset(options) or accepted[1]:
        return  # a user's class with a different constructor
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the actual stage will repeat them
        try:
            stage = cls(**options)
        except UsageError as error:
            raise WeightsError(
                f"{path} does not describe a valid {cls.__name__}: {error}"
            ) from None
    _fill(stage, path, read_state(path), assign=True)
