from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import distributed

from mmdscnet import launch
from mmdscnet.launch import (
    build_runner,
    check_backbone_weights,
    check_checkpoint,
    enable_amp,
    enable_test_time_augmentation,
    find_checkpoint_to_resume,
    join_ranks,
    leave_together,
    prepare_cpu_launch,
    read_run_config,
    run_name,
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'cam' / 'tiny.py'
    path.parent.mkdir()
    path.write_text("model = dict(type='A', depth=1)\n")
    return str(path)


@pytest.fixture
def without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


@pytest.fixture
def with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)


def test_missing_config_error_names_the_path():
    with pytest.raises(FileNotFoundError, match=r"config 'no/such.py' is not a file: give one of"):
        read_run_config('no/such.py')


def test_options_overwrite_the_config(config):
    assert read_run_config(config, options={'model.depth': 2}).model.depth == 2


def test_compiling_goes_round_the_labels(config, monkeypatch):
    calls = []
    monkeypatch.setattr(launch, 'let_compile_skip_numpy', lambda: calls.append('called'))
    read_run_config(config)
    assert not calls
    read_run_config(config, options={'compile': True})
    assert calls


def test_work_dir_of_command_line_comes_before_config_and_name(config):
    assert read_run_config(config).work_dir == 'work_dirs/cam_tiny'
    options = {'work_dir': 'from_config'}
    assert read_run_config(config, options=options).work_dir == 'from_config'
    assert read_run_config(config, 'from_flag', options).work_dir == 'from_flag'


@pytest.mark.parametrize(
    ('path', 'name'),
    [
        ('configs/dscnet/voc_animals.py', 'dscnet_voc_animals'),
        ('/elsewhere/configs/cam/shapes.py', 'cam_shapes'),
        ('configs/cam/../dscnet/shapes.py', 'dscnet_shapes'),
    ],
)
def test_run_is_named_by_folder_and_file_of_its_config(path, name):
    assert run_name(path) == name


def test_run_is_named_by_its_folder_from_within_it(config, monkeypatch):
    monkeypatch.chdir(Path(config).parent)
    assert run_name('tiny.py') == run_name('../cam/tiny.py') == 'cam_tiny'


def test_missing_checkpoint_error_names_the_path():
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no\.pth' is not a file.*work_dir"):
        check_checkpoint('no.pth')


def test_checkpoint_address_is_left_to_the_loader():
    check_checkpoint('https://example.org/a.pth')
    check_checkpoint('openmmlab://resnet50')


class TestCpuLaunch:
    def test_nothing_happens_without_launcher(self, without_cuda):
        cfg = Config(dict(launcher='none'))
        prepare_cpu_launch(cfg)
        assert 'model_wrapper_cfg' not in cfg

    def test_nothing_happens_with_cuda(self, with_cuda):
        cfg = Config(dict(launcher='slurm'))
        prepare_cpu_launch(cfg)
        assert 'model_wrapper_cfg' not in cfg

    @pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
    def test_launcher_for_cuda_is_refused(self, without_cuda, launcher):
        with pytest.raises(ValueError, match=rf"launcher='{launcher}' needs CUDA.*dist_train\.sh"):
            prepare_cpu_launch(Config(dict(launcher=launcher)))

    def test_missing_environment_is_named(self, without_cuda, monkeypatch):
        monkeypatch.delenv('WORLD_SIZE', raising=False)
        with pytest.raises(ValueError, match=r'WORLD_SIZE is not set.*dist_train\.sh'):
            prepare_cpu_launch(Config(dict(launcher='pytorch')))

    def test_wrapper_has_no_devices_and_keeps_what_the_config_says(self, without_cuda, monkeypatch):
        monkeypatch.setattr(distributed, 'is_initialized', lambda: True)
        cfg = Config(dict(launcher='pytorch', find_unused_parameters=True))
        prepare_cpu_launch(cfg)
        assert cfg.model_wrapper_cfg.device_ids is None
        assert cfg.model_wrapper_cfg.find_unused_parameters is True
        cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=dict(type='Own')))
        prepare_cpu_launch(cfg)
        assert cfg.model_wrapper_cfg == dict(type='Own')

    def test_sharded_parameters_stay_on_the_cpu(self, without_cuda, monkeypatch):
        monkeypatch.setattr(distributed, 'is_initialized', lambda: True)
        cfg = Config(dict(launcher='pytorch', strategy=dict(type='FSDPStrategy')))
        prepare_cpu_launch(cfg)
        assert cfg.strategy.model_wrapper.device_id == 'cpu'


