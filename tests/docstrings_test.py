"""Every public docstring has a sentence, its arguments, a source and an example that runs; formulas and shapes as well.

What computes something, which is what is defined in `MATHEMATICAL`, owes its equation, the shapes of its arrays and where
both come from. The rest owes a source where it has the name of something in JAX or Sonnet.
"""

import doctest
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import pytest
from api_test import NAMESPACES, public_names

import modulekit as mk

MATHEMATICAL = (
    "layers",
    "nets",
    "initializers",
    "regularizers",
    "pad",
    "losses",
    "metrics",
    "optimizers",
    "averaging",
)  # of modulekit
# What Sonnet 2 (or TensorFlow 1 and 2, which it stands on) calls the same; names of JAX need no list.
SONNETS = {
    "AUTO_REUSE", "Module", "Variable", "VariableScope", "allow_empty_variables", "build", "custom_variable_getter",
    "disable", "enable", "format_variables", "get_variable", "get_variable_scope", "implicit_value_and_gradients",
    "log_variables", "modes", "name_scope", "no_name_scope", "once", "scope", "variable_scope",
}  # fmt: skip
# Which demand a name does not meet, and why it need not.
EXEMPT: dict[str, dict[str, str]] = {
    "sentence": {},
    "arguments": {},
    "results": {},
    "example": {},
    "source": {"modulekit.losses.check_labels": "ours"},
    "equation": {
        "modulekit.initializers.Initializer": "abstract",
        "modulekit.Metric": "abstract",
        "modulekit.Optimizer": "abstract",
        "modulekit.optimizers.Wrapped": "abstract",
        "modulekit.regularizers.Regularizer": "abstract",
        "modulekit.LSTMState": "a pair of arrays",
        "modulekit.losses.check_labels": "refuses, and computes nothing",
    },
    "shapes": {
        **dict.fromkeys(
            (
                f"modulekit.initializers.{name}"
                for name in (
                    "Initializer",
                    "Zeros",
                    "Ones",
                    "Constant",
                    "RandomUniform",
                    "RandomNormal",
                    "TruncatedNormal",
                )
            ),
            "the shape is the caller's, and any will do",
        ),
        "modulekit.Deferred": "takes what its module takes",
        "modulekit.Identity": "takes anything",
        "modulekit.Sequential": "takes what its layers take",
    },
}
VERBS = ("__call__", "apply", "update")  # the methods that take a module's arrays
EQUATION = re.compile(r"\S (=|<-|~) \S")
SHAPE = re.compile(r"`\[[\w*., /+-]*(\([\w, ]+\))?[\w*., /+-]*\]`")
ORIGIN = re.compile(r"\b(1[89]|20)\d\d\b|arXiv|Sonnet|`(snt|tf|jax|jnp|lax|optax|hk|nn|nnx|eqx|jmp|np)\.")
HEADER = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")


def public_objects() -> dict[str, Any]:
    """Returns the public classes and functions by name; one that is in two namespaces is there once."""
    found: dict[int, tuple[str, Any]] = {}
    for namespace in NAMESPACES:
        for name in sorted(public_names(namespace)):
            value = getattr(importlib.import_module(namespace), name)
            if callable(value) and value.__module__.startswith(("modulekit", "scenarios")):
                found.setdefault(id(value), (f"{namespace}.{name}", value))
    return dict(found.values())


OBJECTS = public_objects()


def is_mathematical(value: Any) -> bool:
    return value.__module__.partition(".")[2].partition(".")[0] in MATHEMATICAL


def sections(docstring: str | None) -> dict[str, str]:
    """Returns the text of each section by its title; that of `prose` is all the rest but `source` and `example`."""
    parts: dict[str, list[str]] = {"prose": []}
    current = "prose"
    for line in inspect.cleandoc(docstring or "").splitlines():
        header = HEADER.match(line)
        if header:
            current = header[1]
        elif re.match(r"Sources?:", line):
            current = "source"
        elif line.startswith(">>>"):
            current = "example"
        elif current != "source" and line and not line.startswith((" ", "...")) and current != "example":
            current = "prose"
        elif not line and current in ("source", "example"):
            current = "prose"
            continue
        parts.setdefault(current, []).append(line)
    return {title: "\n".join(lines) for title, lines in parts.items()}


def verbs_of(value: Any) -> list[Callable[..., Any]]:
    """Returns the methods of a class that take its arrays, where modulekit defines them."""
    methods = [getattr(value, verb, None) for verb in VERBS] if inspect.isclass(value) else []
    return [m for m in methods if inspect.isfunction(m) and m.__module__.startswith(("modulekit", "scenarios"))]


def parameters_of(value: Any) -> list[str]:
    """Returns the names of the arguments of a function or constructor; none if the constructor is Python's or `Module`'s."""
    function = value
    if inspect.isclass(value):
        own = [f for f in (value.__init__, value.__new__) if inspect.isfunction(f)]
        if not own or (own[0] is mk.Module.__init__ and value is not mk.Module):
            return []
        function = own[0]
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "_cls")]


