"""Groups of the photographs behind the default weights, and their held-out parts.

``measure_masks.py`` measures on the held-out part, ``default/pack.py`` packs the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deep_image_compositing.data.datasets import FolderDataset, open_source
from deep_image_compositing.data.folders import DOUBTS
from deep_image_compositing.data.items import FileItem, Source
from deep_image_compositing.errors import CompositingError

GROUPS: dict[str, tuple[str, ...]] = {
    "people": ("people",),
    "cats": ("cats",),
    "mixed": ("subjects",),
    "animals": ("open/wikimedia_animals", "open/wikimedia_animals2", "open/wikimedia_rescue"),
    "objects": (
        "open/clothing_dataset",
        "open/wikimedia_tools",
        "open/wikipedia_cars",
        "open/grocery_store",
        "open/wikimedia_crops",
        "open/caltech101",
    ),
    "portraits": ("open/interfaces_portraits", "open/clic2025_subjects"),
    "people_open": ("open/coco_val2017_people",),
    "davis": ("open/davis",),
}
"""Folders of labelled photographs, by what they show."""

HELD_OUT = {"mattes": 0.2, "cutouts": 0.4, "open/davis": 0.2}
"""Share that is held out of folders that are too small for the usual tenth."""

DOUBT = 0.45
"""Masks made by another network are used if their doubt is below this."""


def source(data: Path, folder: str, doubt: float = DOUBT, **settings: Any) -> Source:
    """A folder below ``data`` as a source, with the same held-out part in all scripts."""
    path = data / folder
    return Source(
        str(path),
        hold_out=HELD_OUT.get(folder, 0.1),
        sequences=folder == "open/davis",
        doubt=doubt if (path / DOUBTS).is_file() else None,
        **settings,
    )


def held_out(source: Source, kind: str = "segmentation") -> list[FileItem]:
    """The held-out photographs of ``source``, sorted by name."""
    try:
        _, dataset = open_source(source, (kind,))
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
    pairs = dataset.pairs if isinstance(dataset, FolderDataset) else []
    return [FileItem(source, pair) for pair in pairs]
