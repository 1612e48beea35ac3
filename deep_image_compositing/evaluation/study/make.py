"""Making a study: every method's picture of every pair, under names that tell nothing.

``study.json`` is written first, with a random token for every picture that is to be; so a run that
was stopped goes on, and a picture that is there is never made twice.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deep_image_compositing.errors import CompositingError, DataError, ImageError, UsageError
from deep_image_compositing.evaluation.study.folder import (
    ANSWERS,
    KEY,
    PICTURES,
    PLACES,
    PictureSet,
    Study,
    picture_path,
)
from deep_image_compositing.evaluation.study.store import count_people

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from deep_image_compositing.compositor import Compositor
    from deep_image_compositing.evaluation.methods import Method
    from deep_image_compositing.evaluation.testsets import PairFiles

MAX_SIDE = 1024
"""Long side in pixels of the pictures, unless another is given."""

_log = logging.getLogger("deep_image_compositing")


def make(
    pairs: Sequence[PairFiles],
    methods: Sequence[Method],
    out: str | Path,
    *,
    max_side: int = MAX_SIDE,
    seed: int | None = None,
    device: str = "auto",
    show: bool = False,
) -> Study:
    """Render every method on every pair, into a folder that ``study serve`` shows.

    Photographs are shrunk before the methods see them, so that every pixel on the screen is one
    that a method made. A pair whose pictures cannot all be made is left out of the study; the rest
    goes on. The same call again makes what is missing.

    Args:
        pairs: photographs, new backgrounds and perhaps masks. With a mask every method gets it;
            without one every method's own segmenter looks for the subject.
        methods: at least three.
        out: the folder; made if it is not there.
        max_side: long side in pixels of the pictures; smaller photographs keep their size.
        seed: draws the tokens, for the same study twice; whoever knows it can tell the methods
            apart. None for tokens that nobody can guess.
        device: as for :class:`~deep_image_compositing.compositor.Compositor`.
        show: draw a progress bar on standard error.

    Returns:
        The finished study. What was left out says why, in ``PictureSet.left_out``.

    Raises:
        UsageError: too few methods or pairs, a folder that holds another study or anybody's
            answers, or sizes that cannot be.
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
    study = _plan(pairs, methods, folder, max_side, seed)
    work = _Work(folder, max_side, {item.name: item for item in study.sets})
    from deep_image_compositing.data.pool import progress

    missing = sum(not picture_path(folder, t).is_file() for s in study.sets for t in s.results)
    if missing:
        from deep_image_compositing.devices import choose_device

        device = str(choose_device(device))  # said once, not for every method
    with progress("pictures", missing, show) as advance:
        for pair in pairs:
            work.prepare(pair)
        for method in methods:
            work.render(method, pairs, device, advance)
    finished = replace(study, sets=tuple(work.sets.values()), finished=True)
    finished.write(folder)
    return finished


