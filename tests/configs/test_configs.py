"""Every config of the repository, without its data and its weights."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import MMFullyShardedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    FUNCTIONS,
    MODEL_WRAPPERS,
    PARAM_SCHEDULERS,
    RUNNERS,
    STRATEGIES,
    VISUALIZERS,
    init_default_scope,
)
from mmengine.structures import PixelData
from mmseg.registry import DATA_SAMPLERS, DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmseg.structures import SegDataSample

from mmdscnet.apis.study import read_study

CONFIG_DIR = Path(__file__).resolve().parents[2] / 'configs'
PATHS = sorted(
    path.relative_to(CONFIG_DIR).as_posix()
    for path in CONFIG_DIR.rglob('*.py')
    # A study lists what to change of configs, and is none itself.
    if '_base_' not in path.relative_to(CONFIG_DIR).parts and path.name != 'study.py'
)
SPLITS = ('train', 'val', 'test')
# Folders of what learns from image-level labels; the others learn from a folder of label maps.
WEAK = ('cam', 'seam', 'dscnet')
CONTRASTS = dict(m1={'pgcl'}, m2={'sgcl'}, m3={'pgcl', 'sgcl'}, m4={'pgcl', 'sgcl'})


def parent_of(name):
    """Config that a variant changes, or None for one that is made of building blocks."""
    for node in ast.parse((CONFIG_DIR / name).read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            bases = ast.literal_eval(node.value)
            bases = [bases] if isinstance(bases, str) else bases
            paths = [(CONFIG_DIR / name).parent.joinpath(base).resolve() for base in bases]
            parents = [path for path in paths if CONFIG_DIR / '_base_' not in path.parents]
            assert len(parents) < 2, f'{name} has several parents'
            return parents[0].relative_to(CONFIG_DIR).as_posix() if parents else None
    return None


def folder_of(name):
    """Folder of a config, which is the method."""
    return Path(name).parts[0]


def ablation_of(name):
    """Row of Table IV: the end of the file's name, or else the folder."""
    ending = Path(name).stem.rpartition('_')[2]
    whole = dict(cam='m0', seam='m0', dscnet='m4')
    return ending if ending in CONTRASTS else whole.get(folder_of(name))


ABLATIONS = [path for path in PATHS if folder_of(path) in WEAK]
VARIANTS = [path for path in ABLATIONS if folder_of(path) == 'dscnet']
# The same method on a backbone of mmpretrain.
BACKBONES = ('vgg16', 'convnext', 'vit')

# Variants that change nothing but how the ranks share the work.
LAUNCHES = ['dscnet/voc_fsdp.py', 'dscnet/voc_deepspeed.py']


def read(name):
    cfg = Config.fromfile(CONFIG_DIR / name)
    init_default_scope(cfg.default_scope)
    return cfg


def drop_weights(cfg):
    """Switch pretrained weights off, wherever they are named."""
    if isinstance(cfg, dict):
        if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg']['type'] == 'Pretrained':
            cfg['init_cfg'] = None
        # Left at False where a config says so: TIMMBackbone's own default is to download.
        if cfg.get('pretrained'):
            cfg.pop('pretrained')
        for value in cfg.values():
            drop_weights(value)


def build_model(cfg):
    drop_weights(cfg.model)
    if cfg.model.get('backbone', {}).get('type') == 'TIMMBackbone':
        pytest.importorskip('timm')
    return MODELS.build(cfg.model)


def foreground_of(dataset):
    """Number of foreground classes of a data set that is not read from disk."""
    metainfo = dataset.get('metainfo') or DATASETS.get(dataset.type).METAINFO
    return len(metainfo['classes']) - 1


@pytest.fixture(params=PATHS)
def cfg(request):
    return read(request.param)


def test_configs_are_found():
    assert {'cam/shapes.py', 'dscnet/shapes.py'} <= set(PATHS)
    assert {'cam/voc_animals.py', 'dscnet/voc_animals.py'} <= set(PATHS)
    assert {'seam/voc.py', 'affinitynet/voc.py', 'segmentation/deeplabv1_r38_voc.py'} <= set(PATHS)
    assert 'dscnet/shapes.py' in VARIANTS


def test_model_takes_a_step_for_the_classes_of_its_data(cfg):
    foreground = foreground_of(cfg.train_dataloader.dataset)
    channels = 3
    if cfg.model.backbone.type == 'FeatureAdaptor':
        channels = sum([cfg.model.backbone.in_channels, *cfg.model.backbone.level_channels])
    else:
        cfg.model.data_preprocessor.size = (64, 64)
    model = build_model(cfg)
    sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
    sample.set_metainfo(dict(gt_image_label=np.ones(foreground, dtype=np.float32)))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 64, dtype=torch.int64))
    image = torch.randint(0, 256, (channels, 64, 64), dtype=torch.uint8)
    batch = dict(inputs=[image, image.flip(2)], data_samples=[sample, sample.clone()])
    model.train()
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    for name, parameter in model.named_parameters():
        # DistributedDataParallel waits for the gradient of every parameter that wants one.
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_what_is_frozen_is_so_from_the_start(cfg):
    """DistributedDataParallel looks once, before the training loop calls train()."""
    model = build_model(cfg)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.train()
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted


