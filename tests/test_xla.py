"""XLA's faster settings, each in a process whose JAX has not started."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from resnet_flax import xla

COMPILE = """
import jax, jax.numpy as jnp
x, k = jnp.ones((8, 28, 28, 64)), jnp.ones((3, 3, 64, 64))
def convolve(x, k):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout)
def uses_library(**options):
    text = jax.jit(convolve, **options).lower(x, k).compile().as_text()
    return "ynn_fusion" in text
"""


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


def test_the_option_reaches_convolutions_and_what_was_set_stays():
    program = f"""
import os
import resnet_flax
from resnet_flax import xla
xla.use_fast_cpu()
xla.use_fast_cpu()  # again: nothing is left to do
print(os.environ["XLA_FLAGS"])
{COMPILE}
print(uses_library())
xla.use_fast_cpu()  # and even now
"""
    expected = f"--xla_dump_to= --{xla.OPTION}={xla.VALUE}\nFalse"
    assert _run(program, flags="--xla_dump_to=") == expected


def test_the_options_reach_one_function_after_the_start():
    program = f"""
{COMPILE}
from resnet_flax import xla
print(uses_library(), uses_library(compiler_options=xla.compiler_options()))
"""
    assert _run(program) == "True False"


def test_what_the_user_chose_is_left_alone():
    program = """
import os
from resnet_flax import xla
xla.use_fast_cpu()
print(os.environ["XLA_FLAGS"], xla.compiler_options())
"""
    flags = f"--{xla.OPTION}=LIBRARY_FUSION_TYPE_REDUCE"
    assert _run(program, flags=flags) == f"{flags} {{}}"


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
        xla.use_fast_cpu()
    assert "XLA_FLAGS" not in os.environ


def test_flags_in_a_file_are_not_added_to(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "/tmp/flags.txt")
    with pytest.raises(ValueError, match=r"file /tmp/flags\.txt; add --xla_cpu"):
        xla.use_fast_cpu()


def test_accelerators_get_no_options(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert xla.compiler_options() == {xla.OPTION: xla.VALUE}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert xla.compiler_options() == {}
