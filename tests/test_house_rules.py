"""The rules of the house, read from the source: who imports whom, and what is nowhere."""

import ast
import re
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_nowcast"
LIBRARY = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))

# The four that know nothing of each other, nor of who uses them.
LEAVES = ("data", "model", "energy", "verification")
GROUND = {"errors", "files", "vil", "machine", "text_table", "keys", "schema", "columns", "checked"}
MAY_IMPORT = {
    **{room: GROUND for room in LEAVES},
    "errors": set(),
    "vil": set(),
    "machine": set(),
    "text_table": set(),
    "files": set(),
    "keys": set(),
    "schema": {"keys"},
    "columns": {"keys"},
    "checked": {"keys", "errors"},
    "process": GROUND,
    "config": GROUND | {"model", "energy"},
    "flags": GROUND | {"config"},
    "stored": GROUND | {"config", "flags", "model"},
    "records": GROUND | {"stored"},
    "command_line": GROUND | {"config", "flags", "records"},
    "training": GROUND | {"process", "records", "config", *LEAVES},
    # Run folders are all that these three know of training.
    "study": GROUND | {"process", "records", "config", *LEAVES},
    "sweep": GROUND | {"process", "records", "config", "flags", "study", *LEAVES},
    "report": GROUND | {"process", "records", "config", "flags", "study", *LEAVES},
}


def tree(path):
    return ast.parse(path.read_text(), filename=str(path))


def imported_names(path):
    """Yields (line, dotted name) of all that a file imports, at its top or late."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            module = resolve_name(module, package) if node.level else module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def where(path, line=None):
    name = str(path.relative_to(ROOT))
    return name if line is None else f"{name}:{line}"


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def importers_of(library, paths):
    """Returns the files among `paths` that import a third-party library."""
    return {
        where(path)
        for path in paths
        for _, name in imported_names(path)
        if name.split(".")[0] == library
    }


def modules_loaded_by(code):
    """Returns the top-level names in sys.modules of a fresh interpreter that ran `code`."""
    listing = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return set(done.stdout.split())


def test_imports_point_one_way():
    wrong = []
    for path in LIBRARY:
        room = room_of(path)
        if room == "__init__":
            continue
        assert room in MAY_IMPORT, f"{room}: a new room needs its line in MAY_IMPORT"
        for line, name in imported_names(path):
            parts = name.split(".")
            if parts[0] == "keras_nowcast" and len(parts) > 1:
                if parts[1] != room and parts[1] not in MAY_IMPORT[room]:
                    wrong.append(f"{where(path, line)} imports {name}")
    assert not wrong


def test_nobody_imports_the_scripts():
    scripts = ("experiments", "benchmarks", "tests")
    assert not [
        where(path, line)
        for path in LIBRARY
        for line, name in imported_names(path)
        if name.split(".")[0] in scripts
    ]


@pytest.mark.parametrize(
    "library, seam",
    [
        ("horovod", "keras_nowcast/training/distributed.py"),
        ("pynvml", "keras_nowcast/energy/nvml.py"),
    ],
)
def test_one_module_alone_imports(library, seam):
    assert importers_of(library, LIBRARY + SCRIPTS) == {seam}


def test_only_reports_draw():
    drawing = importers_of("matplotlib", LIBRARY)
    assert all(name.startswith("keras_nowcast/report/") for name in drawing), drawing


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_loaded_by("import keras_nowcast")
    assert "keras_nowcast" in loaded
    assert not loaded & {"tensorflow", "keras", "h5py", "matplotlib", "horovod", "numpy"}


@pytest.mark.parametrize("room", ["report", "study", "sweep"])
def test_figures_and_tables_need_no_tensorflow(room):
    files = sorted((PACKAGE / room).glob("*.py"))
    if not files:
        pytest.skip(f"no module in {room} yet")
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    loaded = modules_loaded_by("\n".join(f"import {name}" for name in modules))
    assert not loaded & {"tensorflow", "keras", "horovod"}
    for library in ("tensorflow", "keras", "horovod"):
        assert not importers_of(library, files)


def test_the_library_asserts_nothing():
    """Under `python -O` an assert is not there; an error that names the argument is."""
    assert not [
        where(path, node.lineno)
        for path in LIBRARY
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert)
    ]


def test_no_drawer_of_utilities():
    assert not [where(path) for path in LIBRARY + SCRIPTS if path.stem in ("utils", "util", "misc")]


def test_all_that_is_public_has_a_docstring():
    missing = []
    for path in LIBRARY:
        module = tree(path)
        public = [
            node
            for node in module.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        for node in [module, *public]:
            if path.name == "__init__.py" and node is module and not module.body:
                continue
            if not ast.get_docstring(node):
                missing.append(f"{where(path)} {getattr(node, 'name', '(module)')}")
    assert not missing


def test_no_two_public_classes_share_a_name():
    holders = {}
    for path in LIBRARY:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                holders.setdefault(node.name, []).append(where(path, node.lineno))
    assert {name: places for name, places in holders.items() if len(places) > 1} == {}


@pytest.mark.parametrize(
    ("kind", "most"), [(ast.Module, 500), (ast.ClassDef, 300), (ast.FunctionDef, 60)]
)
def test_nothing_is_too_long_to_read(kind, most):
    """A module is read at a sitting, and a function fits a screen."""
    paths = LIBRARY + SCRIPTS + sorted((ROOT / "tests").rglob("*.py"))
    lengths = {}
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Module):
                lines, name = len(path.read_text().splitlines()), where(path)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                lines, name = node.end_lineno - node.lineno + 1, where(path, node.lineno)
            if isinstance(node, kind):
                lengths[name] = lines
    assert not {name: lines for name, lines in lengths.items() if lines > most}


def test_scaling_constants_live_once():
    """Other codes type them in six modules, and then they differ."""
    holders = {
        where(path) for path in LIBRARY + SCRIPTS if re.search(r"33\.44|47\.54", path.read_text())
    }
    assert holders == {"keras_nowcast/vil.py"}


def tracked_text():
    """Yields (path, text) of the files that git keeps."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in (".png", ".pdf", ".h5", ".keras", ".npz") or not path.is_file():
            continue
        yield path, path.read_text()


@pytest.mark.parametrize(
    "what, pattern",
    [
        # Split, so that this file is clean too.
        ("the host of a package registry", r"py" r"pi\.|python" r"hosted|anaconda\." r"org"),
        ("an option that names a registry", r"--(extra-)?index" r"-url|--find" r"-links"),
        ("a path of one machine", r"(?<![\w.}$/-])/(root|home|tmp|work|mnt|opt)/" r"\w"),
    ],
)
def test_tracked_files_name_no(what, pattern):
    found = [
        f"{where(path, number)}: {line.strip()[:80]}"
        for path, text in tracked_text()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, what
