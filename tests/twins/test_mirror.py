"""The twins' files are one text: what may differ is listed here, and nothing else."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import resnet_flax.layers
import resnet_flax.optim
import resnet_flax.resnet
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


def test_resnet_py_is_one_text_in_both_twins():
    assert _body(_source(resnet_torch.resnet)) == _body(_source(resnet_flax.resnet))


def test_comments_in_resnet_py_are_the_same_too():
    comments = [
        [line.strip() for line in _source(module).splitlines() if "#" in line]
        for module in (resnet_torch.resnet, resnet_flax.resnet)
    ]
    assert comments[0] == comments[1]
    assert comments[0]


def test_the_comparison_sees_a_moved_assignment():
    source = _source(resnet_torch.resnet)
    moved = source.replace(
        "        self.bn1 = layers.norm(width)\n        self.relu = layers.relu()\n",
        "        self.relu = layers.relu()\n        self.bn1 = layers.norm(width)\n",
    )
    assert moved != source
    assert _body(moved) != _body(source)


@pytest.mark.parametrize(
    "name",
    ["conv", "norm", "relu", "maxpool", "avgpool", "average", "blur", "linear"],
)
def test_both_makers_of_layers_take_the_same_arguments(name: str):
    signatures = [
        list(inspect.signature(getattr(module.Layers, name)).parameters.values())
        for module in (resnet_torch.layers, resnet_flax.layers)
    ]
    assert signatures[0] == signatures[1]


def test_resnet_py_fits_a_reading():
    assert len(_source(resnet_torch.resnet).splitlines()) < 300


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
