"""Log-probabilities in tiles against the formula on all logits at once, in float64."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_adaptive.core.log_probs import (
    Distributions,
    kl_divergence,
    logit_gradients,
    token_log_probs,
)


def slow_law(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """All log-probabilities ``[K, V]``, as a model writes them."""
    logit = hidden @ weight.T
    if bias is not None:
        logit = logit + bias
    logit = logit * scale
    if softcap is not None:
        logit = softcap * torch.tanh(logit / softcap)
    return torch.log_softmax(logit / temperature, -1)


def chosen(distribution: Tensor, target: Tensor) -> Tensor:
    return distribution.gather(-1, target[:, None]).squeeze(-1)


def slow_entropy(distribution: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=distribution, validate_args=False).entropy()


def inputs(
    tokens: int, size: int, width: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(size, width, generator=generator, dtype=torch.float64)
    target = torch.randint(size, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


CASES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([1.0, 0.6, 2.5]),
        "softcap": st.sampled_from([None, 1.5, 30.0]),
        "scale": st.sampled_from([1.0, 0.25, 3.0]),
    }
)


@settings(max_examples=120)
@given(
    tokens=st.integers(0, 9),
    size=st.integers(1, 17),
    chunk=st.integers(1, 10),
    tile=st.integers(1, 18),
    keep=st.sampled_from([0, 200, 10**6]),
    options=CASES,
    biased=st.booleans(),
    learns=st.booleans(),
    entropy=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_the_formula(
    tokens: int,
    size: int,
    chunk: int,
    tile: int,
    keep: int,
    options: dict[str, Any],
    biased: bool,
    learns: bool,
    entropy: bool,
    seed: int,
) -> None:
    hidden, weight, target = inputs(tokens, size, seed=seed)
    weight.requires_grad_(learns)
    bias = torch.linspace(-2, 2, size, dtype=torch.float64) if biased else None
    learnt = [hidden, weight] if learns else [hidden]
    if bias is not None and learns:
        learnt.append(bias.requires_grad_())
    output = token_log_probs(
        hidden, weight, target, bias=bias, chunk=chunk, tile=tile, keep=keep,
        entropy=entropy, top_k=min(3, size), **options,
    )  # fmt: skip
    distribution = slow_law(hidden, weight, bias, **options)
    torch.testing.assert_close(output.log_prob, chosen(distribution, target))
    best = distribution.topk(min(3, size)).values
    assert output.top_log_prob is not None
    assert output.top_token is not None
    torch.testing.assert_close(output.top_log_prob, best.detach())
    torch.testing.assert_close(distribution.gather(1, output.top_token), best)
    rise = torch.linspace(-1, 2, tokens, dtype=torch.float64)
    ours, slow = (output.log_prob * rise).sum(), (chosen(distribution, target) * rise).sum()
    if entropy:
        assert output.entropy is not None
        torch.testing.assert_close(output.entropy, slow_entropy(distribution))
        ours = ours + (output.entropy * rise.flip(0)).sum()
        slow = slow + (slow_entropy(distribution) * rise.flip(0)).sum()
    else:
        assert output.entropy is None
    expected = torch.autograd.grad(slow, learnt)
    for ours_of, slow_of in zip(torch.autograd.grad(ours, learnt), expected, strict=True):
        torch.testing.assert_close(ours_of, slow_of)


@pytest.mark.parametrize("keep", [0, 10**6])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("entropy", [False, True])
def test_gradients_are_those_of_finite_differences(
    keep: int, softcap: float | None, entropy: bool
) -> None:
    hidden, weight, target = inputs(4, 7, width=3)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        output = token_log_probs(
            hidden, weight, target, bias=bias, temperature=0.8, softcap=softcap, scale=1.5,
            chunk=3, tile=4, entropy=entropy, keep=keep,
        )  # fmt: skip
        return output.log_prob if output.entropy is None else (output.log_prob, output.entropy)

    # What was kept serves one backward pass; the next makes it anew, and rounds elsewhere.
    assert torch.autograd.gradcheck(run, (hidden, weight, bias), nondet_tol=1e-12)


def test_float32_gradients_equal_the_full_path_to_1e_5() -> None:
    hidden, weight, target = inputs(300, 5000, width=32, dtype=torch.float32)
    ours = token_log_probs(hidden, weight, target, chunk=128, tile=999, keep=2**20).log_prob
    slow = chosen(slow_law(hidden, weight), target)
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-5)
    ours_grads = torch.autograd.grad(ours.sum(), (hidden, weight))
    slow_grads = torch.autograd.grad(slow.sum(), (hidden, weight))
    for ours_of, slow_of in zip(ours_grads, slow_grads, strict=True):
        torch.testing.assert_close(ours_of, slow_of, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learns", [True, False])
def test_half_precision_is_as_near_to_the_truth_as_its_matrix_product(
    dtype: torch.dtype, learns: bool
) -> None:
    hidden, weight, target = inputs(40, 90, width=16, dtype=dtype)
    weight.requires_grad_(learns)
    learnt = [hidden, weight] if learns else [hidden]
    output = token_log_probs(hidden, weight, target, chunk=16, tile=32, keep=3000)
    assert output.log_prob.dtype == torch.float32
    exact = chosen(slow_law(hidden.double(), weight.double()), target)
    full = chosen(torch.log_softmax((hidden @ weight.T).float(), -1), target)
    torch.testing.assert_close(output.log_prob, full, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(exact.sum(), learnt)
    rivals = torch.autograd.grad(full.sum(), learnt)
    ours = torch.autograd.grad(output.log_prob.sum(), learnt)
    for ours_of, rival, exact_of in zip(ours, rivals, expected, strict=True):
        assert ours_of.dtype == dtype
        error, usual = (ours_of - exact_of).double().norm(), (rival - exact_of).double().norm()
        assert error <= 1.3 * usual


def test_a_frozen_weight_keeps_the_digits_of_a_sure_token_in_half_precision() -> None:
    # p = 0.98: the gradient is 0.02 W[target] and little else; 1 - p from p in bfloat16 is not.
    weight = torch.eye(16, dtype=torch.bfloat16)
    hidden = (6.6 * torch.eye(16, dtype=torch.bfloat16)[:4]).requires_grad_()
    target = torch.arange(4)
    log_prob = token_log_probs(hidden, weight, target, tile=5).log_prob
    (ours,) = torch.autograd.grad(log_prob.sum(), hidden)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact = chosen(slow_law(exact_hidden, weight.double()), target)
    (expected,) = torch.autograd.grad(exact.sum(), exact_hidden)
    torch.testing.assert_close(ours.double(), expected, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_decides_the_matrix_products_and_nothing_else(
    learns: bool, backward_inside: bool
) -> None:
    hidden, weight, target = inputs(12, 30, dtype=torch.float32)
    weight.requires_grad_(learns)
    learnt = [hidden, weight] if learns else [hidden]
    with torch.autocast("cpu", torch.bfloat16):
        output = token_log_probs(hidden, weight, target, chunk=5, tile=11, keep=400).log_prob
        if backward_inside:
            ours = torch.autograd.grad(output.sum(), learnt)
    if not backward_inside:
        ours = torch.autograd.grad(output.sum(), learnt)
    low = hidden.detach().bfloat16(), weight.detach().bfloat16()
    same = token_log_probs(*low, target).log_prob
    torch.testing.assert_close(output, same, rtol=0, atol=1e-6)
    assert output.dtype == torch.float32
    assert not torch.equal(output, token_log_probs(hidden, weight, target).log_prob)
    slow = chosen(slow_law(hidden, weight), target)
    for ours_of, slow_of in zip(ours, torch.autograd.grad(slow.sum(), learnt), strict=True):
        assert ours_of.dtype == torch.float32
        torch.testing.assert_close(ours_of, slow_of, rtol=0.05, atol=0.05)


def test_an_autocast_around_the_backward_pass_changes_nothing() -> None:
    hidden, weight, target = inputs(12, 30, width=16, dtype=torch.float16)
    output = token_log_probs(hidden, weight, target, tile=11).log_prob.sum()
    expected = torch.autograd.grad(output, (hidden, weight), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.autograd.grad(output, (hidden, weight))
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)


class Watch(TorchDispatchMode):
    """Numbers in the largest floating tensor that any operation made, and products made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for out in made if isinstance(made, tuple | list) else (made,):
            if isinstance(out, Tensor) and out.is_floating_point():
                self.largest = max(self.largest, out.numel())
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return made


