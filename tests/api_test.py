"""The list of public names is what the packages say it is."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modulekit
import scenarios

ROOT = Path(__file__).parents[1]
NAMESPACES = {
    "modulekit": None, "modulekit.data": None, "modulekit.nets": None, "modulekit.optimizers": None, "scenarios": None,
    "scenarios.aggregation": None, "scenarios.ensemble": None, "scenarios.evaluation": None, "scenarios.gan": None,
    "scenarios.hooks": None, "scenarios.plugins": None, "scenarios.testing": None,
    "modulekit.initializers": "Initializer", "modulekit.losses": "", "modulekit.metrics": None, "modulekit.errors": "",
    "modulekit.mixed_precision": "",
    "modulekit.checkpoints": "", "modulekit.pad": "", "modulekit.regularizers": "", "modulekit.nets.resnet": "",
    "modulekit.sonnet": None, "modulekit.weights": None, "modulekit.export": None,
    "modulekit.functional": None, "modulekit.distribute": None, "modulekit.sharding": None,
}  # fmt: skip


def public_names(namespace: str) -> set[str]:
    module = importlib.import_module(namespace)
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return set(listed)
    return {n for n, v in vars(module).items() if getattr(v, "__module__", "") == namespace and not n.startswith("_")}


def listed_names(namespace: str) -> set[str]:
    text = (ROOT / "API.md").read_text()
    (section,) = re.findall(rf"^## {re.escape(namespace)}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_api_md_lists_exactly_the_public_names(namespace: str) -> None:
    assert listed_names(namespace) == public_names(namespace)


@pytest.mark.parametrize("namespace", list(NAMESPACES))
def test_every_public_name_has_a_docstring(namespace: str) -> None:
    module = importlib.import_module(namespace)
    for name in public_names(namespace):
        value = getattr(module, name)
        if callable(value) and getattr(value, "__module__", "").startswith(("modulekit", "scenarios")):
            assert value.__doc__, f"{namespace}.{name}"


def test_every_module_has_a_docstring() -> None:
    for package in (modulekit, scenarios):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            assert importlib.import_module(info.name).__doc__, info.name


def test_importing_modulekit_loads_no_heavy_package() -> None:
    heavy = (
        "orbax",
        "matplotlib",
        "sklearn",
        "rich",
        "tyro",
        "scipy.optimize",
        "tensorstore",
        "safetensors",
        "jax2onnx",
    )
    code = f"import sys, modulekit; print([n for n in {heavy!r} if n in sys.modules])"
    bare = f"import sys, jax, optax; print([n for n in {heavy!r} if n in sys.modules])"
    run = lambda text: subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True).stdout  # noqa: E731
    assert run(code) == run(bare)
