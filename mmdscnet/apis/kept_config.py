"""The config beside a result, so that a result is reused for the config that made it only."""

from pathlib import Path

from mmdscnet.atomic_write import atomic_path


def keep_config(path: Path, text: str) -> None:
    """Write the config of a run, or compare it with what an earlier call wrote.

    Args:
        path: File of the config's text, in the folder of the run.
        text: The config.

    Raises:
        ValueError: If the file holds another config.
    """
    if path.is_file():
        if path.read_text(encoding='utf-8') != text:
            raise ValueError(
                f'{path} is another config than the one to run, so what is judged there is not '
                f'reused: give another --work-dir, or delete the folder {path.parent}'
            )
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
