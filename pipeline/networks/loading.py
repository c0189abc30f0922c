"""DataLoader workers as `inference` and training use them: one OpenCV thread each, and their errors in plain words."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import cv2

from pipeline.errors import UserError

cv2.setNumThreads(0)  # the workers are processes already

L = TypeVar("L")

SIGNAL_SECONDS = 3.0
"""The system reports a worker that has died within this time, and torch then raises."""


def passed_on(loader: Iterable[L], workers: int) -> Iterator[L]:
    """The loader's batches. A worker's UserError is raised again without the worker's traceback in its text.

    Raises:
        RuntimeError: a worker was killed; torch's own error, or one in its words.
    """
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__qualname__}: ")[2].strip()) from None
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not workers or "in DataLoader worker" in str(error):  # raised by reading a file
            raise
        # A worker was killed while it handed a batch over. Torch raises in this process when the system's signal
        # arrives, wherever it is then: wait for that here, not in the middle of handling this error.
        time.sleep(SIGNAL_SECONDS)
        raise RuntimeError(f"DataLoader worker exited unexpectedly ({type(error).__name__})") from error
