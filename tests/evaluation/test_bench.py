"""The bench: what it records, keeps, makes again and refuses; and what two processes make."""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deep_image_compositing.errors import CompositingError, UsageError
from deep_image_compositing.evaluation import bench, measures, statistics
from deep_image_compositing.evaluation.bench import LEDGER, WORK
from deep_image_compositing.evaluation.evaluate import evaluate
from deep_image_compositing.evaluation.measures import MEASURES, measure_composite, measure_cost
from deep_image_compositing.evaluation.methods import Method, parse_method
from deep_image_compositing.evaluation.report import Report
from deep_image_compositing.images import read_image
from deep_image_compositing.ledger import Ledger
from tests import runs
from tests.evaluation import tiny
from tests.evaluation.tiny import Odd, Tiny
from tests.metrics.test_lpips import alexnet


@pytest.fixture(autouse=True)
def stages(own_registry: object, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.setattr(statistics, "DRAWS", 100)  # intervals are tested elsewhere


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(out: Path, *fusers: str | Method, test_set: Tiny | None = None, **options: Any) -> Report:
    methods = [tiny.method(each) if isinstance(each, str) else each for each in fusers]
    test_set = Tiny() if test_set is None else test_set  # one without samples is false
    report = evaluate(methods, test_set, out, **{"sheets": 0, "accelerator": "cpu", **options})
    assert report is not None
    return report


def record(out: Path, sample: int, grade: str, method: str) -> dict[str, Any]:
    return Ledger(out / WORK / LEDGER).entries[f"{WORK}/picture-{sample}/{grade}/{method}"]


def figures(records: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, float]]:
    """What was measured, without what it cost."""
    return {
        (r["sample"], r["grade"], r["method"]): {
            key: value for key, value in r["measures"].items() if MEASURES[key].group != "cost"
        }
        for r in records
    }


# Records


def test_every_method_is_measured_on_every_sample_in_every_grade(out: Path) -> None:
    report = run(out, "plain", "brighter")
    assert len(report.records) == 2 * 3 * 2
    assert report.reference == "brighter"  # the last one, as none is ours
    for name in ("plain", "brighter"):
        found = record(out, 1, "exact", name)
        pixels = read_image(out / WORK / "picture-1" / "exact" / f"{name}.composite.png").pixels
        composite = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        expected = measure_composite(composite, Tiny()[1])
        assert {key: found["measures"][key] for key in expected} == pytest.approx(expected)
        assert found["measures"]["seconds"] > found["measures"]["fusion_seconds"] > 0
        assert found["measures"]["sad"] == 0  # the exact mask is the alpha
        assert (found["size"], found["device"]) == ([72, 72], "cpu")
    plain, brighter = (record(out, 1, "exact", n)["measures"] for n in ("plain", "brighter"))
    assert plain["band_psnr"] > brighter["band_psnr"] + 3
    assert "iou" not in plain  # the mask is measured where it was found
    assert 0.8 < record(out, 1, "none", "plain")["measures"]["iou"] <= 1
    assert (out / WORK / "picture-1" / "none" / "plain.mask.png").is_file()


def test_without_a_truth_only_costs_are_measured_and_all_get_sheets(out: Path) -> None:
    test_set = Tiny(14, truth=False)
    report = run(out, "plain", test_set=test_set, sheets=None, grades=["exact"])
    groups = {MEASURES[key].group for r in report.records for key in r["measures"]}
    assert groups == {"cost"}
    assert not report.has_truth
    assert len(report.sheets) == 14


def test_sheets_are_spread_over_a_set_with_truth(out: Path) -> None:
    report = run(out, "plain", test_set=Tiny(5), sheets=3, grades=["exact"])
    assert [s["sample"] for s in report.sheets] == ["picture-0", "picture-2", "picture-4"]
    assert all((out / sheet["file"]).is_file() for sheet in report.sheets)


def test_lpips_is_measured_by_a_file_in_the_home_folder(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(out.parent))
    torch.save(alexnet(), out.parent / "alexnet.pth")
    run(out, "plain", grades=["exact"], test_set=Tiny(1), lpips_weights="~/alexnet.pth")
    assert record(out, 0, "exact", "plain")["measures"]["lpips"] > 0


# Taking a run up again


