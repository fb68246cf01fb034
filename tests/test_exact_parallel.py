"""DSCNet on several gloo ranks against one process with the global batch, in every form of launch.

Everything runs through mmengine's ``Runner``: its sampler, wrapper, optimizer wrapper and hooks.
The network has group normalisation, because batch statistics are those of a rank and not of the
global batch (SyncBN needs CUDA; frozen statistics would be exact as well); and no dropout, whose
random numbers differ between ranks. It computes in float64, so that what is left of a difference is
rounding, unless a form says otherwise.

A process of its own imports the stack once and forks the ranks of each case.
"""

import functools
import importlib
import json
import os
import re
import subprocess
import sys
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import distributed

import mmdscnet  # noqa: F401  (the ranks run without conftest.py)
from mmdscnet.launch import prepare_cpu_launch
from mmdscnet.stack import let_compile_skip_numpy

# After mmdscnet, which mends what mmseg imports.
from mmseg.models import SegDataPreProcessor  # isort: skip
from mmseg.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

# What the lines of a server of ranks begin with.
ANSWER = 'exit codes:'
# Of all ranks together.
BATCH = 8
SIZE = (32, 32)
LABELS = np.random.default_rng(0).integers(0, 2, (2 * BATCH, 3)).tolist()


@DATASETS.register_module()
class FewImages(torch.utils.data.Dataset):
    """Random images with image-level labels, the first of them a second time if wished."""

    def __init__(self, labels=LABELS, images=2 * BATCH, repeat_first=0):
        self.labels = np.asarray(labels, dtype=np.float32)[:images]
        generator = torch.Generator().manual_seed(1)
        shape = (images, 3, *SIZE)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.length = images + repeat_first

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        index %= len(self.labels)
        meta = dict(img_path=f'{index}.jpg', img_shape=SIZE, ori_shape=SIZE)
        sample = SegDataSample(metainfo=dict(meta, gt_image_label=self.labels[index]))
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *SIZE, dtype=torch.uint8))
        return dict(inputs=self.images[index], data_samples=sample)

    def get_image_labels(self):
        return self.labels


@MODELS.register_module()
class DefaultDtypePreProcessor(SegDataPreProcessor):
    """Hand the images on in the default dtype."""

    def forward(self, data, training=False):
        data = super().forward(data, training)
        return dict(data, inputs=data['inputs'].to(torch.get_default_dtype()))


@HOOKS.register_module()
class RecordHook(Hook):
    """Record what every step gives, and what it leaves in the class memory."""

    def __init__(self):
        self.steps = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.steps.append(
            dict(
                size=len(data_batch['inputs']),
                losses={name: loss.detach().clone() for name, loss in outputs.items()},
                memory=model.decode_head.memory.clone(),
                memory_valid=model.decode_head.memory_valid.clone(),
            )
        )


