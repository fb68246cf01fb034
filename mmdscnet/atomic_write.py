"""Files that are either whole or not there: what every writer of the package goes through."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary path that replaces ``path`` when the block ends well.

    A block that raises leaves ``path`` as it was and removes the temporary file. The temporary
    name ends in ``.tmp``, so a reader that lists ``*.png`` never meets half a file: name the
    format to a writer that would guess it from the name.

    Args:
        path: File to write. Missing parent folders are made.

    Yields:
        Temporary path in the same folder (a rename is atomic only within a file system).

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / 'scores.txt'
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text('42')
        >>> target.read_text()
        '42'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: its files stay readable by their owner only, after the rename too.
    temporary = target.with_name(f'.{target.name}.{uuid4().hex}.tmp')
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
