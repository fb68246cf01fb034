"""Read image-level labels from the forms in which they are found, and check them.

Whatever the source, the result is one dict ``image id -> names of its classes``.
"""

import csv
import difflib
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mmdscnet.atomic_write import atomic_path
from mmdscnet.datasets.file_checks import READER_THREADS, read_mask_ids

ImageLabels = dict[str, tuple[str, ...]]

BACKGROUND_ID = 0
IGNORED_ID = 255
CSV_HEADS = ('image', 'id', 'file', 'filename', 'name', 'path')
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
MARKS = {'0', '1'}
CONVERT = (
    'If you trust the file, load it where you trust it and save the labels with '
    'mmdscnet.datasets.write_image_labels as JSON.'
)


def read_image_labels(
    source: str | Path, classes: Sequence[str], image_ids: Sequence[str] | None = None
) -> ImageLabels:
    """Read the classes of each image.

    Sources, recognised by what they are:

    - ``.json``: ``{"classes": [...], "labels": {id: [names]}}`` or plain ``{id: [names]}``;
    - ``.txt``: a line an image, the id, white space, class names separated by commas; an id alone
      is an image with no class; ``#`` begins a comment;
    - ``.csv``: a line an image, its file name, of which folder and image suffix do not count, then
      class names, one a cell or several in a cell separated by ``;`` or ``,``. Cells are separated
      by commas, semicolons or tabs, as the file shows. A first line that begins with image, id,
      file, filename, name or path is a header; where it names classes and all other cells are 0, 1
      or blank, these say which classes the image has;
    - ``.npy``: the field's ``cls_labels.npy``, a pickled dict of multi-hot vectors in the order of
      ``classes``, read without running anything; ids that are numbers such as 2007000032 are VOC's
      2007_000032;
    - a folder of VOC ``.xml``: every object counts, the difficult ones too;
    - a folder of mask ``.png``: the ids that occur in the mask, background and 255 left out.

    Args:
        source: The file or folder.
        classes: Foreground names: columns 0 to K - 1 of a vector, ids 1 to K of a mask.
        image_ids: Of a folder, the images to read; without it all of them. Lists are read whole.

    Returns:
        The names of each image in the order of ``classes``; an empty tuple for no class.

    Raises:
        FileNotFoundError: If the source is missing, or an asked image has no file in a folder.
        ValueError: If the source is of another form, malformed, or names an unknown class.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), 'labels.txt')
        >>> _ = path.write_text('a dog, potted plant')
        >>> read_image_labels(path, ('potted plant', 'dog'))
        {'a': ('potted plant', 'dog')}
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(
            f'label source {source} does not exist. Give a .json, .txt, .csv or .npy file or a '
            'folder of .xml or .png files.'
        )
    if source.is_dir():
        return _read_folder(source, classes, image_ids)
    readers = {'.json': _read_json, '.txt': _read_txt, '.csv': _read_csv, '.npy': _read_npy}
    if source.suffix not in readers:
        raise ValueError(
            f"label source {source} ends in '{source.suffix}', which is none of {list(readers)}. "
            'Convert it to one of them.'
        )
    return readers[source.suffix](source, classes)


def read_label_classes(source: str | Path) -> tuple[str, ...] | None:
    """Read the class list that a JSON label file carries.

    Args:
        source: A label source of any form.

    Returns:
        Foreground names, or None if the source carries no class list.

    Raises:
        FileNotFoundError: If the source is missing.
        ValueError: If the JSON is malformed or its class list is.
    """
    source = Path(source)
    if source.suffix != '.json':
        return None
    return _split_json(source, _load_json(source))[0]


def write_image_labels(
    path: str | Path, labels: Mapping[str, Iterable[str]], classes: Sequence[str]
) -> None:
    """Write labels as JSON, whole or not at all.

    Args:
        path: The ``.json`` file to write.
        labels: Names of the classes of each image.
        classes: Foreground names.

    Raises:
        ValueError: If ``path`` does not end in .json or a label is no class.
    """
    path = Path(path)
    if path.suffix != '.json':
        raise ValueError(f"path {path} must end in .json, it ends in '{path.suffix}'.")
    ordered = {
        image_id: _in_class_order(names, classes, f'labels of image {image_id!r}')
        for image_id, names in labels.items()
    }
    text = json.dumps({'classes': list(classes), 'labels': ordered}, indent=1)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def to_multi_hot(names: Iterable[str], classes: Sequence[str]) -> np.ndarray:
    """Turn class names into a vector.

    Args:
        names: Classes of one image.
        classes: Foreground names.

    Returns:
        1 where the class is among the names and 0 elsewhere, float32, shape (K,).

    Raises:
        ValueError: If a name is no class.

    Example:
        >>> to_multi_hot(['dog'], ('cat', 'dog'))
        array([0., 1.], dtype=float32)
    """
    present = _in_class_order(names, classes, f'names {names!r}')
    return np.array([name in present for name in classes], dtype=np.float32)


def _in_class_order(names: Iterable[str], classes: Sequence[str], where: str) -> tuple[str, ...]:
    present = set(names)
    unknown = sorted(present - set(classes))
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], classes, n=1)
        guess = f' Did you mean {nearest[0]!r}?' if nearest else ''
        raise ValueError(
            f'{where}: unknown class {unknown[0]!r}; known are {list(classes)}.{guess} Correct the '
            'label, or add the class to metainfo.'
        )
    return tuple(name for name in classes if name in present)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 text: {error}. Save it as UTF-8.') from error


def _load_json(path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f'{path}: {key!r} appears twice. Keep one of the two entries.')
            result[key] = value
        return result

    try:
        content = json.loads(_read_text(path), object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{path}, line {error.lineno}: malformed JSON: {error.msg}. Correct that line.'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f'{path} holds a {type(content).__name__}; write an object {{id: [names]}} or '
            '{"classes": [...], "labels": {id: [names]}}.'
        )
    return content


def _split_json(
    path: Path, content: dict[str, Any]
) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    if not isinstance(content.get('labels'), dict):
        return None, content
    classes = content.get('classes')
    if classes is None:
        return None, content['labels']
    if not _is_list_of_names(classes) or len(set(classes)) < len(classes):
        raise ValueError(f'{path}: "classes" is {classes!r}; write a list of different names.')
    if 'background' in classes:
        raise ValueError(
            f'{path}: "classes" lists the background; take it out, the list is of foreground '
            'classes only.'
        )
    return tuple(classes), content['labels']


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _read_json(path: Path, classes: Sequence[str]) -> ImageLabels:
    own_classes, labels = _split_json(path, _load_json(path))
    # The order counts as well: it says which class a mask id stands for.
    if own_classes is not None and own_classes != tuple(classes):
        raise ValueError(
            f'{path}: "classes" is {list(own_classes)} but the data set has the foreground classes '
            f'{list(classes)}. Make both lists equal, order included.'
        )
    result = {}
    for image_id, names in labels.items():
        if not _is_list_of_names(names):
            raise ValueError(
                f'{path}: the labels of image {image_id!r} are {names!r}; write a list of class '
                'names.'
            )
        result[image_id] = _in_class_order(names, classes, f'{path}, image {image_id!r}')
    return result


def _read_txt(path: Path, classes: Sequence[str]) -> ImageLabels:
    result: ImageLabels = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        image_id, *rest = re.sub(r'(^|\s)#.*', '', line).split(maxsplit=1) or ['']
        if not image_id:
            continue
        where = f'{path}, line {number}, image {image_id!r}'
        names = [name.strip() for text in rest for name in text.split(',')]
        if '' in names:
            raise ValueError(
                f'{where}: malformed line {line!r}; write the id, white space, and class names '
                'separated by single commas.'
            )
        if image_id in result:
            raise ValueError(f'{where}: the image has a line already. Keep one of the two.')
        result[image_id] = _in_class_order(names, classes, where)
    return result


def _read_csv(path: Path, classes: Sequence[str]) -> ImageLabels:
    rows = _load_csv(path)
    first = next(iter(rows), 1)
    has_header = bool(rows) and rows[first][0].lower() in CSV_HEADS
    columns = rows.pop(first)[1:] if has_header else []
    if not _are_marks(rows, columns, classes):
        return _label_rows(path, rows, classes, partial(_split_cells, classes))
    where = f'{path}, line {first}, header'
    if len(_in_class_order(columns, classes, where)) < len(columns):
        raise ValueError(f'{where}: {columns} has a class twice. Keep one of its columns.')
    return _label_rows(path, rows, classes, partial(_marked_columns, columns))


def _load_csv(path: Path) -> dict[int, list[str]]:
    text = _read_text(path)
    reader = csv.reader(
        io.StringIO(text), delimiter=_find_separator(text), skipinitialspace=True, strict=True
    )
    rows = {}
    line = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            if cells:
                rows[line] = cells
            # A quoted cell may run over several lines.
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f'{path}, line {line}: malformed CSV: {error}. Correct the quotes of that line.'
        ) from error
    return rows


def _find_separator(text: str) -> str:
    unquoted = re.sub(r'"[^"]*"', '', text)
    separators = (''.join(re.findall('[\t,;]', line)) for line in unquoted.splitlines())
    first = next(filter(None, separators), ',')
    return '\t' if '\t' in first else first[0]


def _are_marks(
    rows: Mapping[int, Sequence[str]], columns: Sequence[str], classes: Sequence[str]
) -> bool:
    cells = {cell for row in rows.values() for cell in row[1:]} - {''}
    signs = [bool(cells & MARKS - set(classes)), cells <= MARKS, set(columns) <= set(classes)]
    # Two signs of the three, so that a slip in a header or a cell is told as what it is.
    return bool(columns) and sum(signs) >= 2


def _label_rows(
    path: Path,
    rows: Mapping[int, Sequence[str]],
    classes: Sequence[str],
    read_cells: Callable[[Sequence[str], str], list[str]],
) -> ImageLabels:
    result: ImageLabels = {}
    lines: dict[str, int] = {}
    for line, (file_name, *cells) in rows.items():
        image_id = _image_id_of_file(file_name, f'{path}, line {line}')
        where = f'{path}, line {line}, image {image_id!r}'
        if image_id in lines:
            raise ValueError(
                f'{where}: line {lines[image_id]} has the image already. Keep one line an image, '
                'with all its classes; images of different folders need different names.'
            )
        lines[image_id] = line
        result[image_id] = _in_class_order(read_cells(cells, where), classes, where)
    return result


def _image_id_of_file(file_name: str, where: str) -> str:
    # A table made on Windows has its backslashes.
    name = re.split(r'[\\/]', file_name)[-1]
    image_id = Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
    if not image_id or re.search('[\t,;]', image_id):
        raise ValueError(
            f'{where}: {file_name!r} where the file name of an image belongs. Begin the line with '
            'the name, and separate the cells as the lines above do.'
        )
    return image_id


def _split_cells(classes: Sequence[str], cells: Sequence[str], where: str) -> list[str]:
    names = [
        name.strip()
        for cell in cells
        for name in ([cell] if cell in classes else re.split('[,;]', cell))
    ]
    marks = MARKS & set(names) - set(classes)
    if marks:
        raise ValueError(
            f'{where}: {min(marks)!r} where class names belong. Columns of 0 and 1 need a header: '
            "'image', then the class of each column."
        )
    return [name for name in names if name]


def _marked_columns(columns: Sequence[str], cells: Sequence[str], where: str) -> list[str]:
    odd = [cell for cell in cells if cell not in {'', *MARKS}]
    if odd:
        raise ValueError(
            f'{where}: value {odd[0]!r} where only 0, 1 and blank cells are labels. Correct it.'
        )
    if len(cells) > len(columns):
        raise ValueError(
            f'{where}: {len(cells)} labels where the header names {len(columns)} classes. Name the '
            'class of each column, or take the labels out.'
        )
    return [name for name, cell in zip(columns, cells, strict=False) if cell == '1']


class _PickledDtype:
    """Stands for a dtype while label arrays are unpickled; numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.byte_order = '='

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1].replace('|', '=')

    def decode(self, content: bytes) -> np.ndarray:
        dtype = np.dtype(self.byte_order + self.code)
        if dtype.kind not in 'biuf':
            raise pickle.UnpicklingError(f'it holds {dtype} where label arrays hold numbers')
        return np.frombuffer(content, dtype)


