import pytest
import torch
import torch.nn.functional as F
from mmengine.model import initialize
from mmengine.registry import init_default_scope
from mmengine.runner import load_state_dict
from mmseg.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmdscnet.models.backbones.resnet38d import FrozenNorm, NormedConv

# Stride and dilations of every block, and its dropout, written out.
BLOCKS = {
    'b2': (2, (1, 1)),
    'b2_1': (1, (1, 1)),
    'b2_2': (1, (1, 1)),
    'b3': (2, (1, 1)),
    'b3_1': (1, (1, 1)),
    'b3_2': (1, (1, 1)),
    'b4': (2, (1, 1)),
    'b4_1': (1, (1, 1)),
    'b4_2': (1, (1, 1)),
    'b4_3': (1, (1, 1)),
    'b4_4': (1, (1, 1)),
    'b4_5': (1, (1, 1)),
    'b5': (1, (1, 2)),
    'b5_1': (1, (2, 2)),
    'b5_2': (1, (2, 2)),
    'b6': (1, (1, 4, 1)),
    'b7': (1, (1, 4, 1)),
}
BRANCH = ('branch2a', 'branch2b1', 'branch2b2')
STEM = ('conv1a', 'b2', 'b2_1', 'b2_2')
SEAM_HEADS = 4096 * 21 + 512 * 64 + 1024 * 128 + 195 * 192


def build(**kwargs):
    return MODELS.build(dict(type='ResNet38d', **kwargs))


def build_shapes(**kwargs):
    """The network without values, which takes no memory and no time."""
    with torch.device('meta'):
        return build(**kwargs)


@pytest.fixture(scope='module')
def network():
    """The network with weights that could be trained ones: features keep their size."""
    torch.manual_seed(0)
    with torch.device('meta'):
        network = build()
    network.to_empty(device='cpu')
    for module in network.modules():
        if isinstance(module, NormedConv):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if isinstance(module, FrozenNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


@pytest.fixture
def evaluated(network):
    yield network.eval()
    network.train()


@pytest.fixture
def trained(network):
    """The network in training; its gradients and options are reset after the test."""
    yield network.train()
    network.with_cp = False
    network.zero_grad(set_to_none=True)


def keep(value):
    """Give a saved tensor back as it is."""
    return value


def normalise(feats, state, name):
    norm = nn.BatchNorm2d(feats.shape[1]).eval()
    keys = ('weight', 'bias', 'running_mean', 'running_var')
    norm.load_state_dict({key: state[f'{name}.{key}'] for key in keys}, strict=False)
    return norm(feats)


def run_reference(images, state):
    """The network as the papers draw it: batch norm, ReLU, convolution, one after the other."""
    taps = []
    feats = F.conv2d(images, state['conv1a.weight'], padding=1)
    for name, (stride, dilations) in BLOCKS.items():
        shortcut = feats
        for branch, dilation in zip(BRANCH[: len(dilations)], dilations, strict=True):
            feats = F.relu(normalise(feats, state, f'{name}.bn_{branch}'))
            first = branch == 'branch2a'
            if first and name in ('b5', 'b6'):
                taps.append(feats)
            if first and f'{name}.conv_branch1.weight' in state:
                shortcut = F.conv2d(feats, state[f'{name}.conv_branch1.weight'], stride=stride)
            weight = state[f'{name}.conv_{branch}.weight']
            feats = F.conv2d(
                feats,
                weight,
                stride=stride if first else 1,
                padding=weight.shape[-1] // 2 * dilation,
                dilation=dilation,
            )
        feats = feats + shortcut
    return *taps, F.relu(normalise(feats, state, 'bn7'))


@torch.no_grad()
def test_outputs_are_those_of_separate_norms_and_convolutions(evaluated):
    images = torch.randn(1, 3, 32, 32)
    expected = run_reference(images, evaluated.state_dict())
    outputs = evaluated(images)
    assert len(outputs) == 3
    for output, reference in zip(outputs, expected, strict=True):
        assert 0.1 < reference.std() < 10
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('size', 'grid'), [((64, 48), (8, 6)), ((33, 57), (5, 8))])
def test_outputs_have_stride_8(size, grid):
    outputs = build_shapes()(torch.empty(2, 3, *size, device='meta'))
    assert [output.shape for output in outputs] == [(2, c, *grid) for c in (512, 1024, 4096)]


def test_parameter_counts_are_those_of_the_papers():
    network = build_shapes()
    state = network.state_dict()
    affine = sum(value.numel() for key, value in state.items() if key.endswith(('weight', 'bias')))
    # Published counts hold the affine part of the norms, and neither means nor variances.
    assert affine == 105_070_912
    assert affine + SEAM_HEADS == 105_358_208
    assert sum(parameter.numel() for parameter in network.parameters()) == 105_023_168


