"""Inspection of constructors and validation of options; the registry and the stages call this."""

from __future__ import annotations

import ast
import contextlib
import math
import os
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from deep_image_compositing.errors import UsageError, WeightsError, choices

_WORDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    type(None): "null",
}  # fmt: skip

Accepted: TypeAlias = tuple[set[str], set[str]]
"""Names of all arguments of a factory, and of the required ones."""

_PACKAGE = __name__.partition(".")[0] + "."
_ROOT = Path(__file__).parents[1]


def accepted_options(factory: Callable[..., Any]) -> Accepted | None:
    """Names of the arguments of ``factory``, and of the required ones; None if it takes any.

    The arguments of a class with ``**kwargs`` include those of its bases.
    """
    names: set[str] = set()
    required: set[str] = set()
    for index, (call, parameters) in enumerate(_calls(factory)):
        for parameter in parameters:
            if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
                names.add(parameter.name)
                if parameter.default is Parameter.empty and index == 0:
                    required.add(parameter.name)
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
            return names, required
        if (getattr(call, "__module__", None) or "").startswith(("torch", "lightning")):
            return names, required
    return None


def check_options(
    slot: str, name: str, factory: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Raise ``UsageError`` for an unknown or missing option, or a value of the wrong type.

    Types are checked against annotations, as far as these are of plain values.
    """
    check_names(slot, name, accepted_options(factory), options)
    if problem := misfit(factory, options, f" of the {slot} {name!r}"):
        raise UsageError(problem)


def check_names(slot: str, name: str, accepted: Accepted | None, options: Collection[str]) -> None:
    """Raise ``UsageError`` for an unknown or missing option."""
    if accepted is None:
        return
    names, required = accepted
    if unknown := sorted(set(options) - names):
        hint = choices(unknown[0], sorted(names))
        raise UsageError(f"the {slot} {name!r} takes no option {unknown[0]!r}; {hint}")
    if missing := sorted(required - set(options)):
        raise UsageError(f"the {slot} {name!r} needs the option {missing[0]!r}")


def declared_options(target: str) -> Accepted | None:
    """``accepted_options`` of a class of this library, read from its source.

    ``target`` is ``module:Class``. The module is not imported, which can take seconds. None for a
    class of another package, or if the source cannot be read, as in a zip archive.
    """
    if not target.startswith(_PACKAGE):
        return None
    names: set[str] = set()
    required: set[str] | None = None
    pending = [target.partition(":")[::2]]
    while pending:
        module, name = pending.pop(0)
        if not module.startswith(_PACKAGE):
            continue
        try:
            tree = ast.parse((_ROOT / (module.replace(".", "/") + ".py")).read_bytes())
        except OSError:
            return None
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        imports = {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        if name not in classes:
            pending.insert(0, imports.get(name, ("", name)))
            continue
        methods = {n.name: n.args for n in classes[name].body if isinstance(n, ast.FunctionDef)}
        if (init := methods.get("__init__")) is not None:
            positional = init.args[1:]
            names |= {arg.arg for arg in (*positional, *init.kwonlyargs)}
            if required is None:
                without_default = positional[: len(positional) - len(init.defaults)]
                pairs = zip(init.kwonlyargs, init.kw_defaults, strict=True)
                without_default += [arg for arg, default in pairs if default is None]
                required = {arg.arg for arg in without_default}
            if init.kwarg is None:
                continue
        bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
        pending = [(module, base) for base in bases] + pending
    return names, required or set()


def misfit(factory: Callable[..., Any], options: Mapping[str, Any], whose: str = "") -> str:
    """Describe the first value that does not match its annotation; empty if all match."""
    hints = _hints(factory) if options else {}
    for option, value in options.items():
        hint = hints.get(option, Any)
        if not _fits(value, hint):
            return f"the option {option!r}{whose} is {_describe(hint)}, got {_format(value)}"
    return ""


def check_range(name: str, value: float | Sequence[float], low: float, high: float) -> None:
    """Raise ``UsageError`` unless a number, or all numbers, are finite and in [low, high]."""
    numbers = value if isinstance(value, Sequence) else [value]
    if not all(low <= x <= high and math.isfinite(x) for x in numbers):  # also catches NaN
        expected = f"lie between {low} and {high}" if math.isfinite(high) else f"be at least {low}"
        raise UsageError(f"{name} must {expected}, got {_format(value)}")


def check_positive(**values: float) -> None:
    """Raise ``UsageError`` unless all named numbers are above 0."""
    for name, value in values.items():
        if not value > 0:  # also catches NaN
            raise UsageError(f"{name} must be above 0, got {_format(value)}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ``UsageError`` unless ``value`` is one of the ``choices``."""
    if value not in choices:
        *most, last = map(repr, choices)
        raise UsageError(f"{name} must be {', '.join(most)} or {last}, got {_format(value)}")


def existing_weights(file: str | os.PathLike[str], whose: str, shipped: Collection[str]) -> Path:
    """The path of a weights file; raises ``WeightsError`` with the ``shipped`` names if missing."""
    path = Path(os.path.expanduser(file))
    if path.is_file():
        return path
    raise WeightsError(
        f"no weights {str(file)!r} for {whose}: not a file, and the weights that ship for it "
        f"are: {', '.join(map(repr, shipped)) or 'none'}"
    )


def _calls(factory: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], list[Parameter]]]:
    """The function, or a class's constructors in method resolution order, with parameters."""
    if not isinstance(factory, type):
        yield factory, list(signature(factory).parameters.values())
        return
    for base in factory.__mro__:
        if "__init__" in vars(base):
            call = vars(base)["__init__"]
            yield call, list(signature(call).parameters.values())[1:]


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of all arguments that can be resolved."""
    hints: dict[str, Any] = {}
    for call, _ in _calls(factory):
        with contextlib.suppress(NameError, TypeError, AttributeError):  # names not imported
            hints = {**get_type_hints(call), **hints}
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` matches the annotation ``hint``; True for unsupported annotations."""
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
        # Torch takes no larger integers, and no option may be infinite.
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and (abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value))
    if hint is str:
        return isinstance(value, (str, os.PathLike))
    return value is None if hint is type(None) else True


def _format(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _describe(hint: Any) -> str:
    """Describe an annotation for an error message."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is Callable:
        return "a function"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: " + ", ".join(map(_describe, inner))
    if origin in (tuple, list, Sequence):
        each = _describe(inner[0])
        plain = each.startswith("a ") and " or " not in each
        return f"a list of {each[2:]}s" if plain else f"a list, each item {each}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
