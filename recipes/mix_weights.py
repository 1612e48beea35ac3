"""Average the weights of two runs of a stage, of which the later one continued the earlier one.

    python recipes/mix_weights.py segmenter/pyramid later.ckpt earlier.ckpt 0.6 -o mixed.safetensors

Interpolated networks often generalize better than either run (Wortsman et al., Model soups, ICML
2022).
"""

from __future__ import annotations

import argparse

from deep_image_compositing import CompositingError, registry, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", help="SLOT/NAME")
    parser.add_argument("later", help="checkpoint or weights file of the later run")
    parser.add_argument("earlier", help="checkpoint or weights file of the earlier run")
    parser.add_argument("share", type=float, help="weight of the later run, from 0 to 1")
    parser.add_argument("-o", "--out", required=True, help=".safetensors file to write")
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        parser.error(f"the share must lie in [0, 1], got {options.share}")
    slot, _, name = options.stage.partition("/")
    stage = registry.create(slot, name, weights=options.later)
    earlier = registry.create(slot, name, weights=options.earlier).state_dict()
    later = stage.state_dict()
    for key in earlier.keys() | later.keys():
        if key not in earlier or key not in later or earlier[key].shape != later[key].shape:
            raise SystemExit(f"error: the files hold different networks: they differ in {key}")
    mixed = {
        key: earlier[key].lerp(value, options.share) if value.is_floating_point() else value
        for key, value in later.items()
    }
    stage.load_state_dict(mixed)
    stage.hparams["weights"] = None  # the origin of the weights is not a hyper-parameter
    weights.save(stage, options.out)


if __name__ == "__main__":
    try:
        main()
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