class TestLeaving:
    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []
        monkeypatch.setattr(distributed, 'is_initialized', lambda: True)
        monkeypatch.setattr(distributed, 'get_backend', lambda: 'gloo')
        monkeypatch.setattr(distributed, 'barrier', lambda: calls.append('wait'))
        monkeypatch.setattr(distributed, 'destroy_process_group', lambda: calls.append('destroy'))
        monkeypatch.setattr(launch.atexit, '_run_exitfuncs', lambda: calls.append('atexit'))
        monkeypatch.setattr(launch.os, '_exit', calls.append)
        return calls

    def test_ranks_wait_for_each_other_and_end_well(self, calls):
        leave_together()
        assert calls == ['wait', 'destroy', 'atexit', 0]

    @pytest.mark.parametrize(
        ('name', 'value'), [('is_initialized', False), ('get_backend', 'nccl')]
    )
    def test_nothing_happens_without_a_group_or_with_cuda(self, calls, monkeypatch, name, value):
        monkeypatch.setattr(distributed, name, lambda: value)
        leave_together()
        assert calls == []


class TestAmp:
    def test_cpu_is_refused(self, without_cuda):
        with pytest.raises(ValueError, match='--amp needs CUDA.*leave the flag out'):
            enable_amp(Config(dict(optim_wrapper=dict(type='OptimWrapper'))))

    def test_wrapper_is_replaced(self, with_cuda):
        cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0))))
        enable_amp(cfg)
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
        assert cfg.optim_wrapper.loss_scale == 'dynamic'

    def test_loss_scale_of_the_config_is_kept(self, with_cuda):
        cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale=512.0)))
        enable_amp(cfg)
        assert cfg.optim_wrapper.loss_scale == 512.0

    def test_deepspeed_names_its_own_settings(self, with_cuda):
        with pytest.raises(ValueError, match=r'strategy\.bf16 or strategy\.fp16'):
            enable_amp(Config(dict(optim_wrapper=dict(type='DeepSpeedOptimWrapper'))))

    def test_wrapper_of_another_kind_is_refused(self, with_cuda):
        with pytest.raises(ValueError, match="the config has 'ApexOptimWrapper'"):
            enable_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))))


class TestTestTimeAugmentation:
    def test_model_is_wrapped_and_pipeline_replaced(self):
        cfg = Config(
            dict(
                model=dict(type='Model'),
                tta_model=dict(type='TTA'),
                tta_pipeline=[dict(type='Augment')],
                test_dataloader=dict(dataset=dict(pipeline=[])),
            )
        )
        enable_test_time_augmentation(cfg)
        assert cfg.model == dict(type='TTA', module=dict(type='Model'))
        assert cfg.test_dataloader.dataset.pipeline == [dict(type='Augment')]

    def test_missing_keys_are_named(self):
        with pytest.raises(ValueError, match='--tta needs tta_model and tta_pipeline'):
            enable_test_time_augmentation(Config(dict(model=dict(type='Model'))))


class TestJoinRanks:
    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []
        monkeypatch.setattr(launch, 'init_dist', lambda *args, **kw: calls.append((args, kw)))
        monkeypatch.setattr(torch.cuda, 'current_device', lambda: 3 if calls else 0)
        return calls

    @pytest.mark.parametrize('launcher', ['none', 'pytorch'])
    def test_process_without_cuda_works_on_the_cpu(self, without_cuda, calls, launcher):
        # The group of a CPU launch was started when the config was read.
        assert join_ranks(Config(dict(launcher=launcher))) == torch.device('cpu')
        assert calls == []

    def test_process_without_launcher_takes_the_current_device(self, with_cuda, calls):
        assert join_ranks(Config(dict(launcher='none'))) == torch.device('cuda', 0)
        assert calls == []

    @pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
    def test_launched_process_takes_the_device_of_its_rank(self, with_cuda, calls, launcher):
        assert join_ranks(Config(dict(launcher=launcher))) == torch.device('cuda', 3)
        assert calls == [((launcher,), {})]

    def test_group_is_started_as_the_config_says(self, with_cuda, calls):
        dist_cfg = dict(backend='nccl', timeout=60)
        join_ranks(Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=dist_cfg))))
        assert calls == [(('pytorch',), dist_cfg)]


