"""The twins' files are one text: what may differ is listed here, and nothing else."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import resnet_flax.attention
import resnet_flax.blocks
import resnet_flax.compiling
import resnet_flax.dropping
import resnet_flax.layers
import resnet_flax.optim
import resnet_flax.resnet
import resnet_torch.attention
import resnet_torch.blocks
import resnet_torch.compiling
import resnet_torch.dropping
import resnet_torch.layers
import resnet_torch.optim
import resnet_torch.resnet

ALLOWED = {
    "nn": "nnx",
    "Tensor": "Array",
    "forward": "__call__",
    "n c h w": "n h w c",
    "n k i j": "n i j k",
    "resnet_torch.layers": "resnet_flax.layers",
}


class _AsFlax(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(ALLOWED.get(node.id, node.id), node.ctx)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = ALLOWED.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        value = ALLOWED.get(node.value) if isinstance(node.value, str) else None
        return ast.Constant(node.value if value is None else value)


def _body(source: str) -> list[str]:
    """The statements behind the module's docstring and its imports."""
    tree = _AsFlax().visit(ast.parse(source))
    imports = (ast.Import, ast.ImportFrom)
    return [ast.unparse(n) for n in tree.body[1:] if not isinstance(n, imports)]


def _source(module: object) -> str:
    return Path(inspect.getfile(module)).read_text("utf-8")  # type: ignore[arg-type]


ONE_TEXT = {
    "resnet": (resnet_torch.resnet, resnet_flax.resnet),
    "blocks": (resnet_torch.blocks, resnet_flax.blocks),
    "attention": (resnet_torch.attention, resnet_flax.attention),
}


@pytest.mark.parametrize("name", ONE_TEXT)
def test_these_files_are_one_text_in_both_twins(name: str):
    ours, theirs = ONE_TEXT[name]
    assert _body(_source(ours)) == _body(_source(theirs))


def test_comments_in_them_are_the_same_too():
    found = 0
    for modules in ONE_TEXT.values():
        comments = [
            [line.strip() for line in _source(module).splitlines() if "#" in line]
            for module in modules
        ]
        assert comments[0] == comments[1]
        found += len(comments[0])
    assert found


def test_the_comparison_sees_a_moved_assignment():
    source = _source(resnet_torch.blocks)
    moved = source.replace(
        "        self.se = attention(layers, width)\n"
        "        self.drop_path = drop_path(layers, plan)\n",
        "        self.drop_path = drop_path(layers, plan)\n"
        "        self.se = attention(layers, width)\n",
    )
    assert moved != source
    assert _body(moved) != _body(source)


@pytest.mark.parametrize(
    "name",
    [
        *("conv", "conv_along", "norm", "relu", "sigmoid", "maxpool", "avgpool"),
        *("pool_down", "pool_same", "average", "blur", "linear"),
        *("average_around", "shares"),
    ],
)
def test_both_makers_of_layers_take_the_same_arguments(name: str):
    signatures = [
        list(inspect.signature(getattr(module.Layers, name)).parameters.values())
        for module in (resnet_torch.layers, resnet_flax.layers)
    ]
    assert signatures[0] == signatures[1]


def test_compiling_py_has_the_same_methods_in_both_twins():
    ours, theirs = (
        _functions(m) for m in (resnet_torch.compiling, resnet_flax.compiling)
    )
    own = {"_inductor", "_xla", "torch_state", "forward"}
    assert ours.keys() - own == theirs.keys() - own
    for name in ("__init__", "_made"):
        texts = [
            text.replace("inductor", "xla").replace("Tensor", "Array")
            for text in ours[name] + theirs[name]
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ONE_TEXT)
def test_these_files_fit_a_reading(name: str):
    for module in ONE_TEXT[name]:
        assert len(_source(module).splitlines()) < 300


def _functions(module: object) -> dict[str, list[str]]:
    """Texts of the functions and methods of a file by name, as if it were Flax's."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(_AsFlax().visit(ast.parse(_source(module)))):
        if isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(ast.unparse(node))
    return found


def test_dropping_py_draws_the_same_in_both_twins():
    ours, theirs = _functions(resnet_torch.dropping), _functions(resnet_flax.dropping)
    # How a mask comes into a compiled program, and how it is known to be a training.
    assert theirs.keys() - ours.keys() == {"draw"}
    for name in ours.keys() - {"_mask", "__init__", "__call__", "restart"}:
        assert ours[name] == theirs[name], name
    assert {"kept", "uniform", "outside_squares"} < ours.keys()


# In optim.py, of a label that is no class: what each framework does with it.
UNLIKE = (
    "raises IndexError on a CPU and stops the program on a GPU",
    "makes the loss NaN: compiled code cannot raise",
)


def test_optim_py_has_the_same_functions_and_documentation_in_both_twins():
    mirrored = []
    for module in (resnet_torch.optim, resnet_flax.optim):
        functions = [
            (name, function)
            for name, function in vars(module).items()
            if inspect.isfunction(function)
            and function.__module__ == module.__name__
            and not name.startswith("_")
        ]
        texts = []
        for name, function in functions:
            text = " ".join((inspect.getdoc(function) or "").split())
            for phrase in UNLIKE:
                text = text.replace(phrase, "")
            parameters = inspect.signature(function).parameters.values()
            arguments = [(p.name, p.kind, p.default) for p in parameters]
            texts.append((name, arguments, text))
        mirrored.append(texts)
    assert mirrored[0] == mirrored[1]
    names = [name for name, *_ in mirrored[0]]
    assert names == [
        "cross_entropy",
        "binary_cross_entropy",
        "undecayed",
        "create_optimizer",
        "train_step",
    ]
