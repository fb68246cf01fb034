import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

# Strides and dilations of the seven stages.
STRIDES = {32: (1, 2, 2, 2, 1, 2, 1), 16: (1, 2, 2, 2, 1, 1, 1), 8: (1, 2, 2, 1, 1, 1, 1)}
DILATIONS = {32: (1,) * 7, 16: (1, 1, 1, 1, 1, 2, 2), 8: (1, 1, 1, 2, 2, 4, 4)}
LAST = 6


def build(kind, output_stride):
    return MODELS.build(
        dict(
            type=kind,
            strides=STRIDES[output_stride],
            dilations=DILATIONS[output_stride],
            out_indices=(LAST,),
            norm_cfg=dict(type='BN'),
        )
    )


@pytest.fixture(scope='module')
def weights():
    """Weights that could be trained ones: no statistic is 0 or 1, and features keep their size."""
    torch.manual_seed(0)
    network = build('MobileNetV2', 32).double()
    network.init_weights()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0
    network.train()
    network(torch.randn(4, 3, 64, 64, dtype=torch.float64))
    return network.state_dict()


def load(kind, output_stride, weights):
    network = build(kind, output_stride).double()
    network.load_state_dict(weights)
    # mmseg's own ``train`` returns nothing.
    network.eval()
    return network


@pytest.mark.parametrize('output_stride', [16, 8])
@pytest.mark.parametrize('size', [(96, 128), (75, 90)], ids=['even', 'odd'])
def test_dilated_outputs_are_the_undilated_ones_computed_more_densely(weights, output_stride, size):
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    step = 32 // output_stride
    with torch.no_grad():
        expected = load('MobileNetV2', 32, weights)(images)
        dense = load('ContractedMobileNetV2', output_stride, weights)(images)
        stock = load('MobileNetV2', output_stride, weights)(images)
    assert dense.shape == stock.shape
    assert expected.std() > 0.1
    torch.testing.assert_close(dense[..., ::step, ::step], expected, rtol=0, atol=1e-10)
    # What the class is for: stock mmseg spoils the features.
    assert (stock[..., ::step, ::step] - expected).abs().max() > 0.1


def test_without_dilation_it_is_the_stock_network(weights):
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = load('MobileNetV2', 32, weights)(images)
        outputs = load('ContractedMobileNetV2', 32, weights)(images)
    assert torch.equal(outputs, expected)


def test_names_and_shapes_of_the_weights_are_stock():
    ours, stock = build('ContractedMobileNetV2', 8), build('MobileNetV2', 8)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in stock.state_dict().items()}
