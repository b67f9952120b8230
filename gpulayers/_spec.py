"""Reading specifications such as ``"Adam(lr=0.01)"``, and checking the numbers in them.

A specification is a name, then perhaps arguments in parentheses, written as a Python call. The
name ignores case, spaces, hyphens and underscores: ``"Leaky ReLU(alpha=0.3)"``,
``"leaky_relu(alpha=0.3)"`` and ``"LeakyReLU(0.3)"`` are one. The arguments go through Python's
own parser (`ast`); nothing is evaluated.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gpulayers._types import is_mapping
from gpulayers.errors import ParameterError, suggest

_WORDS = {"true": True, "false": False, "none": None}


def fold(name: str) -> str:
    """Return `name` in lower case without spaces, hyphens and underscores."""
    return "".join(c for c in name.lower() if not (c.isspace() or c in "-_"))


def parse_call(text: str, owner: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split ``"Name(1, key=value)"`` into the name, the positional and the keyword arguments.

    Values are numbers, strings, True, False and None (in any case), tuples and lists of these, and
    names and nested calls, which are returned as text. Keys are turned to lower case.

    Raises
    ------
    ParameterError
        If the text cannot be read; `owner` says who asked.
    """
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    if not name:
        raise ParameterError(f"{owner}: expected a name in {text!r}")
    if not bracket:
        return name, [], {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = getattr(error, "msg", str(error))
        raise ParameterError(f"{owner}: cannot read {text!r}: {reason}") from None
    # "relu()(1)" or "relu() + 1" parse too, but are no plain call
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise ParameterError(f"{owner}: expected 'Name(key=value, ...)', got {text!r}")
    keywords: dict[str, Any] = {}
    for item in call.keywords:
        if item.arg is None:
            raise ParameterError(f"{owner}: expected 'key=value' in {text!r}, got '**'")
        key = item.arg.lower()
        if key in keywords:
            raise ParameterError(f"{owner}: {key!r} is given twice in {text!r}")
        keywords[key] = _value(item.value, text, owner)
    return name, [_value(node, text, owner) for node in call.args], keywords


def _value(node: ast.expr, text: str, owner: str) -> Any:
    if isinstance(node, ast.Call):
        return ast.unparse(node)
    if isinstance(node, ast.Name):  # True, or a name without arguments: "lr_scheduler=noam"
        return _WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ParameterError(
            f"{owner}: cannot read the value {ast.unparse(node)!r} in {text!r}; expected a number, "
            "True, False, None or a nested call"
        ) from None


def described(
    given: str | Mapping[str, Any],
    known: Mapping[str, Callable[..., Any]],
    owner: str,
    kind: str,
    listed: str = "",
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the class that a description names and the arguments that it gives, by name.

    Parameters
    ----------
    given : str, or a dict ``{"hyperparameters": {"id": name, ...}}``, or that inner dict alone
    known : mapping of folded name -> class
    owner, kind : str
        Who asks and for what, for messages: ("ActivationInitializer", "activation").
    listed : str
        The names to show when `given` names none of them; the classes' names if empty.

    Raises
    ------
    ParameterError
        If the name is missing or unknown, or the class has no such arguments.
    """
    if isinstance(given, str):
        name, args, keywords = parse_call(given, owner)
        cls = _find(name, known, owner, kind, listed)
        return cls, _bound(cls, args, keywords, f"{owner}: {given!r}")
    values = given.get("hyperparameters", given)
    if not is_mapping(values) or not isinstance(values.get("id"), str):
        raise ParameterError(
            f"{owner}: a dict needs the entry 'hyperparameters' with the {kind}'s name as 'id', "
            f"got the keys {sorted(map(str, given))}"
        )
    cls = _find(values["id"], known, owner, kind, listed)
    return cls, _bound(cls, [], {k: v for k, v in values.items() if k != "id"}, owner)


def build(
    given: str | Mapping[str, Any],
    known: Mapping[str, Callable[..., Any]],
    owner: str,
    kind: str,
    listed: str = "",
) -> Any:
    """Construct what `given` describes; arguments and errors as `described`."""
    cls, arguments = described(given, known, owner, kind, listed)
    return cls(**arguments)


def _find(
    name: str, known: Mapping[str, Callable[..., Any]], owner: str, kind: str, listed: str = ""
) -> Callable[..., Any]:
    cls = known.get(fold(name))
    if cls is None:
        names = list(dict.fromkeys(c.__name__ for c in known.values()))
        raise ParameterError(
            f"{owner}: unknown {kind} {name!r}, expected one of {listed or ', '.join(names)}"
            + suggest(fold(name), [*known, *names])
        )
    return cls


def _bound(
    cls: Callable[..., Any], args: list[Any], keywords: dict[str, Any], owner: str
) -> dict[str, Any]:
    """The arguments of ``cls(*args, **keywords)`` by name; ParameterError if it has not these."""
    accepted = _accepted(cls)
    if len(args) > len(accepted):
        raise ParameterError(
            f"{owner}: {cls.__name__} takes at most {len(accepted)} arguments, got {len(args)}"
        )
    for key in keywords:
        refuse_unknown(owner, [key], accepted)
        if key in accepted[: len(args)]:
            raise ParameterError(f"{owner}: {key!r} is given twice")
    return {**dict(zip(accepted, args, strict=False)), **keywords}


@functools.cache  # a layer of each network asks, and to read a signature takes 0.1 ms
def _accepted(cls: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(cls).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def refuse_unknown(owner: str, unknown: Iterable[str], accepted: Iterable[str]) -> None:
    """Raise ParameterError for an `unknown` name that is not accepted, with the nearest one."""
    accepted = list(accepted)
    for key in unknown:
        if key in accepted:
            continue
        expected = ", ".join(accepted) or "none"
        raise ParameterError(
            f"{owner}: unknown argument {key!r}, expected one of: {expected}"
            + suggest(key, accepted)
        )


# ------------------------------------------------------------------------------ checking numbers


def real(
    owner: str,
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """Return `value` as a Python int or float after checking that it is finite and in the range.

    Raises
    ------
    ParameterError
        Naming `owner`, the argument and the range.
    """
    number = plain(value)
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, float))
        or not math.isfinite(number)
    ):
        raise ParameterError(f"{owner}: {name} must be a finite number, got {value!r}")
    if (
        number < low
        or number > high
        or (open_low and number == low)
        or (open_high and number == high)
    ):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ParameterError(
            f"{owner}: {name} must be in {left}{low}, {high}{right}, got {value!r}"
        )
    return number


def integer(owner: str, name: str, value: Any, low: int) -> int:
    """Return `value`, which may be an integer of an array library, as an int >= `low`;
    ParameterError otherwise (3.0 is no integer)."""
    if not isinstance(value, bool):
        try:
            number = operator.index(value)
        except TypeError:
            number = None
        if number is not None and number >= low:
            return number
    raise ParameterError(f"{owner}: {name} must be an integer >= {low}, got {value!r}")


def sizes(shape: Any) -> tuple[int, ...] | None:
    """Return the entries of a shape as Python integers; None if it is no series of integers >= 0.

    The caller says in its error what shape it wants.
    """
    try:
        entries: list[Any] = [plain(size) for size in shape]
    except TypeError:
        return None
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in entries)
    return tuple(entries) if whole else None


def flag(owner: str, name: str, value: Any) -> bool:
    """Return `value` if it is True or False; ParameterError otherwise."""
    value = plain(value)
    if not isinstance(value, bool):
        raise ParameterError(f"{owner}: {name} must be True or False, got {value!r}")
    return value


def plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python number it stands for, anything else unchanged."""
    if getattr(value, "shape", None) == () and type(value).__module__ == "numpy":
        return value.item()
    return value
