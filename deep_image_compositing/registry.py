"""Named stages: what can fill a slot, and how to make one.

The compositor, the command line and the evaluation look stages up with ``create``,
``get`` and ``list_stages``. The library's own are listed in
``deep_image_compositing.entries`` and imported when they are made; others register themselves
with the ``register`` decorator. Other packages publish stages through the entry-point group
``deep_image_compositing.stages``: each entry point names a module (imported for its ``register``
calls), the stage class itself, or a table of ``Entry``, as the library's own, whose stages are
imported when they are made.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.metadata
import json
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from deep_image_compositing.entries import BUILT_IN, Entry
from deep_image_compositing.errors import UsageError
from deep_image_compositing.options import check_options

SLOTS = ("segmenter", "refiner", "fuser")
"""The three slots, in the order in which a composite passes through them."""

ENTRY_POINT_GROUP = "deep_image_compositing.stages"

_T = TypeVar("_T", bound=Callable[..., Any])


_entries: dict[tuple[str, str], Entry] = {(one.slot, one.name): one for one in BUILT_IN}
_discovered = False


def register(slot: str, name: str, *, description: str, source: str = "") -> Callable[[_T], _T]:
    """Register a stage class (or any factory) under ``name`` in ``slot``.

    Raises:
        UsageError: for an unknown slot, or a name that the slot already has.
    """
    _check_slot(slot)

    def decorator(factory: _T) -> _T:
        _add(Entry(slot, name, description, source, factory))
        return factory

    return decorator


def get(slot: str, name: str) -> Entry:
    """The entry called ``name`` in ``slot``.

    Raises:
        UsageError: when there is none; the message names the nearest ones.
    """
    _check_slot(slot)
    if (slot, name) not in _entries:
        _discover()
    if (slot, name) not in _entries:
        names = [entry.name for entry in list_stages(slot)]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        if near:
            rest = f"did you mean {' or '.join(map(repr, near))}? There are: {', '.join(names)}"
        else:
            rest = (
                f"there are: {', '.join(names)}. To add one, decorate its class with "
                f"@register({slot!r}, {name!r}, description=...)"
            )
        raise UsageError(f"there is no {slot} called {name!r}; {rest}")
    return _entries[slot, name]


def create(slot: str, name: str, **kwargs: Any) -> Any:
    """Make the stage ``name`` of ``slot`` with the constructor arguments ``kwargs``.

    Learned stages start untrained; ``weights="default"`` loads the shipped weights and
    ``weights="file.safetensors"`` one's own. An error inside the constructor stays that error.

    Raises:
        UsageError: when the name or an argument is unknown, or a value is of the wrong kind.
    """
    factory = get(slot, name).factory
    check_options(slot, name, factory, kwargs)
    return factory(**kwargs)


def list_stages(slot: str | None = None, pattern: str = "*") -> list[Entry]:
    """Entries whose name matches the shell-style ``pattern``, by slot, then by name."""
    if slot is not None:
        _check_slot(slot)
    _discover()
    found = [
        entry
        for entry in _entries.values()
        if slot in (None, entry.slot) and fnmatch.fnmatchcase(entry.name, pattern)
    ]
    return sorted(found, key=lambda entry: (SLOTS.index(entry.slot), entry.name))


def key_values(where: str, given: Iterable[str]) -> dict[str, Any]:
    """Options of a stage as people type them, ``KEY=VALUE`` each.

    Args:
        where: what messages say takes them.
        given: values are JSON where they parse, else plain text.

    Raises:
        UsageError: one without a key or an equals sign.
    """
    values: dict[str, Any] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise UsageError(f"{where} takes KEY=VALUE, got {item!r}")
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError):
            values[key] = text
    return values


def _add(entry: Entry) -> None:
    _check_slot(entry.slot)
    if (there := _entries.get((entry.slot, entry.name))) is not None:
        raise UsageError(
            f"{entry.slot} {entry.name!r} is already registered (by {there.made_by!r}); "
            "choose another name"
        )
    _entries[entry.slot, entry.name] = entry


def _check_slot(slot: str) -> None:
    if slot not in SLOTS:
        raise UsageError(f"there is no slot {slot!r}; the slots are {', '.join(SLOTS)}")


def _discover() -> None:
    """Import what the entry points name, once; a broken plug-in only warns."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            found = point.load()
            for entry in found if isinstance(found, (list, tuple)) else ():
                _add(entry)
        except Exception as error:
            warnings.warn(
                f"the stage plug-in {point.name!r} ({point.value}) could not be loaded: {error}",
                stacklevel=3,
            )