def test_missing_backbone_weights_name_the_converter():
    init_cfg = dict(type='Pretrained', checkpoint='no/resnet38d.pth')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init_cfg))))
    with pytest.raises(FileNotFoundError, match=r"'no/resnet38d\.pth'.*resnet38d_mxnet\.py"):
        check_backbone_weights(cfg)


@pytest.mark.parametrize(
    'model',
    [
        dict(type='ToyModel'),
        dict(backbone=dict()),
        dict(backbone=dict(init_cfg=None)),
        dict(backbone=dict(init_cfg=dict(type='Kaiming'))),
        dict(backbone=dict(init_cfg=dict(checkpoint='torchvision://resnet50'))),
    ],
)
def test_weights_that_are_no_file_are_not_looked_for(model):
    check_backbone_weights(Config(dict(model=model)))


def test_weights_that_are_there_pass(tmp_path):
    (tmp_path / 'a.pth').touch()
    init_cfg = dict(checkpoint=str(tmp_path / 'a.pth'))
    check_backbone_weights(Config(dict(model=dict(backbone=dict(init_cfg=init_cfg)))))


class TestBuildRunner:
    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []
        monkeypatch.setattr(launch, 'join_ranks', lambda cfg: calls.append('join'))
        monkeypatch.setattr(launch.Runner, 'from_cfg', lambda cfg: calls.append('Runner'))
        monkeypatch.setattr(launch.RUNNERS, 'build', lambda cfg: calls.append(cfg.runner_type))
        return calls

    def test_ranks_join_before_the_runner_is_built(self, calls):
        build_runner(Config(dict(launcher='none')))
        assert calls == ['join', 'Runner']

    def test_strategy_joins_the_ranks_in_its_own_way(self, calls):
        build_runner(Config(dict(runner_type='FlexibleRunner')))
        assert calls == ['FlexibleRunner']


class TestResume:
    @pytest.fixture
    def cfg(self, tmp_path):
        (tmp_path / 'last_checkpoint').write_text('/old/place/iter_2.pth')
        return Config(dict(work_dir=str(tmp_path), resume=True))

    def test_checkpoint_of_a_moved_work_dir_is_found(self, cfg, tmp_path):
        (tmp_path / 'iter_2.pth').touch()
        find_checkpoint_to_resume(cfg)
        assert cfg.load_from == str(tmp_path / 'iter_2.pth')

    def test_checkpoint_that_is_where_it_was_is_left_to_mmengine(self, cfg, tmp_path):
        (tmp_path / 'iter_2.pth').touch()
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
        find_checkpoint_to_resume(cfg)
        assert 'load_from' not in cfg

    def test_checkpoint_that_is_nowhere_is_named(self, cfg):
        with pytest.raises(FileNotFoundError, match=r"'/old/place/iter_2\.pth'.*load_from=\.\.\."):
            find_checkpoint_to_resume(cfg)

    def test_nothing_to_resume_from_is_a_warning(self, cfg, tmp_path):
        (tmp_path / 'last_checkpoint').unlink()
        with pytest.warns(UserWarning, match='has no checkpoint to resume from: the training'):
            find_checkpoint_to_resume(cfg)

    def test_training_from_the_start_and_own_choice_are_left_alone(self, cfg):
        cfg.load_from = 'other.pth'
        find_checkpoint_to_resume(cfg)
        assert cfg.load_from == 'other.pth'
        find_checkpoint_to_resume(Config(dict(cfg.to_dict(), load_from=None, resume=False)))