def watched(learns: bool, entropy: bool = False, keep: int = 0, grad: bool = True) -> Watch:
    tokens, size = 64, 600
    hidden, weight, target = inputs(tokens, size, dtype=torch.float32)
    weight.requires_grad_(learns)
    with torch.set_grad_enabled(grad), Watch() as watch:
        output = token_log_probs(
            hidden, weight, target, chunk=16, tile=100, entropy=entropy, keep=keep, top_k=2
        )
        if grad:
            output.log_prob.sum().backward()
    return watch


def test_no_tensor_is_larger_than_a_tile_or_the_weight() -> None:
    for learns, entropy in product([True, False], [True, False]):
        # A tile has 1600 numbers, the weight 3000, all logits 38,400.
        assert watched(learns, entropy).largest == (3000 if learns else 1600)
    with Watch() as watch:  # the watch itself sees the full path's logits
        hidden, weight, target = inputs(64, 600, dtype=torch.float32)
        chosen(slow_law(hidden, weight), target).sum().backward()
    assert watch.largest >= 38_400


def test_what_is_not_needed_is_not_multiplied() -> None:
    tiles = 4 * 6
    assert watched(learns=True, grad=False).products == tiles
    assert watched(learns=False).products == 2 * tiles  # LoRA: two for the full path's two
    assert watched(learns=True).products == 4 * tiles
    assert watched(learns=True, keep=10**6).products == 3 * tiles
    third = 4 * 8 * 1600  # bytes of eight tiles
    assert watched(learns=True, keep=third).products == 4 * tiles - 8