class _PickledArray:
    """Stands for an array while label arrays are unpickled."""

    def __init__(self, *_: Any) -> None:
        self.values: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, content = state
        # numpy pickles an array of objects as a list, one of numbers as its bytes.
        is_list = isinstance(content, list)
        self.values = content if is_list else dtype.decode(content).reshape(shape)


def _pickled_scalar(dtype: _PickledDtype, content: bytes) -> Any:
    return dtype.decode(content)[0].item()


class _LabelUnpickler(pickle.Unpickler):
    """Unpickles dicts of numeric arrays and nothing that could run code.

    The few names that numpy writes lead to stand-ins, because numpy's own ``__setstate__`` trusts
    what it is given and can be made to read foreign memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved numpy.core to numpy._core.
        stand_ins: dict[str, Any] = {
            'numpy.core.multiarray._reconstruct': _PickledArray,
            'numpy.core.multiarray.scalar': _pickled_scalar,
            'numpy.ndarray': _PickledArray,
            'numpy.dtype': _PickledDtype,
        }
        wanted = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')
        if wanted not in stand_ins:
            raise pickle.UnpicklingError(
                f'it asks for {module}.{name}, which label arrays do not need and which could run '
                'code'
            )
        return stand_ins[wanted]


def _unpickle_labels(path: Path) -> dict[Any, Any]:
    with path.open('rb') as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(file)
            if not dtype.hasobject or shape != ():
                raise ValueError(f'it holds an array {dtype}{list(shape)}, not one pickled dict')
            array = _LabelUnpickler(file).load()
            labels = array.values[0]
        # A damaged or hostile pickle may raise anything at all.
        except Exception as error:
            raise ValueError(f'{path} is no readable label file: {error}. {CONVERT}') from error
    if not isinstance(labels, dict):
        raise ValueError(
            f'{path} holds a {type(labels).__name__}, not a dict of image id and vector. {CONVERT}'
        )
    return labels


def _image_id(path: Path, key: Any) -> str:
    if isinstance(key, str):
        return key
    # VOC ids read as numbers: 2007_000032 became 2007000032.
    if isinstance(key, int) and re.fullmatch(r'20\d{8}', str(key)):
        return f'{str(key)[:4]}_{str(key)[4:]}'
    raise ValueError(f'{path}: the image id {key!r} tells no file name. {CONVERT}')


def _read_npy(path: Path, classes: Sequence[str]) -> ImageLabels:
    result: ImageLabels = {}
    for key, array in _unpickle_labels(path).items():
        image_id = _image_id(path, key)
        vector = getattr(array, 'values', None)
        if not isinstance(vector, np.ndarray) or vector.shape != (len(classes),):
            found = f'shape {list(vector.shape)}' if isinstance(vector, np.ndarray) else repr(array)
            raise ValueError(
                f'{path}, image {image_id!r}: {found} where a vector of {len(classes)} numbers, '
                'one a foreground class, belongs. Use the list of the same classes.'
            )
        odd = vector[(vector != 0) & (vector != 1)]
        if odd.size:
            raise ValueError(
                f'{path}, image {image_id!r}: value {odd[0]} where only 0 and 1 are labels. Round '
                'scores to 0 or 1 first.'
            )
        if image_id in result:
            raise ValueError(f'{path}: image {image_id!r} appears twice. Keep one of the two.')
        result[image_id] = tuple(classes[k] for k in np.flatnonzero(vector).tolist())
    return result


def _read_folder(
    folder: Path, classes: Sequence[str], image_ids: Sequence[str] | None
) -> ImageLabels:
    suffixes = {Path(name).suffix for name in os.listdir(folder)} & {'.xml', '.png'}
    if len(suffixes) != 1:
        raise ValueError(
            f'label folder {folder} holds {sorted(suffixes) or "neither .xml nor .png"} files; '
            'give a folder with VOC .xml or with mask .png files, one of the two kinds.'
        )
    suffix = suffixes.pop()
    if image_ids is None:
        image_ids = sorted(path.stem for path in folder.glob(f'*{suffix}'))
    read_file: Callable[..., tuple[str, ...]] = {'.xml': _read_xml, '.png': _read_mask}[suffix]
    paths = [folder / f'{image_id}{suffix}' for image_id in image_ids]
    with ThreadPoolExecutor(READER_THREADS) as pool:
        labels = pool.map(partial(_read_label_file, read_file, classes), paths)
        return dict(zip(image_ids, labels, strict=True))


def _read_label_file(
    read_file: Callable[..., tuple[str, ...]], classes: Sequence[str], path: Path
) -> tuple[str, ...]:
    try:
        return read_file(path, classes)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'image {path.stem!r} has no label file {path}. Add the file, or take the id out of '
            'the split file.'
        ) from error


def _read_xml(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f'{path} is no readable XML: {error}. Copy the file again.') from error
    names = [(item.findtext('name') or '').strip() for item in root.findall('object')]
    return _in_class_order(names, classes, str(path))


def _read_mask(path: Path, classes: Sequence[str]) -> tuple[str, ...]:
    ids = [i for i in read_mask_ids(path)[0].tolist() if i not in (BACKGROUND_ID, IGNORED_ID)]
    outside = [i for i in ids if i > len(classes)]
    if outside:
        raise ValueError(
            f'mask {path} holds the ids {outside} but there are only {len(classes)} foreground '
            'classes. Give all classes in metainfo, or correct the mask.'
        )
    return tuple(classes[i - 1] for i in ids)