def test_a_run_goes_on_where_it_was(out: Path) -> None:
    some = run(out, "odd", grades=["none"])
    assert {r["grade"] for r in some.records} == {"none"}
    first = figures(run(out, "odd").records)  # the other grade is added
    assert Odd.calls == 6 + 2  # one in each run to warm up
    assert figures(run(out, "odd").records) == first
    assert Odd.calls == 8
    path = out / WORK / LEDGER
    for turn, kept in enumerate((0, 40), start=1):  # a line that is gone, and one that is torn
        lines = path.read_text().splitlines()
        cut = [line[:kept] if "picture-1/none/odd" in line else line for line in lines]
        path.write_text("\n".join(filter(None, cut)) + "\n")
        assert figures(run(out, "odd").records) == first
        assert Odd.calls == 8 + 2 * turn


def test_a_finished_run_still_draws_the_sheets_that_are_asked_for(out: Path) -> None:
    run(out, "odd")
    calls = Odd.calls
    report = run(out, "odd", sheets=1)
    assert len(report.sheets) == 2
    paths = [out / sheet["file"] for sheet in report.sheets]
    before = [path.stat().st_mtime_ns for path in paths]
    run(out, "odd", sheets=1)
    assert [path.stat().st_mtime_ns for path in paths] == before
    report = run(out, "odd", "plain", sheets=1)  # another method adds to what is there
    assert {r["method"] for r in report.records} == {"odd", "plain"}
    assert all(path.stat().st_mtime_ns > old for path, old in zip(paths, before, strict=True))
    assert Odd.calls == calls


def test_what_is_stale_is_made_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(out, "odd", grades=["exact"])
    assert Odd.calls == 3 + 1
    report = run(out, parse_method("odd=disc(softness=0.2),none,odd"), grades=["exact"])
    assert len(report.records) == 3
    assert Odd.calls == 4 + 4
    monkeypatch.setattr(bench, "__version__", "0.0.0")
    run(out, "odd", grades=["exact"])
    assert Odd.calls == 8 + 4


# Failures


@pytest.mark.parametrize("kind", ["known", "memory"])
def test_what_fails_is_recorded_and_tried_again(kind: str, out: Path) -> None:
    fuser = f"odd(fail=3, kind={kind})"  # the first two calls warm up and run the first sample
    summary = run(out, fuser, "plain", grades=["exact"]).summary["exact"]
    assert summary.measured == {"odd": 1, "plain": 3}
    assert summary.failed == {"odd": 2, "plain": 0}
    failed = record(out, 1, "exact", "odd")
    said = "no more" if kind == "known" else "the fuser ran out of memory on cpu at "
    assert failed["error"].startswith(said)
    assert "measures" not in failed
    Odd.calls = -100
    assert run(out, fuser, grades=["exact"]).summary["exact"].measured == {"odd": 3}
    assert Odd.calls == -100 + 2 + 1


def test_a_sample_that_cannot_be_read_fails_for_all(out: Path) -> None:
    report = run(out, "plain", "brighter", test_set=Tiny(broken=1), sheets=3)
    assert report.summary["none"].failed == {"plain": 1, "brighter": 1}
    said = record(out, 1, "none", "plain")["error"]
    assert said == "the sample cannot be read: picture-1.png is cut off"
    assert [s["sample"] for s in report.sheets] == [*["picture-0"] * 2, *["picture-2"] * 2]


