"""Parquet files of a dataset, ours or of others: columns and row groups, or the file that is damaged and what to do.

What to do is the reader's to say: our own data can be made again, those of others cannot. Knows no form of datasets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from pi05.errors import DataError
from pi05.storage import files_of, is_pointer


@dataclass(frozen=True)
class RowGroup:
    """The smallest part of a dataset that is read at once.

    Attributes:
        path: Parquet file.
        index: Number of the row group in the file.
        first: Row of the dataset it begins with.
        rows: How many rows it has.
    """

    path: Path
    index: int
    first: int
    rows: int


def row_groups(footers: Mapping[Path, Any]) -> tuple[RowGroup, ...]:
    """Return the row groups of files, whose order is that of the rows, given the meta data of each."""
    found: list[RowGroup] = []
    first = 0
    for path, footer in footers.items():
        for index in range(footer.num_row_groups):
            rows = footer.row_group(index).num_rows
            found.append(RowGroup(path, index, first, rows))
            first += rows
    return tuple(found)


@dataclass(frozen=True)
class Parquet:
    """Reads parquet files.

    Attributes:
        remedy: What to do about a damaged file.
        other: What to do about one of another form, after a semicolon; "" where nothing helps.
    """

    remedy: str
    other: str = ""

    def footer(self, path: Path) -> Any:
        """Return the meta data of a file; raise DataError when it is damaged."""
        try:
            return pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(path, error) from error

    def in_order(self, folder: Path, by: str) -> dict[Path, Any]:
        """Return the files with rows below a folder, and their meta data, by the first number of a column.

        The names of files need not have the order of their rows; they decide where there is no such column.
        """
        footers = {path: footer for path in files(folder) if (footer := self.footer(path)).num_rows}

        def first(path: Path) -> int:
            there = by in footers[path].schema.to_arrow_schema().names
            return int(self.numbers(path, by, self.read(path, [by], 0)[by])[0, 0]) if there else 0

        return {path: footers[path] for path in sorted(footers, key=lambda path: (first(path), path))}

    def read(self, path: Path, columns: Sequence[str] | None, group: int | None = None) -> pyarrow.Table:
        """Return columns of a file, or of one of its row groups; None: all.

        Raises:
            DataError: The file is damaged, or lacks a column.
        """
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                there = file.schema_arrow.names
                if missing := [name for name in columns or () if name not in there]:
                    raise self.refused(f"{path} has no column {', '.join(missing)}; it has {', '.join(there)}")
                return file.read(columns) if group is None else file.read_row_group(group, columns)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(path, error) from error

    def records(self, path: Path, table: pyarrow.Table) -> list[dict[str, Any]]:
        """Return the rows of a table that was read from a file."""
        try:
            return table.to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # text that is none, a date out of range
            raise self._unreadable(path, error) from error

    def numbers(self, path: Path, name: str, column: pyarrow.ChunkedArray) -> np.ndarray:
        """Return a column of numbers, or of lists of any kind with as many numbers each, as (N, D) of its own type."""
        flat, kind, width = column.combine_chunks(), column.type, 1
        if isinstance(flat, pyarrow.ChunkedArray):  # of no or of several chunks, in newer versions
            flat = pyarrow.concat_arrays(flat.chunks) if flat.num_chunks else pyarrow.array([], kind)
        if flat.null_count:
            raise self.refused(f"{path}: {name} is missing in {flat.null_count} rows")
        if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
            lengths = set(flat.value_lengths().to_pylist()) if len(flat) else {0}
            if len(lengths) != 1:
                found = ", ".join(map(str, sorted(lengths)))
                raise self.refused(f"{path}: {name} has rows of {found} numbers, all must have as many")
            width, flat, kind = lengths.pop(), flat.flatten(), kind.value_type
        if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)):
            raise self.refused(f"{path}: {name} holds {column.type}, numbers or lists of numbers are required")
        if flat.null_count:
            raise self.refused(f"{path}: {name} has {flat.null_count} values missing")
        return flat.to_numpy(zero_copy_only=False).reshape(len(column), width)

    def refused(self, words: str) -> DataError:
        """Return the error of a file that is whole, but of another form."""
        return DataError(f"{words}; {self.other}" if self.other else words)

    def _unreadable(self, path: Path, error: Exception) -> DataError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if is_pointer(path):
            reason = "it is a Git LFS pointer; fetch the file with `git lfs pull`"
        return DataError(
            f"{path} is missing, cut off or damaged ({reason})" + (f"; {self.remedy}" if self.remedy else "")
        )


def files(folder: Path) -> list[Path]:
    """Return the parquet files below a folder, through links."""
    return [folder / name for name in files_of(folder, hidden=False) if name.endswith(".parquet")]
