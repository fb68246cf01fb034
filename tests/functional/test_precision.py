"""Half precision becomes float32 on the way into the method, and nothing else changes."""

import pytest
import torch
from torch import Tensor

from mmdscnet.functional.precision import at_least_float32, full_precision

HALVES = [torch.bfloat16, torch.float16]


@full_precision
def multiply(left: Tensor, right: Tensor, transpose: bool = False) -> Tensor:
    """Multiply two matrices."""
    return left @ (right.T if transpose else right)


@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_tensor_is_promoted(dtype: torch.dtype):
    tensor = torch.tensor([0.1, 2.0], dtype=dtype)
    promoted = at_least_float32(tensor)
    assert promoted.dtype == torch.float32
    torch.testing.assert_close(promoted, tensor.float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    'value',
    [
        torch.zeros(2),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.bool),
        None,
        0.1,
        'text',
    ],
    ids=str,
)
def test_any_other_value_is_left_alone(value: object):
    assert at_least_float32(value) is value


@pytest.mark.parametrize('dtype', HALVES)
def test_positional_and_keyword_arguments_are_promoted(dtype: torch.dtype):
    left, right = torch.randn(2, 3).to(dtype), torch.randn(2, 3).to(dtype)
    product = multiply(left, right=right, transpose=True)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, left.float() @ right.float().T, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('keyword', [False, True])
def test_autocast_is_off_inside_and_on_again_afterwards(dtype: torch.dtype, keyword: bool):
    left, right = torch.randn(4, 5), torch.randn(5, 3)
    with torch.autocast('cpu', dtype=dtype):
        inside = multiply(left=left, right=right) if keyword else multiply(left, right)
        outside = left @ right
    assert outside.dtype == dtype
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, left @ right, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_full_precision_arguments_keep_their_dtype(dtype: torch.dtype):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert multiply(torch.ones(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)).dtype == dtype


def test_autocast_is_restored_after_an_error():
    @full_precision
    def fail(tensor: Tensor) -> Tensor:
        raise RuntimeError('inner')

    with torch.autocast('cpu', dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match='inner'):
            fail(torch.zeros(1))
        assert torch.is_autocast_enabled('cpu')


def test_gradient_comes_back_in_the_dtype_of_the_argument():
    left = torch.randn(2, 2, dtype=torch.bfloat16, requires_grad=True)
    multiply(left, torch.eye(2)).sum().backward()
    assert left.grad.dtype == torch.bfloat16
    torch.testing.assert_close(left.grad, torch.ones(2, 2, dtype=torch.bfloat16))


def test_wrapper_keeps_name_and_docstring():
    assert multiply.__name__ == 'multiply'
    assert multiply.__doc__ == 'Multiply two matrices.'