def test_a_method_that_cannot_be_made_fails_everywhere(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Method.compositor

    def compositor(self: Method, **options: Any) -> Any:
        if self.name == "plain":
            raise CompositingError("its weights are for something else")
        return make(self, **options)

    monkeypatch.setattr(Method, "compositor", compositor)
    report = run(out, "plain", "brighter")
    assert report.summary["exact"].failed == {"plain": 3, "brighter": 0}
    assert record(out, 0, "none", "plain")["error"] == "its weights are for something else"


def test_warnings_are_kept(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(out, 'odd(warn="did not converge")', grades=["exact"])
    found = record(out, 0, "exact", "odd")["warnings"]
    assert sorted(found) == ["and logged", "did not converge"]
    assert "and logged" not in caplog.text


def test_ctrl_c_keeps_what_is_finished(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    fuser = "odd(fail=4, kind=stop)"
    with pytest.raises(KeyboardInterrupt):
        run(out, fuser, grades=["exact"])
    assert "run the same command to continue" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (out / "report.html").exists()
    assert len(Ledger(out / WORK / LEDGER).entries) == 2
    Odd.calls = -100
    assert run(out, fuser, grades=["exact"]).summary["exact"].measured == {"odd": 3}
    assert Odd.calls == -100 + 2


# Folders


def test_a_folder_of_another_test_set_is_refused(out: Path) -> None:
    run(out, "plain")
    kept = out / "mine.txt"
    kept.write_text("mine")
    with pytest.raises(UsageError, match=r"count 3, now 2.*another --out, or --overwrite"):
        run(out, "plain", test_set=Tiny(2))
    assert len(run(out, "plain", test_set=Tiny(2), overwrite=True).records) == 4
    assert not (out / WORK / "picture-2").exists()
    assert kept.read_text() == "mine"


def test_only_its_own_half_written_files_are_cleared_away(out: Path) -> None:
    run(out, "plain", grades=["exact"])
    name = f".{'0a' * 8}.part"
    mine, *torn = (out / folder / name for folder in ("mine", "", WORK))
    mine.parent.mkdir()
    for path in (mine, *torn):
        path.write_text("")
    run(out, "plain", grades=["exact"])
    assert [path.exists() for path in (mine, *torn)] == [True, False, False]


def test_what_was_killed_while_it_was_overwritten_can_begin_anew(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(out, "plain", sheets=1)
    rmtree, removed = shutil.rmtree, list[str]()

    def killed(path: Path, **options: bool) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(path.name)
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(out, "plain", test_set=Tiny(2), overwrite=True)
    assert len(run(out, "plain", test_set=Tiny(2), overwrite=True).records) == 4


@pytest.mark.parametrize("name", ["work", "sheets", "report.json"])
def test_what_no_evaluation_has_written_is_left_alone(name: str, out: Path) -> None:
    (out / name).mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=f"holds {name}, which no evaluation has written"):
            run(out, "plain", overwrite=overwrite)


def test_wrong_arguments_are_told_before_any_work(out: Path) -> None:
    for fusers, options, message in (
        (["plain"], {"grades": ["bad"]}, "the grades here are some of exact, none, got bad"),
        (["plain"], {"grades": []}, "got none"),
        (["plain"], {"reference": "ours"}, "one of the methods, plain: 'ours'"),
        (["plain"], {"test_set": Tiny(0)}, "holds no samples"),
        (["plain", "plain"], {}, "names of their own"),
        ([], {}, "no method"),
    ):
        with pytest.raises(UsageError, match=message):
            run(out, *fusers, **options)
    assert not out.exists()


# Costs


def test_the_peak_of_memory_is_that_of_the_block() -> None:
    device = torch.device("cpu")
    held = np.ones(8_000_000, np.uint8)
    with measure_cost(device) as cost:
        more = np.ones(64_000_000, np.uint8)
        del more
    if "peak_memory" not in cost:
        pytest.skip("this system does not tell")
    assert 60 < cost["peak_memory"] < 80
    assert cost["seconds"] > 0
    with measure_cost(device) as idle:
        pass
    assert idle["peak_memory"] < 8
    assert held.all()


def test_where_there_is_no_libc_memory_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_path(name: None) -> None:  # what CDLL(None) does on Windows
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    monkeypatch.setattr(ctypes, "CDLL", no_path)
    monkeypatch.setattr(measures, "Path", lambda name: Path("gone") / name.strip("/"))
    with measure_cost(torch.device("cpu")) as cost:
        pass
    assert cost["seconds"] > 0
    assert "peak_memory" not in cost


def test_the_report_names_the_gpu_that_lightning_has_left(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    made = bench.Bench(
        [tiny.method("plain")], Tiny(), out, lambda *done: None, grades=("exact",),
        reference="plain",
    )  # fmt: skip
    made.trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    made._device = torch.device("cuda", 1)  # as in Lightning's call of setup
    made.setup("test")
    made.cpu()  # as at its end
    assert made.report().about["device"] == "GPU 1"


# Two processes


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    reports = []
    for count in (1, 2):
        out = tmp_path / str(count)
        given = [
            "evaluate", "--method", "pasted=pyramid,none,copy_paste", "--method",
            "blended=pyramid,none,alpha", "--test-set", "syntest", "--samples", "3", "--size", "64",
            "--grades", "exact,rough", "--accelerator", "cpu", "--threads", "1", "--sheets", "3",
            "--out", str(out), "--devices", str(count),
        ]  # fmt: skip
        process = runs.start(given)
        said = runs.finish(process)
        assert process.returncode == 0, said
        assert said.count(f"wrote {out / 'report.html'}") == 1
        reports.append(json.loads((out / "report.json").read_text()))
        assert len(list(out.glob("sheets/*/*.jpg"))) == 6
    one, two = (figures(report["records"]) for report in reports)
    assert len(one) == len(reports[1]["records"]) == 3 * 2 * 2
    assert one == two
    assert reports[0]["test_set"] == reports[1]["test_set"]
