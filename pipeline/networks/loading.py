"""Images and masks as batches of tensors: reading, resizing, augmenting, and which image comes when.

What step t of a training sees depends on (seed, t) alone: not on the number of workers, not on where a resumed run
starts. Work is dealt to processes card by card: process k of n takes items k, k+n, k+2n, ...
"""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import cv2

from pipeline.errors import UserError

if TYPE_CHECKING:
    pass


cv2.setNumThreads(0)  # the readers are processes already


L = TypeVar("L")


SIGNAL_SECONDS = 3.0
"""Within which the system says that a reader is gone, and torch raises."""


def passed_on(loader: Iterable[L], workers: int) -> Iterator[L]:
    """What a loader gives. The sentence of a reader's UserError comes without the reader's traceback around it.

    Raises:
        RuntimeError: a reader was killed; torch's own, or in its words.
    """
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).rpartition(f"{UserError.__qualname__}: ")[2].strip()) from None
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not workers or "in DataLoader worker" in str(error):  # what reading itself has met
            raise
        # It was killed while it handed a batch over. Torch raises when the system's signal comes, wherever this
        # process is then: let that be here, not in the middle of what the error is answered with.
        time.sleep(SIGNAL_SECONDS)
        raise RuntimeError(f"DataLoader worker exited unexpectedly ({type(error).__name__})") from error
