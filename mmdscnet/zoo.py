"""Checkpoints by address: from the package, a cache, a folder or the web, checked and read safely.

Importing the package makes ``mmdscnet://`` an address for everything that loads by mmengine:
``load_from``, ``init_cfg=dict(type='Pretrained', checkpoint=...)`` and the stock tools of mmseg.

==================================== ===========================================================
``mmdscnet://dscnet_shapes``         A model of ``configs/*/metafile.yml``, by its name.
``mmdscnet://mine-1a2b3c4d.pth``     A file of a zoo of anybody's own, as
                                     ``tools/misc/publish_model.py`` names it.
``mmdscnet://https://host/mine.pth`` A URL.
``mmdscnet:///folder/mine.pth``      A file, by its absolute path.
==================================== ===========================================================

:func:`fetch` also takes URLs and files as they are. Models and files of zoos are looked for in the
package, in the cache of ``torch.hub`` (``$TORCH_HOME/hub/checkpoints``, which serves as a mirror
where there is no network) and in the folder or below the URL that ``MMDSCNET_ZOO`` names.

The SHA-256 of a file is checked wherever it comes from, as far as it is known: in full from the
metafile, or from ``#sha256=<64 digits>`` at the end of an address; in part from a name that ends in
``-<8 to 64 digits>.pth``. Weights are read without running code that a file might carry.

Note:
    mmengine's own ``http://`` and ``https://`` stay as they are, without any check, in configs and
    in stock tools. The names of OpenMMLab's published checkpoints carry the hash of another file
    than the published one, so that a check in all places would break what works for others.
    Our tools and APIs do check a URL; for such a file give its hash, or the file itself.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from filelock import FileLock
from mmengine.fileio import load as read_yaml
from mmengine.runner import CheckpointLoader

from mmdscnet.atomic_write import atomic_path
from mmdscnet.download import download
from mmdscnet.provenance import hash_sha256

SCHEME = 'mmdscnet://'
WEB = ('http://', 'https://')
ZOO_VARIABLE = 'MMDSCNET_ZOO'
PACKAGE = Path(__file__).parent
SHIPPED_FOLDER = PACKAGE / 'checkpoints'
INDEX_FOLDER = PACKAGE / '.mim'

NAMED_DIGEST = re.compile(r'-([0-9a-f]{8,64})\.pth$')
GIVEN_DIGEST = re.compile(r'#sha256=([0-9a-fA-F]*)$')
SAFE_NAME = re.compile(r'[\w%+~-][\w.%+~-]*')


class Wanted(NamedTuple):
    """A file that is looked for.

    Attributes:
        name: Its name in the package, the cache and a zoo.
        digest: Its SHA-256, or the first digits of it, hexadecimal; empty if nothing is known.
        url: Where it is published; None if that is not known.
    """

    name: str
    digest: str
    url: str | None


def fetch(address: str | os.PathLike[str]) -> Path:
    """Bring a checkpoint to this machine, unless it is there.

    All processes of a machine may call this at once: one brings the file, the others wait. A file
    gets its name once it is whole and checked, also if a process is killed.

    Args:
        address: Address of this module, a URL, or a file.

    Returns:
        The file.

    Raises:
        ConnectionError: If a download fails.
        FileNotFoundError: If the file is nowhere.
        OSError: If the cache cannot be written.
        ValueError: If the address is of another kind, a model is not known, or the file is not
            the one that is asked for.
    """
    target, digest = _split_digest(os.fspath(address))
    is_ours = target.startswith(SCHEME)
    target = target.removeprefix(SCHEME)
    if target.startswith(WEB):
        return _fetch_to_cache(_read_url(target, digest))
    if is_ours and not os.path.isabs(target):
        return _fetch_published(_read_name(target, digest))
    if '://' in target:
        raise ValueError(
            f'address {os.fspath(address)!r} is of another zoo: give a file, a URL, or an address '
            f'that begins with {SCHEME}'
        )
    return _check_file(Path(target).expanduser(), digest, 'copy it again, or mend the hash')


def checked_address(checkpoint: str) -> str:
    """Let a URL be loaded by this module, which checks it, and not by mmengine.

    Args:
        checkpoint: File or address.

    Returns:
        Address of this module for a URL; anything else as it is.
    """
    return SCHEME + checkpoint if checkpoint.startswith(WEB) else checkpoint


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_mmdscnet(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a checkpoint of an address, for mmengine, which takes its name for the log from here.

    Args:
        filename: Address.
        map_location: Where tensors shall be, as for ``torch.load``.

    Returns:
        The checkpoint.

    Raises:
        ValueError: If the file is no checkpoint, or would run code; or as :func:`fetch` does.
    """
    return read_checkpoint(fetch(filename), map_location)


