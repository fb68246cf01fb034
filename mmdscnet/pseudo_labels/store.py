"""A folder of pseudo labels in versions, of which one is current and each is whole or not used.

    store/
      v0001/          a version: palette PNGs, export.json (how they are made), manifest.json
      v0002/          without a manifest: not complete; a run with the same settings goes on with it
      current -> v0001

What can be killed at any moment must not leave half a version behind. Hence each file is written
under a temporary name and renamed; the manifest is written when all label maps are there, and makes
a version complete; the link ``current`` is then replaced in one rename. A store has one writer at a
time, of one or more ranks, and any number of readers.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from mmdscnet.atomic_write import atomic_path
from mmdscnet.pseudo_labels.export_folder import SETTINGS_FILE, ExportFolder
from mmdscnet.pseudo_labels.label_map_files import open_label_map
from mmdscnet.pseudo_labels.palette_png import VOID_ID, write_palette_png

MANIFEST_FILE = 'manifest.json'
CURRENT = 'current'
READER_THREADS = 8
VERSION_NAME = re.compile(r'v(\d{4,})')
MEND = 'Delete the folder and label the images again, or use another version of the store'


class StoreVersion(NamedTuple):
    """A complete version of a store.

    Attributes:
        folder: Folder of its label maps, ``<image id>.png``.
        manifest: What :meth:`StoreDraft.publish` wrote: ``version``, ``classes``, ``palette``,
            ``settings``, ``pixels`` (number of pixels by class name, and ``void``), ``skipped``
            (reason by image id) and ``files`` (SHA-256 by image id).
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def number(self) -> int:
        """Number of the version, from 1."""
        return self.manifest['version']

    @property
    def coverage(self) -> float:
        """Share of the pixels that are not void, in [0, 1]."""
        pixels = self.manifest['pixels']
        return 1 - pixels['void'] / max(1, sum(pixels.values()))

    def shares(self) -> dict[str, float]:
        """Share of the pixels by class name, and of ``void``, in [0, 1]."""
        pixels = self.manifest['pixels']
        total = max(1, sum(pixels.values()))
        return {name: count / total for name, count in pixels.items()}

    def summarize(self) -> str:
        """Say how much there is of what, in a line or more: what tools and logs show."""
        shares = ', '.join(f'{name} {100 * share:.2f}' for name, share in self.shares().items())
        lines = [
            f'pseudo labels {self.folder}: {len(self.manifest["files"])} images, '
            f'{100 * self.coverage:.2f} % of the pixels not void; shares (%): {shares}'
        ]
        skipped = self.manifest['skipped'].items()
        return '\n'.join(lines + [f'skipped {image_id}: {reason}' for image_id, reason in skipped])

    def ids_with_masks(self, masks: str | os.PathLike[str] | None) -> list[str]:
        """List the images that can be judged.

        Args:
            masks: Folder of the masks, ``<image id>.png``; None if there is none.

        Returns:
            Ids of the images that have a mask, in the order of the manifest.
        """
        there = set(os.listdir(masks)) if masks and Path(masks).is_dir() else set()
        return [image_id for image_id in self.manifest['files'] if f'{image_id}.png' in there]

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse another class list than that of the label maps.

        Args:
            classes: Names of the classes, background first.

        Raises:
            ValueError: If it differs.
        """
        if list(classes) != self.manifest['classes']:
            raise ValueError(
                f'{self.folder} was written for the classes {self.manifest["classes"]} and is used '
                f'for {list(classes)}: an id would change its meaning. Label the images again with '
                'these classes, in a folder of their own'
            )

    def verify(self) -> None:
        """Compare the label maps with the manifest, byte by byte.

        Raises:
            ValueError: If a label map is missing, differs, or is not in the manifest.
        """
        there = {path.stem for path in self.folder.glob('*.png')}
        files = self.manifest['files']
        _refuse(self.folder, 'are missing', sorted(files.keys() - there))
        _refuse(self.folder, 'are not in its manifest', sorted(there - files.keys()))
        with ThreadPoolExecutor(READER_THREADS) as pool:
            digests = pool.map(lambda image_id: _digest(self._path(image_id)), files)
            pairs = zip(files.items(), digests, strict=True)
            changed = [image_id for (image_id, digest), found in pairs if digest != found]
        _refuse(self.folder, 'are not those of its manifest', changed)

    def digest(self) -> str:
        """Identify the version by its content: SHA-256 of the manifest."""
        return _digest(self.folder / MANIFEST_FILE)

    def _path(self, image_id: str) -> Path:
        return self.folder / f'{image_id}.png'


class StoreDraft(NamedTuple):
    """A version on its way.

    Attributes:
        store: Its store.
        number: Its number.
        export: Its folder.
        classes: Names of the classes, background first.
        palette: Their colours.
    """

    store: 'PseudoLabelStore'
    number: int
    export: ExportFolder
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]

    def write(self, image_id: str, label_map: np.ndarray) -> None:
        """Write the label map of an image, whole or not at all.

        Args:
            image_id: Id of the image.
            label_map: Class ids, 255 for void, uint8, shape (H, W).
        """
        write_palette_png(self.export.path(image_id), label_map, self.palette)

    def publish(
        self, image_ids: Sequence[str], skipped: Mapping[str, str] | None = None
    ) -> StoreVersion:
        """Complete the version and make it current. One process calls it, when all have written.

        Args:
            image_ids: All images of the version.
            skipped: Reason by id of those images that were left out on purpose.

        Returns:
            The version.

        Raises:
            ValueError: If a label map is missing, damaged, not of the classes, or of none of the
                images.
        """
        if (self.export.folder / MANIFEST_FILE).is_file():
            version = read_version(self.export.folder)
            version.verify()
            self.store.make_current(self.number)
            return version
        skipped = dict(skipped or {})
        wanted = [image_id for image_id in image_ids if image_id not in skipped]
        missing = self.export.missing(wanted)
        if missing:
            raise ValueError(
                f'{self.export.folder} lacks {len(missing)} of {len(wanted)} label maps, the first '
                f'is {missing[0]!r}: run the same command again, it goes on where it stopped'
            )
        extra = {path.stem for path in self.export.folder.glob('*.png')}.difference(wanted)
        _refuse(self.export.folder, 'are of none of its images', sorted(extra))
        with ThreadPoolExecutor(READER_THREADS) as pool:
            digests = list(pool.map(_digest, map(self.export.path, wanted)))
            pixels = sum(pool.map(_count, map(self.export.path, wanted)), np.zeros(256, np.int64))
        manifest = dict(
            version=self.number,
            created=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            classes=list(self.classes),
            palette=[list(map(int, colour)) for colour in self.palette],
            settings=self.export.settings,
            pixels=self._name_pixels(pixels),
            skipped=skipped,
            files=dict(zip(wanted, digests, strict=True)),
        )
        self.remove_leftovers()
        with atomic_path(self.export.folder / MANIFEST_FILE) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1), encoding='utf-8')
        self.store.make_current(self.number)
        return read_version(self.export.folder)

    def remove_leftovers(self) -> None:
        """Remove what writers that were killed left: links and files under temporary names."""
        for folder in (self.store.folder, self.export.folder):
            for leftover in folder.glob('.*.tmp'):
                if leftover.is_symlink() or leftover.is_file():
                    leftover.unlink()

    def _name_pixels(self, pixels: np.ndarray) -> dict[str, int]:
        ids = np.flatnonzero(pixels).tolist()
        outside = [i for i in ids if len(self.classes) <= i != VOID_ID]
        if outside:
            raise ValueError(
                f'{self.export.folder} has label maps with the ids {outside}, which are none of '
                f'the {len(self.classes)} classes: delete the folder and label the images again'
            )
        named = zip(self.classes, pixels.tolist(), strict=False)
        return {**dict(named), 'void': int(pixels[VOID_ID])}


class PseudoLabelStore:
    """Pseudo labels in versions.

    Args:
        folder: Folder of the store; made by the first version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def version_folder(self, number: int) -> Path:
        """Name the folder of a version, whether it exists or not."""
        return self.folder / f'v{number:04d}'

    def current(self) -> StoreVersion | None:
        """Read the current version.

        Returns:
            The version; None if none was ever completed, or its folder or manifest is deleted.

        Raises:
            ValueError: If its manifest is damaged.
        """
        link = self.folder / CURRENT
        return read_version(link.resolve()) if (link / MANIFEST_FILE).is_file() else None

    def begin(
        self,
        settings: Mapping[str, Any],
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
    ) -> StoreDraft:
        """Begin a version, or go on with the newest one of the same settings.

        A version of the same settings that is complete is given again, with nothing missing.

        Args:
            settings: Everything the label maps depend on, as JSON has it.
            classes: Names of the classes, background first.
            palette: One [red, green, blue] in 0..255 a class.

        Returns:
            The draft.

        Raises:
            ValueError: If the store holds label maps of other classes.
        """
        settings = json.loads(json.dumps({**settings, 'classes': list(classes)}))
        current = self.current()
        if current is not None:
            current.check_classes(classes)
        numbers = self.numbers()
        for number in reversed(numbers):
            if _read_settings(self.version_folder(number)) == settings:
                return self.open_draft(number, settings, classes, palette)
        return self._make_draft(max(numbers, default=0) + 1, settings, classes, palette)

    def open_draft(
        self,
        number: int,
        settings: Mapping[str, Any],
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
    ) -> StoreDraft:
        """Open a version that :meth:`begin` gave to another rank.

        Args:
            number: Its number.
            settings: As for :meth:`begin`.
            classes: As for :meth:`begin`.
            palette: As for :meth:`begin`.

        Returns:
            The draft.

        Raises:
            ValueError: If the version has other settings, as when the ranks differ.
        """
        settings = {**settings, 'classes': list(classes)}
        export = ExportFolder(self.version_folder(number), '.png', settings)
        return StoreDraft(self, number, export, classes, palette)

    def numbers(self) -> list[int]:
        """List the numbers of all versions, complete or not, ascending."""
        if not self.folder.is_dir():
            return []
        found = (VERSION_NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(match[1]) for match in found if match)

    def make_current(self, number: int) -> None:
        """Let readers see a complete version from now on.

        Args:
            number: Its number.
        """
        link, name = self.folder / CURRENT, self.version_folder(number).name
        # A store on a medium that is read-only by now can still be asked for what it has.
        if link.is_symlink() and os.readlink(link) == name:
            return
        with atomic_path(link) as temporary:
            temporary.symlink_to(name)

    def _make_draft(self, number: int, settings: Mapping[str, Any], *args: Any) -> StoreDraft:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob('.v*.tmp'):
            shutil.rmtree(leftover)
        # With its settings from the start, so that no version is ever of unknown origin.
        temporary = self.folder / f'.v{number:04d}.{uuid4().hex}.tmp'
        ExportFolder(temporary, '.png', settings)
        temporary.rename(self.version_folder(number))
        return self.open_draft(number, settings, *args)


