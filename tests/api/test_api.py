"""The public functions: one module, one order and one naming of arguments, quick to import."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rebalance
from rebalance import api
from rebalance.errors import InputError

FUNCTIONS = ("inspect", "plan", "fit", "generate", "filter", "verify", "evaluate", "downstream", "load_shards")
OPTION_OBJECTS = ("OutputOptions", "FilterChoice", "FeatureChoice", "StudyOptions")
HOMES = {
    "fit": "training.fitting",
    "generate": "shards.from_run",
    "filter": "shards.from_images",
    "evaluate": "evaluation.figures",
    "downstream": "trials.study",
    "load_shards": "shards.loading",
}
PACKAGE = Path(rebalance.__file__).parent


def signature(name):
    return inspect.signature(getattr(api, name))


def test_nine_functions_and_four_option_objects_are_public():
    assert set(api.__all__) == set(FUNCTIONS)
    assert set(rebalance.__all__) == {*FUNCTIONS, *OPTION_OBJECTS, "__version__"}
    for name in (*FUNCTIONS, *OPTION_OBJECTS):
        assert getattr(rebalance, name) is getattr(api, name)
        assert name in dir(rebalance)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        rebalance.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "code", ["import rebalance", "import rebalance.api", "from rebalance import fit, OutputOptions"]
)
def test_importing_the_public_functions_does_not_wait_for_torch(code):
    check = f"{code}; import sys; print({{'torch', 'numpy', 'scipy'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_documented_and_errors_are_named(name):
    text = inspect.getdoc(getattr(api, name))
    arguments = text.partition("Args:\n")[2].partition("Raises:\n")[0]
    documented = [line.strip().partition(":")[0] for line in arguments.splitlines() if line[4:5].strip()]
    assert documented == list(signature(name).parameters)
    assert "InputError:" in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_come_in_one_order_and_are_few(name):
    parameters = signature(name).parameters.values()
    assert len(parameters) <= 11
    named = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    last = [part for part in ("device", "overwrite", "progress") if part in named]
    assert named[len(named) - len(last) :] == last
    assert len([parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]) <= 3


@pytest.mark.parametrize(
    "argument", sorted({argument for name in FUNCTIONS for argument in signature(name).parameters})
)
def test_an_argument_of_one_name_has_one_default(argument):
    defaults = {
        repr(signature(name).parameters[argument].default)
        for name in FUNCTIONS
        if argument in signature(name).parameters
        and signature(name).parameters[argument].default not in (inspect.Parameter.empty, None)
    }
    assert len(defaults) <= 1


@pytest.mark.parametrize("name", HOMES)
def test_implementation_takes_what_the_public_function_takes(name):
    implementation = getattr(importlib.import_module(f"rebalance.{HOMES[name]}"), name)
    own, public = inspect.signature(implementation).parameters, signature(name).parameters
    assert [(p.name, p.kind, p.default) for p in own.values()] == [(p.name, p.kind, p.default) for p in public.values()]


@pytest.mark.parametrize("name", OPTION_OBJECTS)
def test_option_objects_are_frozen_and_document_every_field(name):
    kind = getattr(rebalance, name)
    assert kind() == kind() and hash(kind()) == hash(kind())
    for field in dataclasses.fields(kind):
        assert f"    {field.name}: " in kind.__doc__
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), field.name, None)


@pytest.mark.parametrize(
    ("kind", "values", "parameter"),
    [
        ("OutputOptions", {"shard_size": 0}, "shard_size"),
        ("OutputOptions", {"quality": 101}, "quality"),
        ("OutputOptions", {"seed": -1}, "seed"),
        ("OutputOptions", {"file_format": "bmp"}, "file_format"),
        ("OutputOptions", {"square": "round"}, "square"),
        ("StudyOptions", {"square": "round"}, "square"),
        ("StudyOptions", {"seeds": 0}, "seeds"),
    ],
)
def test_option_objects_refuse_what_is_out_of_range(kind, values, parameter):
    with pytest.raises(InputError, match=f"`{parameter}`"):
        getattr(rebalance, kind)(**values)


def test_no_package_exports_a_function_with_the_name_of_one_of_its_modules():
    for package in sorted(path.parent for path in PACKAGE.rglob("__init__.py")):
        modules = {module.name for module in pkgutil.iter_modules([str(package)])}
        tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
        exported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module not in (None, package.name)
            for alias in node.names
        }
        own = ".".join(("rebalance", *package.relative_to(PACKAGE).parts))
        submodules = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == own
            for alias in node.names
        }
        assert not (exported - submodules) & modules, package
