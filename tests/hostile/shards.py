"""Folders of shards with damaged tars, members, headers, JSON and indices."""

from __future__ import annotations

import functools
import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from random import Random

from tests.cases import Read
from tests.data import trees
from tests.hostile.damage import dumps, junk, spoil
from tests.hostile.pictures import odd_picture


@functools.cache
def sound_shards() -> Path:
    """Folders of shards: ``people``, and ``scenes`` without people."""
    root = Path(tempfile.mkdtemp())
    trees.shards(root / "people", "segmentation", 6, 2)
    trees.shards(root / "scenes", "backgrounds", 3)
    return root


def zeros(mebibytes: int) -> bytes:
    """Zeros compressed with gzip, generated without holding them in memory."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
    return b"\x1f\x8b\x08" + bytes(7) + parts[0] + parts[1] * (mebibytes - 1)


def odd_tar(rng: Random) -> bytes:
    """A tar of two samples with hostile members, headers, JSON or pictures."""
    names = (
        "../x.json", "/x.json", "x", "", "x.pyd", "a/" * 90 + "x.json", "a\\b.json", "x\0y.json",
    )  # fmt: skip
    keys = ("path", "size", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset", "mtime", "comment")
    values = ("", "-1", "1" * 5000, "9" * 30, "x" * 10**7, "\0", "BINARY", "1,2,3")
    file, action = io.BytesIO(), rng.randrange(5)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(2):
            fields = trees.sample("segmentation", number)
            fields["json"] = dumps(junk({"source": "x", "size": [1, {"a": 2}]}, rng), rng)
            if action == 0:
                fields[rng.choice(sorted(fields))] = odd_picture(rng)
            for field, data in fields.items():
                member = tarfile.TarInfo(f"s{number}.{field}")
                member.size = len(data)
                if action == 1 and rng.random() < 0.5:
                    member.name = rng.choice(names)
                elif action == 2 and rng.random() < 0.5:
                    member.type = bytes([rng.choice(b"0123456789xgLKSVZ")])
                elif action == 3 and rng.random() < 0.5:
                    member.pax_headers = {rng.choice(keys): rng.choice(values)}
                tar.addfile(member, io.BytesIO(data))
    out = bytearray(file.getvalue())
    if action == 4:  # a size without data
        out[124:136] = rng.choice((b"77777777777\0", b"\x80" + b"\xff" * 11, b"-1".ljust(12)))
        out[148:156] = b" " * 8
        out[148:156] = b"%06o\0 " % sum(out[:512])
    return bytes(out)


def shards(rng: Random, folder: Path) -> Read:
    """A folder of shards, verified or read as in training."""
    from deep_image_compositing.data.shards import describe
    from deep_image_compositing.data.verify import verify

    root = folder / "people"
    shutil.copytree(sound_shards() / "people", root)
    path, index = root / "train-000000.tar", root / "index.json"
    content, data, action = json.loads(index.read_bytes()), path.read_bytes(), rng.randrange(10)
    if action < 6:
        if action < 2:
            data = spoil(data, rng)
        elif action == 2:
            data = rng.choice((spoil(gzip.compress(data, mtime=0), rng), zeros(4000)))
        else:
            data = odd_tar(rng)
        path.write_bytes(data)
        content["splits"]["train"]["shards"][0] |= vars(describe(path, rng.choice((0, 2, 4))))
    elif action < 9:
        content = junk(content, rng)
    text = dumps(content, rng)
    index.write_bytes(spoil(text, rng) if action == 9 else text)
    return rng.choice((lambda: verify(root, workers=1), lambda: batches(root)))


def batches(root: Path) -> None:
    """Read all batches of a short training epoch and of its validation."""
    from deep_image_compositing.data.modules import SegmentationData

    scenes = str(sound_shards() / "scenes")
    data = SegmentationData(
        str(root), scenes, size=32, batch_size=2, epoch_length=8, num_workers=0, shuffle=2
    )
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            data.on_after_batch_transfer(batch, 0)
