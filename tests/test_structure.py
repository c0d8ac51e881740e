"""Imports of top-level modules, and file names; `make lint` checks the imports between folders."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS, MODULES = set(PROJECT["packages"]), set(PROJECT["py-modules"])
SCRIPTS = MODULES - {"cli", "config"}
MOVED = {"dataset/rooms.py", "dataset/prepare_rooms.py"}  # old names, kept for one release


def imports(path: Path) -> set[str]:
    """The project's top-level names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names} & (FOLDERS | MODULES)


def test_pyproject_lists_all_modules():
    assert {path.stem for path in ROOT.glob("*.py")} == MODULES
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == FOLDERS


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_import_no_other_script(script):
    assert not imports(ROOT / f"{script}.py") & (SCRIPTS | {"benchmarks"})


def test_cli_and_config_import_nothing():
    assert imports(ROOT / "cli.py") == set()
    assert imports(ROOT / "config.py") == {"cli"}


def test_benchmark_jetson_imports_nothing_from_the_project():
    assert imports(ROOT / "benchmark_jetson.py") == set()


def test_no_file_shadows_another_module():
    """A script's own folder comes first on the path: `import calendar` there must not find dataset/calendar.py."""
    taken = FOLDERS | MODULES | set(sys.stdlib_module_names) | {"tests"}
    files = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).glob("*.py")}
    assert files > MOVED
    assert not [name for name in files - MOVED if Path(name).stem in taken]


def test_no_file_modifies_sys_path():
    files = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    wanted = "sys." + "path"
    assert len(files) > 100 and not [path for path in files if wanted in path.read_text()]
