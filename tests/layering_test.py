"""Laws of the code's layers: imports point down, form no cycle, stand at the top of files, and files stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "modulekit").rglob("*.py"), *(ROOT / "scenarios").rglob("*.py")])

# From the bottom to the top. The peers stand in one row, and import none of each other except as SHARED says.
PEERS = (
    "initializers",
    "regularizers",
    "pad",
    "losses",
    "metrics",
    "mixed_precision",
    "optimizers",
    "averaging",
    "data",
    "checkpoints",
    "export",
    "sharding",
    "sonnet",
    "weights",
)
RANKS = {
    "errors": 0, "plugins": 0, "core": 1, "transforms": 2, **dict.fromkeys(PEERS, 3), "layers": 4, "functional": 4,
    "nets": 5, "distribute": 5,
}  # fmt: skip
FROM_CORE_ONLY = ("initializers", "regularizers", "pad", "losses", "metrics", "mixed_precision")
SCENARIO_RANKS = {"base": 0, "updates": 1, "evaluation": 1, "hooks": 2, "recipes": 3}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(file): file for file in FILES}


def imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Yields the full name of each module that a file imports, with the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node, full if full in NAMES else str(node.module)


def own(name: str) -> bool:
    return name.split(".")[0] in ("modulekit", "scenarios")


def room(name: str) -> str:
    """Returns the room of a module of modulekit: `core`, `layers`, `metrics`; empty for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def edges() -> Iterator[tuple[str, str, int]]:
    for name, file in NAMES.items():
        for node, target in imported(tree_of(file)):
            if own(target):
                yield name, target, node.lineno


def test_every_room_of_modulekit_has_a_rank() -> None:
    rooms = {room(name) for name in NAMES if name.startswith("modulekit.")}
    assert rooms <= RANKS.keys()


def test_imports_inside_modulekit_point_down() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, target, line in edges()
        if room(name) and name.startswith("modulekit.") and room(name) != room(target)
        and (not target.startswith("modulekit.") or RANKS[room(target)] >= RANKS[room(name)])
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_initializers_losses_metrics_and_their_like_import_from_the_core_only() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name, target, line in edges()
        if room(name) in FROM_CORE_ONLY
        and name.startswith("modulekit")
        and room(target) not in ("core", "errors", room(name))
    ]
    assert not wrong, "\n".join(wrong)


def public_names_from(*rooms: str) -> set[str]:
    """Returns which names of the package itself come from some rooms."""
    nodes = [node for node in tree_of(NAMES["modulekit"]).body if isinstance(node, ast.ImportFrom)]
    inner = {alias.name for node in nodes if room(str(node.module)) in rooms for alias in node.names}
    return inner | set(rooms)


@pytest.mark.parametrize("file", [file for file in FILES if file.is_relative_to(ROOT / "scenarios")], ids=module_name)
def test_scenarios_know_modulekit_up_to_the_peers_and_no_layer(file: Path) -> None:
    tree, upper = tree_of(file), public_names_from("layers", "nets")
    for node, target in imported(tree):
        assert not target.startswith("modulekit") or room(target) not in ("layers", "nets"), f"line {node.lineno}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "modulekit":
            assert not upper & {alias.name for alias in node.names}, f"line {node.lineno}"
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("mk", "modulekit")
        ):
            assert node.attr not in upper, f"line {node.lineno} uses mk.{node.attr}"


def test_modulekit_imports_no_scenario() -> None:
    assert not [edge for edge in edges() if edge[0].startswith("modulekit") and edge[1].startswith("scenarios")]


def test_imports_inside_scenarios_point_down() -> None:
    def rank(name: str) -> int:
        return SCENARIO_RANKS.get(room(name), SCENARIO_RANKS["recipes"])

    wrong = [
        f"{name}:{line} imports {target}"
        for name, target, line in edges()
        if name.startswith("scenarios.") and target.startswith("scenarios") and rank(target) > rank(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in NAMES}
    for name, target, _ in edges():
        graph[name].add(target)
    state: dict[str, str] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == "done":
            return
        assert state.get(name) != "open", " -> ".join((*path, name))
        state[name] = "open"
        for target in graph.get(name, ()):
            visit(target, (*path, name))
        state[name] = "done"

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_own_code_is_imported_at_the_top_and_private_jax_nowhere(file: Path) -> None:
    tree = tree_of(file)
    for_checkers = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    top = {id(node) for node in (*tree.body, *(inner for block in for_checkers for inner in block.body))}
    for node, target in imported(tree):
        assert not own(target) or id(node) in top, f"line {node.lineno} imports {target} inside a function"
        assert not any(part.startswith("_") for part in target.split(".")[1:] if target.startswith(("jax", "optax")))
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Attribute) and node.attr == "_src"), (
            f"line {node.lineno} reaches into jax._src"
        )


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_files_classes_and_functions_stay_small(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < 400
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length < 60 + _documentation(node), f"{node.name} has {length} lines"
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or node.lineno) - node.lineno + 1 < 300, node.name


def _documentation(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns how many lines of a function are its docstring, which teaches and does not count."""
    first = node.body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return (first.end_lineno or first.lineno) - first.lineno + 1 if is_text else 0


def test_top_level_folders_are_the_four_and_no_file_has_a_name_that_says_nothing() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    sources = {name for name in folders if any((ROOT / name).rglob("*.py"))}
    assert sources <= {"modulekit", "scenarios", "tests", "examples"}
    assert not [file for file in FILES if file.stem.strip("_") in ("utils", "util", "helpers", "misc", "common")]
