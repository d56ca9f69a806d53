"""Laws of path patterns: which variables `freeze`, `thaw` and `reinitialize` mean."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modulekit as mk
from modulekit.core.patterns import matches

X = jnp.ones([2, 5])
ENCODER = {"encoder.b", "encoder.mean", "encoder.w"}


class Encoder(mk.Linear):
    """A layer with statistics."""

    def __init__(self) -> None:
        super().__init__(4)
        self.mean = mk.Variable(jnp.zeros([4]), trainable=False, name="mean")


class Net(mk.Module):
    """An encoder with statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = mk.Linear(3, name="head")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.encoder(x))


def net() -> Net:
    made = Net()
    mk.build(made, X)
    return made


PATTERNS = {
    "encoder.w": {"encoder.w"},
    "encoder/w": {"encoder.w"},
    "encoder": ENCODER,
    "encoder/**": ENCODER,
    "encoder.*": ENCODER,
    "**/w": {"encoder.w", "head.w"},
    "*/w": {"encoder.w", "head.w"},
    "**/m*": {"encoder.mean"},
    "**": ENCODER | {"head.b", "head.w"},
    "*": ENCODER | {"head.b", "head.w"},
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_freezes_and_thaws_what_fits(pattern: str) -> None:
    module = net()
    assert set(module.freeze(pattern)) == PATTERNS[pattern]
    assert {path for path, v in module.paths().items() if v.frozen} == PATTERNS[pattern]
    module.freeze()
    assert set(module.thaw(pattern)) == PATTERNS[pattern]
    assert {path for path, v in module.paths().items() if not v.frozen} == PATTERNS[pattern]


def test_a_pattern_reaches_into_containers() -> None:
    mlp = mk.nets.MLP([4, 3, 2])
    mlp(X)
    assert mlp.freeze("layers/*/b") == ("layers[0].b", "layers[1].b", "layers[2].b")
    assert mlp.thaw("layers[0]") == mlp.freeze("layers/0") == ("layers[0].b", "layers[0].w")
    named = mk.Module(name="named")
    named.table = {"a": mlp, "b": [mk.Variable(1.0)]}
    assert named.freeze("table['b']") == named.freeze("table/b/0") == ("table['b'][0]",)
    assert named.freeze("**/layers/[1]/*") == ("table['a'].layers[1].b", "table['a'].layers[1].w")


def test_a_pattern_that_fits_nothing_raises_and_lists_the_paths() -> None:
    module = net()
    text = (
        "no path of Net() fits the pattern 'decoder/**'. There are: encoder.b, encoder.mean, encoder.w, head.b, head.w"
    )
    for change in (module.freeze, module.thaw, lambda pattern: module.reinitialize(pattern, seed=1)):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            change("decoder/**")
    with pytest.raises(ValueError, match=r"^no path of Net\(\) fits the pattern 'w'\. There are: encoder\.mean$"):
        Net().freeze("w")
    with pytest.raises(ValueError, match=r"^no path of Linear\(output_size=2\) .*\. There are: none$"):
        mk.Linear(2).freeze()
    many = mk.nets.MLP([1] * 12)
    many(X)
    with pytest.raises(ValueError, match=r"layers\[0\]\.b, layers\[0\]\.w, .*layers\[7\]\.w and 4 more$"):
        many.freeze("missing")


WORDS = st.sampled_from(["a", "b", "ab", "w", "0", "1", "12"])
GLOBS = st.sampled_from(["a", "b", "ab", "w", "0", "*", "a*", "*b", "1*", "**", "**"])


def rendered(draw: Any, parts: list[str]) -> str:
    """Writes parts as a path, each of them in one of the ways that paths are written."""
    text = parts[0]
    for part in parts[1:]:
        text += draw(st.sampled_from([f".{part}", f"/{part}", f"[{part}]", f"['{part}']"]))
    return text


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_pattern_is_a_regular_expression_over_the_parts_of_a_path(data: Any) -> None:
    parts = data.draw(st.lists(WORDS, min_size=1, max_size=5))
    globs = data.draw(st.lists(GLOBS, min_size=1, max_size=4))
    expression = "".join(
        r"(?:[^/]+/)*" if glob == "**" else re.escape(glob).replace(r"\*", "[^/]*") + "/" for glob in globs
    )
    expected = re.fullmatch(expression + r"(?:[^/]+/)*", "".join(part + "/" for part in parts)) is not None
    assert matches(rendered(data.draw, globs), rendered(data.draw, parts)) == expected
