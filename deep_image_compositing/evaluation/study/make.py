"""Makes a study: every method's result on every pair, under random file names."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import CompositingError, ImageError, UsageError, error_text
from deep_image_compositing.evaluation.methods import ALONE, Method
from deep_image_compositing.evaluation.study import folder as layout
from deep_image_compositing.evaluation.study.folder import PLACES, PictureSet, Store, Study
from deep_image_compositing.evaluation.testsets import PairFiles
from deep_image_compositing.evaluation.testsets.base import planes
from deep_image_compositing.functional.resize import fit_long_side
from deep_image_compositing.images import read_image, read_mask, write_image
from deep_image_compositing.ledger import differences, digest
from deep_image_compositing.messages import progress
from deep_image_compositing.placement import cover, resample

_log = logging.getLogger("deep_image_compositing")


def make(
    pairs: Sequence[PairFiles],
    methods: Sequence[Method],
    out: str | Path,
    *,
    max_side: int = 1024,
    seed: int | None = None,
    device: str = "auto",
    show: bool = False,
) -> Study:
    """Run every method on every pair, and write a folder that ``study serve`` can show.

    Photographs are reduced before methods run, so every displayed pixel is a method's. A pair with
    a failed picture is not shown; ``PictureSet.left_out`` has the reasons. Another call with the
    same arguments makes the missing pictures.

    Args:
        pairs: pairs of photographs; a mask is passed to every method.
        methods: at least three.
        out: the folder, created if missing.
        max_side: maximum long side of the pictures in pixels.
        seed: seed of the tokens, to make the same study twice; None for secret tokens.
        device: as for ``Compositor``.
        show: show a progress bar on standard error.

    Raises:
        UsageError: an argument is wrong, or the folder holds another study or answers.
        ImageError: a file cannot be read or written.
    """
    if len(methods) < PLACES:
        raise UsageError(f"a study needs at least {PLACES} methods, got {len(methods)}")
    if alone := [method.name for method in methods if method.slots == ALONE]:
        raise UsageError(f"a study shows whole methods; {', '.join(alone)} are harmonizers alone")
    if not pairs:
        raise UsageError("a study needs at least one pair of photographs")
    if max_side < 32:
        raise UsageError(f"the long side must be at least 32 pixels, got {max_side}")
    folder = Path(out)
    recipe: dict[str, Any] = {"methods": [method.describe() for method in methods]}
    try:
        recipe["pairs"] = [
            {"name": pair.name, "sha256": {k: digest(file) for k, file in pair.files().items()}}
            for pair in pairs
        ]
    except OSError as error:
        raise ImageError(f"{error.filename} cannot be read: {error.strerror}") from error
    study = _begin(folder, {**recipe, "max_side": max_side, "seed": seed})
    device = str(choose_device(device))  # here, to log the choice only once
    work = [*zip(study.sets, pairs, strict=True)]
    for item, pair in work:
        item.size, item.left_out = (0, 0), []
        try:
            item.size = _write_photographs(folder, item, pair, max_side)
        except (CompositingError, MemoryError) as error:
            item.left_out.append(error_text(error))
    with progress("pictures", len(work) * len(methods), show) as advance:
        for method in methods:
            _render(folder, method, work, device, advance)
    return replace(study, finished=True).write(folder)


def _begin(folder: Path, recipe: dict[str, Any]) -> Study:
    """The study of ``folder`` if it has the same recipe, or a new one with all tokens, written."""
    if (folder / layout.KEY).exists():
        study = Study.read(folder)
        if (folder / layout.ANSWERS).exists():
            with Store(folder / layout.ANSWERS, study.id) as store:
                if store.people():
                    raise UsageError(f"people took part, so {folder} stays as it is: give another")
        if other := ", ".join(differences(study.recipe, recipe)):
            raise UsageError(f"{folder} holds a study of other {other}: give another folder")
        return study
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no study: give another folder")
        (folder / layout.PICTURES).mkdir(parents=True)
    except OSError as error:
        raise ImageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    seed = recipe["seed"]
    generator = secrets.SystemRandom() if seed is None else random.Random(f"study {seed}")

    def token() -> str:
        return f"{generator.getrandbits(128):032x}"

    names = tuple(method["name"] for method in recipe["methods"])
    sets = (
        PictureSet(token(), pair["name"], token(), token(), {token(): name for name in names})
        for pair in recipe["pairs"]
    )
    return Study(token(), names, tuple(sets), recipe).write(folder)


def _write_photographs(
    folder: Path, item: PictureSet, pair: PairFiles, side: int
) -> tuple[int, int]:
    """Write both photographs at the results' size, (height, width), which is returned."""
    photograph, background = read_image(pair.foreground), read_image(pair.background)
    size = fit_long_side(*photograph.size, side)
    if pair.mask is not None:
        read_mask(pair.mask, size=size)  # errors are reported once, not for every method
    pictures = resample(planes(photograph.pixels), size), cover(planes(background.pixels), size)
    for path, picture in zip(item.paths(folder), pictures, strict=False):
        if not path.is_file():
            write_image(path, picture, quality=100)  # lossless
    return size


def _render(
    folder: Path,
    method: Method,
    work: Sequence[tuple[PictureSet, PairFiles]],
    device: str,
    advance: Callable[[int], None],
) -> None:
    """Make a method's missing pictures; the reason of each failure is added to its set."""
    compositor = None
    for item, pair in work:
        token = next(token for token, name in item.results.items() if name == method.name)
        path = layout.picture_path(folder, token)
        advance(1)
        if path.is_file() or item.size == (0, 0):  # 0: the photographs cannot be read
            continue
        try:
            compositor = compositor or method.compositor(device=device)
            mask = None if pair.mask is None else read_mask(pair.mask, size=item.size)
            foreground, background, *_ = map(str, item.paths(folder))
            result = compositor(foreground, background, mask)
            write_image(path, result.composite_pixels, quality=100)
        except Exception as error:  # a failure must not stop the others
            _log.debug("%s, %s", pair.name, method.name, exc_info=True)
            item.left_out.append(f"{method.name}: {error_text(error)}")
