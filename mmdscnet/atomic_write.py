"""Files that are either whole or not there: what every writer of the package goes through."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

SPACE = (
    'Free space or choose another folder; files written before are whole, and the same command of '
    'an export goes on where it stopped'
)
PERMISSION = 'Allow this user to write there, or choose another folder'
NO_FOLDER = 'A file stands where a folder belongs: move it away, or choose another folder'
MENDS = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EROFS: 'The file system is read-only: mount it for writing, or choose another folder',
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EFBIG: 'Raise the limit on the size of files (ulimit -f), or choose another file system',
    errno.EEXIST: NO_FOLDER,
    errno.ENOTDIR: NO_FOLDER,
    errno.EISDIR: 'A folder has that name: move it away, or choose another name',
    errno.ENAMETOOLONG: 'Choose a shorter name; the temporary one is 38 characters longer',
}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary path that replaces ``path`` when the block ends well.

    A block that raises leaves ``path`` as it was and removes the temporary file. The temporary
    name ends in ``.tmp``, so a reader that lists ``*.png`` never meets half a file: name the
    format to a writer that would guess it from the name.

    What the block raises passes through, but for an :class:`OSError` of the file system about
    this file: it becomes one of the same class and ``errno`` whose message says the mend.

    Args:
        path: File to write. Missing parent folders are made.

    Yields:
        Temporary path in the same folder (a rename is atomic only within a file system).

    Raises:
        OSError: If the file cannot be written: no space, no permission, a read-only file system,
            a parent that is no folder.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / 'scores.txt'
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text('42')
        >>> target.read_text()
        '42'
    """
    target = Path(path)
    _make_parent(target)
    # Not tempfile.mkstemp: its files stay readable by their owner only, after the rename too.
    temporary = target.with_name(f'.{target.name}.{uuid4().hex}.tmp')
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if _is_about(error, temporary, target):
            raise _with_mend(error, target) from error
        raise
    finally:
        # A read-only file system refuses even to remove what is not there.
        with suppress(OSError):
            temporary.unlink()


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _with_mend(error, target) from error


def _is_about(error: OSError, temporary: Path, target: Path) -> bool:
    # The words of another than the system: the writer, or an inner block, has explained it.
    if error.errno not in MENDS or error.strerror != os.strerror(error.errno):
        return False
    # A failing write names no file, only what takes a path does.
    names = {os.path.abspath(str(n)) for n in (error.filename, error.filename2) if n is not None}
    own = {os.path.abspath(name) for name in (temporary, target, target.parent)}
    return not names or bool(names & own)


def _with_mend(error: OSError, target: Path) -> OSError:
    mend = MENDS.get(error.errno or 0, 'Choose another folder')
    # OSError picks its subclass by the number.
    return OSError(error.errno, f'{target} cannot be written: {error.strerror}. {mend}')
