"""`__all__` is the truth: it names what other files use of a module, and nothing else is public."""

import ast
import functools
import pathlib
from collections import defaultdict

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ["attention", "drawing", "explorer", "layers", "masks", "models", "scores"]
ROOMS += ["search", "tasks", "training", "translation"]
FLOOR = ["checks", "einsum", "memory", "pages", "ranges", "types"]
USERS = ["flaxattn", "tests", "benchmarks", "configs", "docs"]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted((ROOT / "flaxattn").rglob("*.py"))}
CHECKED = [
    name
    for name, path in MODULES.items()
    if path.name != "__init__.py"
    and name.split(".")[1] in ROOMS + FLOOR
    and ".builtin." not in name  # words and rules: data
]


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def used_by(tree):
    """(module, name) of all that a file takes of other modules, by name or as an attribute."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    modules[alias.asname or alias.name] = whole
                yield node.module, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield modules.get(node.value.id), node.attr


@functools.cache
def uses():
    """By module, the names that other files use of it; and those that the library's own do."""
    everywhere, inside = defaultdict(set), defaultdict(set)
    for path in (path for folder in USERS for path in sorted((ROOT / folder).rglob("*.py"))):
        for module, name in used_by(parsed(path)):
            everywhere[module].add(name)
            if path.is_relative_to(ROOT / "flaxattn"):
                inside[module].add(name)
    return everywhere, inside


def listed(tree):
    """What `__all__` holds."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError("there is no __all__")


def defined(tree):
    """The names that a module makes, and which of them are functions."""
    names, functions = set(), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            functions.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in getattr(node, "targets", None) or [node.target]:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names | functions, functions


def faults(module, tree):
    """What is untrue of the `__all__` of a module."""
    exported, (names, functions) = set(listed(tree)), defined(tree)
    everywhere, inside = uses()
    public = {name for name in functions if not name.startswith("_")}
    return {
        "is not there": exported - names,
        "is used elsewhere, but not listed": inside[module] & names - exported,
        "is a function without an underscore, but not listed": public - exported,
        "is a function that is listed, but used nowhere else": exported
        & functions - everywhere[module],
    }


@pytest.mark.parametrize("module", CHECKED)
def test_what_is_listed_is_what_others_use(module):
    found = faults(module, parsed(MODULES[module]))
    assert not {what: names for what, names in found.items() if names}


@pytest.mark.parametrize(
    "listing, fault",
    [
        (["Mask", "gone"], "is not there"),
        ([], "is used elsewhere, but not listed"),
        (["Mask"], "is a function without an underscore, but not listed"),
        (["Mask", "helper"], "is a function that is listed, but used nowhere else"),
    ],
)
def test_a_list_that_is_untrue_is_found_out(listing, fault):
    text = f"__all__ = {listing}\nclass Mask: ...\ndef helper(): ...\n"
    assert faults("flaxattn.masks.mask", ast.parse(text))[fault]
