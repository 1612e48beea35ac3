"""Test sets: photographs, backgrounds, given masks and truths that methods are measured on.

``syntest`` is made from mattes and backgrounds, ``taught`` was made by a trained network, and
``folders`` are a user's own pictures. The bench and the study open them here.
"""

from __future__ import annotations

import inspect
from typing import Any

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets.base import PairFiles, Sample, TestSet
from deep_image_compositing.evaluation.testsets.folders import Folders, read_pairs
from deep_image_compositing.evaluation.testsets.syntest import SynTest
from deep_image_compositing.evaluation.testsets.taught import Taught

__all__ = [
    "TEST_SETS", "Folders", "PairFiles", "Sample", "SynTest", "Taught", "TestSet", "open_test_set",
    "read_pairs",
]  # fmt: skip

TEST_SETS: dict[str, type[TestSet]] = {kind.name: kind for kind in (SynTest, Taught, Folders)}
"""Kinds of test sets by name."""


def open_test_set(name: str, **options: Any) -> TestSet:
    """The test set called ``name``.

    Args:
        name: ``syntest``, ``taught`` or ``folders``.
        **options: as for :class:`SynTest`, :class:`Taught` or :class:`Folders`.

    Raises:
        UsageError: another name, an option that it does not take or lacks, or as its class.
        DataError: pictures that cannot be read.
    """
    if name not in TEST_SETS:
        raise UsageError(f"there is no test set {name!r}; there are: {', '.join(TEST_SETS)}")
    accepted = inspect.signature(TEST_SETS[name]).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise UsageError(
            f"the test set {name!r} takes no option {unknown[0]!r}; it takes: {', '.join(accepted)}"
        )
    for option, parameter in accepted.items():
        if parameter.default is parameter.empty and option not in options:
            raise UsageError(f"the test set {name!r} needs the option {option!r}")
    return TEST_SETS[name](**options)