def described_arguments(value: Any) -> set[str]:
    """Returns the arguments that a docstring lists, and those of what it refers to in `... those of `Name``."""
    parts = sections(value.__doc__)
    text = parts.get("Args", "") + "\n" + parts.get("Attributes", "")
    listed = set(re.findall(r"^ +\*{0,2}(\w+):", text, flags=re.MULTILINE))
    for name in re.findall(r"those of\s+`(\w+)`", value.__doc__ or ""):
        referred = getattr(sys.modules[value.__module__], name, None)
        if referred is not None and referred is not value:
            listed |= described_arguments(referred)
    return listed


@functools.cache
def doctests_of(module: str) -> dict[str, doctest.DocTest]:
    """Returns the examples that `pytest --doctest-modules` runs for a module, by what they belong to."""
    tests = doctest.DocTestFinder().find(sys.modules[module], module)
    return {test.name.removeprefix(f"{module}."): test for test in tests if test.examples}


def lacks_sentence(name: str, value: Any) -> str | None:
    first = inspect.cleandoc(value.__doc__ or "").split("\n")[0]
    return None if first.endswith((".", ":")) else f"its first line is no sentence on one line: {first!r}"


def lacks_arguments(name: str, value: Any) -> str | None:
    missing = [p for p in parameters_of(value) if p not in described_arguments(value)]
    if missing:
        return f"`Args:` lists no {', '.join(missing)}; or say 'Arguments are those of `Base`'"
    for verb in verbs_of(value):
        said = f"{value.__doc__}\n{verb.__doc__}"
        unsaid = [p for p in parameters_of(verb) if not re.search(rf"\b{p}\b", said)]
        if unsaid:
            return f"the docstring of `{verb.__name__}` does not mention {', '.join(unsaid)}"
    return None


def lacks_results(name: str, value: Any) -> str | None:
    if inspect.isclass(value) or inspect.signature(inspect.unwrap(value)).return_annotation is None:
        return None
    said = re.search(r"\bReturns?\b|\bYields\b|^Context\b|^Decorates\b", value.__doc__ or "")
    return None if said else "it does not say what it returns, in a sentence or in `Returns:`"


def lacks_example(name: str, value: Any) -> str | None:
    test = doctests_of(value.__module__).get(value.__qualname__)
    if test is None:
        return "it has no `>>>` example that doctest finds"
    return None if any(e.want for e in test.examples) else "its example shows no result, and so tests nothing"


def lacks_source(name: str, value: Any) -> str | None:
    last = name.rpartition(".")[2]
    if not is_mathematical(value) and last not in SONNETS and not hasattr(jax, last) and not hasattr(jax.lax, last):
        return None
    source = sections(value.__doc__).get("source", "")
    if not source:
        return (
            "it has no line `Source: ...`: a paper with its year, or the name in Sonnet, Optax or JAX that it follows"
        )
    return None if ORIGIN.search(source) else f"no paper with a year and no name such as `snt.Linear` in {source!r}"


def lacks_equation(name: str, value: Any) -> str | None:
    prose = sections(value.__doc__)["prose"]
    written = re.findall(r"`([^`]+)`", prose) + [line for line in prose.splitlines() if line.startswith("    ")]
    if not is_mathematical(value):
        return None
    equations = [text for text in written if EQUATION.search(text)]
    for text in equations:
        if text.count("(") != text.count(")") or text.count("{") != text.count("}"):
            return f"brackets are missing in `{text}`"
    if equations:
        return None
    return "it has no equation before its arguments, such as `y = x w + b`, `p <- p - g` or `m ~ Bernoulli(rate)`"


def lacks_shapes(name: str, value: Any) -> str | None:
    docstrings = [value.__doc__ or "", *(verb.__doc__ or "" for verb in verbs_of(value))]
    if not is_mathematical(value) or SHAPE.search("\n".join(docstrings)):
        return None
    return "neither it nor its `__call__` has the shape of an array, such as `[batch, ..., features]`"


DEMANDS: dict[str, Callable[[str, Any], str | None]] = {
    "sentence": lacks_sentence,
    "arguments": lacks_arguments,
    "results": lacks_results,
    "example": lacks_example,
    "source": lacks_source,
    "equation": lacks_equation,
    "shapes": lacks_shapes,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_docstring_says_what_the_style_asks_for(name: str) -> None:
    problems = []
    for demand, lacking in DEMANDS.items():
        problem = lacking(name, OBJECTS[name])
        if problem and name not in EXEMPT[demand]:
            problems.append(f"{demand}: {problem}")
    file = inspect.getsourcefile(inspect.unwrap(OBJECTS[name]))
    assert not problems, "\n".join([f"the docstring of {name} in {file} is not complete:", *problems])


@pytest.mark.parametrize("demand", EXEMPT)
def test_nothing_is_exempt_that_meets_the_demand(demand: str) -> None:
    lacking = {name for name, value in OBJECTS.items() if DEMANDS[demand](name, value)}
    assert set(EXEMPT[demand]) <= lacking


def test_a_bare_docstring_meets_no_demand() -> None:
    def jit(x: int) -> int:
        """Twice"""
        return 2 * x

    jit.__module__ = "modulekit.losses"
    assert all(lacking("modulekit.losses.jit", jit) for lacking in DEMANDS.values())
