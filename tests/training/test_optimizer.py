"""Groups of the optimiser, the moving average, and both over flat weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from napari_hrsam.training.flat_weights import FlatWeights
from napari_hrsam.training.optimizer import STEM_PREFIX, average_into, make_optimizer, set_rate

NAMES = {
    f"{STEM_PREFIX}first.weight": (True, True),
    f"{STEM_PREFIX}first.bias": (False, True),
    "image_encoder.blocks.0.weight": (True, False),
    "image_encoder.As_log": (False, False),
    "image_encoder.gamma": (False, False),
    "prompt_encoder.no_mask_embed.weight": (False, False),
    "mask_decoder.iou_token.weight": (False, False),
    "image_encoder.stem.embed_proj.weight": (True, False),
    "image_encoder.norm.weight": (False, False),
}
"""Whether each decays, and whether it belongs to the pretrained stem."""


def parameters() -> dict[str, nn.Parameter]:
    return {n: nn.Parameter(torch.ones(3 if "norm" in n or "bias" in n else (3, 2))) for n in NAMES}


def test_groups() -> None:
    learning = parameters()
    optimizer = make_optimizer(
        learning.items(), learning_rate=0.1, weight_decay=0.5, stem_factor=0.2
    )
    names = {id(p): n for n, p in learning.items()}
    found = {
        names[id(p)]: (group["weight_decay"] == 0.5, group["factor"] == 0.2)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == NAMES
    set_rate(optimizer, 0.4)
    assert {g["lr"] for g in optimizer.param_groups} == {0.4, 0.4 * 0.2}


def test_average_follows_fast_at_first_and_slowly_later() -> None:
    averaged, model = nn.Linear(2, 1), nn.Linear(2, 1)
    nn.init.zeros_(averaged.weight)
    nn.init.ones_(model.weight)
    average_into(averaged, model, 0.99, 0)
    torch.testing.assert_close(averaged.weight.data, torch.full((1, 2), 0.9))
    nn.init.zeros_(averaged.weight)
    average_into(averaged, model, 0.99, 10_000)
    torch.testing.assert_close(averaged.weight.data, torch.full((1, 2), 0.01))


class Network(nn.Module):
    """Odd sizes, a stem, a vector, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Module()
        self.image_encoder.stem = nn.Module()
        self.image_encoder.stem.net = nn.Linear(5, 7)
        self.head = nn.Linear(7, 3)
        self.register_buffer("table", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.image_encoder.stem.net(x)) + self.table.sum())


OPTIONS = {"learning_rate": 0.05, "weight_decay": 0.1, "stem_factor": 0.1}


def pair() -> tuple[Network, Network, Network, Network, FlatWeights]:
    torch.manual_seed(0)
    model = Network()
    plain, averaged, plain_averaged = (copy.deepcopy(model) for _ in range(3))
    extra = nn.Parameter(torch.ones(2, 2))
    learning = [*model.named_parameters(), ("bridge.weight", extra)]
    return model, averaged, plain, plain_averaged, FlatWeights(learning, averaged, **OPTIONS)


def test_flat_steps_are_those_of_the_optimiser() -> None:
    model, averaged, plain, plain_averaged, weights = pair()
    optimizer = make_optimizer(plain.named_parameters(), **OPTIONS)
    places = [p.data_ptr() for p in model.parameters()]
    for step in range(6):
        learns = step >= 3
        weights.let_stem_learn(learns)
        plain.image_encoder.stem.net.requires_grad_(learns)
        x = torch.randn(4, 5)
        weights.zero_grad()
        (10 * model(x).square().sum()).backward()
        norm = weights.step(0.05 / (1 + step))
        weights.average(0.9, step)
        optimizer.zero_grad(set_to_none=True)
        (10 * plain(x).square().sum()).backward()
        learning = [p for p in plain.parameters() if p.grad is not None]
        expected = nn.utils.clip_grad_norm_(learning, 1.0)
        set_rate(optimizer, 0.05 / (1 + step))
        optimizer.step()
        average_into(plain_averaged, plain, 0.9, step)
        torch.testing.assert_close(norm, expected)
        assert norm > 1
        for mine, theirs in ((model, plain), (averaged, plain_averaged)):
            for name, value in mine.state_dict().items():
                torch.testing.assert_close(value, theirs.state_dict()[name])
    assert [p.data_ptr() for p in model.parameters()] == places


def test_weights_are_loaded_into_the_flat_tensors() -> None:
    model, averaged, plain, _, weights = pair()
    state = {name: value + 1 for name, value in plain.state_dict().items()}
    model.load_state_dict(state)
    for _ in range(3):
        weights.average(0.0, 10_000)
    torch.testing.assert_close(averaged.head.weight.data, state["head.weight"])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_count_as_zero(wrong: float) -> None:
    model, _, _, _, weights = pair()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.head.bias.grad.fill_(wrong)
    model.head.weight.grad.fill_(1.0)
    weights.step(0.05)
    # Only decay has moved them.
    torch.testing.assert_close(model.head.weight.data, before["head.weight"] * (1 - 0.05 * 0.1))
    torch.testing.assert_close(model.head.bias.data, before["head.bias"])
