"""Trained weights: those that ship, and reading and writing such files.

A weights file is safetensors: half-precision tensors by their name in the stage's ``state_dict``,
and its hyper-parameters as JSON in the header. Nothing is unpickled that holds code.
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

# Hyper-parameters that say where weights came from; whatever holds the weights forgets them.
BEGINNINGS = frozenset(("weights", "pretrained"))
_DEEPEST = 20
_TRAINING = {"learning_rate", "weight_decay", "schedule", "warmup_steps"}
_TRAINING |= {"picture_every", "compile"}


def resolve(stage: Any, weights: str | Path) -> Path:
    """The file that ``weights`` means for a stage or its class: a shipped name, or a path.

    Raises ``WeightsError`` when there is no such shipped name and no such file.
    """
    shipped = getattr(stage, "shipped", {})
    kind = getattr(stage, "__name__", type(stage).__name__)
    if str(weights) not in shipped:
        return existing_weights(weights, kind, shipped)
    path = FOLDER / str(shipped[str(weights)])
    if not path.is_file():
        raise WeightsError(
            f"the weights {str(weights)!r} of {kind} are missing from this installation ({path}); "
            "reinstall the package"
        )
    return path


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a Lightning/torch checkpoint that holds no code.

    Raises ``WeightsError`` when it is neither, is damaged, or would run code when loaded.
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
    """The table that torch.save wrote; ``WeightsError`` when it could run code, or is damaged.

    It may hold tensors, plain values, and NumPy's single numbers, as older training code noted.
    """
    make: Any = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    # Pickles of NumPy 1 and of NumPy 2 call the same function by different names.
    names = [(make, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    safe = torch.serialization.safe_globals([*names, np.dtype, *numbers])
    try:
        with warnings.catch_warnings(), safe:
            # torch guesses at files it does not know; what is wrong with them is said below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
            return content if isinstance(content, dict) else {"state_dict": None}
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


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """What the stage in a weights file or checkpoint was made with; empty when it does not say.

    Raises ``WeightsError`` as ``read_state``, or when it is no table of plain values by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        import safetensors

        try:
            with safetensors.safe_open(path, framework="pt") as file:  # reads no more than its head
                header = file.metadata() or {}
            hyper = json.loads(header.get("hyper_parameters", "{}"))
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None
        except RecursionError:
            raise _unreadable(path, "its hyper_parameters are nested too deeply") from None
    else:
        hyper = _read_checkpoint(path).get("hyper_parameters", {})
    if not isinstance(hyper, dict) or not all(isinstance(name, str) for name in hyper):
        raise WeightsError(f"{path}: its hyper_parameters are no table of values by name")
    if not _is_shallow(hyper):
        raise WeightsError(f"{path}: its hyper_parameters are nested too deeply")
    return dict(hyper)


def _is_shallow(value: Any) -> bool:
    """Whether lists and dicts are nested in each other no deeper than hyper-parameters ever are."""
    level = [value]
    for _ in range(_DEEPEST):
        inner = [x.values() if isinstance(x, dict) else x for x in level]
        level = [x for part in inner for x in part if isinstance(x, (dict, list, tuple))]
        if not level:
            return True
    return False


def load(stage: StageModel, weights: str | Path) -> None:
    """Load ``weights`` (a shipped name or a file) into ``stage``, in place.

    Raises ``WeightsError`` as ``resolve`` and ``read_state``, when names or shapes differ, or a
    tensor holds NaN or infinite values.
    """
    _check_whole(stage)
    path = resolve(stage, weights)
    _fill(stage, path, read_state(path))


def _fill(stage: StageModel, path: Path, state: dict[str, Tensor], assign: bool = False) -> None:
    """Load ``state``, read from ``path``, into ``stage``; WeightsError where it does not fit."""
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
    """Raise ``WeightsError`` for the first tensor of a file that holds NaN or infinity."""
    for name, value in state.items():
        if value.is_floating_point() and not (finite := value.float().isfinite()).all():
            raise WeightsError(
                f"{path} cannot be used: {int((~finite).sum())} of the {value.numel()} values of "
                f"{name!r} are NaN or infinite; take an earlier checkpoint of its training"
            )


