"""Files -> Examples (files.py, labels.py); splits, samples (splits.py); batches, generators by
seed (batching.py); words put into a text (inserted.py)."""
from minibd.data.batching import batches, generator, in_order
from minibd.data.files import COLUMN_NAMES, SUFFIXES, add_columns, read, read_texts, write
from minibd.data.inserted import with_words
from minibd.data.splits import SPLITS, Splits, counts, read_splits, sample

__all__ = [
    "COLUMN_NAMES", "SPLITS", "SUFFIXES", "Splits", "add_columns", "batches", "counts", "generator", "in_order", "read",
    "read_splits", "read_texts", "sample", "with_words", "write",
]
