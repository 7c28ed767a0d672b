"""Parquet files of a dataset, ours or of others: columns and row groups, or the file that is damaged and what to do.

What to do is the reader's to say: our own data can be made again, those of others cannot. Knows no form of datasets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pi05.errors import DataError


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
        without: What to do about one that lacks a column, after a semicolon; "" where nothing helps.
    """

    remedy: str
    without: str = ""

    def footer(self, path: Path) -> Any:
        """Return the meta data of a file; raise DataError when it is damaged."""
        try:
            return pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._unreadable(path, error) from error

    def read(self, path: Path, columns: Sequence[str] | None, group: int | None = None) -> pyarrow.Table:
        """Return columns of a file, or of one of its row groups; None: all.

        Raises:
            DataError: The file is damaged, or lacks a column.
        """
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                there = file.schema_arrow.names
                if missing := [name for name in columns or () if name not in there]:
                    lacking = f"{path} has no column {', '.join(missing)}; it has {', '.join(there)}"
                    raise DataError(f"{lacking}; {self.without}" if self.without else lacking)
                return file.read(columns) if group is None else file.read_row_group(group, columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: Path, error: Exception) -> DataError:
        reason = str(error).splitlines()[0]
        return DataError(f"{path} is missing, cut off or damaged ({reason}); {self.remedy}")
