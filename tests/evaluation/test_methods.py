"""Methods: how they are written, the named sets, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from deep_image_compositing import registry, weights
from deep_image_compositing.errors import CompositingError, MissingExtraError
from deep_image_compositing.evaluation import methods
from deep_image_compositing.evaluation.methods import (
    METHODS,
    Method,
    choose,
    parse_method,
    parse_stage,
)
from deep_image_compositing.models.fusion.multi_stream import MultiStreamModel
from deep_image_compositing.stages.fusion import MultiStreamFuser, SingleStreamFuser
from tests.conftest import DiscSegmenter, disc, noise

WIDTHS = (4, 4)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("cascade", "cascade", {}),
        (" cascade ( ) ", "cascade", {}),
        ("multi_stream(weights=runs/hard.ckpt)", "multi_stream", {"weights": "runs/hard.ckpt"}),
        ("alpha(color=blur, radii=[9, 3])", "alpha", {"color": "blur", "radii": [9, 3]}),
        ('onnx(path="a, (b).onnx",size = 320)', "onnx", {"path": "a, (b).onnx", "size": 320}),
        ('x(a="say \\"hi, you\\"", b=null)', "x", {"a": 'say "hi, you"', "b": None}),
        ("x(query=a=b)", "x", {"query": "a=b"}),
        ('x(weights="320", a="true")', "x", {"weights": "320", "a": "true"}),
    ],
)
def test_a_stage_is_read_as_it_was_meant(text: str, name: str, options: dict[str, Any]) -> None:
    assert parse_stage(text) == (name, options)


@pytest.mark.parametrize("text", ["", "a b", "x(y)", "x(=1)", "x(a=1", "x(a=[1)]", "x)", 'x(a="1)'])
def test_what_is_no_stage_is_refused(text: str) -> None:
    with pytest.raises(CompositingError):
        parse_stage(text)


def test_a_method_is_read_with_commas_inside_its_options() -> None:
    method = parse_method("mine=pyramid,none,alpha(foreground_color=blur_fusion, radii=[9, 3])")
    assert method.name == "mine"
    assert method.slots == registry.SLOTS
    assert method.stages["refiner"] == ("none", {})
    assert method.stages["fuser"][1]["radii"] == [9, 3]
    alone = parse_method("mine=reinhard(strength=0.3)")
    assert alone.stages == {"harmonizer": ("reinhard", {"strength": 0.3})}
    assert set(alone.describe()) == {"name", "harmonizer"}


@pytest.mark.parametrize(
    "text",
    [
        "pyramid,none,alpha",  # no name
        "mine=pyramid,none",
        "mine=pyramid,none,alpha,none,none",
        "a/b=pyramid,none,alpha",
        ".hidden=pyramid,none,alpha",
        "=pyramid,none,alpha",
    ],
)
def test_what_is_no_method_is_refused(text: str) -> None:
    with pytest.raises(CompositingError):
        parse_method(text)


def test_the_sets_hold_what_the_paper_compares() -> None:
    paper = {method.name: method for method in METHODS["paper"]}
    assert list(paper) == [
        "copy_paste", "feather", "laplacian", "poisson", "alpha", "closed_form", "knn",
        "information_flow", "deep_image_matting", "index_net", "single_stream", "ours",
    ]  # fmt: skip
    # A matting method takes the place of the refinement network; it does not follow it.
    for text in (
        "knn=pyramid,knn,alpha(foreground_color=multilevel)",
        "poisson=pyramid,cascade,poisson",
        "ours=pyramid,cascade,multi_stream,none",
    ):
        assert parse_method(text) in paper.values()
    assert METHODS["harmonize"] == [
        parse_method(f"{name}={name}")
        for name in ("none", "reinhard", "white_balance", "color_map")
    ]
    found: dict[str, Method] = {}  # a name means one method in all sets
    for method in (method for group in METHODS.values() for method in group):
        assert found.setdefault(method.name, method) == method


@pytest.mark.parametrize(
    ("sets", "extra", "names"),
    [
        ("feather,copy_paste,feather", ["mine=pyramid,none,feather"], "feather copy_paste mine"),
        ("fast,-ours,-alpha_multilevel", [], "copy_paste feather laplacian guided_filter"),
        ("harmonize,-color_map", ["mine=none"], "none reinhard white_balance mine"),
    ],
)
def test_sets_and_methods_are_chosen_by_name_and_counted_once(
    sets: str, extra: list[str], names: str
) -> None:
    assert [method.name for method in choose([sets], extra)] == names.split()


@pytest.fixture
def learned(own_registry: dict[tuple[str, str], registry.Entry]) -> None:
    """The fuser ``learned``: takes weights, and none ship for it."""

    @registry.register("fuser", "learned", description="a network")
    class Learned(SingleStreamFuser):
        shipped: ClassVar[dict[str, str]] = {}


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize(
    ("sets", "extra", "says"),
    [
        ("slow", [], "the sets are paper, ablations, fast, harmonize"),
        ("fast,-fast", [], "no method to run"),
        ("feather,-ours", [], "'-ours' leaves out what was not chosen"),
        ("feather", ["Feather=pyramid,none,feather"], "two methods called 'Feather'"),
        ("", ["a=none", "a=reinhard"], "two methods called 'a'"),
        ("", ["a=pyramid,none,feathre"], "did you mean 'feather'"),
        ("", ["a=pyramid,none,feather(sgima=2)"], "takes no option 'sgima'"),
        ("", ["a=pyramid,none,feather(sigma=-2)"], "sigma must be at least 0"),
        ("", ["a=pyramid,cascade,multi_stream(weights=null)"], "or none were asked for"),
        ("", ["a=pyramid,none,multi_stream(weights=gone)"], "'gone' for the fuser 'multi_stream'"),
        ("", ["a=pyramid,none,learned(radius=4)"], "with --method: learned(weights=FILE)"),
        ("", ["a=pyramid,none,learned(weights=null)"], "--methods SET,-a, or"),
        (
            "",
            ["a=pyramid,cascade,learned", "b=pyramid,none,learned", "c=pyramid,none,alpha"],
            "no weights ship for a, b",
        ),
    ],
)
def test_a_wrong_choice_is_refused(sets: str, extra: list[str], says: str) -> None:
    with pytest.raises(CompositingError) as caught:
        choose([sets], extra)
    assert says in str(caught.value)


def test_a_missing_package_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match="opencv"):
        choose(["poisson"])


# Ablations


def checkpoint(run: Path, fuser: MultiStreamFuser, name: str = "last.ckpt") -> Path:
    """A training checkpoint of ``fuser`` in the folder of a run."""
    path = run / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    hyper = {**fuser.hparams, "weights": None}
    torch.save({"state_dict": fuser.state_dict(), "hyper_parameters": hyper}, path)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs of all recipes that the ablations need, with small networks."""
    for recipe in ("fusion_easy", "no_refinement", "fusion_hard"):
        checkpoint(tmp_path / recipe, MultiStreamFuser(widths=WIDTHS))
    checkpoint(tmp_path / "fusion_single_stream", SingleStreamFuser(widths=WIDTHS))
    return tmp_path


