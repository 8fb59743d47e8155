"""Packed linear layers: the same results but for the last digits, and the model as it was afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lopside import packed as module
from lopside.engines import Compiled
from lopside.generation import Transformers
from lopside.machine import has_fast_bfloat16
from lopside.models import load_model
from lopside.packed import packed

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.with_bias, self.without = nn.Linear(24, 40), nn.Linear(40, 7, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.without(torch.relu(self.with_bias(values)))
        return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        pytest.param(
            torch.bfloat16, 2e-2, marks=pytest.mark.skipif(not has_fast_bfloat16(), reason="no bf16 instructions")
        ),
    ],
)
@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 5), (64, 80)])
def test_products_are_the_same(dtype: torch.dtype, tolerance: float, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = Net().to(dtype)
    values = torch.randn(*rows, 24).to(dtype)
    with torch.inference_mode():
        wanted = net(values)
        with packed(net):
            found = net(values)
    assert found.shape == (*rows, 7)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5", "tiny_t5_tied", "tiny_marian"])
def test_every_linear_layer_of_a_model_is_packed_and_put_back(
    request: pytest.FixtureRequest, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_model(request.getfixturevalue(family)).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    used: list[int] = []
    real = module._product

    def counted(weights: Any, bias: Any, values: Any) -> Any:
        used.append(1)
        return real(weights, bias, values)

    monkeypatch.setattr(module, "_product", counted)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "decoder_input_ids": torch.tensor([[5, 6]])}
    with torch.inference_mode():
        wanted = model(**batch).logits
        with packed(model):
            found = model(**batch).logits
    linear = [each for each in model.modules() if isinstance(each, nn.Linear)]
    assert len(used) == len(linear) > 50
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(each) for each in linear)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_it_is_put_back_after_a_failure() -> None:
    net = Net()
    with pytest.raises(RuntimeError), packed(net):
        net(torch.zeros(2, 3))
    assert "forward" not in vars(net.without)
    net(torch.zeros(2, 24)).sum().backward()
    assert net.without.weight.grad is not None


def test_what_it_cannot_pack_it_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_packed(net: nn.Module) -> bool:
        with packed(net):
            return not any("forward" in vars(each) for each in net.modules())

    assert not nothing_packed(Net())
    assert nothing_packed(Net().to(torch.float64))
    assert nothing_packed(Net().to("meta"))
    assert nothing_packed(nn.ReLU())
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda: False)
    assert nothing_packed(Net().to(torch.bfloat16))
    monkeypatch.setattr(module, "has_fast_bfloat16", lambda: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nothing_packed(Net())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert nothing_packed(Net())


def test_a_compiled_decoder_is_not_packed(tiny_bart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be compiled again whenever its layers are others."""
    packings: list[int] = []
    real = module.pack

    def counted(weights: torch.Tensor) -> torch.Tensor:
        packings.append(1)
        return real(weights)

    monkeypatch.setattr(module, "pack", counted)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    for kind in (Compiled, Transformers):
        packings.clear()
        list(kind(load_model(tiny_bart), 1).answers([[[5, 6, 2]]], 4, 1))
        assert bool(packings) == (kind is Transformers)
