"""The checks at the stages' doors."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deep_image_compositing import conventions
from deep_image_compositing.conventions import CHANNELS, TOLERANCE, check, checked, set_checks
from deep_image_compositing.errors import CompositingError, UsageError


@pytest.fixture(autouse=True)
def checks_on() -> Iterator[None]:
    previous = set_checks(True)
    yield
    set_checks(previous)


class Blend(nn.Module):
    @checked
    def forward(self, foreground: Tensor, alpha: Tensor, gain: Any = None) -> Tensor:
        return foreground * alpha


def test_good_tensors_pass() -> None:
    for name, channels in CHANNELS.items():
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            check(**{name: torch.rand(2, channels, 1, 7).to(dtype)})


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ([[0.5]], "must be a torch tensor, not list"),
        (torch.rand(3, 4, 4), r"must have shape \(B, 3, H, W\), got \(3, 4, 4\)"),
        (torch.rand(1, 1, 4, 4), r"must have shape \(B, 3, H, W\), got \(1, 1, 4, 4\)"),
        (torch.rand(1, 3, 0, 4), "is empty"),
        (torch.rand(0, 3, 4, 4), "is empty"),
        (torch.ones(1, 3, 4, 4, dtype=torch.uint8), "divide 8-bit values by 255"),
        (torch.full((1, 3, 4, 4), 255.0), "it spans 255.0 to 255.0"),
        (torch.full((1, 3, 4, 4), -0.1), r"must lie in \[0, 1\]"),
        (torch.full((1, 3, 4, 4), float("inf")), "finite"),
    ],
)
def test_wrong_tensors_are_named(tensor: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=f"image .*{reason}|image is empty"):
        check(image=tensor)


def test_one_nan_is_enough() -> None:
    image = torch.rand(1, 3, 9, 9)
    image[0, 1, 4, 4] = float("nan")
    with pytest.raises(UsageError, match="finite"):
        check(image=image)


def test_a_little_overshoot_is_allowed() -> None:
    check(mask=torch.full((1, 1, 2, 2), 1 + TOLERANCE / 2))
    with pytest.raises(UsageError):
        check(mask=torch.full((1, 1, 2, 2), 1 + TOLERANCE * 2))


@pytest.mark.parametrize("shape", [(1, 1, 4, 5), (1, 1, 5, 4), (2, 1, 4, 4)])
def test_tensors_must_agree(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="must agree in batch, height and width"):
        check(image=torch.rand(1, 3, 4, 4), mask=torch.rand(shape))


def test_checked_looks_at_named_arguments_however_they_are_passed() -> None:
    blend, good, bad = Blend(), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4) + 2
    alpha = torch.rand(1, 1, 4, 4)
    assert blend(good, alpha, gain="anything").shape == good.shape
    with pytest.raises(UsageError, match="foreground"):
        blend(bad, alpha)
    with pytest.raises(UsageError, match="alpha"):
        blend(good, alpha=alpha + 5)


def test_checks_can_be_switched_off() -> None:
    assert set_checks(False) is True
    assert set_checks(False) is False
    Blend()(torch.rand(1, 3, 4, 4) + 2, torch.rand(1, 1, 4, 4))


def test_checks_wait_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    for name in ("tolist", "item", "__float__", "__bool__"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda x, real=real, name=name: waits.append(name) or real(x)
        )
    check(image=torch.rand(1, 3, 4, 4), mask=torch.rand(1, 1, 4, 4), alpha=torch.rand(1, 1, 4, 4))
    assert waits == ["tolist"]


@pytest.mark.parametrize(("value", "on"), [("0", False), ("1", True), (None, True)])
def test_the_environment_switches_the_checks(
    value: str | None, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEEP_IMAGE_COMPOSITING_CHECKS", raising=False)
    if value is not None:
        monkeypatch.setenv("DEEP_IMAGE_COMPOSITING_CHECKS", value)
    assert runpy.run_path(str(conventions.__file__))["set_checks"](True) is on


def test_checks_are_out_of_the_way_of_export() -> None:
    program = torch.export.export(Blend(), (torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4)))
    out = program.module()(torch.rand(1, 3, 4, 4) + 2, torch.rand(1, 1, 4, 4))
    assert out.shape == (1, 3, 4, 4)


def test_a_wrong_tensor_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="alpha"):
        check(alpha=torch.rand(1))
    assert issubclass(UsageError, CompositingError)


def test_the_module_says_what_it_checks() -> None:
    for name in CHANNELS:
        assert f"``{name}``" in (conventions.__doc__ or "")
