import hashlib

import torch
from mmengine.config import Config
from torch import nn

from mmdscnet import provenance
from mmdscnet.provenance import (
    describe_code,
    flatten_config,
    hash_config,
    hash_sha256,
    hash_weights,
)


def test_code_is_known_by_its_commit():
    code = describe_code()
    assert code['mmdscnet']
    assert code['commit'] is None or len(code['commit'].removesuffix('+changes')) == 40


def test_code_outside_a_clone_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'mmdscnet' / 'provenance.py'))
    assert describe_code()['commit'] is None


def test_config_is_known_by_what_decides_the_result():
    cfg = Config(dict(model=dict(type='A'), work_dir='here'))
    again = Config(dict(model=dict(type='A'), work_dir='there', resume=True, launcher='pytorch'))
    assert hash_config(cfg) == hash_config(again)
    assert hash_config(cfg) != hash_config(Config(dict(model=dict(type='B'))))


def test_weights_are_known_by_every_parameter_and_buffer():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = hash_weights(model)
    assert hash_weights(model) == before
    model[1].num_batches_tracked += 1
    moved = hash_weights(model)
    assert moved != before
    with torch.no_grad():
        model[0].bias[1] += 1e-6
    assert hash_weights(model) not in (before, moved)
    assert hash_weights(model.bfloat16()) != before


def test_file_is_known_by_its_content(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / 'a').write_bytes(content)
    assert hash_sha256(tmp_path / 'a') == hashlib.sha256(content).hexdigest()


def test_config_is_spelt_out_to_its_last_value():
    config = dict(model=dict(type='A', sizes=(1, 2), parts=[dict(n=1), dict(n=2)], none={}))
    assert flatten_config(config) == {
        'model.type': "'A'",
        'model.sizes': '(1, 2)',
        'model.parts.0.n': '1',
        'model.parts.1.n': '2',
        'model.none': '{}',
    }
