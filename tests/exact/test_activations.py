import torch
import torch.nn.functional as F

from vdvae_codec.exact.activations import (
    GELU_ONE,
    TANH_ONE,
    ExactTanh,
    fused_is_exact,
    gelu,
    hard_swish,
    tanh_table,
    unfused_hard_swish,
)

CPU = torch.device("cpu")


def test_hard_swish_is_its_formula_bit_for_bit() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(100_000) * 4, torch.tensor([0.0, -0.0, -3.0, 3.0, 1e30, -1e30])])
    assert torch.equal(hard_swish(x), unfused_hard_swish(x))
    expected = x * ((x + 3).clamp(0, 6)) / 6
    assert torch.equal(hard_swish(x), expected) and torch.allclose(hard_swish(x), F.hardswish(x))
    assert isinstance(fused_is_exact(CPU), bool)


def test_gelu_is_close_and_on_its_grid() -> None:
    x = torch.linspace(-12, 12, 100_001)
    y = gelu(x)
    assert float((y - F.gelu(x.double())).abs().max()) < 3e-4
    assert torch.equal(y[x > 8], x[x > 8])
    assert torch.equal((y[x <= 8] * GELU_ONE).round(), y[x <= 8] * GELU_ONE)


def test_tanh_is_close_and_on_its_grid() -> None:
    table = tanh_table(CPU)
    assert float((table - torch.tanh(torch.linspace(-6, 6, len(table)).double())).abs().max()) <= 2.0**-13 + 1e-9
    x = torch.linspace(-20, 20, 100_001)
    y = ExactTanh()(x)
    assert float((y - torch.tanh(x.double())).abs().max()) < 2e-3
    assert torch.equal((y * TANH_ONE).round(), y * TANH_ONE) and torch.equal(y, -y.flip(0))
