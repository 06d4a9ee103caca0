"""Every registered loss is one mathematical object: on 1 to 4 ranks, in one piece or in many, and equals its peer."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from clip_lightning.loss import LOSSES, LossOutput
from tests.loss.loss_ranks import CHUNKS, NUM_PAIRS, SHARED, SHARING, global_batch, pair_keys, teachers
from tests.loss.peers import peers_distillation

PEERS: dict[str, Callable[..., Tensor]] = {
    "softmax": lambda image, text, scale, bias, dtype: ClipLoss()(image, text, scale),
    "sigmoid": lambda image, text, scale, bias, dtype: SigLipLoss()(image, text, scale, logit_bias=bias),
    "distill": lambda image, text, scale, bias, dtype: peers_distillation(
        image, text, scale, teachers("distill", dtype)
    ),
}
Results = dict[str, dict[str, Tensor]]


@pytest.fixture(
    scope="module", params=(1, pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow))
)
def ranks(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("loss_ranks.py")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(program), str(request.param), str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    results: Results = torch.load(folder / "results.pt", weights_only=True)
    return results


def peer_results(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the peer's one-process loss gives for the same features in float64."""
    leaves = {key: value.double().requires_grad_() for key, value in global_batch(dtype).items()}
    loss = PEERS[name](*leaves.values(), dtype)
    loss.backward()
    best = (leaves["image"] @ leaves["text"].T).argmax(1) == torch.arange(NUM_PAIRS)
    found = {"loss": loss.detach(), "accuracy": best.double().mean()}
    return found | {key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for key, leaf in leaves.items()}


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative to the norm of what is expected."""
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", sorted(PEERS))
def test_loss_and_every_gradient_equal_the_peers_one_process_loss(ranks: Results, name: str, chunk: int) -> None:
    found, expected = ranks[f"{name}-{chunk}-float32"], peer_results(name, torch.float32)
    distances = {key: distance(found[key], expected[key]) for key in expected}
    assert max(distances.values()) < 1e-6, distances


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", sorted(PEERS))
def test_bf16_features_lose_nothing_inside_the_loss(ranks: Results, name: str, chunk: int) -> None:
    found, expected = ranks[f"{name}-{chunk}-bfloat16"], peer_results(name, torch.bfloat16)
    assert found["loss"].dtype == torch.float32
    assert found["image"].dtype == torch.bfloat16
    assert distance(found["loss"], expected["loss"]) < 1e-6
    assert distance(found["image"], expected["image"]) < 4e-3  # the gradient itself is rounded to bf16


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_registered_loss_is_the_same_on_any_number_of_ranks_in_any_pieces(ranks: Results, name: str) -> None:
    whole = ranks[f"{name}-{CHUNKS[0]}-float32"]
    leaves = {key: value.double().requires_grad_() for key, value in global_batch(torch.float32).items()}
    alone: LossOutput = LOSSES[name](chunk=NUM_PAIRS)(*leaves.values(), **teachers(name, torch.float64))
    alone.loss.backward()
    assert distance(whole["loss"], alone.loss.detach()) < 1e-6
    for key in ("image", "text", "scale"):
        gradient = leaves[key].grad
        assert gradient is not None
        assert gradient.abs().max() > 0
        for chunk in CHUNKS:
            assert distance(ranks[f"{name}-{chunk}-float32"][key], gradient) < 1e-6


def shared_reference(name: str) -> dict[str, Tensor]:
    """The loss with targets shared over equal captions or images, written plainly in float64."""
    leaves = {key: value.double().requires_grad_() for key, value in global_batch(torch.float32).items()}
    keys = pair_keys(LOSSES[name](chunk=8, **SHARED))["pair_keys"]
    positives = ((keys[:, None] == keys).any(2)).double()
    logits = leaves["scale"] * leaves["image"] @ leaves["text"].T
    if name == "softmax":
        rows = -(positives / positives.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)
        columns = -(positives / positives.sum(0) * logits.log_softmax(0)).sum(0)
        loss = (rows + columns).mean() / 2
    else:
        loss = -torch.nn.functional.logsigmoid((2 * positives - 1) * (logits + leaves["bias"])).sum() / NUM_PAIRS
    loss.backward()
    found = {"loss": loss.detach(), "accuracy": positives[torch.arange(NUM_PAIRS), logits.argmax(1)].mean()}
    return found | {key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for key, leaf in leaves.items()}


@pytest.mark.parametrize("name", SHARING)
def test_targets_shared_over_duplicates_equal_a_plain_one_process_loss(ranks: Results, name: str) -> None:
    expected = shared_reference(name)
    assert expected["loss"] != peer_results(name, torch.float32)["loss"]
    cases = [f"{name}-{chunk}-shared" for chunk in CHUNKS]
    cases += [f"sigmoid-{chunk}-shared-groups" for chunk in CHUNKS] if name == "sigmoid" else []
    for label in cases:
        distances = {key: distance(ranks[label][key], value) for key, value in expected.items()}
        assert max(distances.values()) < 1e-6, (label, distances)


def test_sigmoid_gives_the_same_in_several_groups_of_texts(ranks: Results) -> None:
    expected = peer_results("sigmoid", torch.float32)
    for chunk in CHUNKS:
        distances = {key: distance(ranks[f"sigmoid-{chunk}-groups"][key], value) for key, value in expected.items()}
        assert max(distances.values()) < 1e-6, distances


@pytest.mark.parametrize("name", SHARING)
def test_a_batch_of_one_caption_has_nothing_to_learn_from_its_pairs(name: str) -> None:
    leaves = [value.requires_grad_() for value in global_batch(torch.float32).values()]
    keys = torch.tensor([[5, number] for number in range(NUM_PAIRS)])
    output = LOSSES[name](chunk=5, **SHARED)(*leaves, pair_keys=keys)
    assert output.accuracy == 1
    if name == "softmax":
        assert output.loss >= math.log(NUM_PAIRS)


@pytest.mark.ci
@pytest.mark.parametrize("options", [{}, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("chunk", [3, 7, 8])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_are_right_in_float64(name: str, chunk: int, options: dict[str, str]) -> None:
    if options and name not in SHARING:
        pytest.skip("this loss shares no targets")
    batch = {
        key: value[:7] if key in ("image", "text") else value for key, value in global_batch(torch.float64).items()
    }
    leaves = [value.requires_grad_() for value in batch.values()]
    loss = LOSSES[name](chunk=chunk, **options)
    teacher_inputs = {**teachers(name, torch.float64, slice(7)), **pair_keys(loss, slice(7))}
    assert torch.autograd.gradcheck(lambda *inputs: loss(*inputs, **teacher_inputs).loss, leaves)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("setting", ["tf32", "bf16"])
def test_neither_autocast_nor_reduced_products_reach_the_logits(name: str, setting: str) -> None:
    def run() -> list[Tensor]:
        leaves = [value.requires_grad_() for value in global_batch(torch.float32).values()]
        output = LOSSES[name](chunk=8)(*leaves, **teachers(name, torch.float32))
        output.loss.backward()
        return [output.loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    plain = run()
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if backend is backends[0] else setting
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reduced = run()
        assert torch.backends.mkldnn.matmul.fp32_precision == setting, "the caller's own setting is left as it was"
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
    for one, other in zip(plain, reduced, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_without_gradients_the_value_is_the_same(name: str) -> None:
    batch, teacher_inputs = global_batch(torch.float32), teachers(name, torch.float32)
    loss = LOSSES[name](chunk=8)
    with torch.inference_mode():
        value = loss(*batch.values(), **teacher_inputs)
    graph = loss(*(tensor.requires_grad_() for tensor in batch.values()), **teacher_inputs)
    assert torch.equal(value.loss, graph.loss)
    assert torch.equal(value.accuracy, graph.accuracy)


@pytest.mark.parametrize("logit", [-60.0, 60.0])
def test_sigmoid_holds_at_extreme_logits(logit: float) -> None:
    image = text = torch.nn.functional.normalize(torch.ones(4, 8), dim=1)
    value = LOSSES["sigmoid"](chunk=3)(image, text, torch.tensor([0.0]), torch.tensor([logit])).loss
    assert value.item() == pytest.approx(3 * max(logit, 0) + max(-logit, 0), rel=1e-6)


def test_softmax_of_equal_features_is_the_chance_level() -> None:
    image = text = torch.nn.functional.normalize(torch.ones(NUM_PAIRS, 8), dim=1)
    output = LOSSES["softmax"](chunk=5)(image, text, torch.tensor([100.0]))
    assert output.loss.item() == pytest.approx(math.log(NUM_PAIRS), rel=1e-6)
    assert output.accuracy.item() == pytest.approx(1 / NUM_PAIRS)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_feature_that_is_no_number_is_seen_in_the_loss(name: str) -> None:
    batch = global_batch(torch.float32)
    batch["text"][5, 0] = torch.nan
    assert not torch.isfinite(LOSSES[name](chunk=8)(*batch.values(), **teachers(name, torch.float32)).loss)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    image, text, scale, _ = (tensor.requires_grad_() for tensor in global_batch(torch.float64).values())
    teacher_inputs = {"teacher_image": image.detach(), "teacher_text": text.detach(), "teacher_scale": scale.detach()}
    output = LOSSES["distill"](chunk=5, weight=1.0)(image, text, scale, **teacher_inputs)
    output.loss.backward()
    assert abs(output.loss.item()) < 1e-12
    assert image.grad is not None
    assert image.grad.abs().max() < 1e-12
