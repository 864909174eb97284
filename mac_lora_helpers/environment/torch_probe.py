"""Asks torch about this machine; prints one JSON object a stage, the last one complete.

A script of its own: a torch that crashes, hangs or aborts in Metal takes only this process along.
It imports nothing but the standard library and torch.
"""

import json
import math
import os
import sys
import time

#: Vocabulary, width, heads, tokens and LoRA rank of the block that is tried.
VOCAB, WIDTH, HEADS, TOKENS, RANK = 128, 64, 4, 48, 4
LEARNING_RATE = 1e-2
#: As long as a vocabulary: the inner dimension of the product that gives a head's gradient.
LONG = 49_152


def main() -> None:
    facts = {"stage": "import", "version": None, "error": None, "runs": {}, "long_products": {}}
    emit(facts)
    try:
        import torch

        facts["version"] = torch.__version__
        emit({**facts, "stage": "devices"})
        facts.update(devices(torch))
        emit({**facts, "stage": "a step on the CPU"})
        try_devices(torch, facts)
    except BaseException as error:  # a broken torch may raise anything, SystemExit included
        facts["error"] = told(error)
    emit({**facts, "stage": "done"})


def emit(facts: dict) -> None:
    print(json.dumps(facts), flush=True)


def told(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:400]


def devices(torch) -> dict:
    mps = {"built": torch.backends.mps.is_built(), "available": torch.backends.mps.is_available(), "recommended_bytes": None}
    if mps["available"]:
        mps["recommended_bytes"] = asked(torch.mps.recommended_max_memory)
    cuda = {"available": torch.cuda.is_available()}
    if cuda["available"]:
        properties = torch.cuda.get_device_properties(0)
        cuda.update(name=properties.name, memory_bytes=properties.total_memory, capability=f"{properties.major}.{properties.minor}")
    return {"mps": mps, "cuda": cuda, "threads": torch.get_num_threads()}


def asked(question):
    try:
        return question()
    except Exception:
        return None


def try_devices(torch, facts: dict) -> None:
    """A LoRA training step on every device in float32 and bfloat16, compared with the CPU in float32."""
    exact = step(torch, "cpu", torch.float64)
    reference = step(torch, "cpu", torch.float32)
    names = ["cpu"] + [name for name in ("mps", "cuda") if facts[name]["available"]]
    for device in names:
        runs = facts["runs"].setdefault(device, {})
        emit({**facts, "stage": f"a long product on {device}"})
        facts["long_products"][device] = asked(lambda device=device: long_product_error(torch, device))
        for dtype in ("float32", "bfloat16"):
            emit({**facts, "stage": f"{dtype} on {device}"})
            against = exact if (device, dtype) == ("cpu", "float32") else reference
            try:
                runs[dtype] = compare(torch, step(torch, device, getattr(torch, dtype)), against)
                runs[dtype]["gflops"] = matmul_speed(torch, device, getattr(torch, dtype))
            except Exception as error:
                runs[dtype] = {"error": told(error)}


def step(torch, device: str, dtype) -> dict:
    """Forward, backward and one AdamW step of a LoRA pair in front of a frozen causal block, the same numbers on every device.

    The pair stays in float32 as PEFT keeps it; ``low_b`` is transposed, as in-place updates of such tensors went silently wrong on MPS.
    """
    torch.manual_seed(0)
    block = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True)
    embed, head, mask = (
        torch.randn(VOCAB, WIDTH),
        torch.randn(VOCAB, WIDTH) / WIDTH**0.5,
        torch.full((TOKENS, TOKENS), float("-inf")).triu(1),
    )
    low_a, low_b = torch.randn(RANK, WIDTH) / WIDTH**0.5, torch.randn(RANK, WIDTH).mul(0.1).t()
    ids = torch.randint(0, VOCAB, (2, TOKENS + 1)).to(device)
    block, embed, head, mask = (item.to(device, dtype).requires_grad_(False) for item in (block, embed, head, mask))
    pair = [item.to(device, torch.promote_types(dtype, torch.float32)).requires_grad_() for item in (low_a, low_b)]
    start, optimizer = flat(torch, pair), torch.optim.AdamW(pair, lr=LEARNING_RATE, weight_decay=0.0)

    def loss():
        linear, x = torch.nn.functional.linear, torch.nn.functional.embedding(ids[:, :-1], embed)
        x = x + linear(linear(x.to(pair[0].dtype), pair[0]), pair[1]).to(dtype)
        logits = linear(block(x, src_mask=mask), head).to(pair[0].dtype)
        return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1))

    first = loss()
    first.backward()
    gradients = flat(torch, [item.grad for item in pair])
    optimizer.step()
    with torch.no_grad():
        return {"loss": first.item(), "after": loss().item(), "gradients": gradients, "update": flat(torch, pair) - start}


def flat(torch, tensors):
    return torch.cat([tensor.detach().cpu().double().reshape(-1) for tensor in tensors])


def compare(torch, run: dict, reference: dict) -> dict:
    """Relative errors of loss and gradients, and the cosine of the two updates (Adam turns tiny gradients' signs into full steps)."""
    gradient_error = (run["gradients"] - reference["gradients"]).norm() / reference["gradients"].norm()
    cosine = torch.nn.functional.cosine_similarity(run["update"], reference["update"], dim=0)
    numbers = {
        "loss": run["loss"],
        "loss_after": run["after"],
        "loss_error": abs(run["loss"] - reference["loss"]) / abs(reference["loss"]),
        "gradient_error": gradient_error.item(),
        "update_cosine": cosine.item(),
    }
    finite = all(math.isfinite(number) for number in numbers.values())
    return {"finite": finite, **{name: number if math.isfinite(number) else None for name, number in numbers.items()}}


def long_product_error(torch, device: str) -> float:
    """Relative error of a product as a head's gradient has it: torch 2.13 gives wrong numbers on M1 and M2, without a word."""
    source = torch.Generator().manual_seed(1)
    left, right = torch.randn(32, LONG, generator=source), torch.randn(LONG, 32, generator=source)
    exact = left.double() @ right.double()
    here = (left.to(device) @ right.to(device)).cpu().double()
    error = ((here - exact).norm() / exact.norm()).item()
    return error if math.isfinite(error) else 1.0


def matmul_speed(torch, device: str, dtype) -> float:
    """GFLOP/s of a square matrix product, best of three after a warm-up; a rough figure for comparing two dtypes."""
    side = 512 if device == "cpu" else 2048
    a = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - begin)
    return round(2 * side**3 / min(seconds[1:]) / 1e9, 1)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    # Skips torch's own shutdown, which some broken installations do not survive.
    os._exit(0)
