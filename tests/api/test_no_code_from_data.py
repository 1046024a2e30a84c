"""Nothing that is read is ever run: the package holds no call that could turn data into code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("rebalance", "benchmarks", "examples")
LAUNCHERS = (ROOT / "cli.py", ROOT / "setup.py")
SOURCES = [*LAUNCHERS, *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "yaml": {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"},
    "torch.jit": {"load"},
    "torch.hub": {"load", "load_state_dict_from_url"},
    "os": {"system", "popen"},
    "subprocess": {"run", "call", "check_call", "check_output", "Popen", "getoutput"},
}
NEEDED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """The full dotted name of what is called, with imports resolved; "" for anything else."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, aliases)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def imported(tree: ast.AST) -> dict[str, str]:
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name.partition(".")[0]): alias.name for alias in node.names if alias.asname
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {(alias.asname or alias.name): f"{node.module}.{alias.name}" for alias in node.names}
    return names


def faults(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    aliases = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            names = set()
        yield from (f"line {node.lineno}: imports {name}" for name in names & MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, aliases).replace("np.", "numpy.")
        owner, _, method = name.rpartition(".")
        if name in CALLS or method in METHODS.get(owner, ()):
            yield f"line {node.lineno}: calls {name}"
        if name in NEEDED:
            key, value = NEEDED[name]
            given = {word.arg: word.value for word in node.keywords}
            if not (isinstance(given.get(key), ast.Constant) and given[key].value is value):
                yield f"line {node.lineno}: calls {name} without {key}={value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_turns_data_into_code(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import yaml\nyaml.load(text)",
        "from yaml import unsafe_load as u\nu(x)",
        "eval(text)", "import torch\ntorch.load(path)", "import torch as t\nt.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path)", "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import torch\ntorch.jit.load(path)", "import subprocess as s\ns.run(text)", "__import__(name)",
    ],
)  # fmt: skip
def test_what_is_forbidden_is_found(source):
    assert list(faults(source))


def test_what_is_allowed_is_not_found():
    allowed = "import yaml, torch, re\nyaml.safe_load(x)\ntorch.load(p, weights_only=True)\nre.compile(x)\nmodel.eval()"
    assert not list(faults(allowed))