@OPTIM_WRAPPERS.register_module()
class CpuAutocastOptimWrapper(OptimWrapper):
    """What AmpOptimWrapper does, which asserts CUDA."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


MODEL = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='DefaultDtypePreProcessor', mean=[127.5] * 3, std=[63.75] * 3, size=SIZE
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=4,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=dict(type='GN', num_groups=2),
        zero_init_residual=False,
    ),
    decode_head=dict(
        type='DSCHead',
        in_channels=32,
        num_classes=4,
        embed_channels=8,
        pgcl=dict(type='PGCLLoss'),
        sgcl=dict(type='SGCLLoss'),
        init_cfg=dict(type='Normal', std=0.5, layer='Conv2d'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
SEAM = dict(
    type='SEAM',
    decode_head=dict(align_corners=True, normalization='min_max'),
    pcm=dict(type='PixelCorrelationModule', in_channels=(8, 16), in_index=(1, 2), channels=(5, 7)),
    equivariance=dict(type='EquivarianceLoss'),
    cross_equivariance=dict(type='EquivariantCrossLoss'),
    min_pooling=dict(type='MinPoolingLoss'),
    view_scale=0.5,
)
BASE = dict(
    default_scope='mmseg',
    model=MODEL,
    train_dataloader=dict(
        batch_size=BATCH,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dict(type='FewImages'),
    ),
    train_cfg=dict(by_epoch=True, max_epochs=2),
    optim_wrapper=dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.01)
    ),
    default_hooks=dict(checkpoint=None, logger=None),
    custom_hooks=[dict(type='RecordHook')],
    randomness=dict(seed=0),
    env_cfg=dict(dist_cfg=dict(backend='gloo')),
    log_level='ERROR',
)


HEAD_PARTS = ['pgcl', 'sgcl', 'message', 'projection']
RECORD = dict(type='RecordHook')
EMA = dict(type='EMAHook', momentum=0.1)
UNORDERED = {'train_dataloader.sampler.shuffle': False}
GROUPS = dict(_delete_=True, type='GroupSampler', group_size=2)
FSDP = Config.fromfile(Path(__file__).parents[1] / 'configs/dscnet/voc_fsdp.py')
FSDP.strategy.model_wrapper.device_id = 'cpu'
# Layers of the small network become units of their own, the head does not.
FSDP.strategy.model_wrapper.auto_wrap_policy.min_num_params = 3000
# Every rank gets the whole state. 'full' would offload it, and torch 2.13 crashes without a GPU.
FSDP.strategy.state_dict_cfg = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig', rank0_only=False),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=False),
)
SHARDED = dict(runner_type=FSDP.runner_type, strategy=FSDP.strategy.to_dict())
ON_SEAM = dict({f'model.{name}': value for name, value in SEAM.items()}, dtype='float32')
# One step, whose gradient is what the parameters move by: in the next one a pixel may join another
# group for a rounding of bfloat16, and the losses jump.
AUTOCAST = {
    'dtype': 'float32',
    'optim_wrapper.type': 'CpuAutocastOptimWrapper',
    'optim_wrapper.optimizer.lr': 1.0,
    'train_dataloader.dataset.images': BATCH,
    'train_cfg.max_epochs': 1,
}
# What a form of launch changes of BASE.
FORMS = dict(
    plain={},
    accumulated={'optim_wrapper.accumulative_counts': 2},
    averaged=dict(custom_hooks=[RECORD, EMA]),
    blocks_checkpointed={'model.backbone.with_cp': True},
    backbone_checkpointed=dict(activation_checkpointing='backbone'),
    head_checkpointed=dict(
        activation_checkpointing=['decode_head'] + [f'decode_head.{part}' for part in HEAD_PARTS]
    ),
    # Two steps: most of its time goes into tracing.
    compiled={
        'compile': dict(backend='eager'),
        'train_dataloader.dataset.images': BATCH,
    },
    fully_sharded={
        **SHARDED,
        'optim_wrapper.paramwise_cfg': dict(custom_keys=dict(decode_head=dict(lr_mult=2.0))),
    },
    fully_sharded_on_seam={**SHARDED, **ON_SEAM},
    unused_allowed=dict(find_unused_parameters=True),
    on_seam=ON_SEAM,
    on_seam_backbone_checkpointed=dict(ON_SEAM, activation_checkpointing='backbone'),
    # Those of mmseg's blocks are reentrant, and SEAM's two views go through them twice.
    on_seam_blocks_checkpointed={
        **ON_SEAM,
        'model.backbone.with_cp': True,
        'model_wrapper_cfg': dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            static_graph=True,
        ),
    },
    autocast=AUTOCAST,
    rank_without_class={**UNORDERED, 'train_dataloader.dataset.labels': [[1, 0, 1], [0] * 3] * 8},
    incomplete_batch={'train_dataloader.dataset.images': 12},
    incomplete_groups={
        'train_dataloader.dataset.images': 13,
        'train_dataloader.sampler': GROUPS,
    },
)


def make_config(form, ranks, folder):
    cfg = Config(BASE)
    cfg.merge_from_dict(dict(form, work_dir=folder, launcher='pytorch' if ranks > 1 else 'none'))
    cfg.train_dataloader.batch_size //= ranks
    return cfg


def train(form, ranks, folder):
    """Train in a form; what every step gave, and the state at the end."""
    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, form.pop('dtype', 'float64')))
    cfg = make_config(form, ranks, folder)
    if 'compile' in cfg:
        let_compile_skip_numpy()
    prepare_cpu_launch(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    model = runner.train()
    hooks = {type(hook): hook for hook in runner.hooks}
    state = {name.removeprefix('module.'): value for name, value in model.state_dict().items()}
    record = dict(steps=hooks[RecordHook].steps, state=state)
    if EMAHook in hooks:
        record['ema'] = hooks[EMAHook].ema_model.module.state_dict()
    return record


def be_rank(form, rank, ranks, folder):
    """Do the work of one forked process and end it."""
    code = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
        if ranks > 1:
            distributed.init_process_group(
                'gloo',
                init_method=f'file://{folder}/rendezvous',
                rank=rank,
                world_size=ranks,
                timeout=timedelta(seconds=60),
            )
        torch.save(train(form, ranks, folder), f'{folder}/rank{rank}.pth')
        if ranks > 1:
            distributed.barrier()
        code = 0
    except BaseException:
        Path(folder, f'rank{rank}.txt').write_text(traceback.format_exc())
    finally:
        # Not through the end of the interpreter, where a thread of gloo may abort the process.
        os._exit(code)


def serve():
    """Fork the ranks of every case that standard input names; answer with their exit codes."""
    # What a runner would import first thing in every rank.
    for name in ('conftest', 'matplotlib.pyplot', 'torch._dynamo'):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        form, ranks, folder = json.loads(line)
        children = []
        for rank in range(ranks):
            child = os.fork()
            if not child:
                be_rank(form, rank, ranks, folder)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(ANSWER, json.dumps(codes), file=answers, flush=True)


@pytest.fixture(scope='module')
def fork_ranks(tmp_path_factory, repository):
    """Train in a form on some ranks, once for all tests; their folder and exit codes."""
    path = os.pathsep.join([str(repository), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    command = [sys.executable, '-W', 'ignore', __file__]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=env, **pipes) as server:

        @functools.cache
        def ask(form, ranks):
            folder = tmp_path_factory.mktemp('ranks')
            question = json.dumps([json.loads(form), ranks, str(folder)])
            print(question, file=server.stdin, flush=True)
            # The forks of OpenMMLab print something when they are imported.
            answer = next(line for line in server.stdout if line.startswith(ANSWER))
            return folder, json.loads(answer.removeprefix(ANSWER))

        yield lambda form, ranks: ask(json.dumps(form), ranks)


@pytest.fixture
def train_on(fork_ranks):
    """Train in a form on some ranks, which must all end well; what each recorded."""

    def run(form, ranks):
        folder, codes = fork_ranks(form, ranks)
        assert codes == [0] * ranks, errors_of(folder)
        return [torch.load(folder / f'rank{rank}.pth') for rank in range(ranks)]

    return run


def errors_of(folder):
    return '\n'.join(path.read_text() for path in sorted(folder.glob('rank*.txt')))


def mean_losses(step, records):
    """Average the losses of a step over the ranks."""
    losses = [record['steps'][step]['losses'] for record in records]
    return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}


def assert_same_training(expected, records, tolerance):
    """Compare one process with several ranks: every step, and the state at the end."""
    close = dict(rtol=tolerance, atol=tolerance)
    for index, step in enumerate(expected['steps']):
        assert all(len(record['steps']) == len(expected['steps']) for record in records)
        torch.testing.assert_close(mean_losses(index, records), step['losses'], **close)
        for record in records:
            assert record['steps'][index]['size'] * len(records) == step['size']
            memory = record['steps'][index]['memory']
            # Not only close: the ranks never compare their memories again.
            assert torch.equal(memory, records[0]['steps'][index]['memory'])
            torch.testing.assert_close(memory, step['memory'], **close)
            assert torch.equal(record['steps'][index]['memory_valid'], step['memory_valid'])
    for record in records:
        for state in expected.keys() - {'steps'}:
            torch.testing.assert_close(dict(record[state]), dict(expected[state]), **close)


def form_of_one(form):
    """Leave out what one process has not, shards, and what it need not repeat, compilation."""
    left_out = ('runner_type', 'strategy', 'compile')
    return {key: value for key, value in form.items() if key not in left_out}


def tolerance_of(form):
    """Largest difference that rounding explains."""
    if form.get('optim_wrapper.type') == 'CpuAutocastOptimWrapper':
        return 1e-2
    return 1e-5 if form.get('dtype') == 'float32' else 1e-12


def test_two_ranks_are_one_process(train_on):
    (expected,) = train_on({}, 1)
    assert_same_training(expected, train_on({}, 2), 1e-12)
    first, last = (expected['steps'][index]['losses'] for index in (0, -1))
    # There was something to get wrong: both contrasts, and parameters that moved.
    assert first['decode.loss_pgcl'] > 0.1
    assert first['decode.loss_sgcl'] > 0.1
    assert abs(last['decode.loss_cls_refined'] - last['decode.loss_cls']) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in FORMS if name != 'plain'])
def test_two_ranks_are_one_process_in_every_form(train_on, name):
    form = FORMS[name]
    (expected,) = train_on(form_of_one(form), 1)
    assert_same_training(expected, train_on(form, 2), tolerance_of(form))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['plain', 'accumulated', 'on_seam', 'fully_sharded'])
def test_four_ranks_are_one_process(train_on, name):
    form = FORMS[name]
    (expected,) = train_on(form_of_one(form), 1)
    assert_same_training(expected, train_on(form, 4), tolerance_of(form))


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in FORMS if name.endswith('checkpointed')])
def test_activation_checkpointing_changes_nothing(train_on, name):
    form = FORMS[name]
    (expected,) = train_on(FORMS['on_seam' if name.startswith('on_seam') else 'plain'], 1)
    assert_same_training(expected, train_on(form, 1), tolerance_of(form))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['plain', 'fully_sharded'])
def test_resumed_ranks_go_on_as_one_process(fork_ranks, train_on, name):
    form = FORMS[name]
    (expected,) = train_on(form_of_one(form), 1)
    checkpoint = dict(_delete_=True, type='CheckpointHook')
    saved = {'train_cfg.max_epochs': 1, 'default_hooks.checkpoint': checkpoint}
    folder, codes = fork_ranks({**form, **saved}, 2)
    assert codes == [0, 0], errors_of(folder)
    records = train_on({**form, 'resume': True, 'load_from': str(folder / 'epoch_1.pth')}, 2)
    rest = dict(expected, steps=expected['steps'][2:])
    assert_same_training(rest, records, 1e-12)


@pytest.mark.slow
def test_accumulated_steps_contrast_within_their_own_batch(train_on):
    """Two steps are one of the double batch for all losses but the contrasts."""
    whole_form = {'train_dataloader.batch_size': 2 * BATCH}
    (halves,), (whole,) = train_on(FORMS['accumulated'], 1), train_on(whole_form, 1)
    halves = [step['losses'] for step in halves['steps'][:2]]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    difference = {
        name: abs(mean[name] - loss) for name, loss in whole['steps'][0]['losses'].items()
    }
    assert difference['decode.loss_cls'] < 1e-12
    assert difference['decode.loss_pgcl'] > 1e-3
    assert difference['decode.loss_sgcl'] > 1e-3


@pytest.mark.slow
def test_contrasts_are_in_full_precision_under_autocast(train_on):
    for record in train_on(AUTOCAST, 2):
        for step in record['steps']:
            assert {loss.dtype for loss in step['losses'].values()} == {torch.float32}
            assert step['memory'].dtype == torch.float32


@pytest.mark.slow
def test_data_that_do_not_fill_the_ranks_are_rounded_up(train_on):
    """mmengine's sampler begins again with the first image, so that no rank has fewer."""
    form = {**UNORDERED, 'train_dataloader.dataset.images': 13}
    (expected,) = train_on({**form, 'train_dataloader.dataset.repeat_first': 1}, 1)
    records = train_on(form, 2)
    assert_same_training(expected, records, 1e-12)
    assert [step['size'] for step in records[1]['steps']] == [4, 3, 4, 3]


def test_ranks_with_different_numbers_of_images_are_refused(fork_ranks):
    form = {**UNORDERED, 'train_dataloader.dataset.images': 13}
    folder, codes = fork_ranks({**form, 'train_dataloader.sampler.round_up': False}, 2)
    assert codes == [1, 1]
    for rank in range(2):
        error = (folder / f'rank{rank}.txt').read_text()
        assert re.search(r'ValueError: the ranks hold \[3, 2\] images .*rounds up', error)


if __name__ == '__main__':
    serve()
