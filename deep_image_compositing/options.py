"""What a stage's constructor takes, and whether given options fit; the registry calls this."""

from __future__ import annotations

import ast
import contextlib
import difflib
import math
import os
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from deep_image_compositing.errors import UsageError, WeightsError

_WORDS: dict[Any, tuple[str, str]] = {
    # type: (one of them, several of them)
    bool: ("true or false", "true or false each"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    type(None): ("null", "nulls"),
}

Accepted: TypeAlias = tuple[set[str], set[str]]
"""Names of the arguments that a factory takes, and of those it must be given."""

_PACKAGE = __name__.partition(".")[0] + "."
_ROOT = Path(__file__).parents[1]


def accepted_options(factory: Callable[..., Any]) -> Accepted | None:
    """Names of the arguments that ``factory`` takes, and of those it must be given.

    A class that passes ``**kwargs`` on to its bases also takes theirs. None when it takes any.
    """
    taken: set[str] = set()
    needed: set[str] = set()
    for index, (call, parameters) in enumerate(_calls(factory)):
        for parameter in parameters:
            if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
                taken.add(parameter.name)
                if parameter.default is Parameter.empty and index == 0:
                    needed.add(parameter.name)
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
            return taken, needed
        if (getattr(call, "__module__", None) or "").startswith(("torch", "lightning")):
            return taken, needed
    return None


def check_options(
    slot: str, name: str, factory: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Raise ``UsageError`` for an option that ``factory`` does not take, or lacks.

    Also for a value that is not of its annotation's kind, where that is about plain values.
    """
    check_names(slot, name, accepted_options(factory), options)
    if wrong := misfit(factory, options, f" of the {slot} {name!r}"):
        raise UsageError(wrong)


def check_names(slot: str, name: str, accepted: Accepted | None, options: Collection[str]) -> None:
    """Raise ``UsageError`` for an option that is not accepted, or one that is missing."""
    if accepted is None:
        return
    taken, needed = accepted
    if unknown := sorted(set(options) - taken):
        near = difflib.get_close_matches(unknown[0], sorted(taken), n=1)
        raise UsageError(
            f"the {slot} {name!r} takes no option {unknown[0]!r}; "
            + (f"did you mean {near[0]!r}? It takes: " if near else "it takes: ")
            + (", ".join(sorted(taken)) or "none")
        )
    if missing := sorted(needed - set(options)):
        raise UsageError(f"the {slot} {name!r} needs the option {missing[0]!r}")


def declared_options(target: str) -> Accepted | None:
    """As ``accepted_options`` of a class of this library, read from its source.

    ``target`` is ``module:Class``, and neither is imported, which may take seconds. None for a
    class of another package, or where the source cannot be read, as inside an archive.
    """
    if not target.startswith(_PACKAGE):
        return None
    taken: set[str] = set()
    needed: set[str] | None = None
    left = [target.partition(":")[::2]]
    while left:
        module, name = left.pop(0)
        if not module.startswith(_PACKAGE):
            continue
        try:
            tree = ast.parse((_ROOT / (module.replace(".", "/") + ".py")).read_bytes())
        except OSError:
            return None
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        homes = {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        if name not in classes:
            left.insert(0, homes.get(name, ("", name)))
            continue
        methods = {n.name: n.args for n in classes[name].body if isinstance(n, ast.FunctionDef)}
        if (call := methods.get("__init__")) is not None:
            plain = call.args[1:]
            taken |= {one.arg for one in (*plain, *call.kwonlyargs)}
            if needed is None:
                required = plain[: len(plain) - len(call.defaults)]
                pairs = zip(call.kwonlyargs, call.kw_defaults, strict=True)
                required += [one for one, default in pairs if default is None]
                needed = {one.arg for one in required}
            if call.kwarg is None:
                continue
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
        left = [(module, base) for base in bases] + left
    return taken, needed or set()


def misfit(factory: Callable[..., Any], options: Mapping[str, Any], whose: str = "") -> str:
    """What is wrong with the first value that is not of its annotation's kind; empty when none."""
    hints = _hints(factory) if options else {}
    for option, value in options.items():
        hint = hints.get(option, Any)
        if not _fits(value, hint):
            return f"the option {option!r}{whose} is {_described(hint)}, got {_shown(value)}"
    return ""


def check_range(name: str, value: float | Sequence[float], low: float, high: float) -> None:
    """Raise ``UsageError`` unless a number, or each of several, is finite and in [low, high]."""
    each = value if isinstance(value, Sequence) else [value]
    if not all(low <= number <= high and math.isfinite(number) for number in each):  # NaN, too
        wanted = f"lie between {low} and {high}" if math.isfinite(high) else f"be at least {low}"
        raise UsageError(f"{name} must {wanted}, got {_shown(value)}")


def check_positive(**values: float) -> None:
    """Raise ``UsageError`` unless every number, by its name, is above 0."""
    for name, value in values.items():
        if not value > 0:  # also catches NaN
            raise UsageError(f"{name} must be above 0, got {_shown(value)}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ``UsageError`` unless ``value`` is one of the ``choices``."""
    if value not in choices:
        *most, last = map(repr, choices)
        raise UsageError(f"{name} must be {', '.join(most)} or {last}, got {_shown(value)}")


def existing_weights(given: str | os.PathLike[str], whose: str, shipped: Collection[str]) -> Path:
    """The file ``given``; without one, a ``WeightsError`` names what has ``shipped``."""
    path = Path(os.path.expanduser(given))
    if path.is_file():
        return path
    raise WeightsError(
        f"no weights {str(given)!r} for {whose}: not a file, and the weights that ship for it "
        f"are: {', '.join(map(repr, shipped)) or 'none'}"
    )


def _calls(factory: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], list[Parameter]]]:
    """The constructors through which arguments go, each with its parameters."""
    if not isinstance(factory, type):
        yield factory, list(signature(factory).parameters.values())
        return
    for base in factory.__mro__:
        if "__init__" in vars(base):
            call = vars(base)["__init__"]
            yield call, list(signature(call).parameters.values())[1:]


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each argument, where it can be had."""
    hints: dict[str, Any] = {}
    for call, _ in _calls(factory):
        with contextlib.suppress(NameError, TypeError, AttributeError):  # of what is not imported
            hints = {**get_type_hints(call), **hints}
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the kind of ``hint``; anything fits a hint that is not known here."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is Literal:
        return type(value) in map(type, inner) and value in inner
    if origin in (tuple, list, Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and Ellipsis not in inner:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        return all(_fits(part, inner[0]) for part in value)
    if origin is Callable:
        return callable(value)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        # Torch takes no larger whole numbers, and no option means anything without an end.
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and (abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value))
    if hint is str:
        return isinstance(value, (str, os.PathLike))
    return value is None if hint is type(None) else True


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]} ..."


def _described(hint: Any) -> str:
    """``hint`` in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Callable:
        return "a function"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: " + ", ".join(map(_described, inner))
    if origin in (tuple, list, Sequence):
        return f"a list of {_WORDS.get(inner[0], ('', str(inner[0])))[1]}"
    return _WORDS[hint][0] if hint in _WORDS else getattr(hint, "__name__", str(hint))