def test_pipelines_build(cfg):
    pipelines = [cfg[f'{split}_dataloader'].dataset.pipeline for split in SPLITS]
    pipelines += [cfg.tta_pipeline] if cfg.get('tta_pipeline') else []
    for pipeline in pipelines:
        assert Compose([TRANSFORMS.build(step) for step in pipeline]).transforms


@pytest.mark.parametrize('name', ABLATIONS)
def test_weak_training_reads_no_masks(name):
    cfg = read(name)
    steps = {step.type for step in cfg.train_dataloader.dataset.pipeline}
    assert not {'LoadCheckedMask', 'LoadAnnotations'} & steps


def test_data_sets_agree_on_the_classes(cfg):
    datasets = [cfg[f'{split}_dataloader'].dataset for split in SPLITS]
    assert {foreground_of(dataset) for dataset in datasets} == {
        cfg.model.decode_head.num_classes - 1
    }


def test_test_time_augmentation_builds(cfg):
    if cfg.get('tta_model') is None:
        pytest.skip('no tta_model in this config')
    model = MODELS.build(dict(cfg.tta_model, module=build_model(cfg)))
    assert model.module.decode_head.num_classes == cfg.model.decode_head.num_classes


def test_samplers_build(cfg):
    class Labelled(list):
        def get_image_labels(self):
            return np.eye(foreground_of(cfg.train_dataloader.dataset), dtype=np.float32)

    data = Labelled(range(foreground_of(cfg.train_dataloader.dataset)))
    for split in SPLITS:
        sampler = cfg[f'{split}_dataloader'].sampler
        built = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=data, seed=0))
        assert next(iter(built)) in data


def test_evaluators_and_visualizer_build(cfg, tmp_path):
    for split in ('val', 'test'):
        metrics = cfg[f'{split}_evaluator']
        for metric in metrics if isinstance(metrics, list) else [metrics]:
            assert METRICS.build(metric).ignore_index == 255
    if 'visualizer' in cfg:
        VISUALIZERS.build(dict(cfg.visualizer, save_dir=str(tmp_path)))


def test_hooks_build(cfg):
    hooks = [*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])]
    assert all(isinstance(HOOKS.build(hook), Hook) for hook in hooks)


def test_optimizer_and_schedule_build(cfg):
    model = build_model(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    tuned = {id(p) for group in wrapper.optimizer.param_groups for p in group['params']}
    assert {id(p) for p in model.parameters() if p.requires_grad} <= tuned
    for scheduler in cfg.param_scheduler:
        # What the runner adds once it knows the data.
        extra = dict(epoch_length=10) if scheduler.get('convert_to_iter_based') else {}
        PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=wrapper, **extra))
        # Without an end of its own, mmengine lets a schedule end with the training.
        assert 'end' not in scheduler


@pytest.mark.parametrize('name', VARIANTS)
def test_variant_changes_head_sampler_and_hooks_only(name):
    variant, parent = read(name).to_dict(), read(parent_of(name)).to_dict()
    assert variant != parent
    backbones = [cfg['model'].pop('backbone') for cfg in (variant, parent)]
    of_mmpretrain = name.removesuffix('.py').endswith(BACKBONES)
    assert backbones[0]['type'].startswith('mmpretrain.') is of_mmpretrain
    assert (backbones[0] == backbones[1]) is not of_mmpretrain
    if of_mmpretrain:
        # With its weights come the statistics of its images and, from some, their address.
        variant['model']['data_preprocessor'] |= {
            key: parent['model']['data_preprocessor'][key] for key in ('mean', 'std')
        }
        variant.pop('weights', None)
    for cfg in (variant, parent):
        del cfg['model']['decode_head'], cfg['train_dataloader']['sampler']
        cfg.pop('custom_hooks', None)
        if name in LAUNCHES:
            del cfg['optim_wrapper']['type']
            assert ('strategy' in cfg) == (cfg is variant)
            cfg.pop('strategy', None)
            cfg.pop('runner_type', None)
        # What the head was made of.
        cfg.pop('dsc_head', None)
        steps = cfg['train_dataloader']['dataset']['pipeline']
        readers = [step for step in steps if step['type'] == 'LoadStoredLabels']
        assert len(readers) == (name.endswith('_stored.py') and cfg is variant)
        for reader in readers:
            # In front of everything that moves the image.
            assert steps.index(reader) == 1
            steps.remove(reader)
        cfg.pop('train_pipeline', None)
    assert variant == parent


