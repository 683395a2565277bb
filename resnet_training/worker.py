"""A process that makes pieces of batches: reads them from its standard input.

It is a program of its own, not a fork nor a copy of the program that trains: a fork of
a process whose frameworks have threads can hang, and a copy would import what the
user's script imports. When the program that started it ends, even by being killed, its
standard input ends, and so does it.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import struct
import sys
import traceback
from typing import BinaryIO

import numpy as np

from resnet_training.making import Piece, make

LENGTH = struct.Struct("<Q")
"""Stands before each message."""


def main() -> None:
    """Makes one piece after the other, until there is no more to read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    room = np.empty(0, np.uint8)  # new memory for each piece would cost a percent
    while True:
        head = tasks.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return
        try:
            piece: Piece = pickle.loads(tasks.read(LENGTH.unpack(head)[0]))
            if (size := math.prod(piece.shape)) > len(room):
                room = np.empty(size, np.uint8)
            images = room[:size].reshape(piece.shape)
            erased = np.empty((len(images), 4), np.int32)
            _send(answers, make(piece, images, erased), erased, images)
        except BrokenPipeError:
            return
        except Exception:
            _send(answers, traceback.format_exc())


def _send(answers: BinaryIO, said: object, *arrays: np.ndarray) -> None:
    text = pickle.dumps(said)
    answers.write(LENGTH.pack(len(text)))
    answers.write(text)
    for array in arrays:
        answers.write(array.data)
    answers.flush()
