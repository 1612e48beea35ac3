"""Every published layout is found in a small tree of it, and nothing else is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deep_image_compositing.data import layouts
from deep_image_compositing.data.datasets import open_source
from deep_image_compositing.data.items import Source
from deep_image_compositing.data.layouts import LAYOUTS
from deep_image_compositing.errors import DataError, MissingExtraError, UsageError
from tests.data import published, trees
from tests.data.published import TREES


def test_every_layout_has_a_tree() -> None:
    made = {(tree.kind, tree.layout) for tree in TREES.values()}
    assert made == {(layout.kind, layout.name) for layout in LAYOUTS}
    assert len({(x.kind, x.name) for x in LAYOUTS}) == len(LAYOUTS)


def test_the_page_of_training_data_names_every_layout() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert not [x for x in LAYOUTS if not any(f"| {x.kind} | `{x.name}`" in row for row in rows)]


def test_the_root_may_be_a_folder_inside(tmp_path: Path) -> None:
    published.make("msra10k", tmp_path)
    find = layouts.get("segmentation", "msra10k").pairs
    keys = [e.key for e in find(tmp_path)]
    assert [e.key for e in find(tmp_path / "MSRA10K_Imgs_GT")] == keys
    assert [e.key for e in find(tmp_path / "MSRA10K_Imgs_GT" / "Imgs")] == keys


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.kind} {x.name}")
def test_another_folder_is_refused_with_what_is_expected(
    layout: layouts.Layout, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"does not look like .*expected .*it holds notes\.txt"):
        layout.pairs(tmp_path)


def test_no_folder_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        layouts.get("segmentation", "duts").pairs(tmp_path / "absent")


@pytest.mark.parametrize(("name", "said"), [("dust", "no layout 'dust'"), (None, "is missing")])
def test_a_wrong_name_lists_the_layouts_of_the_kind(name: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        layouts.get("mattes", name)
    assert "adobe, aim500, p3m10k, ppm100, rgba, folders" in str(caught.value)


def test_keys_fit_into_a_tar_and_differ(tmp_path: Path) -> None:
    for name in ("x.y.png", "x y.png", "X_Y.png", "d/e.png", "d-e.png", "Ünï.png"):
        published.write(tmp_path, name, "RGBA")
    entries = layouts.get("mattes", "rgba").pairs(tmp_path)
    keys = [entry.key for entry in entries]
    assert len({key.casefold() for key in keys}) == 6
    assert {"d-e", "d-e-2", "Ünï"} <= set(keys)
    assert not [key for key in keys if {".", "/", " "} & set(key)]


def test_a_missing_label_is_named_and_hidden_files_are_not(tmp_path: Path) -> None:
    published.make("aim500", tmp_path)
    (tmp_path / "mask" / "o_0a0ae43d.png").unlink()
    (tmp_path / "original" / "._o_e92b90fc.jpg").touch()
    entries = layouts.get("mattes", "aim500").pairs(tmp_path)
    assert [entry.label for entry in entries] == [
        tmp_path / "mask" / "o_0a0ae43d.png",
        tmp_path / "mask" / "o_e92b90fc.png",
    ]


def test_subjects_of_one_photograph_are_a_group(tmp_path: Path) -> None:
    published.make("adobe", tmp_path)
    entries = layouts.get("mattes", "adobe").pairs(tmp_path)
    assert len({entry.group for entry in entries if entry.split == "test"}) == 1
    assert len({entry.group for entry in entries if not entry.split}) == 2


def test_groups_of_a_set_of_one_s_own(tmp_path: Path) -> None:
    published.make("masks beside", tmp_path)
    find = layouts.get("segmentation", "folders").pairs
    assert len({entry.group for entry in find(tmp_path)}) == 2
    (tmp_path / "groups.tsv").write_text("a\troll 1\nb c\troll 1\n")
    assert {entry.group for entry in find(tmp_path)} == {"roll 1"}
    (tmp_path / "groups.tsv").write_text("a\troll 1\nb c roll 1\n")
    with pytest.raises(DataError, match="line 2: expected NAME, a tab and GROUP"):
        find(tmp_path)
    (tmp_path / "groups.tsv").write_bytes("\ufeffa\tcafé\nb c\tcafé\n".encode())
    assert {entry.group for entry in find(tmp_path)} == {"café"}
    (tmp_path / "groups.tsv").write_bytes("a\tcafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"groups\.tsv is no text in UTF-8"):
        find(tmp_path)
    (tmp_path / "groups.tsv").write_text("a.jpg\tA\n")
    with pytest.raises(DataError, match=r"names none of .* such as 'a', got 'a\.jpg'"):
        find(tmp_path)


def test_labels_are_no_backgrounds_and_no_cut_outs(tmp_path: Path) -> None:
    trees.pairs(tmp_path / "pairs", kept=2, held_out=1)
    train, held_out = open_source(Source(tmp_path), ("backgrounds",))  # type: ignore[arg-type]
    found = layouts.get("backgrounds", "folders").pairs(tmp_path)
    assert len(found) == len(train) + len(held_out or ()) == 3
    with pytest.raises(UsageError, match="does not look like rgba"):
        layouts.get("mattes", "rgba").pairs(tmp_path)


def test_matlab_files_need_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    published.make("portrait_stylization", tmp_path)
    with pytest.raises(DataError, match="no variable 'face'"):
        layouts.read_mat(tmp_path / "testlist.mat", "face")
    (tmp_path / "testlist.mat").write_bytes(b"not one")
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        layouts.read_mat(tmp_path / "testlist.mat", "testlist")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingExtraError, match=r"\[matting\]"):
        layouts.get("segmentation", "portrait_stylization").pairs(tmp_path)
