"""What README.md says of the tree and of configs is held against them."""

import re
import textwrap

import pytest
from mmengine.config import Config


@pytest.fixture
def readme(repository):
    return (repository / 'README.md').read_text(encoding='utf-8')


def test_named_files_exist(readme, repository):
    names = re.findall(r'(?:configs|tools|requirements)/[\w./-]+\.(?:py|sh|txt)', readme)
    names += [f'mmdscnet/{name}' for name in re.findall(r'\| .*`((?:\w+/)+\w+\.py)`', readme)]
    found = [name for name in names if not name.startswith(('mmdscnet/cam', 'mmdscnet/dscnet'))]
    assert len(found) > 20
    assert [name for name in found if not (repository / name).is_file()] == []


def test_no_placeholder_is_left(readme):
    assert re.findall(r'@[A-Z]+@', readme) == []


def test_config_for_own_images_moves_every_loader(readme, repository, tmp_path):
    snippet = readme.split('A config for it')[1].split(':\n\n', 1)[1].split('\n\n')[0]
    text = textwrap.dedent(snippet).replace("'configs/", f"'{repository}/configs/")
    (tmp_path / 'own.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'own.py')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.data_root == 'my_data'
        assert len(dataset.metainfo.classes) == cfg.model.decode_head.num_classes
    assert cfg.train_dataloader.dataset.ann_file.endswith('/train.txt')
