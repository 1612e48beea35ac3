"""Save stages to folders and the Hugging Face Hub: weights, options and a model card.

Only these three files of a repository are downloaded, and no pickle is ever read.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing import __version__, registry, weights
from deep_image_compositing.errors import UsageError, WeightsError, reason_of
from deep_image_compositing.files import at_home, make_folder, write_files

if TYPE_CHECKING:
    from deep_image_compositing.models.base import StageModel

WEIGHTS, CONFIG, CARD = _FILES = "model.safetensors", "config.json", "README.md"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(
    stage: StageModel, folder: str | Path, *, card: str | None = None, run: str | Path | None = None
) -> Path:
    """Write a stage's weights, options and model card to a folder, and return the folder.

    Args:
        stage: any stage that has weights, trained or not.
        folder: created if missing; existing files of the three names are replaced, all or none.
        card: the model card in Markdown; generated from the stage and ``run`` by default.
        run: folder of a training run, whose data, steps and metrics go into the generated card.

    Raises:
        WeightsError: the stage has no weights, was made for inference only, or a tensor holds NaN
            or infinite values.
        UsageError: ``run`` is not the folder of a training run.
        ImageError: the folder or a file could not be written.
    """
    if not stage.state_dict():
        raise WeightsError(f"{type(stage).__name__} has no weights to save")
    config = {
        "library": "deep_image_compositing",
        "version": __version__,
        "slot": stage.slot,
        "name": registered_name(stage),
        "class_path": f"{type(stage).__module__}.{type(stage).__qualname__}",
        "options": _options(stage),
    }
    text = card if card is not None else model_card(stage, run)
    contents = (weights.encode(stage), _json(config).encode(), text.encode())
    folder = make_folder(folder)
    write_files((folder / name, data) for name, data in zip(_FILES, contents, strict=True))
    return folder


def push_to_hub(
    stage: StageModel,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    card: str | None = None,
    run: str | Path | None = None,
) -> str:
    """Upload a stage to the Hugging Face Hub and return the repository's URL.

    Args:
        stage: any stage that has weights.
        repository: ``user/name``; created if missing.
        private: whether to create the repository as private.
        token: access token; by default the one stored by ``hf auth login``.
        revision: branch to write to; by default the main branch.
        card: as for ``save_pretrained``.
        run: as for ``save_pretrained``.

    Raises:
        UsageError: ``repository`` is not of the form ``user/name``.
        WeightsError: the Hub could not be reached or rejected the upload.
    """
    from huggingface_hub import HfApi

    _check_repository(repository)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(stage, folder, card=card, run=run)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, revision=revision)
        except Exception as error:  # the Hub's and the HTTP client's errors share no base
            raise WeightsError(
                f"{repository} could not be written to the Hub: {reason_of(error)}"
            ) from error
    return f"https://huggingface.co/{repository}"


def locate(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder ``source``, or the local snapshot of the repository ``source`` on the Hub."""
    name = str(source).removeprefix(registry.HUB)
    if not str(source).startswith(registry.HUB) and (folder := at_home(source)).is_dir():
        return folder
    _check_repository(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=list(_FILES))
        )
    except Exception as error:  # the Hub's and the HTTP client's errors share no base
        raise WeightsError(
            f"{name} could not be fetched from the Hub: {reason_of(error)}. Without a connection, "
            "give a folder that holds its files"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The slot, name, class path and options in a folder's ``config.json``; or ``WeightsError``."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise WeightsError(f"{folder} holds no {CONFIG}, so it is not a stage") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{folder / CONFIG} cannot be read: {reason_of(error)}") from None
    fields = {"slot": str, "class_path": str, "options": dict}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), kind) for name, kind in fields.items()
    ):
        raise WeightsError(
            f"{folder / CONFIG} does not describe a stage: it needs {', '.join(fields)}"
        )
    if config["slot"] not in registry.SLOTS:
        raise WeightsError(f"{folder / CONFIG}: there is no slot {config['slot']!r}")
    return config


def model_card(stage: StageModel, run: str | Path | None = None) -> str:
    """A model card in Markdown: what the stage is, how to load it, and how it was trained."""
    name = registered_name(stage) or type(stage).__name__
    parameters = sum(parameter.numel() for parameter in stage.parameters()) / 1e6
    options = _json(_options(stage))
    parts = [
        "---\nlibrary_name: deep_image_compositing\ntags: [image-matting, image-segmentation]\n---",
        f"# {stage.slot} `{name}`",
        f"{parameters:.1f} million parameters, for the Python package `deep-image-compositing`.",
        "```python\nfrom deep_image_compositing import Compositor\n\n"
        f'compositor = Compositor({stage.slot}="hf://user/name")\n```',
        f"## Options\n\n```json\n{options}\n```",
    ]
    if run is not None:
        parts.append(_training(Path(run)))
    parts.append("## Licence and limits\n\nNot stated yet: say here under which licence the "
        "weights and the data are, and what the stage is not good at.")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _options(stage: StageModel) -> dict[str, Any]:
    """The stage's constructor options without paths to its initial weights."""
    return {k: v for k, v in stage.hparams.items() if k not in weights.BEGINNINGS}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, default=str)


def _training(run: Path) -> str:
    """The section on a training run: its data and steps, and the last value of each metric."""
    import yaml  # type: ignore[import-untyped]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    try:
        recipe = yaml.safe_load((run / "config.yaml").read_text())
        if not isinstance(recipe, dict):
            raise ValueError("its config.yaml holds no options")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{run} is not the folder of a run: {reason_of(error)}") from error
    data = yaml.safe_dump(recipe.get("data"), sort_keys=False).strip()
    steps = (recipe.get("trainer") or {}).get("max_steps")
    text = f"## Training\n\nUp to {steps} steps on:\n\n```yaml\n{data}\n```"
    measures: dict[str, float] = {}
    for file in sorted(run.rglob("events.out.tfevents.*")):
        log = EventAccumulator(str(file)).Reload()
        tags = (tag for tag in log.Tags()["scalars"] if tag.startswith(("val/", "test/")))
        measures |= {tag: log.Scalars(tag)[-1].value for tag in tags}
    if measures:
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(measures.items()))
        text += f"\n\nLast values of the metrics:\n\n| metric | value |\n|---|---:|\n{rows}"
    return text


def registered_name(stage: StageModel | type[StageModel]) -> str | None:
    """The name under which the class of ``stage`` is registered; None if it is not."""
    kind = stage if isinstance(stage, type) else type(stage)
    path = f"{kind.__module__}:{kind.__qualname__}"
    for entry in registry.list_stages(kind.slot):
        if kind in (entry.made_by, entry.run_by) or path in (entry.made_by, entry.run_by):
            return entry.name
    return None


def _check_repository(name: str) -> None:
    if not _REPOSITORY.fullmatch(name):
        raise UsageError(f"{name!r} is neither a folder nor a repository, user/name")
