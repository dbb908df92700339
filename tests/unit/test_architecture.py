"""The law of docs/architecture.md, section 3, read off the source: who imports whom, cycles, sizes, weight of the hot path."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src" / "nacre"

MODULE_LINES = 800
FUNCTION_LINES = 100
RECIPE_LINES = 150
INTERFACE_METHODS = 10
STEM_LINES = 6300

# Recipes: one list of steps that reads best in one piece. Qualified names; each must exist and be longer than FUNCTION_LINES.
RECIPES: frozenset[str] = frozenset()

BASE = {"model", "errors", "version"}
BELOW = BASE | {"store", "linux", "wire"}
FRONT_ENDS = {"cli", "dockerapi", "cri", "ociruntime", "web"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "starter": set(),
    "model": {"errors"},
    "wire": BASE,
    "linux": BASE,
    "store": BASE | {"linux"},
    "images": BELOW,
    "storage": BELOW,
    "network": BELOW,
    "isolation": BELOW,
    "engine": BASE | {"images", "storage", "network", "isolation", "store"},
    "remote": BASE | {"wire"},
    "testing": BELOW | {"images", "storage", "network", "isolation", "engine"},
    "": BASE | {"engine", "remote"},  # nacre/__init__.py, the SDK
    "__main__": {"cli"},
    **{room: BASE | {"engine", "remote", "wire", ""} for room in FRONT_ENDS},
}

# What run, exec and ps load before the container's first instruction, as far as it exists.
HOT = [
    "", "cli", "cli.context", "cli.flags", "cli.registry", "cli.commands.run", "cli.commands.exec", "cli.commands.ps", "engine",
    "engine.core", "engine.containers", "engine.lifecycle", "engine.merge", "store", "store.database", "store.layout", "store.lock",
    "images.store", "cli.terminal", "storage.layers", "storage.probe", "storage.rootfs", "storage.volumes", "network", "network.manager",
    "isolation", "isolation.process", "isolation.channel", "isolation.security", "isolation.stream", "isolation.plan",
    "linux.cgroups", "linux.seccomp", "linux.capabilities", "linux.process", "linux.netlink", "wire.stem",
]  # fmt: skip
HEAVY = {
    "argparse", "asyncio", "bz2", "dataclasses", "datetime", "difflib", "hashlib", "http.client", "importlib.metadata", "inspect",
    "importlib", "ipaddress", "json", "logging", "lzma", "nacre.linux.run", "nacre.linux.seccomp_profile", "pathlib", "random", "selectors",
    "re", "shlex", "shutil", "socket", "sqlite3", "subprocess", "tarfile", "tempfile", "threading", "typing", "warnings", "zlib",
}  # fmt: skip


# The import graph


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Module name -> its syntax tree, for every source file."""
    return {name_of(path): ast.parse(path.read_text(), str(path)) for path in sorted(SOURCE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST, *, at_import_time: bool) -> Iterator[tuple[str, int]]:
    """(imported dotted name, line). `from a import b` yields a.b. at_import_time: leaves out functions and TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif not at_import_time or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)):
            yield from imports(node, at_import_time=at_import_time)


def resolve(name: str, modules: dict[str, ast.Module]) -> str:
    """The module that a dotted name means: itself, or the one that defines its last part."""
    return name if name in modules else name.rpartition(".")[0]


def internal(module: str, *, at_import_time: bool) -> Iterator[tuple[str, int]]:
    modules = trees()
    for name, line in imports(modules[module], at_import_time=at_import_time):
        if name == "nacre" or name.startswith("nacre."):
            yield resolve(name, modules), line


def test_rooms_import_only_what_they_may() -> None:
    wrong = []
    for module in trees():
        home = room(module)
        assert home in MAY_IMPORT, f"{module} is in a room that docs/architecture.md does not know"
        for target, line in internal(module, at_import_time=False):
            if room(target) != home and room(target) not in MAY_IMPORT[home]:
                wrong.append(f"{module}:{line} imports {target}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_front_ends_know_only_the_facade() -> None:
    wrong = [
        f"{module}:{line} imports {target}, below the facade nacre.engine"
        for module in trees()
        if room(module) in FRONT_ENDS
        for target, line in internal(module, at_import_time=False)
        if target.startswith("nacre.engine.") and (room(module), target) != ("ociruntime", "nacre.engine.bundles")
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_nothing_shipped_imports_the_fakes() -> None:
    users = [
        module
        for module in trees()
        if room(module) != "testing" and any(room(target) == "testing" for target, _ in internal(module, at_import_time=False))
    ]
    assert users == []


def test_no_cycles_at_import_time() -> None:
    graph = {module: {target for target, _ in edges(module)} for module in trees()}
    cycles = [" <-> ".join(sorted(group)) for group in components(graph) if len(group) > 1]
    assert not cycles, "\n" + "\n".join(cycles)


def edges(module: str) -> Iterator[tuple[str, int]]:
    """What importing a module executes: the targets, and the packages above them that are not already above the module."""
    for target, line in internal(module, at_import_time=True):
        name = target
        while name and not f"{module}.".startswith(f"{name}."):
            yield name, line
            name = name.rpartition(".")[0]
        if name == target != module:
            yield target, line  # a name taken from its own package: that package must not need this module


def components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(stack[at:])
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


# Sizes


def functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}.{node.name}" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)


def test_functions_fit_their_budget() -> None:
    sizes = {name: (node.end_lineno or 0) - node.lineno + 1 for module, tree in trees().items() for name, node in functions(tree, module)}
    wrong = [f"{name}: {size} lines" for name, size in sizes.items() if size > (RECIPE_LINES if name in RECIPES else FUNCTION_LINES)]
    assert not wrong, "\n" + "\n".join(wrong)
    assert all(sizes.get(name, 0) > FUNCTION_LINES for name in RECIPES), "a recipe that is none any more"


def test_modules_fit_their_budget() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    wrong = [f"{path.relative_to(REPOSITORY)}: {size} lines" for path, size in sizes.items() if size > MODULE_LINES]
    assert not wrong, "\n" + "\n".join(wrong)


def test_driver_interfaces_are_narrow() -> None:
    wrong = []
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).split("[")[0].split(".")[-1] in ("ABC", "Protocol") for base in node.bases
            ):
                methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
                if len(methods) > INTERFACE_METHODS:
                    wrong.append(f"{module}.{node.name}: {len(methods)} methods")
    assert not wrong, "\n" + "\n".join(wrong)


def test_stem_stays_small() -> None:
    files = [path for pattern in ("*.c", "*.h") for path in (REPOSITORY / "stem").glob(pattern)]
    total = sum(len(path.read_text().splitlines()) for path in files)
    assert total <= STEM_LINES


# Weight


def test_the_hot_path_is_light() -> None:
    """Imports the modules of run, exec and ps in a bare interpreter: no third-party package is even reachable there."""
    hot = [name for name in (f"nacre.{part}".rstrip(".") for part in HOT) if name in trees()]
    code = f"""
import sys
sys.path.insert(0, {str(SOURCE.parent)!r})
before = set(sys.modules)
for name in {hot!r}:
    __import__(name)
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "nacre.linux.cgroups" in loaded
    assert loaded & HEAVY == set()
    foreign = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names - {"nacre"}
    assert foreign == set()


# The rules themselves


@pytest.mark.parametrize(
    ("code", "at_import_time", "found"),
    [
        ("import a.b", True, ["a.b"]),
        ("from a import b, c", True, ["a.b", "a.c"]),
        ("def f():\n    import a", True, []),
        ("def f():\n    import a", False, ["a"]),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", True, []),
        ("try:\n    import a\nexcept ImportError:\n    pass", True, ["a"]),
        ("class C:\n    import a", True, ["a"]),
    ],
)
def test_imports_are_found(code: str, at_import_time: bool, found: list[str]) -> None:
    assert [name for name, _ in imports(ast.parse(code), at_import_time=at_import_time)] == found


def test_cycles_are_found() -> None:
    groups = components({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()})
    assert sorted(map(sorted, groups)) == [["a", "b", "c"], ["d"]]
