"""Every public function has its twin in the reference, a docstring that opens with its formula, and stubs.

Method: `inspect` for the compiled functions, `ast` for the stubs; nothing is called.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import fastnorm
from fastnorm import functional, reference

FUNCTIONS = (
    "batch_norm",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "instance_norm",
    "switchable_norm",
    "weight_norm",
    "softmax",
    "log_softmax",
    "cross_entropy",
    "dropout",
)
PUBLIC = sorted([*(f + suffix for f in FUNCTIONS for suffix in ("", "_forward", "_backward")), "moments"])
HERE = Path(fastnorm.__file__).parent


def parameters(f: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]


def stub_files() -> list[Path]:
    return sorted((HERE / "functional").glob("*.pyi"))


def stubs() -> dict[str, ast.FunctionDef]:
    """Function definitions in all stubs of `fastnorm.functional`."""
    found = {}
    for path in stub_files():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = node
    return found


def test_what_is_public() -> None:
    assert sorted(functional.__all__) == PUBLIC
    assert len(set(functional.__all__)) == len(functional.__all__)
    for name in PUBLIC:
        assert getattr(fastnorm, name) is getattr(functional, name) and name in fastnorm.__all__
    for name in fastnorm.__all__:
        assert hasattr(fastnorm, name), name


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_has_the_same_signature(name: str) -> None:
    """The same names, in the same order, of the same kinds, with the same defaults."""
    assert parameters(getattr(functional, name)) == parameters(getattr(reference, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_takes_the_arguments_of_its_function(name: str) -> None:
    plain, forward = (parameters(getattr(functional, name + suffix)) for suffix in ("", "_forward"))
    assert plain == forward
    backward = [p[0] for p in parameters(getattr(functional, name + "_backward"))]
    assert backward == ["dw" if name == "weight_norm" else "dy", "ctx", "out"]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_open_with_the_formula(name: str) -> None:
    """The first line is the formula (or, of a forward, what it returns); then shapes, dtypes, errors and sources."""
    doc = inspect.getdoc(getattr(functional, name))
    assert doc
    first = doc.splitlines()[0]
    if name.endswith("_forward"):
        assert first.startswith("(") and "ctx)" in first
        return
    assert " = " in first, first
    for section in ("Parameters", "Returns", "Raises"):
        assert f"{section}\n---" in doc, f"{name} has no section {section}"
    for error in ("TypeError", "ValueError"):
        assert error in doc
    arguments = [p for p, _, _ in parameters(getattr(functional, name))]
    described = doc[doc.index("Parameters") :]
    for argument in arguments:
        assert argument in described, f"{argument} of {name} is not described"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_name_their_source(name: str) -> None:
    doc = inspect.getdoc(getattr(functional, name)) or ""
    assert name == "log_softmax" or re.search(r"\b(19|20)\d\d\b", doc), "no paper with its year"


def test_the_package_is_typed() -> None:
    assert (HERE / "py.typed").exists()
    assert stub_files(), "no stubs for the compiled functions"


@pytest.mark.parametrize("name", PUBLIC)
def test_stubs_match(name: str) -> None:
    """A stub for each function with the same parameters, everything annotated."""
    assert name in stubs(), f"no stub for {name}"
    node = stubs()[name]
    a = node.args
    given = [x.arg for x in a.posonlyargs + a.args] + [x.arg for x in a.kwonlyargs]
    actual = parameters(getattr(functional, name))
    assert given == [p[0] for p in actual]
    assert {x.arg for x in a.kwonlyargs} == {n for n, kind, _ in actual if kind is inspect.Parameter.KEYWORD_ONLY}
    optional = len(a.defaults) + sum(d is not None for d in a.kw_defaults)
    assert optional == sum(default is not inspect.Parameter.empty for _, _, default in actual)
    assert node.returns is not None
    assert all(x.annotation is not None for x in a.posonlyargs + a.args + a.kwonlyargs)


@pytest.mark.parametrize("name", ["config", "get_num_threads", "set_num_threads", "show_config", "threads"])
def test_control_functions_are_documented_and_annotated(name: str) -> None:
    f = getattr(fastnorm, name)
    assert inspect.getdoc(f)
    assert inspect.signature(f).return_annotation is not inspect.Signature.empty