def read_checkpoint(
    path: str | os.PathLike[str], map_location: Any = None, name: str | None = None
) -> dict[str, Any]:
    """Read a checkpoint without running code that it might carry.

    Args:
        path: The file.
        map_location: Where tensors shall be, as for ``torch.load``.
        name: How to call it in an error; None for its path.

    Returns:
        The checkpoint.

    Raises:
        ValueError: If it is damaged, is no checkpoint, or would run code.
    """
    name = os.fspath(path) if name is None else name
    _refuse_page(Path(path), name)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # Damaged pickles raise about anything.
        reason = str(error)
        asked = re.search(r'GLOBAL (\S+)|asks for (attribute .*?), which', reason)
        if asked:
            raise ValueError(
                f'{name} would run code: it asks for {(asked[1] or asked[2]).rstrip(".")}, which '
                'weights do not need. Do not load it otherwise unless you trust its author, and '
                'ask for the weights alone, as tools/misc/publish_model.py writes them'
            ) from error
        raise ValueError(
            f'{name} is damaged or no checkpoint, download or copy it again: {reason}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{name} holds a {type(checkpoint).__name__} and no weights: give a checkpoint of a '
            'training, or a state_dict'
        )
    return checkpoint


def list_models() -> dict[str, dict[str, Any]]:
    """List the models of the metafiles.

    Returns:
        The entries by their names.

    Raises:
        FileNotFoundError: If the package came without its configs.
    """
    index = INDEX_FOLDER / 'model-index.yml'
    if not index.is_file():
        raise FileNotFoundError(
            f'{index} is missing, so no model is known by name: install mmdscnet again, or run it '
            'from a clone whose symbolic links are kept'
        )
    metafiles = [read_yaml(INDEX_FOLDER / path) for path in read_yaml(index)['Import']]
    return {entry['Name']: entry for metafile in metafiles for entry in metafile['Models']}


def find_model(name: str) -> dict[str, Any]:
    """Find the entry of a model.

    Args:
        name: Its name, or an address that ends in it.

    Returns:
        The entry of the metafile.

    Raises:
        ValueError: If there is no such model.
    """
    models, name = list_models(), name.removeprefix(SCHEME)
    if name not in models:
        raise ValueError(
            f'{SCHEME}{name} is not known, there are: {", ".join(sorted(models)) or "none"}. Give '
            'one of these, or a file of a zoo with the hash in its name, such as '
            f'{SCHEME}{name}-1a2b3c4d.pth'
        )
    return models[name]


def find_config(name: str) -> Path:
    """Find the config of a model.

    Args:
        name: Name of the model, or an address that ends in it.

    Returns:
        File of its config.

    Raises:
        ValueError: If there is no such model.
    """
    return INDEX_FOLDER / str(find_model(name)['Config'])


def name_file(name: str, digest: str) -> str:
    """Name the file of a published model.

    Args:
        name: Name of the model.
        digest: SHA-256 of the file, hexadecimal.

    Returns:
        The name, with the first eight digits.
    """
    return f'{name}-{digest[:8]}.pth'


def _split_digest(address: str) -> tuple[str, str]:
    given = GIVEN_DIGEST.search(address)
    if given is None:
        return address, ''
    if len(given[1]) != 64:
        raise ValueError(
            f'address {address!r} has a hash of {len(given[1])} digits: give all 64 of the '
            'SHA-256, as sha256sum prints them'
        )
    return address[: given.start()], given[1].lower()


def _read_url(url: str, digest: str) -> Wanted:
    """Decide how a URL is kept: two that share a name must not be taken for each other."""
    name = urlsplit(url).path.rpartition('/')[2]
    if not SAFE_NAME.fullmatch(name):
        raise ValueError(
            f'URL {url!r} does not end in the name of a file: give the address of the checkpoint '
            'itself, such as https://host/folder/name.pth'
        )
    named = NAMED_DIGEST.search(name)
    stem, suffix = os.path.splitext(name)
    if digest:
        is_said = named is not None and digest.startswith(named[1])
        return Wanted(name if is_said else f'{stem}-{digest[:8]}{suffix}', digest, url)
    if named:
        return Wanted(name, named[1], url)
    return Wanted(f'{stem}.{hashlib.sha256(url.encode()).hexdigest()[:8]}{suffix}', '', url)


