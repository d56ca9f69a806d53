"""Laws of ONNX files: another runtime computes what the method computes, for another batch size, or there is no file."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from exported_modules import Counting, Recurrent, Tied, normal, tied
from weights_test import bits, network, refused

import modulekit as mk


class Convnet(mk.Module):
    """Convolutions, batch statistics, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mk.Conv2D(4, 3), mk.Conv2D(5, 3, stride=2)
        self.norm, self.out = mk.BatchNorm(True, True), mk.Linear(3)

    def __call__(self, x: Any, is_training: bool) -> Any:
        x = jax.nn.relu(self.norm(self.first(x), is_training=is_training))
        return self.out(mk.flatten(mk.avg_pool(jax.nn.relu(self.second(x)), 2, 2, "VALID")))


def trained_convnet() -> Convnet:
    model = Convnet()
    model(normal(4, 8, 8, 2) + 1, is_training=True)
    return model


def recurrent() -> Recurrent:
    model = Recurrent()
    mk.build(model, [2, 4, 3])
    return model


ROWS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "mlp": (network, (2, 5), {}),
    "convnet": (trained_convnet, (2, 8, 8, 2), {"is_training": False}),
    "lstm": (recurrent, (2, 4, 3), {}),
    "tied": (tied, (2, 5), {}),
}


@pytest.mark.parametrize("name", ROWS)
def test_onnxruntime_computes_what_the_module_computes(name: str, tmp_path: Path) -> None:
    make, shape, options = ROWS[name]
    model = make()
    before = bits(model)
    mk.export.onnx(tmp_path / "deep" / "model.onnx", model, list(shape), **options)
    assert bits(model) == before
    session = onnxruntime.InferenceSession(tmp_path / "deep" / "model.onnx")
    (given,) = session.get_inputs()
    assert given.shape == ["batch", *shape[1:]]
    for size in (1, 7):
        x = normal(size, *shape[1:])
        expected = jax.tree.leaves(mk.jit(model)(x, **options))
        found = session.run([f"output_{i}" for i in range(len(expected))], {given.name: x})
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_inputs_and_outputs_have_names(tmp_path: Path) -> None:
    model = tied()
    mk.export.onnx(tmp_path / "x", model.pair, {"x": normal(2, 3), "y": normal(2, 3)})
    session = onnxruntime.InferenceSession(tmp_path / "x")
    assert [put.name for put in session.get_inputs()] == ["batch_x", "batch_y"]
    x, y = normal(4, 3), normal(4, 3) + 1
    (found,) = session.run(["output_0"], {"batch_x": x, "batch_y": y})
    np.testing.assert_allclose(found, model.pair({"x": x, "y": y})[0], rtol=0, atol=1e-6)


def test_what_cannot_leave_as_a_bundle_cannot_leave_as_onnx(tmp_path: Path) -> None:
    save = lambda *example, **options: lambda: mk.export.onnx(tmp_path / "x", *example, **options)  # noqa: E731
    assert "draws random numbers" in refused(ValueError, save(Counting().drawn, [2]))
    assert "writes count" in refused(ValueError, save(Counting(), [2], is_training=True))
    assert "has just made 2 variables" in refused(ValueError, save(mk.Linear(3), [2, 5]))
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax2onnx

    convert = jax2onnx.to_onnx
    monkeypatch.setattr(
        jax2onnx, "to_onnx", lambda f, *args, **kwargs: convert(lambda x: [f(x)[0] + 0.1], *args, **kwargs)
    )
    message = refused(ValueError, lambda: mk.export.onnx(tmp_path / "x", network(), [2, 5]))
    assert message.startswith("__call__ of MLP(output_sizes=[4, 3]) computes something else as ONNX: output_0 is [[")
    assert not list(tmp_path.iterdir())


def test_an_operation_that_is_not_known_is_named(tmp_path: Path) -> None:
    class Spectral(Tied):
        def __call__(self, x: Any) -> Any:
            return jnp.fft.fft(x).real @ jnp.linalg.qr(self.encoder.w.value)[0]

    model = Spectral()
    model.encoder(normal(2, 5))
    message = refused(ValueError, lambda: mk.export.onnx(tmp_path / "x", model, [2, 5]))
    assert message.startswith("__call__ of Spectral() cannot be written as ONNX: ")
    assert not list(tmp_path.iterdir())


def test_without_jax2onnx_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    message = refused(ImportError, lambda: mk.export.onnx(tmp_path / "x", network(), [2, 5]))
    assert message.startswith("mk.export.onnx needs jax2onnx (")
    assert message.endswith("): pip install 'modulekit[onnx]'")
