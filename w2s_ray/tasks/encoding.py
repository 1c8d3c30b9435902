"""Text must be UTF-8. A file in another encoding is refused, rather than read as something else.

Arrow's readers take what is no UTF-8 for bytes, or pass it on unchecked, and a model would then learn from `b'caf\\xe9'`.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from w2s_ray.errors import InputError


def check_text(table: pa.Table, path: Path) -> None:
    """Refuse the first value that is no UTF-8 or holds a NUL. Rows are counted from 1, without a header."""
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            _refuse_undecodable(column, name, path)
            raise InputError(f"{path}: column '{name}' holds bytes; text must be a column of strings")
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            _refuse_undecodable(column.cast(pa.binary()), name, path)
        has_nul = pc.fill_null(pc.match_substring(column, "\0"), False)
        if pc.any(has_nul).as_py():
            raise InputError(
                f"{path}: row {pc.index(has_nul, True).as_py() + 1}, column '{name}': has a NUL character; text must have none"
            )


def _refuse_undecodable(column: pa.ChunkedArray, name: str, path: Path) -> None:
    for number, value in enumerate(column.to_pylist(), start=1):
        try:
            (value or b"").decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: row {number}, column '{name}': is not UTF-8 (byte 0x{value[error.start]:02x}). Convert the file, "
                f"for example from Latin-1: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}"
            ) from error
