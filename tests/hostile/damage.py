"""Random damage to the bytes and values of valid files."""

from __future__ import annotations

import json
from random import Random
from typing import Any

# Bytes


def cut(data: bytes, rng: Random) -> bytes:
    """Truncate."""
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: Random) -> bytes:
    """Flip single bits."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def poke(data: bytes, rng: Random) -> bytes:
    """Overwrite a place with an extreme number, half of the time near the beginning."""
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice((0, 1, 256**size // 2 - 1, 256**size // 2, 256**size - 1))
    start = rng.randrange(min(len(data), rng.choice((64, len(data)))))
    return (
        data[:start] + number.to_bytes(size, rng.choice(("big", "little"))) + data[start + size :]
    )


def drop(data: bytes, rng: Random) -> bytes:
    """Remove or repeat a piece."""
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[start:stop] * rng.choice((0, 2, 20)) + data[stop:]


def spoil(data: bytes, rng: Random) -> bytes:
    """Apply one to four of these."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice((cut, flip, poke, drop))(data, rng) or b"\0"
    return data


# Values of JSON and YAML

DEEP = "@deep@"
JUNK = (
    -1, 0, 1, 2, 3, 0.5, 3.5, 1e-9, -1e-9, 1000, 10**6, 2**31, 2**64, 1e308, float("nan"),
    float("inf"), [-1], [0, 0], [1, 2], [10**6], [0.5, float("nan")], [], [[]], [1, "x"], {},
    {"": None}, {"path": "x"}, {"class_path": "os.system", "init_args": {"command": "true"}},
    None, True, False, "", "x", "-1", "nan", "../../x", "/dev/null", "a" * 5000, "\0", "\x1b[2Jx",
    "é", "default", DEEP, DEEP,
)  # fmt: skip


def junk(tree: Any, rng: Random) -> Any:
    """Copy a tree with one node replaced, removed or added."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return rng.choice(JUNK)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    copy, key, action = tree.copy(), rng.choice(keys), rng.randrange(6)
    if action == 0:
        del copy[key]
    elif action == 1 and isinstance(copy, dict):
        copy[f"{key}x"] = rng.choice(JUNK)
    elif action == 1:
        copy.append(rng.choice(JUNK))
    else:
        copy[key] = junk(copy[key], rng) if action > 2 else rng.choice(JUNK)
    return copy


def dumps(tree: Any, rng: Random) -> bytes:
    """Write a tree as JSON, which is valid YAML, nested up to a hundred thousand levels."""
    depth, (left, right) = rng.choice((500, 5000, 100_000)), rng.choice(("[]", ('{"":', "}")))
    deep = f"{left * depth}0{right * rng.choice((depth, 0))}"
    return json.dumps(tree).replace(f'"{DEEP}"', deep).encode()
