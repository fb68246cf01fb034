from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdscnet.engine import RankAgreementHook, rank_agreement_hook


@pytest.fixture(autouse=True)
def default_scope():
    init_default_scope('mmseg')


@pytest.fixture
def runner(build_dataset):
    loader = SimpleNamespace(dataset=build_dataset())
    return SimpleNamespace(cfg=Config(dict(seed=0)), train_dataloader=loader)


def test_single_process_reads_nothing():
    RankAgreementHook().before_train(None)


def test_ranks_compare_config_and_images(runner, monkeypatch):
    compared = []
    monkeypatch.setattr(rank_agreement_hook, 'get_world_size', lambda: 2)
    monkeypatch.setattr(rank_agreement_hook, 'check_same_config', compared.append)
    monkeypatch.setattr(
        rank_agreement_hook, 'check_ranks_agree', lambda *args: compared.append(args)
    )
    RankAgreementHook().before_train(runner)
    config, (what, images) = compared
    assert config is runner.cfg
    assert what == 'training images'
    assert len(images) == 7
    assert images['image 0'].startswith('JPEGImages/a.jpg ')
