"""The autograd functions against PyTorch's and PEFT's own composition."""

from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mac_lora_helpers.training.fast.head import FrozenHead, tile, tile_bytes
from mac_lora_helpers.training.fast.projections import Norm, Normed, Rotary


def random(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), **options)


@pytest.mark.parametrize("rows", [1, 5, 8, 64])
@pytest.mark.parametrize("columns", [1, 7, 25, 50, 64])
def test_head_gives_cross_entropy_and_its_gradient_for_any_weighting_of_the_rows(rows, columns):
    hidden, weight, labels = random(21, 16), random(50, 16), torch.arange(21) * 2
    weights = random(21)
    results = []
    for own in (True, False):
        h = hidden.clone().requires_grad_()
        mine = own and FrozenHead.apply(h, weight, labels, (rows, columns))[0]
        log_p = mine if own else -F.cross_entropy(h @ weight.t(), labels, reduction="none")
        (log_p * weights).sum().backward()
        results.append((log_p.detach(), h.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("columns", [7, 50])
def test_head_gives_entropy_and_hits(columns):
    hidden, weight, labels = random(21, 16), random(50, 16), torch.arange(21) * 2
    logits = hidden @ weight.t()
    labels[::3] = logits[::3].argmax(-1)
    _, entropy, hit = FrozenHead.apply(hidden, weight, labels, (8, columns))
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5, rtol=1e-5)
    assert torch.equal(hit, logits.argmax(-1) == labels)
    assert hit.sum() >= 7


@pytest.mark.parametrize("columns", [7, 50])
def test_head_survives_logits_that_overflow_exp(columns):
    hidden, weight, labels = 200 * random(21, 16), random(50, 16), torch.arange(21) * 2
    h = hidden.requires_grad_()
    log_p, entropy, _ = FrozenHead.apply(h, weight, labels, (8, columns))
    log_p.sum().backward()
    torch.testing.assert_close(log_p, torch.log_softmax(hidden @ weight.t(), -1).gather(-1, labels[:, None])[:, 0], rtol=1e-5, atol=1e-2)
    assert h.grad.isfinite().all()
    assert entropy.isfinite().all()


def test_head_is_exact_where_the_label_is_nearly_certain():
    """There 1 − p is what counts, and a difference of two numbers near 1 would have lost it."""
    hidden, weight, labels = random(21, 16), 0.1 * random(50, 16), torch.arange(21) * 2
    weight[labels] = 14 * hidden / hidden.norm(dim=1, keepdim=True) ** 2
    h, exact = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    log_p = FrozenHead.apply(h, weight, labels, (8, 7))[0]
    log_p.sum().backward()
    F.cross_entropy(exact @ weight.double().t(), labels, reduction="sum").neg().backward()
    certain = log_p.exp() > 0.99
    assert certain.any()
    torch.testing.assert_close(h.grad[certain].double(), exact.grad[certain], rtol=1e-4, atol=0)


def test_head_says_when_the_logits_are_not_numbers():
    hidden, weight, labels = random(21, 16), random(50, 16), torch.arange(21) * 2
    hidden[3] = torch.nan
    log_p = FrozenHead.apply(hidden, weight, labels, (8, 7))[0]
    assert log_p[3].isnan()
    assert log_p[4:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_allocates_what_is_counted(dtype):
    class Storages(TorchDispatchMode):
        sizes: ClassVar = {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.sizes[out.untyped_storage().data_ptr()] = out.untyped_storage().nbytes()
            return out

    hidden, weight = random(64, 16).to(dtype), random(5000, 16).to(dtype)
    with Storages() as seen:
        FrozenHead.apply(hidden, weight, torch.arange(64), (32, 1000))
    seen.sizes.pop(weight.untyped_storage().data_ptr())
    assert max(seen.sizes.values()) == 32 * 1000 * 4, "nothing as wide as the vocabulary"
    assert 32 * 1000 * 8 < tile_bytes(64, 16, 5000, dtype.itemsize, (32, 1000)) < 32 * 1000 * 14


def test_a_tile_shrinks_with_the_plan_and_not_with_the_vocabulary():
    for device in ("cpu", "mps", "cuda"):
        sizes = [tile_bytes(512, 896, 151_936, 4, tile(device, again)) for again in ("nothing", "mlp", "layers")]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == tile_bytes(512, 896, 50_000, 4, tile(device)) < 64 * 2**20


def test_norm_gives_rmsnorm_and_its_gradient():
    x, weight, grad = random(7, 16), random(16), random(7, 16)
    results = []
    for own in (True, False):
        v = x.clone().requires_grad_()
        y = Normed.apply(v, Norm(weight, 1e-6)) if own else F.rms_norm(v, (16,), weight, 1e-6)
        y.backward(grad)
        results.append((y.detach(), v.grad))
    torch.testing.assert_close(results[0], results[1])


def test_rotary_gives_transformers_rotation_and_its_gradient():
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    x, angle, grad = random(2, 5, 3, 8), random(1, 5, 8), random(2, 5, 3, 8)
    results = []
    for own in (True, False):
        v = x.clone().requires_grad_()
        cos, sin = angle.cos(), angle.sin()
        y = Rotary.apply(v, cos.unsqueeze(2), sin.unsqueeze(2)) if own else apply_rotary_pos_emb(v, v, cos, sin, 2)[0]
        y.backward(grad)
        results.append((y.detach(), v.grad))
    torch.testing.assert_close(results[0], results[1])


def test_importing_the_package_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, mac_lora_helpers.training.fast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