def test_multiplications_are_those_of_the_papers():
    network = build_shapes()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 448, 448, device='meta'))
    assert counter.get_total_flops() == 2 * 399_057_354_752


def test_dropout_is_in_the_bottlenecks_only():
    modules = build_shapes().named_modules()
    rates = {name: module.p for name, module in modules if isinstance(module, nn.Dropout2d)}
    assert rates == {'b6.dropout': 0.3, 'b7.dropout': 0.5}


def test_bottlenecks_drop_whole_channels_before_their_second_and_third_convolution():
    block = build_shapes().b7
    block.to_empty(device='cpu')
    for module in block.modules():
        if isinstance(module, FrozenNorm):
            nn.init.ones_(module.weight)
            nn.init.ones_(module.running_var)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)
        if isinstance(module, NormedConv):
            nn.init.constant_(module.weight, 1 / 4096)
    inputs = {}
    for name in ('conv_branch1', *(f'conv_{branch}' for branch in BRANCH)):
        getattr(block, name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0].detach()})
        )
    block.train()(torch.ones(1, 2048, 4, 4))
    dropped = {name: (feats == 0).all(dim=(2, 3)).float().mean() for name, feats in inputs.items()}
    assert dropped.pop('conv_branch1') == dropped.pop('conv_branch2a') == 0
    assert all(0.4 < share < 0.6 for share in dropped.values())
    assert all((feats == 0).flatten(2).float().std(dim=2).eq(0).all() for feats in inputs.values())


@pytest.mark.parametrize(('frozen_stages', 'num_frozen'), [(0, 0), (1, 1), (2, 4)])
def test_frozen_parts_have_no_gradient_and_record_no_graph(frozen_stages, num_frozen):
    network = build_shapes(frozen_stages=frozen_stages)
    parts = {name: getattr(network, name) for name in ('conv1a', *BLOCKS)}
    records_graph = {}
    for name, part in parts.items():

        def look(_, args, output, name=name):
            records_graph[name] = (output if name == 'conv1a' else output[1]).requires_grad

        part.register_forward_hook(look)
    network(torch.empty(1, 3, 16, 16, device='meta', requires_grad=True))
    frozen = STEM[:num_frozen]
    assert records_graph == {name: name not in frozen for name in parts}
    for name, part in parts.items():
        assert {parameter.requires_grad for parameter in part.parameters()} == {name not in frozen}


def test_frozen_parts_keep_nothing_for_backward():
    network = build_shapes()
    saved = []
    network.b3.register_forward_pre_hook(lambda *_: saved.append('b3'))
    with torch.autograd.graph.saved_tensors_hooks(lambda _: saved.append('tensor'), keep):
        network(torch.empty(1, 3, 16, 16, device='meta'))
    assert saved[0] == 'b3'
    assert 'tensor' in saved


def test_gradient_reaches_every_convolution_that_learns(trained):
    images = torch.randn(1, 3, 24, 24)
    sum(output.mean() for output in trained(images)).backward()
    for name, parameter in trained.named_parameters():
        if name.split('.')[0] in STEM:
            assert parameter.grad is None
        else:
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any(), name


def test_gradients_through_a_fused_norm_are_those_of_separate_modules():
    conv, norm = NormedConv(3, 5, 3, stride=2, dilation=2).double(), FrozenNorm(5).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    feats = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    inputs = (feats, conv.weight)
    fused, separate = conv(feats, norm), norm(conv(feats))
    torch.testing.assert_close(fused, separate)
    torch.testing.assert_close(
        torch.autograd.grad(fused.square().sum(), inputs),
        torch.autograd.grad(separate.square().sum(), inputs),
    )


def test_checkpointing_changes_no_gradient_under_dropout(trained):
    images = torch.randn(1, 3, 16, 16)
    gradients = []
    for with_cp in (False, True):
        trained.with_cp = with_cp
        torch.manual_seed(1)
        loss = sum(output.square().mean() for output in trained(images))
        loss.backward()
        learned = [trained.b3, trained.b5_1, trained.b6, trained.b7]
        gradients.append([p.grad.clone() for block in learned for p in block.parameters()])
        trained.zero_grad(set_to_none=True)
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_checkpointing_keeps_fewer_features_for_backward():
    images = torch.empty(1, 3, 64, 64, device='meta')
    kept = {}
    for with_cp in (False, True):
        kept[with_cp] = 0

        def count(value, with_cp=with_cp):
            kept[with_cp] += value.numel() * (value.dim() == 4 and value.shape[0] == 1)

        with torch.autograd.graph.saved_tensors_hooks(count, keep):
            build_shapes(with_cp=with_cp)(images)
    assert kept[True] < kept[False] / 2


