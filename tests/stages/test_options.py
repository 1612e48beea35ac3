"""Options of stages that cannot be are named, whether a registry or a constructor is asked."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from deep_image_compositing import registry
from deep_image_compositing.errors import UsageError

SMALL = {"backbone": "test_efficientnet"}

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("pyramid", {**SMALL, "looks": 4}, "looks must be 1, 2 or 3, got 4"),
    ("pyramid", {**SMALL, "margin": -0.1}, "margin must lie between 0 and 100, got -0.1"),
    ("pyramid", {**SMALL, "sure": 1}, r"sure is a probability in \[0, 1\), got 1"),
    ("pyramid", {**SMALL, "size": 16}, "size must lie between 32 and 8192, got 16"),
    ("grabcut", {"margin": 0.5}, "margin"),
    ("grabcut", {"iterations": 0}, "iterations"),
    ("grabcut", {"size": 0}, "size"),
    ("cascade", {**SMALL, "margin": -0.5}, "margin must lie between 0 and 100, got -0.5"),
    ("cascade", {**SMALL, "zoom": 0.5}, "zoom must be at least 1, got 0.5"),
    ("cascade", {**SMALL, "confidence": 0}, "confidence must be above 0, got 0"),
    ("cascade", {**SMALL, "trust": 0}, "trust must be above 0, got 0"),
    ("cascade", {**SMALL, "sizes": (320, 8)}, "each of sizes must lie between 32 and 8192"),
    ("cascade", {**SMALL, "sizes": ()}, "the number of sizes must lie between 1 and 10"),
    ("closed_form", {"epsilon": 0}, "epsilon"),
    ("closed_form", {"radius": 0}, "radius"),
    ("closed_form", {"trimap": "guess"}, "'from_mask' or 'given', got 'guess'"),
    ("closed_form", {"band": -0.1}, "long side"),
    ("closed_form", {"max_side": 0}, "max_side"),
    ("closed_form", {"max_memory": 0}, "max_memory"),
    ("closed_form", {"iterations": 0}, "iterations"),
    ("closed_form", {"tolerance": math.nan}, "tolerance"),
    ("knn", {"neighbours": (20,)}, "one number per search"),
    ("knn", {"neighbours": (0, 10)}, "above 0"),
    ("guided_filter", {"radius": 25}, r"lies in \[0, 1\], got 25"),
    ("guided_filter", {"epsilon": -1}, "epsilon"),
    ("information_flow", {"known_neighbours": 0}, "neighbours must be above 0, got 0"),
    ("information_flow", {"spatial_weight": -1}, "each of the weights must be at least 0"),
    ("information_flow", {"epsilon": 0}, "epsilon must be above 0"),
    ("index_net", {"width": 0.5, "pretrained": "pretrained"}, r"for width=1 only, got 0\.5"),
    ("index_net", {"encoder_rate": 0}, "encoder_rate must be above 0, got 0"),
    ("index_net", {"width": -1}, "width must be above 0 and at most 10, got -1"),
    ("index_net", {"width": 0.1, "dropout": 1}, r"must lie in \[0, 1\), got 1"),
    ("index_net", {"width": 0.1, "max_memory": 0}, "max_memory must be above 0, got 0"),
    ("index_net", {"width": 0.1, "widths": (0, 4)}, r"of at least 1 pixel, got \(0, 4\)"),
    ("index_net", {"width": 0.1, "widths": (5, 4)}, "a minimum and a maximum"),
    ("deep_image_matting", {"phase": "both"}, "'encoder_decoder' or 'refinement', got 'both'"),
    ("deep_image_matting", {"phase": "refinement", "refine": False}, "no refinement stage"),
    ("deep_image_matting", {"width": -1}, "width must be above 0"),
    ("deep_image_matting", {"width": 0.5, "pretrained": "vgg.pth"}, "need width"),
    ("deep_image_matting", {"context": 2}, "odd and 1 to 31, got 2"),
    ("copy_paste", {"threshold": 1.0}, "threshold"),
    ("copy_paste", {"threshold": -0.1}, "threshold"),
    ("feather", {"sigma": -1.0}, "sigma"),
    ("feather", {"sigma": math.nan}, "sigma"),
    ("alpha", {"foreground_color": "guess"}, "multilevel"),
    ("alpha", {"radii": ()}, "radii"),
    ("alpha", {"radii": (0,)}, "radii"),
    ("laplacian", {"levels": 0}, "levels must be above 0, got 0"),
    ("poisson", {"mode": "wide"}, "'normal' or 'mixed', got 'wide'"),
    ("poisson", {"threshold": 1.0}, "threshold"),
    ("multi_stream", {"shuffle": 3}, "shuffle must be 1, 2 or 4"),
    ("multi_stream", {"two_sizes": 0.5}, "0 without finer_widths"),
    ("multi_stream", {"two_sizes": 1.5, "finer_widths": (4, 6)}, r"share in \[0, 1\]"),
    ("multi_stream", {"head": "cmyk"}, "'layers' or 'rgb'.*, got 'cmyk'"),
    ("multi_stream", {"start": "random"}, "'closed_form' or 'given'.*, got 'random'"),
    ("multi_stream", {"radius": 0}, "radius"),
    ("multi_stream", {"widths": ()}, "number of widths"),
    ("reinhard", {"strength": 1.5}, "1.5"),
    ("white_balance", {"strength": -0.1}, "-0.1"),
    ("color_map", {"strength": math.nan}, "nan"),
    ("color_map", {"size": 16}, "size.*16"),
    ("color_map", {"width": 4}, "width.*4"),
]


@pytest.mark.parametrize(("name", "options", "said"), WRONG)
def test_what_cannot_be_is_named(name: str, options: dict[str, Any], said: str) -> None:
    (entry,) = (entry for entry in registry.list_stages() if entry.name == name)
    for make in (partial(registry.create, entry.slot, name), entry.factory):
        with pytest.raises(UsageError, match=said):
            make(**options)
