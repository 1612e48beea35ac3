"""The registry: names, errors, and stages of other packages."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from deep_image_compositing import registry
from deep_image_compositing.errors import UsageError
from deep_image_compositing.options import accepted_options, declared_options
from deep_image_compositing.registry import BUILT_IN, Entry, create, get, list_stages, register
from deep_image_compositing.stages import fusion, harmonization, refinement, segmentation
from tests.conftest import DiscSegmenter, PlainFuser


class FakeEntryPoint:
    """What ``importlib.metadata`` gives for an installed package's entry point."""

    def __init__(self, name: str, load: Any) -> None:
        self.name = name
        self.value = f"other_package:{name}"
        self.load = load


@pytest.fixture
def discover_again(
    own_registry: dict[tuple[str, str], registry.Entry], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Let the registry look for the given entry points on its next use."""

    def prepare(*points: FakeEntryPoint) -> None:
        def entry_points(*, group: str) -> list[FakeEntryPoint]:
            assert group == "deep_image_compositing.stages"
            return list(points)

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        monkeypatch.setattr(registry, "_discovered", False)

    return prepare


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_the_table_says_of_a_stage_what_its_class_says(entry: Entry) -> None:
    assert entry.factory.slot == entry.slot
    assert entry.weights == tuple(entry.factory.shipped)
    assert entry.description
    assert declared_options(str(entry.made_by)) == accepted_options(entry.factory)
    assert entry.file is None or entry.file in accepted_options(entry.factory)[0]


def test_every_stage_of_the_library_is_in_the_table() -> None:
    made_by = {str(entry.made_by) for entry in BUILT_IN}
    parts = (segmentation, refinement, fusion, harmonization)
    own = [one for part in parts for one in vars(part).values() if isinstance(one, type)]
    classes = {f"{one.__module__}:{one.__name__}" for one in own}
    assert made_by == {
        name for name in classes if name.startswith(tuple(p.__name__ for p in parts))
    }


def test_names_are_listed_in_order_and_taken_once_a_slot(
    stub_stages: None,
) -> None:
    entries = [(registry.SLOTS.index(entry.slot), entry.name) for entry in list_stages()]
    assert entries == sorted(entries)
    assert [entry.name for entry in list_stages("segmenter", "di*")] == ["disc"]
    assert list_stages("fuser", "di*") == []
    with pytest.raises(UsageError, match="segmenter 'disc' is already registered"):
        register("segmenter", "disc", description="again")(DiscSegmenter)
    register("fuser", "disc", description="a fuser")(PlainFuser)  # another slot, another stage
    assert isinstance(create("fuser", "disc"), PlainFuser)
    assert create("segmenter", "disc", softness=0.3).softness == 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[(lambda call=call: call("segmenter", "disk"),
           r"did you mean 'disc'.*\? There are: .*pyramid") for call in (get, create)],
        *[(lambda call=call: call("segmenter", "zzz"),
           r"'zzz'; there are: .*pyramid.*@register\('seg") for call in (get, create)],
        *[(call, "no slot 'mask'; the slots are segmenter, refiner, fuser") for call in (
            lambda: get("mask", "a"), lambda: list_stages("mask"),
            lambda: register("mask", "a", description="")(PlainFuser),
        )],
    ],
)  # fmt: skip
def test_what_is_unknown_tells_what_there_is(call: Any, message: str, stub_stages: None) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_weights_are_those_the_factory_ships(own_registry: Any) -> None:
    class WithWeights(PlainFuser):
        shipped = {"default": "a.safetensors", "large": "b.safetensors"}  # noqa: RUF012

    register("fuser", "weighty", description="")(WithWeights)
    register("fuser", "weightless", description="")(PlainFuser)
    assert get("fuser", "weighty").weights == ("default", "large")
    assert get("fuser", "weightless").weights == ()


def test_an_entry_point_can_be_a_module(
    discover_again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> types.ModuleType:
        module = types.ModuleType("their_stages")
        monkeypatch.setitem(sys.modules, "their_stages", module)
        register("segmenter", "from-module", description="")(DiscSegmenter)
        return module

    discover_again(FakeEntryPoint("anything", load))
    assert [entry.name for entry in list_stages("segmenter", "from-*")] == ["from-module"]


def test_an_entry_point_can_be_a_table(discover_again: Any) -> None:
    made_by = "tests.conftest:PlainFuser"
    table = [Entry("fuser", name, "of another package", "", made_by) for name in ("one", "alpha")]
    discover_again(FakeEntryPoint("table", lambda: table))
    with pytest.warns(UserWarning, match="plug-in 'table' .* 'alpha' is already registered"):
        assert [entry.name for entry in list_stages("fuser", "one")] == ["one"]
    get("fuser", "one").check({})  # imports nothing
    assert isinstance(create("fuser", "one"), PlainFuser)


def test_a_broken_plug_in_only_warns(discover_again: Any) -> None:
    def load() -> None:
        raise ImportError("no module named that")

    discover_again(FakeEntryPoint("broken", load))
    with pytest.warns(UserWarning, match=r"plug-in 'broken' \(other_package:broken\) could not"):
        assert "none" in {entry.name for entry in list_stages("refiner")}


def test_a_plain_module_registers_too(own_registry: Any) -> None:
    register("refiner", "half", description="halves")(lambda: nn.Identity())
    assert isinstance(create("refiner", "half"), nn.Module)
    assert torch.equal(create("refiner", "half")(torch.ones(1)), torch.ones(1))
