"""The autograd functions against PyTorch's and PEFT's own composition."""

import pytest
import torch
from torch.nn import functional as F

from mac_lora_helpers.training.fast import head
from mac_lora_helpers.training.fast.head import FrozenHead, chunk_rows
from mac_lora_helpers.training.fast.projections import Norm, Normed, Rotary


def random(*shape, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), **options)


@pytest.mark.parametrize("rows", [1, 5, 8, 64])
@pytest.mark.parametrize("together", [3, 8])
def test_head_gives_cross_entropy_and_its_gradient_for_any_weighting_of_the_rows(rows, together, monkeypatch):
    monkeypatch.setattr(head, "CPU_BYTES", together * 4 * 50)
    hidden, weight, labels = random(21, 16), random(50, 16), torch.arange(21) * 2
    weights = random(21)
    results = []
    for own in (True, False):
        h = hidden.clone().requires_grad_()
        log_p = FrozenHead.apply(h, weight, labels, rows)[0] if own else -F.cross_entropy(h @ weight.t(), labels, reduction="none")
        (log_p * weights).sum().backward()
        results.append((log_p.detach(), h.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_head_gives_entropy_and_hits():
    hidden, weight, labels = random(21, 16), random(50, 16), torch.arange(21) * 2
    logits = hidden @ weight.t()
    labels[::3] = logits[::3].argmax(-1)
    _, entropy, hit = FrozenHead.apply(hidden, weight, labels, 8)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5, rtol=1e-5)
    assert torch.equal(hit, logits.argmax(-1) == labels)
    assert hit.sum() >= 7


def test_head_survives_logits_that_overflow_exp():
    hidden, weight, labels = 200 * random(21, 16), random(50, 16), torch.arange(21) * 2
    h = hidden.requires_grad_()
    log_p, entropy, _ = FrozenHead.apply(h, weight, labels, 8)
    log_p.sum().backward()
    torch.testing.assert_close(log_p, torch.log_softmax(hidden @ weight.t(), -1).gather(-1, labels[:, None])[:, 0], rtol=1e-5, atol=1e-2)
    assert h.grad.isfinite().all()
    assert entropy.isfinite().all()


def test_chunks_shrink_with_the_vocabulary():
    assert chunk_rows(1000) > chunk_rows(50_000) > chunk_rows(151_936) >= 32
    for again, size in {"nothing": 320, "mlp": 160, "layers": 80}.items():
        assert chunk_rows(151_936, 4, again) * 151_936 * 4 <= size * 2**20


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