def test_a_graph_that_is_retained_gives_the_same_gradients_again() -> None:
    hidden, weight, target = inputs(9, 20)
    log_prob = token_log_probs(hidden, weight, target, chunk=4, tile=7, keep=10**6).log_prob
    first = torch.autograd.grad(log_prob.sum(), (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(log_prob.sum(), (hidden, weight))
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other)


def test_only_the_bias_or_only_the_weight_may_learn() -> None:
    hidden, weight, target = inputs(6, 11)
    bias = torch.zeros(11, dtype=torch.float64)
    for learnt in (bias, weight):
        for one in (hidden, weight, bias):
            one.requires_grad_(one is learnt)
        ours = token_log_probs(hidden, weight, target, bias=bias, chunk=4, tile=4, keep=300)
        slow = chosen(slow_law(hidden, weight, bias), target)
        (expected,) = torch.autograd.grad(slow.sum(), learnt)
        torch.testing.assert_close(torch.autograd.grad(ours.log_prob.sum(), learnt)[0], expected)


@pytest.mark.parametrize("learns", [True, False])
def test_entropy_that_is_only_watched_leaves_the_gradients_alone(learns: bool) -> None:
    hidden, weight, target = inputs(6, 11)
    weight.requires_grad_(learns)
    plain = token_log_probs(hidden, weight, target).log_prob
    watched_too = token_log_probs(hidden, weight, target, entropy=True).log_prob
    (expected,) = torch.autograd.grad(plain.sum(), hidden)
    torch.testing.assert_close(torch.autograd.grad(watched_too.sum(), hidden)[0], expected)


@pytest.mark.parametrize("entropy", [False, True])
def test_a_forbidden_token_has_probability_0_and_no_pull(entropy: bool) -> None:
    hidden, weight, _ = inputs(5, 12)
    bias = torch.zeros(12, dtype=torch.float64)
    bias[:4] = -torch.inf  # with tile=4 a whole tile
    target = torch.full((5,), 7)
    ours = token_log_probs(hidden, weight, target, bias=bias, tile=4, entropy=entropy)
    slow = slow_law(hidden, weight[4:])
    torch.testing.assert_close(ours.log_prob, chosen(slow, target - 4))
    total, expected = ours.log_prob.sum(), chosen(slow, target - 4).sum()
    if ours.entropy is not None:
        torch.testing.assert_close(ours.entropy, slow_entropy(slow))
        total, expected = total + ours.entropy.sum(), expected + slow_entropy(slow).sum()
    slow_grads = torch.autograd.grad(expected, (hidden, weight))
    for mine, slow_of in zip(torch.autograd.grad(total, (hidden, weight)), slow_grads, strict=True):
        torch.testing.assert_close(mine, slow_of)


def test_huge_logits_overflow_nothing() -> None:
    hidden, weight, target = inputs(8, 10, dtype=torch.float32)
    hidden, weight = (hidden.detach() * 1000).requires_grad_(), weight.detach().requires_grad_()
    output = token_log_probs(hidden, weight, target, tile=3, entropy=True)
    expected = chosen(slow_law(hidden.double(), weight.double()), target)
    torch.testing.assert_close(output.log_prob, expected.float(), rtol=1e-4, atol=1e-2)
    assert output.entropy is not None
    assert bool((output.entropy >= 0).all())
    (output.log_prob.sum() + output.entropy.sum()).backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0.0}, r"temperature is 0\.0; it must be above 0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"softcap": -1.0}, r"softcap is -1\.0"),
    ({"top_k": 8}, r"top_k is 8; it must lie in \[0, 7\]"),
    ({"chunk": -1}, "chunk and tile are -1 and None"),
    ({"keep": -1}, "keep is -1"),
    ({"bias": torch.zeros(3)}, r"bias is \[3\]; it must be \[7\]"),
    ({"target": torch.tensor([0, 7, -100])}, r"targets at \[1, 2\] are \[7, -100\]"),
    ({"target": torch.zeros(3)}, r"target is \[3\] torch.float32; it must be int64"),
    ({"target": torch.zeros(2, dtype=torch.int64)}, r"target is \[2\]"),
    ({"weight": torch.zeros(7, 4)}, r"hidden is \[3, 5\] and weight \[7, 4\]"),
    ({"hidden": torch.zeros(3, 1, 5)}, r"hidden is \[3, 1, 5\]"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=lambda value: str(value)[:30])
