"""Test sets: photographs, backgrounds, masks and true composites to measure methods on."""

from __future__ import annotations

from typing import Any

from deep_image_compositing.errors import UsageError
from deep_image_compositing.evaluation.testsets.base import Sample, TestSet
from deep_image_compositing.evaluation.testsets.folders import Folders, PairFiles, read_pairs
from deep_image_compositing.evaluation.testsets.harmonization import Harmonization
from deep_image_compositing.evaluation.testsets.syntest import SynTest
from deep_image_compositing.evaluation.testsets.taught import Taught
from deep_image_compositing.options import check_options

__all__ = [
    "TEST_SETS", "Folders", "Harmonization", "PairFiles", "Sample", "SynTest", "Taught", "TestSet",
    "open_test_set", "read_pairs",
]  # fmt: skip

TEST_SETS: dict[str, type[TestSet]] = {
    kind.name: kind for kind in (SynTest, Taught, Folders, Harmonization)
}
"""All kinds of test sets by name."""


def open_test_set(name: str, **options: Any) -> TestSet:
    """Open a test set by name: ``syntest``, ``taught``, ``folders`` or ``harmonization``.

    Raises:
        UsageError: the name is unknown, or the class does not accept the options.
        DataError: a picture cannot be read.
    """
    if name not in TEST_SETS:
        raise UsageError(f"there is no test set {name!r}; there are: {', '.join(TEST_SETS)}")
    check_options("test set", name, TEST_SETS[name], options)
    return TEST_SETS[name](**options)