def _read_name(name: str, digest: str) -> Wanted:
    """Read what stands behind our scheme: a model, or a file of a zoo."""
    if not name.endswith('.pth'):
        entry = find_model(name)
        url = entry['Weights'] if entry['Weights'].startswith(WEB) else None
        return Wanted(name_file(name, entry['SHA256']), entry['SHA256'], url)
    named = NAMED_DIGEST.search(name)
    if named is None or not SAFE_NAME.fullmatch(name):
        raise ValueError(
            f'{SCHEME}{name} is not the name of a published file: give one that ends in a hyphen, '
            'at least 8 digits of its SHA-256 and .pth, as tools/misc/publish_model.py writes it, '
            'without a folder'
        )
    return Wanted(name, digest or named[1], None)


def _fetch_published(wanted: Wanted) -> Path:
    shipped = SHIPPED_FOLDER / wanted.name
    if shipped.is_file():
        return _check_file(shipped, wanted.digest, 'install mmdscnet again')
    zoo = os.environ.get(ZOO_VARIABLE, '')
    if zoo.startswith(WEB):
        return _fetch_to_cache(wanted._replace(url=f'{zoo.rstrip("/")}/{wanted.name}'))
    if not zoo or _is_right(_cache_folder() / wanted.name, wanted.digest):
        return _fetch_to_cache(wanted)
    folder = Path(zoo).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{ZOO_VARIABLE}={zoo!r} is neither a folder nor a URL: set it to a folder of '
            'published checkpoints, or to what stands before their names in https://...'
        )
    if not (folder / wanted.name).is_file():
        raise FileNotFoundError(
            f'{wanted.name} is not in {folder}, which {ZOO_VARIABLE} names: put it there, or '
            'name another folder or URL'
        )
    return _check_file(folder / wanted.name, wanted.digest, 'publish or copy it again')


def _fetch_to_cache(wanted: Wanted) -> Path:
    path = _cache_folder() / wanted.name
    if _is_right(path, wanted.digest):
        return path
    if wanted.url is None:
        damage = f'; the one in the cache is damaged ({path})' if path.is_file() else ''
        raise FileNotFoundError(
            f'{wanted.name} is neither in the package nor in the cache{damage}: set '
            f'{ZOO_VARIABLE} to the URL or folder of the zoo that has it, or put the file into '
            f'{path.parent}'
        )
    with _one_at_a_time(path):
        # Another process may have brought it meanwhile.
        if not _is_right(path, wanted.digest):
            if path.is_file():
                warnings.warn(
                    f'{path} is not the file with SHA-256 {wanted.digest}...: it is replaced',
                    stacklevel=2,
                )
            _download_to(path, wanted.url, wanted.digest)
    return path


def _download_to(path: Path, url: str, digest: str) -> None:
    with atomic_path(path) as temporary:
        has_part = _take_leftovers(path, temporary, digest)
        download(url, temporary)
        if has_part and not _is_right(temporary, digest):
            # What was left over was not the beginning of this file.
            temporary.unlink()
            download(url, temporary)
        _refuse_page(temporary, url)
        if digest:
            _check_digest(
                temporary,
                digest,
                url,
                'it was changed or damaged on its way, and nothing of it is kept. Try again, or '
                'ask its author. Names of OpenMMLab carry the hash of another file: for these, '
                'and if you trust it, append #sha256= and its 64 digits to the address',
            )
        else:
            read_checkpoint(temporary, 'cpu', url)


def _take_leftovers(path: Path, temporary: Path, digest: str) -> bool:
    """Go on with what a killed process left, if the hash can tell whether that went well."""
    for leftover in path.parent.glob(f'.{escape(path.name)}.*.tmp'):
        if digest:
            os.replace(leftover, temporary)
        else:
            leftover.unlink()
    return temporary.is_file()


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f'.{path.name}.lock'))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise OSError(
            error.errno,
            f'{path.parent}, the cache of checkpoints, cannot be written: {error.strerror}. Set '
            'TORCH_HOME to another folder',
        ) from error
    try:
        yield
    finally:
        lock.release()


def _cache_folder() -> Path:
    return Path(torch.hub.get_dir()) / 'checkpoints'


def _is_right(path: Path, digest: str) -> bool:
    return path.is_file() and (not digest or hash_sha256(path).startswith(digest))


def _check_file(path: Path, digest: str, mend: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} is not a file: mend the path')
    if digest:
        _check_digest(path, digest, str(path), mend)
    return path


def _check_digest(path: Path, digest: str, name: str, mend: str) -> None:
    found = hash_sha256(path)
    if not found.startswith(digest):
        more = '...' if len(digest) < 64 else ''
        raise ValueError(f'{name} has the SHA-256 {found} and not {digest}{more}: {mend}')


def _refuse_page(path: Path, name: str) -> None:
    with path.open('rb') as file:
        head = file.read(256).lstrip().lower()
    if head.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise ValueError(
            f'{name} is a web page and no checkpoint: give the address of the file itself, and '
            'see whether the server wants a login'
        )
