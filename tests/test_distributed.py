"""Two processes: they train as one, count every sample once, resume, and end together."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch

from deep_image_compositing.cli import main
from deep_image_compositing.stages.base import Segmenter
from deep_image_compositing.stages.segmentation import PyramidSegmenter
from tests import runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # Lightning, of every loader whose processes are fewer than the cores.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

TWO = {"devices": 2, "strategy": "ddp", "val_check_interval": 3}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_data(tmp_path_factory.mktemp("distributed"), held_out=5)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps on two machines of one process each, rehearsed on this one."""
    out = tmp_path_factory.mktemp("whole") / "run"
    given = runs.arguments(data, out, **{**TWO, "num_nodes": 2, "devices": 1})
    runs.run_two(given, nodes=2)
    return out


def test_two_machines_train(whole: Path) -> None:
    found = runs.losses(whole)
    assert sorted(found) == list(range(30))
    assert torch.tensor([*map(list, found.values())]).isfinite().all()


def test_what_is_killed_or_told_to_stop_ends_as_if_it_had_not_been(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    given = runs.arguments(data, out, **TWO)
    process = runs.start(given, TORCHRUN)
    runs.wait_until(runs.progress(out), process)
    runs.kill(process)

    # Now by Lightning's own launcher. Only the first process is told; they agree.
    process = runs.start([*given, "--resume"])
    runs.wait_until(runs.progress(out), process)
    process.terminate()
    said = runs.finish(process)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.count("told to stop: saved") == 1
    stopped = torch.load(out / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert 10 <= stopped["global_step"] < 30

    runs.run_two([*given, "--resume"])
    found, expected = runs.losses(out), runs.losses(whole)
    assert max(found) == 29
    assert {step: expected[step] for step in found} == found
    ends = runs.weights(whole, 30), runs.weights(out, 30)
    assert all(torch.equal(ends[1][key], value) for key, value in ends[0].items())


def test_an_odd_number_of_samples_counts_once(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def metrics(said: str) -> dict[str, float]:
        return {name: float(value) for name, value in re.findall(r"(val/\w+)\W+([\d.]+)", said)}

    config = f"--config={whole.with_suffix('.yaml')}"
    checkpoint = f"--ckpt_path={whole}/checkpoints/last.ckpt"
    given = ["validate", config, checkpoint, "--trainer.num_nodes=1"]
    capsys.readouterr()
    assert not main([*given, "--trainer.strategy=auto"])
    alone = metrics(capsys.readouterr().out)
    assert set(alone) == {"val/iou", "val/f1", "val/mae"}
    together = metrics(runs.run_two([*given, "--trainer.devices=2"]))
    assert together == pytest.approx(alone, abs=1e-6)


# Gradients


GRADIENTS = """
import sys
import torch
from lightning.pytorch import Callback, Trainer
from tests.test_distributed import joint_batch, make_stage

class Keep(Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 0:
            found = {name: p.grad.clone() for name, p in module.named_parameters()}
            torch.save(found, f"{sys.argv[1]}/{trainer.global_rank}.gradients")

    def on_train_end(self, trainer, module):
        torch.save(dict(module.named_parameters()), f"{sys.argv[1]}/{trainer.global_rank}.ends")

whole = joint_batch()
rows = [{key: value[i] for key, value in whole.items()} for i in range(4)]
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=3, callbacks=[Keep()], logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(make_stage(), torch.utils.data.DataLoader(rows, batch_size=2))
"""


def joint_batch() -> dict[str, torch.Tensor]:
    image = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return {"image": image, "mask": (image.mean(1, keepdim=True) > 0.5).float()}


def make_stage() -> Segmenter:
    torch.manual_seed(0)
    stage = PyramidSegmenter(backbone="test_efficientnet", width=8, picture_every=0)
    # Norms over half a batch would differ from those over the whole.
    return stage.eval()


def test_gradients_are_those_of_the_joint_batch(tmp_path: Path) -> None:
    runs.run_two([str(tmp_path)], GRADIENTS)
    first, second, *ends = (
        torch.load(tmp_path / f"{rank}.{name}") for name in ("gradients", "ends") for rank in (0, 1)
    )
    stage = make_stage()
    stage.loss(joint_batch()).loss.backward()
    largest = torch.zeros(())
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], parameter.grad, rtol=1e-3, atol=1e-6), name
        assert torch.equal(ends[0][name], ends[1][name])
        assert not torch.equal(ends[0][name], parameter)
        largest = torch.maximum(largest, parameter.grad.abs().max())
    assert largest > 1e-3


# Faults


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_of_one_process_ends_both(rank: int, data: Path, tmp_path: Path) -> None:
    # A program that gives one process no shards, and the other whole ones.
    shard = data / "people" / "train-000000.tar"
    url = f"pipe:test $LOCAL_RANK != {rank} && cat {shard}"
    given = [
        *runs.arguments(data, tmp_path / "run", **TWO, max_steps=10_000),
        f"--data.train={url}",
        f"--data.validation={data / 'people'}",
    ]
    process = runs.start(given, TORCHRUN if rank else [])
    said = runs.finish(process)
    assert process.returncode not in (0, None)
    assert re.search(r"passed over \(4 of 4 shards of pipe", said)
    assert re.search(r"error: 5 of 5 shards of pipe.*tolerated share of 0.01", said)
