"""The weighted mean of two training runs of one stage, of which the later went on from the earlier.

    python recipes/mix_weights.py segmenter/pyramid later.ckpt earlier.ckpt 0.6 -o mixed.safetensors

Along the way from one to the other, networks often are better at photographs that neither run has
seen (Wortsman et al., Model soups, ICML 2022).
"""

from __future__ import annotations

import argparse

from deep_image_compositing import CompositingError, registry, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", help="SLOT/NAME")
    parser.add_argument("later", help="checkpoint or weights file")
    parser.add_argument("earlier", help="likewise")
    parser.add_argument("share", type=float, help="of the later one, from 0 to 1")
    parser.add_argument("-o", "--out", required=True, help=".safetensors file to be")
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        parser.error(f"the share must lie in [0, 1], got {options.share}")
    slot, _, name = options.stage.partition("/")
    stage = registry.create(slot, name, weights=options.later)
    earlier = registry.create(slot, name, weights=options.earlier).state_dict()
    own = stage.state_dict()
    for key in earlier.keys() | own.keys():
        if key not in earlier or key not in own or earlier[key].shape != own[key].shape:
            raise SystemExit(f"error: the two are not of one network: they differ in {key}")
    mixed = {
        key: earlier[key].lerp(value, options.share) if value.is_floating_point() else value
        for key, value in own.items()
    }
    stage.load_state_dict(mixed)
    stage.hparams["weights"] = None  # where they came from is no part of them
    weights.save(stage, options.out)


if __name__ == "__main__":
    try:
        main()
    except CompositingError as error:
        raise SystemExit(f"error: {error}") from None
