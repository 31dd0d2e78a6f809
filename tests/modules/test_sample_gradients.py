"""Projected gradients of a classifier's samples: one pass against a backward pass for each."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_adaptive.modules import Classifier, Dense, SampleGradients

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance"),  # torch's own
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # attention, under vmap
]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(108, 4),
    )


class Attention(nn.Module):
    """A head on two inputs, one of which is a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        states = self.layer(self.embedding(inputs["ids"]))
        logits: Tensor = self.head((states * inputs["mask"][..., None]).sum(1))
        return logits


IMAGES = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TEXTS = {"ids": torch.arange(35).view(7, 5) % 11, "mask": torch.ones(7, 5)}
TARGET = torch.tensor([0, 3, 1, 1, 2, 0, 3])


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (lambda: Dense(64, 4, hidden=[12]), IMAGES),
        (convolutional, IMAGES),
        (Attention, TEXTS),
    ],
)
def test_gradients_are_those_of_a_backward_pass_for_each_sample(network: Any, inputs: Any) -> None:
    torch.manual_seed(0)
    module = Classifier(network(), 4, label_smoothing=0.1)
    module.network(inputs)  # running statistics that are not those of the start
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gradients = SampleGradients(module, dimensions=100, keep_ratio=0.5, samples_at_once=3)
    got = gradients({"input": inputs, "target": TARGET})
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    module.eval()
    for sample in range(7):
        one = slice(sample, sample + 1)
        part = {k: v[one] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[one]
        module.zero_grad()
        module.per_sample_loss({"input": part, "target": TARGET[one]}).sum().backward()
        full = torch.cat([p.grad.flatten() for p in module.network.parameters()])  # type: ignore[union-attr]
        expected = gradients.projection.project(full[None])[0]
        torch.testing.assert_close(got[sample], expected, rtol=1e-5, atol=1e-6)


def test_parameters_are_chosen_by_name() -> None:
    module = Classifier(convolutional(), 4)
    module.network[0].weight.requires_grad = False  # type: ignore[index]
    assert [*SampleGradients(module, dimensions=8).starts][:2] == ["0.bias", "1.weight"]
    last = SampleGradients(module, dimensions=8, parameters=r"^5\.")
    assert last.starts == {"5.weight": 0, "5.bias": 432}
    with pytest.raises(ValueError, match="no trained parameter matches parameters='conv'"):
        SampleGradients(module, dimensions=8, parameters="conv")
