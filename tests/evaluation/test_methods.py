"""Methods: how they are written, the named sets, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from deep_image_compositing import registry, weights
from deep_image_compositing.errors import MissingExtraError, UsageError, WeightsError
from deep_image_compositing.evaluation import methods
from deep_image_compositing.evaluation.methods import (
    METHODS,
    Method,
    choose,
    parse_method,
    parse_stage,
    stage_text,
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
        (
            "alpha(foreground_color=multilevel, radii=[9, 3])",
            "alpha",
            {"foreground_color": "multilevel", "radii": [9, 3]},
        ),
        ('onnx(path="a, (b).onnx",size = 320)', "onnx", {"path": "a, (b).onnx", "size": 320}),
        ('x(a="say \\"hi, you\\"", b=null)', "x", {"a": 'say "hi, you"', "b": None}),
        ("x(query=a=b)", "x", {"query": "a=b"}),
    ],
)
def test_a_stage_is_read_as_it_was_meant(text: str, name: str, options: dict[str, Any]) -> None:
    assert parse_stage(text) == (name, options)
    assert parse_stage(stage_text(name, options)) == (name, options)


def test_text_that_looks_like_a_number_stays_text() -> None:
    assert parse_stage(stage_text("x", {"weights": "320", "a": "true"}))[1] == {
        "weights": "320",
        "a": "true",
    }


@pytest.mark.parametrize("text", ["", "a b", "x(y)", "x(=1)", "x(a=1", "x(a=[1)]", "x)", 'x(a="1)'])
def test_what_is_no_stage_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_stage(text)


def test_a_method_is_read_with_commas_inside_its_options() -> None:
    method = parse_method("mine=pyramid,none,alpha(foreground_color=blur_fusion, radii=[9, 3])")
    assert method.name == "mine"
    assert (method.segmenter, method.refiner) == ("pyramid", "none")
    assert parse_stage(method.fuser)[1]["radii"] == [9, 3]
    assert parse_method(str(method)) == method


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
    with pytest.raises(UsageError):
        parse_method(text)


def test_the_paper_s_rows_are_all_there_and_have_one_segmenter() -> None:
    paper = {method.name: method for method in METHODS["paper"]}
    assert list(paper) == [
        "copy_paste", "feather", "laplacian", "poisson", "alpha", "closed_form", "knn",
        "information_flow", "deep_image_matting", "index_net", "single_stream", "ours",
    ]  # fmt: skip
    assert {method.segmenter for method in paper.values()} == {"pyramid"}
    # A matting method takes the place of the refinement network; it does not follow it.
    assert paper["knn"].refiner == "knn"
    assert paper["knn"].fuser == "alpha(foreground_color=multilevel)"
    assert paper["poisson"].refiner == paper["ours"].refiner == "cascade"


def test_a_name_means_one_method_in_all_sets() -> None:
    found: dict[str, Method] = {}
    for method in (method for group in METHODS.values() for method in group):
        assert found.setdefault(method.name, method) == method


def test_sets_and_methods_are_chosen_by_name_and_counted_once() -> None:
    chosen = choose(["feather,copy_paste", "feather"], ["mine=pyramid,none,feather(sigma=3)"])
    assert [method.name for method in chosen] == ["feather", "copy_paste", "mine"]
    fast = choose(["fast", "-ours,-alpha_multilevel"])
    assert [method.name for method in fast] == [
        "copy_paste",
        "feather",
        "laplacian",
        "guided_filter",
    ]


@pytest.mark.parametrize(
    ("sets", "extra", "says"),
    [
        (["slow"], [], "the sets are paper, ablations, fast, harmonize"),
        ([""], [], "no method to run"),
        (["feather,-ours"], [], "'-ours' leaves out what was not chosen"),
        (["fast,-fast"], [], "no method to run"),
        (["feather"], ["Feather=pyramid,none,feather"], "two methods called 'feather'"),
        ([], ["a=pyramid,none,feather", "a=pyramid,none,alpha"], "two methods called 'a'"),
        ([], ["a=pyramid,none,feathre"], "did you mean 'feather'"),
        ([], ["a=pyramid,none,feather(sgima=2)"], "takes no option 'sgima'"),
        ([], ["a=pyramid,none,feather(sigma=-2)"], "sigma is a number"),
    ],
)
def test_a_wrong_choice_is_refused(sets: list[str], extra: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(sets, extra)
    assert says in str(caught.value)


@pytest.fixture
def learned(own_registry: dict[tuple[str, str], registry.Entry]) -> None:
    """The fuser ``learned``: takes weights, and none ship for it."""

    @registry.register("fuser", "learned", description="a network")
    class Learned(SingleStreamFuser):
        shipped: ClassVar[dict[str, str]] = {}


@pytest.mark.usefixtures("learned")
@pytest.mark.parametrize("options", ["", "(radius=4)", "(weights=null)"])
def test_an_untrained_network_is_never_measured(options: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose([], [f"mine=pyramid,cascade,learned{options}"])
    message = str(caught.value)
    assert "no weights ship for mine" in message
    assert "weights=FILE" in message
    assert "--methods SET,-mine" in message


@pytest.mark.usefixtures("learned")
def test_all_that_is_untrained_is_told_at_once() -> None:
    with pytest.raises(UsageError, match=r"no weights ship for a, b.*SET,-a,-b.*b=pyramid,none"):
        choose([], ["a=pyramid,cascade,learned", "b=pyramid,none,learned", "c=pyramid,none,alpha"])


def test_shipped_weights_that_are_turned_off_are_missed() -> None:
    with pytest.raises(UsageError, match="or none were asked for"):
        choose([], ["mine=pyramid,cascade,multi_stream(weights=null)"])


def test_weights_that_are_no_file_are_named() -> None:
    with pytest.raises(WeightsError, match=r"'gone\.ckpt' for the fuser 'multi_stream'"):
        choose([], ["mine=pyramid,cascade,multi_stream(weights=gone.ckpt)"])


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
    chosen = {method.name: method for method in choose(["ablations"], runs=runs)}
    assert list(chosen) == ["no_self_taught", "one_stream", "no_refinement", "full"]
    files = {name: parse_stage(method.fuser)[1]["weights"] for name, method in chosen.items()}
    assert files == {
        "no_self_taught": str(newest),
        "one_stream": str(runs / "fusion_single_stream/checkpoints/last.ckpt"),
        "no_refinement": str(runs / "no_refinement/checkpoints/last.ckpt"),
        "full": str(runs / "fusion_hard/checkpoints/last.ckpt"),
    }
    assert chosen["no_refinement"].refiner == "none"
    assert chosen["one_stream"].fuser.startswith("single_stream(")


@pytest.mark.parametrize("recipe", ["fusion_easy", "fusion_single_stream", "fusion_hard"])
def test_a_run_that_is_missing_is_named_with_its_recipe(runs: Path, recipe: str) -> None:
    (runs / recipe / "checkpoints/last.ckpt").unlink()
    with pytest.raises(UsageError) as caught:
        choose(["ablations"], runs=runs)
    assert f"--config recipes/{recipe}.yaml" in str(caught.value)
    assert f"--trainer.default_root_dir {runs / recipe}" in str(caught.value)


def test_every_recipe_of_the_ablations_exists_and_writes_where_they_look() -> None:
    root = Path(__file__).parents[2]
    for *_, recipe in methods._ABLATIONS:
        text = (root / "recipes" / f"{recipe}.yaml").read_text()
        assert f"default_root_dir: {methods.RUNS}/{recipe}\n" in text


def test_a_run_of_one_s_own_is_named_by_its_folder(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "mine", MultiStreamFuser(widths=WIDTHS))
    (method,) = choose([], [f"a=pyramid,cascade,multi_stream(weights={tmp_path / 'mine'})"])
    assert parse_stage(method.fuser)[1]["weights"] == str(path)


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
    trained = MultiStreamFuser(widths=WIDTHS).eval()
    weights.load(trained, parse_stage(method.fuser)[1]["weights"])
    given = torch.rand(1, 3, 32, 40), torch.rand(1, 3, 32, 40), torch.rand(1, 1, 32, 40)
    with torch.inference_mode():
        torch.testing.assert_close(fuser(*given), trained(*given), atol=1e-5, rtol=0)


def test_options_that_are_given_take_precedence_over_a_checkpoint_s(runs: Path) -> None:
    path = runs / "fusion_hard/checkpoints/last.ckpt"
    method = parse_method(f"a=pyramid,cascade,multi_stream(weights={path}, radius=3)")
    fuser = method.compositor("cpu").fuser
    assert isinstance(fuser, MultiStreamModel)
    assert fuser.radius == 3


def test_the_description_tells_other_weights_apart(runs: Path) -> None:
    before = choose(["full"], runs=runs)[0].describe()
    assert json.loads(json.dumps(before)) == before
    assert set(before["fuser"]["sha256"]) == {"weights"}
    assert len(before["segmenter"]["sha256"]["weights"]) == 64
    torch.manual_seed(1)
    checkpoint(runs / "fusion_hard", MultiStreamFuser(widths=WIDTHS))
    assert choose(["full"], runs=runs)[0].describe() != before
