"""Plug-ins: packages are found by what they declare, imported when asked for, and a broken one harms nobody."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_catalogue import exactly

import scenarios
from scenarios import plugins
from scenarios.commands import _exporter
from scenarios.listing import print_list
from scenarios.plugins import PluginError, discover, kind_of, load

ROOT = Path(__file__).parents[1]


def install(folder: Path, package: str, version: str, declared: dict[str, str], **modules: str) -> None:
    """Puts a package into a folder as an installer would: modules, and a directory that says what it declares."""
    information = folder / f"{package}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = "".join(f"{name} = {target}\n" for name, target in declared.items())
    (information / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{lines}")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which this process imports."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


WORKING = '''
    """Three plug-ins."""
    import scenarios

    class Fit(scenarios.Supervised):
        """Fits."""

    class Bell:
        """Rings at each event."""

        def __call__(self, event): ...

    def rows(path, module, *inputs):
        """Writes rows."""
'''


def install_working(folder: Path) -> None:
    declared = {"OtherFit": "working_plugin:Fit", "Bell": "working_plugin:Bell", "rows": "working_plugin:rows"}
    install(folder, "working", "1.5", declared, working_plugin=WORKING)


def test_what_packages_declare_is_found_and_nothing_is_imported(folder: Path) -> None:
    install_working(folder)
    found = {plugin.name: plugin for plugin in discover()}
    assert {"OtherFit", "Bell", "rows"} <= found.keys()
    assert "working_plugin" not in sys.modules
    fit = found["OtherFit"]
    assert (fit.package, fit.target) == ("working 1.5", "working_plugin:Fit")
    assert (fit.kind, fit.summary, fit.error) == ("scenario", "Fits.", None)
    assert issubclass(fit.load(), scenarios.Supervised)
    assert [found[name].kind for name in ("Bell", "rows")] == ["hook", "exporter"]
    assert load("rows").__doc__ == "Writes rows."


def test_hooks_are_classes_of_hooks_and_functions_of_an_event() -> None:
    assert [kind_of(getattr(scenarios.hooks, name)) for name in scenarios.hooks.__all__] == ["hook"] * 4

    class Three:
        def __call__(self, a: int, b: int, c: int) -> None: ...

    class Silent:
        """Is not called."""

    assert [kind_of(value) for value in (Three, Silent, 3, lambda: None)] == [None] * 4
    assert kind_of(Three()) == "exporter"


FAULTS = {
    "raises": ("raising_plugin:Fit", 'raise ValueError("no license")', "ValueError: no license"),
    "exits": ("exiting_plugin:Fit", "raise SystemExit(3)", "SystemExit: 3"),
    "wrong": ("wrong_plugin:fit", "fit = 3", "it is a int, and neither a scenario nor a hook nor an exporter"),
    "absent": ("raising_no_more:Fit", None, "ModuleNotFoundError: No module named 'raising_no_more'"),
    "unnamed": ("unnamed_plugin:Fit", "", "AttributeError: module 'unnamed_plugin' has no attribute 'Fit'"),
    "syntax": ("syntax_plugin:Fit", "def", "SyntaxError: invalid syntax (syntax_plugin.py, line 1)"),
}


def install_faulty(folder: Path) -> None:
    for name, (target, text, _) in FAULTS.items():
        modules = {} if text is None else {target.partition(":")[0]: text}
        install(folder, f"{name}_package", "0.1", {name: target}, **modules)


def test_a_broken_plug_in_says_what_is_wrong_with_it_and_breaks_no_other(folder: Path) -> None:
    install_working(folder)
    install_faulty(folder)
    found = {plugin.name: plugin for plugin in discover()}
    for name, (_, _, message) in FAULTS.items():
        assert (found[name].error, found[name].kind, found[name].summary) == (message, None, "")
        expected = f"the plug-in {name!r} of {name}_package 0.1 cannot be had: {message}"
        with pytest.raises(PluginError, match=exactly(expected)):
            found[name].load()
    assert load("OtherFit").__name__ == "Fit"


def test_two_packages_with_one_name_are_told_and_neither_is_taken(folder: Path) -> None:
    install(folder, "first", "1", {"Fit": "scenarios:Supervised"})
    install(folder, "second", "2", {"Fit": "scenarios:Supervised"})
    assert [(p.package, p.error) for p in discover() if p.name == "Fit"] == [
        ("first 1", "'Fit' is the name of a plug-in of second 2 as well: remove one of them"),
        ("second 2", "'Fit' is the name of a plug-in of first 1 as well: remove one of them"),
    ]
    clash = "'Fit' is the name of a plug-in of second 2 as well: remove one of them"
    with pytest.raises(PluginError, match=exactly(f"the plug-in 'Fit' of first 1 cannot be had: {clash}")):
        load("Fit")


def test_a_plug_in_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    install_working(folder)
    with pytest.raises(
        PluginError, match=r"^there is no plug-in 'Fat'; those that are installed: Bell, OtherFit, rows$"
    ):
        load("Fat")


def test_the_list_shows_built_in_and_foreign_ones_and_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_working(folder)
    install(folder, "clashing", "3", {"Supervised": "working_plugin:Fit"})
    install_faulty(folder)
    print_list()
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    assert ["OtherFit", "scenario", "working 1.5", "Fits."] in rows
    assert ["Bell", "hook", "working 1.5", "Rings at each event."] in rows
    assert ["raises", "?", "raises_package 0.1", ""] in rows
    kinds = {row[0]: row[1] for row in rows if row[2].startswith("modulekit")}
    assert kinds["TiedAutoencoder"] == "scenario" and kinds["CSV"] == "hook" and kinds["bundle"] == "exporter"
    lines = printed.splitlines()
    for name, (target, _, message) in FAULTS.items():
        assert f"{name} of {name}_package 0.1 ({target}) cannot be had: {message}" in lines
    assert "Supervised of clashing 3 has the name of a built-in scenario" in lines


def test_a_broken_plug_in_breaks_neither_the_import_nor_the_command(folder: Path) -> None:
    install_working(folder)
    install_faulty(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "scenarios", "list"]
    done = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "OtherFit" in done.stdout and "ValueError: no license" in done.stdout


def test_an_exporter_is_a_built_in_one_or_that_of_a_plug_in(folder: Path) -> None:
    install_working(folder)
    assert _exporter("rows") is load("rows")
    assert _exporter("bundle").__name__ == "save"
    with pytest.raises(PluginError, match=r"^the plug-in 'Bell' is a hook, and no exporter$"):
        _exporter("Bell")