def test_checkpointing_runs_when_no_gradient_is_wanted(evaluated):
    images = torch.randn(1, 3, 16, 16)
    evaluated.with_cp = True
    with torch.no_grad():
        checkpointed = evaluated(images)
        evaluated.with_cp = False
        assert all(map(torch.equal, checkpointed, evaluated(images)))


def test_forward_hooks_fire():
    network = build_shapes()
    fired = set()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    network(torch.empty(1, 3, 16, 16, device='meta'))
    fused = {
        f'{name}.bn_{branch}'
        for name, (_, dilations) in BLOCKS.items()
        for branch in BRANCH[1 : len(dilations)]
    }
    assert {name for name, _ in network.named_modules()} - fired == fused


def test_train_returns_the_network_and_changes_no_norm(trained):
    before = {name: value.clone() for name, value in trained.named_buffers()}
    assert trained.train() is trained
    assert trained.eval() is trained
    trained.train()(torch.randn(2, 3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in trained.named_buffers())
    assert len(before) == 4 * (2 * len(BLOCKS) + 2 + 1)


def test_bfloat16_is_close_to_float32(evaluated):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = evaluated(images)
        with torch.autocast('cpu', torch.bfloat16):
            outputs = evaluated(images)
    for output, reference in zip(outputs, expected, strict=True):
        assert output.dtype == torch.bfloat16
        assert output.isfinite().all()
        assert (output - reference).norm() < 0.05 * reference.norm()


def test_norm_of_half_precision_is_computed_in_float32():
    norm = FrozenNorm(2)
    norm.running_mean.copy_(torch.tensor([1000.0, -3.0]))
    norm.running_var.copy_(torch.tensor([1e-3, 1e9]))
    feats = (torch.randn(2, 2, 3, 3) + norm.running_mean[:, None, None]).bfloat16()
    expected = norm(feats.float())
    with torch.autocast('cpu', torch.bfloat16):
        outputs = norm(feats)
    assert outputs.dtype == torch.bfloat16
    assert torch.equal(outputs, expected.bfloat16())
    assert norm.half()(feats).dtype == torch.bfloat16


def test_norm_keeps_no_features_for_backward():
    saved = []
    feats = torch.randn(2, 4, 5, 5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.numel()), keep):
        FrozenNorm(4)(feats)
    assert saved
    assert max(saved) == 4


def test_norm_equals_a_batch_norm_in_evaluation():
    expected = nn.BatchNorm2d(6).eval()
    for value in (expected.weight, expected.bias, expected.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(expected.running_var, 0, 1e-4)
    norm = FrozenNorm(6)
    # ``num_batches_tracked`` is among the keys, and loading is strict.
    norm.load_state_dict(expected.state_dict())
    feats = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(norm(feats), expected(feats))


def test_weights_of_stock_batch_norms_load_without_complaint():
    network = build_shapes()
    state = network.state_dict()
    norms = [name for name, module in network.named_modules() if isinstance(module, FrozenNorm)]
    state.update({f'{name}.num_batches_tracked': torch.tensor(1) for name in norms})
    # A copy of the values onto the meta device does nothing, so this is about the keys.
    network.load_state_dict(state)
    load_state_dict(network, state, strict=True)
    assert not [key for key in network.state_dict() if 'num_batches' in key]


def test_weights_come_back_from_a_file(network, tmp_path):
    file = tmp_path / 'weights.pth'
    state = network.state_dict()
    torch.save(dict(state_dict=state), file)
    init_default_scope('mmseg')
    loaded = build_shapes(init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    loaded.to_empty(device='cpu').init_weights()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert not any(p.requires_grad for name in STEM for p in getattr(loaded, name).parameters())


def test_default_initialisation_draws_convolutions_and_leaves_norms():
    block = nn.Sequential(NormedConv(64, 32, 3), FrozenNorm(32))
    nn.init.zeros_(block[0].weight)
    initialize(block, build_shapes().init_cfg)
    # Kaiming: the variance is 2 over the number of outputs that an input reaches.
    assert block[0].weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    assert block[1].weight.eq(1).all()
    assert block[1].bias.eq(0).all()


@pytest.mark.parametrize('value', [-1, 3, None, '2'])
def test_unknown_frozen_stages_are_refused(value):
    with pytest.raises(ValueError, match=r'frozen_stages is .*: give 0 \(nothing\), 1 \(conv1a\)'):
        build_shapes(frozen_stages=value)
