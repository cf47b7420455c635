"""The rules of the house that no compiler sees: who imports whom, who deletes, what a name may hide."""

import ast
import errno
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

import pytest

import cachefs.core.errors
from cachefs.core.errors import CachefsError, errno_of

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "cachefs"
SOURCES: Final = sorted(PACKAGE.rglob("*.py"))

DELETERS: Final = {
    "cachefs/local/cache.py": "the one owner of cache files",
    "cachefs/local/holdings.py": "the one owner of a cloud manager's files",
    "cachefs/remote/file*.py": "a store deletes its own objects",
    "cachefs/registry.py": "one file for each running mount, written and deleted here",
    "cachefs/local/soundness.py": "its own word on a database",
    "cachefs/server/__init__.py": "its own socket",
    "cachefs/pool/line.py": "its own socket",
    "cachefs/local/views.py": "what the pool's clients see of leased files",
    "cachefs/cli/pool_daemon.py": "its own pid file",
}

FORBIDDEN_IN_TESTS: Final = {
    "time.sleep": "poll a condition, or use the autojump clock",
    "unittest.mock": "write a fake and run it through the contract suite",
    "typing.TYPE_CHECKING": "imports point inward, so there is no cycle to hide",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(node: ast.expr) -> str:
    """`os.path.join` for the expression that says so; empty where it is more than names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def every_error() -> Iterator[type[CachefsError]]:
    found: list[type[CachefsError]] = [CachefsError]
    for kind in found:
        found.extend(kind.__subclasses__())
    yield from (kind for kind in found if kind.__module__.startswith("cachefs."))


def in_every_source() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", SOURCES, ids=relative)


def test_imports_point_inward() -> None:
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_importing_the_library_loads_neither_the_kernels_door_nor_an_sdk() -> None:
    heavy = ("trio", "pyfuse3", "boto3", "botocore", "swiftclient", "keystoneauth1", "sqlite3")
    code = f"import cachefs, sys; print([name for name in {heavy} if name in sys.modules])"

    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert loaded.stdout.strip() == "[]"


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case ast.Import():
                yield from (alias.name.partition(".")[0] for alias in node.names)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in [*project["dependencies"], *extras]}
    distributions = {**{name: [name] for name in declared}, **packages_distributions()}
    names = {name for path in SOURCES for name in imported(parsed(path))}
    foreign = names - set(sys.stdlib_module_names) - {"cachefs"}

    used = {distribution for name in foreign for distribution in set(distributions[name])}

    assert used - {"botocore"} == declared  # boto3 is a thin layer that pins its botocore


def deletions(tree: ast.Module) -> Iterator[int]:
    """The lines that delete a file or a directory, however it is spelled.

    A path's own ``unlink`` and ``rmdir`` take no position; a file system's take what to delete.
    """
    functions = {"os.unlink", "os.remove", "os.rmdir", "os.removedirs", "shutil.rmtree"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in {"unlink", "rmdir"}
        if dotted(node.func) in functions or (is_method and not node.args):
            yield node.lineno


@in_every_source()
def test_only_the_owner_of_files_deletes_them(path: Path) -> None:
    lines = list(deletions(parsed(path)))
    allowed = any(fnmatch(relative(path), pattern) for pattern in DELETERS)

    assert not lines or allowed, f"{relative(path)} deletes in lines {lines}"


@pytest.mark.parametrize("pattern", sorted(DELETERS))
def test_whoever_may_delete_does(pattern: str) -> None:
    deleting = [path for path in ROOT.glob(pattern) if any(deletions(parsed(path)))]

    assert deleting, f"{pattern} need not be in the list"


def is_mutable(value: ast.expr) -> bool:
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = {
        "list",
        "dict",
        "set",
        "bytearray",
        "defaultdict",
        "collections.defaultdict",
        "deque",
    }
    return isinstance(value, displays) or (
        isinstance(value, ast.Call) and dotted(value.func) in makers
    )


def module_state(tree: ast.Module) -> Iterator[str]:
    """The mutable values that belong to a module and are not written as constants."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                targets = [target]
            case _:
                continue
        names = [dotted(target) for target in targets]
        constant = all(re.fullmatch(r"_?[A-Z][A-Z0-9_]*|__all__", name) for name in names)
        if is_mutable(value) and not constant:
            yield from names
    yield from (
        f"global {', '.join(node.names)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    )


@in_every_source()
def test_no_module_holds_state(path: Path) -> None:
    assert list(module_state(parsed(path))) == []


@in_every_source()
def test_nothing_is_left_for_later(path: Path) -> None:
    notes = re.findall(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", path.read_text("utf-8"))

    assert notes == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: relative(path)
)
def test_tests_neither_sleep_nor_mock(path: Path) -> None:
    names = set()
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Attribute():
                names.add(dotted(node))
            case ast.ImportFrom(module=str(module)):
                names.add(module)
                names.update(f"{module}.{alias.name}" for alias in node.names)
            case ast.Import():
                names.update(alias.name for alias in node.names)

    found = {name: why for name, why in FORBIDDEN_IN_TESTS.items() if name in names}

    assert found == {}


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
def test_every_error_has_an_errno(kind: type[CachefsError]) -> None:
    error = kind.__new__(kind)  # some errors take arguments, and none decides its errno by them

    assert errno_of(error) in errno.errorcode
    assert os.strerror(errno_of(error))


def test_the_tree_of_errors_is_drawn_whole() -> None:
    tree = cachefs.core.errors
    names = [kind.__name__ for kind in every_error() if kind.__module__ == tree.__name__]

    assert [name for name in names if not re.search(rf"\b{name}\b", tree.__doc__ or "")] == []
