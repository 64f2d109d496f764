"""The project's modules, and which of them a module imports, by its source code."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("s4spipe", "stages", "benchmarks")


@cache
def file_of(module: str) -> str | None:
    """The file of a module of the project, from its root; None for another library's."""
    base = module.replace(".", "/")
    if module.split(".")[0] not in PACKAGES:
        return None
    return next((path for path in (f"{base}.py", f"{base}/__init__.py") if (ROOT / path).is_file()), None)


@cache
def parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that the import statements in a tree bind, wherever they stand, each with the project's file that it
    is, or is from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                path = file_of(f"{node.module}.{alias.name}") or file_of(node.module)
                if path:
                    yield alias.asname or alias.name, path
        elif isinstance(node, ast.Import):
            for alias in node.names:
                path = file_of(alias.name)
                if path:
                    yield alias.asname or alias.name.split(".")[0], path


@cache
def imports(path: str) -> frozenset[str]:
    """The project's files that a file imports."""
    return frozenset(file for _, file in imported(parse(path)))


@cache
def packages_above(path: str) -> list[str]:
    """The packages that are imported before a file: those of the folders above it."""
    inits = [f"{folder}/__init__.py" for folder in map(str, Path(path).parents)]
    return [init for init in inits if init != path and (ROOT / init).is_file()]


@cache
def used(path: str, module: str) -> frozenset[str]:
    """The names of `module`, a file, that another file uses: `module.this`, or `from module import this`."""
    tree, found = parse(path), set()
    names = {name for name, file in imported(tree) if file == module}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and file_of(node.module or "") == module:
            found |= {alias.name for alias in node.names}
    return frozenset(found)


@cache
def behind(path: str, functions: frozenset[str]) -> set[str]:
    """The project's files whose names these functions of a file use, themselves or through others of that file."""
    tree, waiting, seen, found = parse(path), list(functions), set(), set()
    bound, defined = dict(imported(tree)), {node.name: node for node in tree.body if hasattr(node, "name")}
    while waiting:
        name = waiting.pop()
        if name in seen or name not in defined:
            continue
        seen.add(name)
        for node in ast.walk(defined[name]):
            if isinstance(node, ast.Name):
                found |= {bound[node.id]} if node.id in bound else set()
                waiting.append(node.id)
    return found


@cache
def only_imports(path: str) -> bool:
    """Whether a module has no code of its own: nothing but a docstring, imports, __all__ and __version__."""
    return all(map(_is_import, parse(path).body))


def _is_import(node: ast.stmt) -> bool:
    if isinstance(node, ast.With):  # of imports that need one of the project's extras
        return all(map(_is_import, node.body))
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id in ("__all__", "__version__") for target in node.targets)
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, ast.Import | ast.ImportFrom)


def modules(*folders: str) -> list[str]:
    """All modules in folders of the project, from its root."""
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py"))
