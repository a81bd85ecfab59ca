"""The UCI optical digits: 1,797 images of 8x8 grey values and the digit each shows."""

import gzip
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parent / "digits.csv.gz"


def load():
    """Images (1797, 64) from 0 to 1 and labels (1797,) from 0 to 9."""
    with gzip.open(FILE, "rt", encoding="ascii") as f:
        table = np.array([line.split(",") for line in f], dtype=np.float64)
    return table[:, :64] / 16, table[:, 64].astype(np.intp)