def test_ablations_take_the_newest_checkpoints_of_their_runs(runs: Path) -> None:
    newest = checkpoint(runs / "fusion_easy", MultiStreamFuser(widths=WIDTHS), "interrupted.ckpt")
    chosen = {method.name: method.stages for method in choose(["ablations"], runs=runs)}
    last = "checkpoints/last.ckpt"
    assert {name: stages["fuser"] for name, stages in chosen.items()} == {
        "no_self_taught": ("multi_stream", {"weights": str(newest)}),
        "one_stream": ("single_stream", {"weights": str(runs / "fusion_single_stream" / last)}),
        "no_refinement": ("multi_stream", {"weights": str(runs / "no_refinement" / last)}),
        "full": ("multi_stream", {"weights": str(runs / "fusion_hard" / last)}),
    }
    assert chosen["no_refinement"]["refiner"] == ("none", {})
    (mine,) = choose([], [f"a=pyramid,cascade,multi_stream(weights={runs / 'fusion_hard'})"])
    assert mine.stages == chosen["full"]


@pytest.mark.parametrize("recipe", ["fusion_easy", "fusion_single_stream", "fusion_hard"])
def test_a_run_that_is_missing_is_named_with_its_recipe(runs: Path, recipe: str) -> None:
    (runs / recipe / "checkpoints/last.ckpt").unlink()
    with pytest.raises(CompositingError) as caught:
        choose(["ablations"], runs=runs)
    assert f"--config recipes/{recipe}.yaml" in str(caught.value)
    assert f"--trainer.default_root_dir {runs / recipe}" in str(caught.value)


def test_every_recipe_of_the_ablations_exists_and_writes_where_they_look() -> None:
    root = Path(__file__).parents[2]
    for *_, recipe in methods._ABLATIONS:
        text = (root / "recipes" / f"{recipe}.yaml").read_text()
        assert f"default_root_dir: {methods.RUNS}/{recipe}\n" in text


# Compositors


@pytest.mark.usefixtures("stub_stages")
def test_a_method_composites() -> None:
    method = parse_method("mine=disc(softness=0.2),none,alpha(foreground_color=blur_fusion)")
    compositor = method.compositor("cpu", work_side=64)
    assert isinstance(compositor.segmenter, DiscSegmenter)
    assert compositor.segmenter.softness == 0.2
    assert compositor.work_side == 64
    result = compositor(noise(40, 48), noise(40, 48, 1))
    assert result.composite_pixels.shape == (3, 40, 48)
    assert np.abs(result.mask.numpy() - disc(40, 48, 0.2)[0].numpy()).max() < 1e-5


def test_a_checkpoint_s_stage_is_made_as_it_was_trained(runs: Path) -> None:
    method = choose(["full"], runs=runs)[0]
    fuser = method.compositor("cpu").fuser
    assert isinstance(fuser, MultiStreamModel)
    assert tuple(fuser.hparams["widths"]) == WIDTHS
    path = method.stages["fuser"][1]["weights"]
    trained = MultiStreamFuser(widths=WIDTHS).eval()
    weights.load(trained, path)
    given = torch.rand(1, 3, 32, 40), torch.rand(1, 3, 32, 40), torch.rand(1, 1, 32, 40)
    with torch.inference_mode():
        torch.testing.assert_close(fuser(*given), trained(*given), atol=1e-5, rtol=0)
    # Options that are given take precedence.
    method = parse_method(f"a=pyramid,cascade,multi_stream(weights={path}, radius=3)")
    assert method.compositor("cpu").fuser.radius == 3  # type: ignore[union-attr]


def test_the_description_tells_other_weights_apart(runs: Path) -> None:
    before = choose(["full"], runs=runs)[0].describe()
    assert json.loads(json.dumps(before)) == before
    assert set(before["fuser"]["sha256"]) == {"weights"}
    assert len(before["segmenter"]["sha256"]["weights"]) == 64
    torch.manual_seed(1)
    checkpoint(runs / "fusion_hard", MultiStreamFuser(widths=WIDTHS))
    assert choose(["full"], runs=runs)[0].describe() != before
