"""Label images for AffinityNet: where dense CRFs over exported CAMs leave no doubt.

Needs the optional dense CRF (`pip install pydensecrf2==1.1`). An interrupted run goes on where it
stopped.
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction
from mmengine.fileio import list_from_file

sys.path.append(str(Path(__file__).resolve().parents[1]))

import mmdscnet  # noqa: F401
from mmdscnet.apis import make_affinity_labels
from mmdscnet.datasets import voc_palette
from mmdscnet.pseudo_labels import read_dense_crf


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cams', help='folder that tools/export_cams.py wrote')
    parser.add_argument('--images', required=True, help='folder of the images, <id>.jpg')
    parser.add_argument('--out', required=True, help='folder of the .png files')
    parser.add_argument(
        '--split', help='file of image ids, one a line; default: all images that have CAMs'
    )
    parser.add_argument(
        '--alphas',
        type=float,
        nargs=2,
        default=(4.0, 24.0),
        metavar=('LOW', 'HIGH'),
        help='exponents of the background (1 - max)^alpha; default: those of SEAM',
    )
    parser.add_argument(
        '--crf',
        nargs='*',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='settings of the dense CRF, such as bilateral_sxy=50; default: those of AffinityNet, '
        'which fit images of 500 pixels',
    )
    parser.add_argument('--jobs', type=int, default=1, help='images at a time')
    return parser.parse_args()


def read_split(path: str) -> list[str]:
    """Read which images to label.

    Args:
        path: File of image ids.

    Returns:
        The ids, without empty lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no id.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'--split={path} is not a file: give its path seen from the current folder'
        )
    ids = [line.strip() for line in list_from_file(path) if line.strip()]
    if not ids:
        raise ValueError(f'--split={path} is empty: write an image id a line, or leave it out')
    return ids


def main() -> None:
    """Label as the command line says."""
    args = parse_args()
    written = make_affinity_labels(
        args.cams,
        args.images,
        args.out,
        voc_palette(256),
        alphas=tuple(args.alphas),
        crf=read_dense_crf(args.crf),
        num_processes=args.jobs,
        image_ids=args.split and read_split(args.split),
    )
    print(f'\n{written} label maps written to {args.out}')


if __name__ == '__main__':
    main()
