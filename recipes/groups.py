"""The photographs of the default weights, by what they show, and what of them is held out.

``measure_masks.py`` measures on what is held out, ``default/pack.py`` packs the rest.
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
"""Folders of labelled photographs by what is in them."""

HELD_OUT = {"mattes": 0.2, "cutouts": 0.4, "open/davis": 0.2}
"""Share that is held out of the folders in which a tenth would be next to nothing."""

DOUBT = 0.45
"""What the doubt of a mask that another network has made must stay below to count."""


def source(data: Path, folder: str, doubt: float = DOUBT, **settings: Any) -> Source:
    """A folder below ``data`` as a source of which the same is held out everywhere."""
    path = data / folder
    return Source(
        str(path),
        hold_out=HELD_OUT.get(folder, 0.1),
        sequences=folder == "open/davis",
        doubt=doubt if (path / DOUBTS).is_file() else None,
        **settings,
    )


def held_out(source: Source, kind: str = "segmentation") -> list[FileItem]:
    """What training on ``source`` does not see, in the order of the names."""
    try:
        _, dataset = open_source(source, (kind,))
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
    return (
        [FileItem(source, pair) for pair in dataset.pairs]
        if isinstance(dataset, FolderDataset)
        else []
    )
