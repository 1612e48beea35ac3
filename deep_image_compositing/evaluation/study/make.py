"""Making a study: every method's picture of every pair, under names that tell nothing.

``study.json`` is written first, with the token of every picture; so a run that was stopped goes on.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deep_image_compositing.devices import choose_device
from deep_image_compositing.errors import (
    CompositingError,
    DataError,
    ImageError,
    UsageError,
    error_text,
)
from deep_image_compositing.evaluation.methods import Method
from deep_image_compositing.evaluation.study.folder import (
    ANSWERS,
    KEY,
    PICTURES,
    PLACES,
    PictureSet,
    Store,
    Study,
    picture_path,
)
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
    """Render every method on every pair, into a folder that ``study serve`` shows.

    Photographs are shrunk before the methods see them, so that every pixel on the screen is one
    that a method made. A pair whose pictures cannot all be made is left out, and says why in
    ``PictureSet.left_out``. The same call again makes what is missing.

    Args:
        pairs: a mask, where there is one, is given to every method.
        methods: at least three.
        out: the folder; made if it is not there.
        max_side: long side in pixels of the pictures; smaller photographs keep their size.
        seed: draws the tokens, for the same study twice; whoever knows it can tell the methods
            apart. None for tokens that nobody can guess.
        device: as for ``Compositor``.
        show: draw a progress bar on standard error.

    Raises:
        UsageError: too few methods, no pairs, a size that cannot be, or a folder that holds
            another study or anybody's answers.
        ImageError: the folder cannot be written.
    """
    if len(methods) < PLACES:
        raise UsageError(
            f"people choose the best {PLACES} results of each set, so a study needs at least "
            f"{PLACES} methods, got {len(methods)}"
        )
    if not pairs:
        raise UsageError("a study needs at least one pair of photographs")
    if max_side < 32:
        raise UsageError(f"the long side must be at least 32 pixels, got {max_side}")
    folder = Path(out)
    recipe = {
        "methods": [method.describe() for method in methods],
        "pairs": [{"name": pair.name, "sha256": _digests(pair)} for pair in pairs],
        "max_side": max_side,
        "seed": seed,
    }
    study = _begin(folder, recipe)
    missing = sum(not picture_path(folder, t).is_file() for s in study.sets for t in s.results)
    if missing:
        device = str(choose_device(device))  # said once, not for every method
    with progress("pictures", missing, show) as advance:
        sets = [
            _write_photographs(folder, item, pair, max_side)
            for item, pair in zip(study.sets, pairs, strict=True)
        ]
        for method in methods:
            sets = list(_render(folder, sets, pairs, method, device, advance))
    finished = replace(study, sets=tuple(sets), finished=True)
    finished.write(folder)
    return finished


def _begin(folder: Path, recipe: dict[str, Any]) -> Study:
    """The study of ``folder``, if it is the one that is wanted, or a new one; it is written."""
    if (folder / KEY).exists():
        study = Study.read(folder)
        if (folder / ANSWERS).exists():
            with Store(folder / ANSWERS, study.id) as store:
                if people := len(store.people()):
                    raise UsageError(
                        f"{people} people have taken part in the study in {folder}, so it stays "
                        "as it is: give another folder"
                    )
        if other := ", ".join(differences(study.recipe, recipe)):
            raise UsageError(f"{folder} holds a study of other {other}: give another folder")
        return replace(study, finished=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no study: give another folder")
        (folder / PICTURES).mkdir()
    except OSError as error:
        raise ImageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    seed = recipe["seed"]
    draws = secrets.SystemRandom() if seed is None else random.Random(f"study {seed}")

    def token() -> str:
        return f"{draws.getrandbits(128):032x}"

    names = tuple(method["name"] for method in recipe["methods"])
    identity = token()
    sets = tuple(
        PictureSet(token(), pair["name"], token(), token(), {token(): name for name in names})
        for pair in recipe["pairs"]
    )
    study = Study(identity, names, sets, recipe)
    study.write(folder)
    return study


def _write_photographs(
    folder: Path, item: PictureSet, pair: PairFiles, max_side: int
) -> PictureSet:
    """Write the pair's own two pictures, at the size of the results, which the set then has."""
    try:
        photograph, background = read_image(pair.foreground), read_image(pair.background)
        size = fit_long_side(*photograph.size, max_side)
        if pair.mask is not None:
            read_mask(pair.mask, size=size)
        shown = resample(planes(photograph.pixels), size), cover(planes(background.pixels), size)
        for token, picture in zip(item.tokens(), shown, strict=False):
            if not picture_path(folder, token).is_file():
                write_image(picture_path(folder, token), picture, quality=100)  # without loss
    except (CompositingError, MemoryError) as error:
        return replace(item, left_out=(error_text(error),), size=(0, 0))
    return replace(item, left_out=(), size=size)


def _render(
    folder: Path,
    sets: Sequence[PictureSet],
    pairs: Sequence[PairFiles],
    method: Method,
    device: str,
    advance: Callable[[int], None],
) -> Iterator[PictureSet]:
    """Make a method's pictures that are missing; a set without one says so from now on."""
    compositor = None
    for item, pair in zip(sets, pairs, strict=True):
        token = next(token for token, name in item.results.items() if name == method.name)
        path, left_out = picture_path(folder, token), item.left_out
        if not path.is_file():
            if item.size != (0, 0):  # else its photographs cannot be read
                try:
                    compositor = compositor or method.compositor(device=device)
                    mask = None if pair.mask is None else read_mask(pair.mask, size=item.size)
                    foreground, background, *_ = (picture_path(folder, t) for t in item.tokens())
                    result = compositor(str(foreground), str(background), mask)
                    write_image(path, result.composite_pixels, quality=100)
                except Exception as error:  # one method on one pair must not stop the others
                    _log.debug("%s, %s", pair.name, method.name, exc_info=True)
                    left_out = (*left_out, f"{method.name}: {error_text(error)}")
            advance(1)
        yield replace(item, left_out=left_out)


def _digests(pair: PairFiles) -> dict[str, str]:
    try:
        return {kind: digest(path) for kind, path in pair.files().items()}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