def _plan(
    pairs: Sequence[PairFiles],
    methods: Sequence[Method],
    folder: Path,
    max_side: int,
    seed: int | None,
) -> Study:
    """The study of ``folder``, if it is the one that is wanted, or a new one; it is written."""
    recipe = {
        "methods": [method.describe() for method in methods],
        "pairs": [_about_pair(pair) for pair in pairs],
        "max_side": max_side,
        "seed": seed,
    }
    people = count_people(folder / ANSWERS)
    if people:
        raise UsageError(
            f"{people} people have taken part in the study in {folder}, so it stays as it is: "
            "give another folder"
        )
    if (folder / KEY).exists():
        found = Study.read(folder)
        if found.recipe != recipe:
            other = ", ".join(k for k in recipe if found.recipe.get(k) != recipe[k])
            raise UsageError(f"{folder} holds a study of other {other}: give another folder")
        return replace(found, finished=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no study: give another folder")
        (folder / PICTURES).mkdir()
    except OSError as error:
        raise ImageError(f"the folder {folder} cannot be made: {error.strerror}") from error
    token = _tokens(seed)
    names = tuple(method.name for method in methods)
    study = Study(
        token(),
        names,
        tuple(
            PictureSet(token(), pair.name, token(), token(), {token(): name for name in names})
            for pair in pairs
        ),
        recipe,
    )
    study.write(folder)
    return study


@dataclass
class _Work:
    """A study that is being rendered."""

    folder: Path
    max_side: int
    sets: dict[str, PictureSet]

    def __post_init__(self) -> None:
        self.sets = {name: replace(item, left_out=()) for name, item in self.sets.items()}
        self.unreadable: set[str] = set()

    def prepare(self, pair: PairFiles) -> None:
        """Write the pair's own two pictures, at the size of the results."""
        import torch

        from deep_image_compositing.functional.resize import fit_long_side
        from deep_image_compositing.images import read_image, read_mask
        from deep_image_compositing.placement import cover, resample

        item = self.sets[pair.name]
        try:
            photograph = read_image(pair.foreground)
            size = fit_long_side(*photograph.size, self.max_side)
            if pair.mask is not None:
                read_mask(pair.mask, size=size)
            if not self._done(item.foreground):
                self._write(item.foreground, resample(_planes(photograph.pixels, torch), size))
            background = read_image(pair.background)
            if not self._done(item.background):
                self._write(item.background, cover(_planes(background.pixels, torch), size))
            self.sets[pair.name] = replace(item, size=size)
        except (CompositingError, MemoryError) as error:
            self.unreadable.add(pair.name)
            self._leave_out(pair.name, _reason(error))

    def render(
        self,
        method: Method,
        pairs: Sequence[PairFiles],
        device: str,
        advance: Callable[[int], None],
    ) -> None:
        """Make the method's pictures that are missing."""
        compositor: Compositor | None = None
        for pair in pairs:
            item = self.sets[pair.name]
            token = next(token for token, name in item.results.items() if name == method.name)
            if self._done(token):
                continue
            if pair.name not in self.unreadable:
                try:
                    compositor = compositor or method.compositor(device=device)
                    self._write(token, self._composite(compositor, item, pair))
                except Exception as error:  # one method on one pair must not stop the others
                    _log.debug("%s, %s", pair.name, method.name, exc_info=True)
                    self._leave_out(pair.name, f"{method.name}: {_reason(error)}")
            advance(1)

    def _composite(self, compositor: Compositor, item: PictureSet, pair: PairFiles) -> Tensor:
        from deep_image_compositing.images import read_mask

        return compositor(
            str(picture_path(self.folder, item.foreground)),
            str(picture_path(self.folder, item.background)),
            None if pair.mask is None else read_mask(pair.mask, size=item.size),
        ).composite_pixels

    def _leave_out(self, name: str, reason: str) -> None:
        item = self.sets[name]
        self.sets[name] = replace(item, left_out=(*item.left_out, reason))

    def _done(self, token: str) -> bool:
        return picture_path(self.folder, token).is_file()

    def _write(self, token: str, pixels: Tensor) -> None:
        """Write (3, H, W) uint8 without loss, aside and then renamed."""
        from deep_image_compositing.images import write_image

        path = picture_path(self.folder, token)
        rows: NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
        write_image(path, rows, quality=100)


def _tokens(seed: int | None) -> Callable[[], str]:
    """A function that gives a new token of 32 hexadecimal digits at every call."""
    if seed is None:
        return lambda: secrets.token_hex(16)
    draws = random.Random(f"study {seed}")
    return lambda: f"{draws.getrandbits(128):032x}"


def _about_pair(pair: PairFiles) -> dict[str, Any]:
    files = {"foreground": pair.foreground, "background": pair.background, "mask": pair.mask}
    digests = {}
    for kind, path in files.items():
        if path is not None:
            try:
                with open(path, "rb") as file:
                    digests[kind] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    return {"name": pair.name, "sha256": digests}


def _planes(pixels: NDArray[np.uint8], torch: Any) -> Tensor:
    """(H, W, 3) as a tensor (3, H, W), a copy."""
    planes: Tensor = torch.tensor(pixels).permute(2, 0, 1).contiguous()
    return planes


def _reason(error: BaseException) -> str:
    if isinstance(error, CompositingError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
