"""Each Python block of the README runs, in order, as a reader would paste them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_code_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 8
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    assert (tmp_path / "runs" / "affine" / "log.jsonl").exists()


@pytest.mark.parametrize("marker", ["main job", "test command"])
def test_each_command_is_one_line_to_paste(marker: str) -> None:
    (body,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)```", README, flags=re.DOTALL)
    assert len(body.strip().splitlines()) == 1
    assert body.startswith("python3 -m venv")


def test_ci_runs_the_readmes_own_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- test command -->" in script and "README.md" in script


def test_every_example_is_listed() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {
        "__init__.py",
        "datasets.py",
        "two_networks.py",
    }
    assert scripts == set(re.findall(r"`examples/(\w+\.py)`", README))