def read_version(folder: str | os.PathLike[str]) -> StoreVersion:
    """Read a complete version.

    Args:
        folder: Its folder, such as ``store/v0001`` or ``store/current``.

    Returns:
        The version.

    Raises:
        FileNotFoundError: If there is no manifest, so that the version is not complete.
        ValueError: If the manifest is damaged.
    """
    path = Path(folder, MANIFEST_FILE)
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{folder} has no {MANIFEST_FILE}: it is no complete version of pseudo labels. Run the '
            'command that writes it again, it goes on where it stopped'
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} is damaged: {error}. {MEND}') from error
    keys = {'version', 'classes', 'palette', 'settings', 'pixels', 'skipped', 'files'}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise ValueError(f'{path} is no manifest of pseudo labels. {MEND}')
    return StoreVersion(Path(folder), manifest)


def _read_settings(folder: Path) -> Any:
    try:
        return json.loads((folder / SETTINGS_FILE).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _count(path: Path) -> np.ndarray:
    return np.asarray(open_label_map(path).histogram(), dtype=np.int64)


def _refuse(folder: Path, problem: str, image_ids: list[str]) -> None:
    if image_ids:
        raise ValueError(
            f'{folder}: {len(image_ids)} label maps {problem}, the first is '
            f'{image_ids[0]}.png. {MEND}'
        )