@pytest.mark.parametrize('name', LAUNCHES)
def test_launch_trains_the_model_of_its_parent(name):
    variant, parent = read(name), read(parent_of(name))
    assert variant.runner_type == 'FlexibleRunner'
    assert STRATEGIES.get(variant.strategy.type) is not None
    for key in ('model', 'train_dataloader', 'custom_hooks', 'param_scheduler'):
        assert variant[key] == parent[key]


def test_fsdp_leaves_the_head_whole():
    cfg = read('dscnet/voc_fsdp.py')
    wrapper = cfg.strategy.model_wrapper
    assert MODEL_WRAPPERS.get(wrapper.type) is MMFullyShardedDataParallel
    model = build_model(cfg)
    policy = FUNCTIONS.get(wrapper.auto_wrap_policy.type)
    arguments = dict(recurse=False, min_num_params=wrapper.auto_wrap_policy.min_num_params)

    def is_wrapped(module):
        count = sum(parameter.numel() for parameter in module.parameters())
        return policy(module, nonwrapped_numel=count, **arguments)

    assert is_wrapped(model.backbone)
    assert not is_wrapped(model.decode_head)
    assert not is_wrapped(model.pcm)


@pytest.mark.skipif(find_spec('deepspeed') is not None, reason='DeepSpeed is installed')
def test_missing_deepspeed_is_named(tmp_path):
    cfg = read('dscnet/voc_deepspeed.py')
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), launcher='none', log_level='ERROR'))
    with pytest.raises(AssertionError, match='DeepSpeed is not installed'):
        RUNNERS.build(cfg)


@pytest.mark.parametrize('name', [path for path in PATHS if path not in ABLATIONS])
def test_other_training_needs_a_folder_of_label_maps(name):
    assert read(name).train_dataloader.dataset.pseudo_label_folder.startswith('work_dirs/')


@pytest.mark.parametrize('name', ABLATIONS)
def test_exported_maps_grow_as_those_of_the_method(name):
    cfg = read(name)
    is_seam = cfg.model.type == 'SEAM'
    assert is_seam is (folder_of(name) == 'seam' or cfg.model.get('pcm') is not None)
    head = cfg.model.decode_head
    assert head.get('align_corners', False) is is_seam
    assert head.get('normalization', 'max') == ('min_max' if is_seam else 'max')


@pytest.mark.parametrize('name', ABLATIONS)
def test_name_says_which_ablation_it_is(name):
    ablation, cfg = ablation_of(name), read(name)
    head = cfg.model.decode_head
    if ablation == 'm0':
        assert head.type == 'CAMHead'
        return
    assert head.type == 'DSCHead'
    assert head.get('dual_stream', True) is (ablation == 'm4')
    assert {key for key in ('pgcl', 'sgcl') if head.get(key)} == CONTRASTS[ablation]
    assert [hook.type for hook in cfg.custom_hooks].count('ContrastWarmupHook') == 1
    assert cfg.train_dataloader.sampler.type == 'GroupSampler'


@pytest.mark.parametrize('name', ['cam/voc_animals.py', 'cam/voc_animals_lite0.py'])
def test_frozen_config_splits_what_its_header_says_to_store(name):
    frozen = name.replace('.py', '_frozen.py')
    text = (CONFIG_DIR / frozen).read_text()
    (commands,) = set(re.findall(r'--levels ([0-9 ]+[0-9])', text))
    levels = [int(level) for level in commands.split()]
    model, adaptor = build_model(read(name)).eval(), read(frozen).model.backbone
    with torch.no_grad():
        channels = [feat.shape[1] for feat in model.extract_feat(torch.zeros(1, 3, 64, 64))]
    assert list(adaptor.level_channels) == [channels[level] for level in levels]
    assert adaptor.in_channels == channels[model.decode_head.in_index]
    # DSCNet groups by the same outputs, stored or not, and its head reads the last of them.
    live, stored = (
        read(path.replace('cam/', 'dscnet/')).model.decode_head for path in (name, frozen)
    )
    outputs, kept = range(len(channels)), range(len(levels) + 1)
    assert [outputs[index] for index in live.group_index] == [*levels, live.in_index]
    assert [kept[index] for index in stored.group_index] == [*kept] == [*kept[:-1], stored.in_index]


def test_study_changes_configs_that_are_there():
    parts = read_study(CONFIG_DIR / 'dscnet/study.py')
    assert {part.name for part in parts} >= {'frozen', 'tuned', 'seam', 'switches', 'weights'}
    assert all(len(part.seeds) >= 3 for part in parts)