def _difference(stage: StageModel, path: Path, state: Mapping[str, Tensor]) -> str:
    """What keeps ``state`` from fitting: an option if there is one, else the first tensor."""
    options = {k: v for k, v in stage.hparams.items() if k not in BEGINNINGS | _TRAINING}
    if found := _contradictions(read_hyper_parameters(path), options):
        return found
    own = stage.state_dict()
    lacking = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [
        f"{name} is {tuple(state[name].shape)} in it, and {tuple(value.shape)} in the stage"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong += [f"it has no {name}" for name in lacking]
    wrong += [f"it has {name}, and the stage has not" for name in state if name not in own]
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return wrong[0] + more if wrong else ""


def _contradictions(described: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The options that are not as a file describes them, in words; empty when all are."""
    found = {
        name: (_shown(described[name]), _shown(value))
        for name, value in given.items()
        if name in described and _shown(described[name]) != _shown(value)
    }
    return "; ".join(
        f"the option {name!r} is given as {value}, and the file was made with {own}"
        for name, (own, value) in found.items()
    )


def _shown(value: Any) -> str:
    """A value as messages show it; tuples and lists look alike, and so do 1 and 1.0."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"[:80]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e6 else repr(value)[:80]
    return repr(value)[:80]


def save(stage: StageModel, path: str | Path) -> None:
    """Write the weights of ``stage`` as half-precision safetensors with its hyper-parameters.

    The file appears whole or not at all. Tensors that half precision cannot hold stay as they are.
    Raises ``UsageError`` for another suffix, ``WeightsError`` for NaN or infinite values.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"weights are written as .safetensors, not {path.suffix or 'no suffix'}")
    write_bytes(path, encode(stage))


def encode(stage: StageModel) -> bytes:
    """What ``save`` writes; raises ``WeightsError`` likewise."""
    import safetensors.torch

    _check_whole(stage)
    state = stage.state_dict()
    check_finite(f"the weights of {type(stage).__name__}", state)
    tensors = {
        name: _halved(value).contiguous()
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


def _check_whole(stage: StageModel) -> None:
    if stage.folded:
        raise WeightsError(
            f"this {type(stage).__name__} was made only to run, and has no weights of its own to "
            "save or load; make one with deep_image_compositing.create"
        )


def _halved(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if bool(half.isfinite().all()) else value


def describe(
    stage: StageModel,
    weights: str | Path | None,
    published: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    free: Collection[str] = (),
    layers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a stage's networks are to be made with: as its weights file says, else as given.

    A constructor asks after ``save_hyperparameters``; the answer becomes part of ``hparams``. A
    file of no shipped name is first tried on a network without memory.

    Args:
        stage: that is being made; its class knows the shipped names.
        weights: a shipped name, a file, or None.
        published: the options, with the values that hold where neither says anything.
        arguments: of the constructor (its ``locals()``); None is an option that was not given.
        free: options that may be given other than in the file, as no tensor depends on them.
        layers: options as the file's tensors show them, where it has no hyper-parameters.

    Raises ``WeightsError`` as ``load``, for an option that is given other than in the file, or a
    file that describes no network.
    """
    chosen = {name: arguments[name] for name in published if arguments[name] is not None}
    if weights is None:
        stage.hparams.update(published, **chosen)
        return {**published, **chosen}
    path, kind = resolve(stage, weights), type(stage)
    hyper = {**(layers or {}), **read_hyper_parameters(path)}
    described = {name: hyper[name] for name in published if hyper.get(name) is not None}
    if wrong := misfit(kind, described):
        raise WeightsError(f"{path} describes no {kind.__name__}: {wrong}")
    fixed = {name: value for name, value in chosen.items() if name not in free}
    if found := _contradictions(described, fixed):
        raise WeightsError(
            f"{path} does not fit {kind.__name__}: {found}; leave the option out (null), and it "
            "is as in the file"
        )
    options = {**published, **described, **chosen}
    if str(weights) not in kind.shipped:
        _rehearse(kind, path, options)
    stage.hparams.update(options)
    return options


def _rehearse(kind: type[StageModel], path: Path, options: Mapping[str, Any]) -> None:
    """Try a file on a stage of the class ``kind`` whose tensors take no memory."""
    accepted = accepted_options(kind)
    if accepted is None or not accepted[0].issuperset(options) or accepted[1]:
        return  # a class of somebody's own, which is made in another way
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever is worth saying is said of the real one
        try:
            stage = kind(**options)
        except UsageError as error:
            raise WeightsError(f"{path} describes no {kind.__name__}: {error}") from None
    _fill(stage, path, read_state(path), assign=True)