def test_wrong_input_is_named(wrong: dict[str, Any], message: str) -> None:
    hidden, weight, target = inputs(3, 7, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        token_log_probs(**{"hidden": hidden, "weight": weight, "target": target, **wrong})


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("tile", [5, 64])
def test_gradients_of_the_heads_products_are_those_of_autograd(
    softcap: float | None, tile: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator) for n in (7, 23))
    bias, factor = torch.randn(23, generator=generator), torch.randn(7, generator=generator)
    target = torch.randint(23, (7,), generator=generator)
    options: dict[str, Any] = {"temperature": 0.7, "softcap": softcap, "scale": 1.3}
    parts = (hidden, weight.requires_grad_(), target)
    log_prob = token_log_probs(*parts, bias=bias.requires_grad_(), **options).log_prob
    log_prob.backward(factor)
    gradient = torch.zeros(7, 23)
    fixed = log_prob.detach(), factor
    for columns, values in logit_gradients(*parts, *fixed, bias=bias, tile=tile, **options):
        gradient[:, columns] = values
    torch.testing.assert_close(gradient.T @ hidden, weight.grad)
    torch.testing.assert_close(gradient.sum(0), bias.grad)


@pytest.mark.parametrize("chunk", [1, 7, 16])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (2.0, 0.5)])
def test_the_divergence_and_its_gradients_are_those_of_the_formula(
    chunk: int, softcap: float | None, scale: float
) -> None:
    def distributions(seed: int) -> Distributions:
        hidden, weight, _ = inputs(16, 30, seed=seed)
        bias = torch.linspace(-1, 1, 30, dtype=torch.float64).requires_grad_()
        return Distributions(hidden, weight, bias, softcap, scale)

    policy, reference = distributions(0), distributions(1)
    factors = torch.linspace(0.5, 2, 16, dtype=torch.float64)
    got = kl_divergence(policy, reference, chunk=chunk)
    parts = policy[:3]
    gradients = torch.autograd.grad((got * factors).sum(), parts)
    p, q = (slow_law(*d[:3], softcap=softcap, scale=scale) for d in (policy, reference))
    expected = (p.exp() * (p - q.detach())).sum(-1)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * factors).sum(), parts))
    same = kl_divergence(policy, policy, chunk=chunk)
    torch.testing.assert_close(same, torch.zeros_like(same))


def test_a_forbidden_token_has_no_part_in_the_divergence() -> None:
    hidden, weight, _ = inputs(6, 10)
    forbidden = torch.zeros(10, dtype=torch.float64)
    forbidden[3] = -torch.inf
    kept = [number for number in range(10) if number != 3]
    other = inputs(6, 10, seed=1)[1]
    divergence = kl_divergence(
        Distributions(hidden, weight, forbidden), Distributions(hidden, other, forbidden)
    )
    expected = kl_divergence(
        Distributions(hidden, weight[kept]), Distributions(hidden, other[kept])
    )
    torch.testing.assert_close(divergence, expected)


def test_the_divergence_holds_one_chunk_of_log_probabilities() -> None:
    (hidden, weight, _), (other, fixed, _) = inputs(64, 600), inputs(64, 600, seed=1)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, Watch() as watch:
        divergence = kl_divergence(
            Distributions(hidden, weight), Distributions(other, fixed), chunk=16
        )
        divergence.sum().backward()
    assert watch.largest == 16 * 600
    assert max(saved, default=0) <= 600 * 5  # the backward pass computes each chunk again
