"""Folders that an export fills over one or several runs, one whole file an image."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdscnet.atomic_write import atomic_path
from mmdscnet.provenance import hash_sha256

SETTINGS_FILE = 'export.json'


class ExportFolder:
    """A folder of files that were all made in the same way.

    The settings of the export stand beside its files. A run that finds them equal goes on with the
    images that are missing; a run with others is refused, so that a folder is never of two kinds.
    Files are written under a temporary name and renamed, hence a file that is there is whole.

    Args:
        folder: The folder; made when missing.
        suffix: End of the file names, such as ``.png``.
        settings: What the files depend on, as JSON has it.

    Raises:
        ValueError: If the folder holds an export with other settings, or such files without any.
    """

    def __init__(
        self, folder: str | os.PathLike[str], suffix: str, settings: Mapping[str, Any]
    ) -> None:
        self.folder = Path(folder)
        self.suffix = suffix
        # As they come back from the file: tuples are lists there.
        self.settings = json.loads(json.dumps(settings))
        path = self.folder / SETTINGS_FILE
        if path.is_file():
            self._compare(path)
            return
        if next(self.folder.glob(f'*{suffix}'), None) is not None:
            raise ValueError(
                f'{self.folder} holds {suffix} files but no {SETTINGS_FILE} that says how they '
                'were made: give a new folder'
            )
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.settings, indent=1), encoding='utf-8')

    def path(self, image_id: str) -> Path:
        """Name the file of an image.

        Args:
            image_id: Id of the image.

        Returns:
            Its path, whether it exists or not.
        """
        return self.folder / f'{image_id}{self.suffix}'

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """List what is still to be made.

        Args:
            image_ids: Ids of all images of the export.

        Returns:
            Those without a file, in the same order.
        """
        there = set(os.listdir(self.folder))
        return [image_id for image_id in image_ids if f'{image_id}{self.suffix}' not in there]

    def _compare(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f'{path} is no JSON: {error}. Give a new folder.') from error
        if found == self.settings:
            return
        if not isinstance(found, dict):
            raise ValueError(f'{path} holds no settings of an export. Give a new folder.')
        keys = sorted(found.keys() | self.settings.keys())
        differences = [
            f'{key}: {found.get(key)!r} there, {self.settings.get(key)!r} now'
            for key in keys
            if found.get(key) != self.settings.get(key)
        ]
        raise ValueError(
            f'{self.folder} holds an export with other settings ({"; ".join(differences)}): give '
            'a new folder, or the settings of the old one to go on with it'
        )


def hash_file(path: str | os.PathLike[str]) -> str:
    """Identify a file by its content.

    Args:
        path: The file.

    Returns:
        First 16 hexadecimal digits of its SHA-256.
    """
    return hash_sha256(path)[:16]
