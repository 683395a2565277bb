"""XLA's faster settings, each in a process whose JAX has not started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import pytest

from resnet_flax import xla

PROGRAMS = """
import jax, jax.numpy as jnp
x, k = jnp.ones((8, 28, 28, 64)), jnp.ones((3, 3, 64, 64))
def convolve(x, k):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout)
def multiply(x, k):
    return x.reshape(-1, 64) @ k[0, 0]
def total(x, k):
    return x.sum((0, 1, 2))
def uses_library(function, **options):
    text = jax.jit(function, **options).lower(x, k).compile().as_text()
    return "ynn_fusion" in text
"""

ALL = "uses_library(convolve), uses_library(multiply), uses_library(total)"
LEFT = {"inference": "False False False", "training": "False True True"}


def _run(program: str, flags: str = "") -> str:
    """Runs a program in a process of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_settings_the_library_takes_all():
    assert _run(f"{PROGRAMS}\nprint({ALL})") == "True True True"


@pytest.mark.parametrize("task", LEFT)
def test_each_task_leaves_its_part_to_the_library_and_what_was_set_stays(
    task: xla.Task,
):
    program = f"""
import os
import resnet_flax
from resnet_flax import xla
xla.use_fast_cpu("{task}")
xla.use_fast_cpu("{task}")  # again: nothing is left to do
print(os.environ["XLA_FLAGS"])
{PROGRAMS}
print({ALL})
xla.use_fast_cpu("{task}")  # and even now
"""
    flags = f"--xla_dump_to= --{xla.OPTION}={xla.VALUES[task]}"
    assert _run(program, flags="--xla_dump_to=") == f"{flags}\n{LEFT[task]}"


@pytest.mark.parametrize("task", LEFT)
def test_the_options_reach_one_function_after_the_start(task: xla.Task):
    options = f'compiler_options=xla.compiler_options("{task}")'
    program = f"""
{PROGRAMS}
from resnet_flax import xla
print({ALL.replace(")", f", {options})")})
"""
    assert _run(program) == LEFT[task]


def test_what_the_user_chose_is_left_alone():
    program = """
import os
from resnet_flax import xla
xla.use_fast_cpu("training")
print(os.environ["XLA_FLAGS"], xla.compiler_options("inference"))
"""
    flags = f"--{xla.OPTION}=LIBRARY_FUSION_TYPE_REDUCE"
    assert _run(program, flags=flags) == f"{flags} {{}}"


def test_one_function_can_do_the_task_that_the_process_was_not_set_for():
    program = f"""
import os
from resnet_flax import xla
xla.use_fast_cpu("inference")
xla.use_fast_cpu("training")
print(os.environ["XLA_FLAGS"])
{PROGRAMS}
print({ALL.replace(")", ', compiler_options=xla.compiler_options("inference"))')})
print({ALL})
try:
    xla.use_fast_cpu("inference")
except RuntimeError:
    print(os.environ["XLA_FLAGS"])
"""
    flags = f"--xla_dump_to= --{xla.OPTION}={xla.VALUES['training']}"
    expected = [flags, LEFT["inference"], LEFT["training"], flags]
    assert _run(program, flags="--xla_dump_to=").splitlines() == expected


def test_importing_it_starts_nothing():
    program = """
import resnet_flax
from resnet_flax import xla
print(xla._started())
import jax
jax.devices()
print(xla._started())
"""
    assert _run(program) == "False\nTrue"


def test_too_late_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    jax.devices()
    with pytest.raises(RuntimeError, match=r"has started.*compiler_options\(\)"):
        xla.use_fast_cpu("inference")
    assert "XLA_FLAGS" not in os.environ


def test_flags_in_a_file_are_not_added_to(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "/tmp/flags.txt")
    with pytest.raises(ValueError, match=r"file /tmp/flags\.txt; add --xla_cpu"):
        xla.use_fast_cpu("inference")


def test_accelerators_get_no_options(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for task, value in xla.VALUES.items():
        assert xla.compiler_options(task) == {xla.OPTION: value}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for task in xla.VALUES:
        assert xla.compiler_options(task) == {}


@pytest.mark.parametrize("function", [xla.compiler_options, xla.use_fast_cpu])
def test_a_task_that_there_is_not_is_an_error(function: Callable[[Any], object]):
    with pytest.raises(ValueError, match=r"task is 'train'; .*'inference', 'training'"):
        function("train")
