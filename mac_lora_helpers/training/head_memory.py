"""What the loss allocates beside the activations: TRL's tiled head, and the fast path's.

TRL's (``trl/kernels/chunked_logprob.py``, trl 1.16) goes over tiles of 4096 tokens × 32768 vocabulary entries. On CPU and
MPS its backward pass has the tile's logits and, in float32, their scaled copy, log p, p, the gradient, the labels' one-hot
and its difference, and the product with the incoming gradient: seven, and a mask of one byte an entry. On CUDA a kernel
works in place. With weights of two bytes the gradient's product takes float32 copies of the tile and of the weights' part.
"""

from __future__ import annotations

from dataclasses import dataclass

#: trl 1.16: tokens and vocabulary entries of a tile.
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
#: float32 copies of a tile alive at once in the torch version's forward and backward pass, a mask included.
FORWARD_TILES, BACKWARD_TILES = 3.25, 7.25
#: Holes of the forward pass that the backward pass cannot use while blocks are kept (an allowance).
HOLES = 3
KEPT_BELOW = 32 * 2**20


@dataclass(frozen=True)
class HeadMemory:
    """Bytes at the peak of the loss's forward and of its backward pass, and freed blocks that stay behind."""

    forward: float
    backward: float
    holes: float = 0


def plain_head(tokens: int, width: int, vocabulary: int, itemsize: int, device: str) -> HeadMemory:
    """TRL's head for ``tokens`` positions."""
    rows, columns = min(tokens, TILE_TOKENS), min(vocabulary, TILE_VOCABULARY)
    tile, hidden = 4 * rows * columns, tokens * width
    buffer = itemsize * rows * TILE_VOCABULARY  # as wide as a whole tile, also for a smaller vocabulary
    if device == "cuda":
        return HeadMemory(buffer, buffer + 4 * hidden)
    products = tile + 4 * columns * width if itemsize < 4 else 0
    backward = buffer + 4 * hidden + max(BACKWARD_TILES * tile, products)
    last = 4 * rows * (vocabulary % TILE_VOCABULARY if vocabulary > TILE_VOCABULARY else columns)
    return HeadMemory(buffer + FORWARD_TILES * tile, backward, HOLES * last if last < KEPT_BELOW else 0)


def fast_head(tokens: int, width: int, vocabulary: int, itemsize: int, device: str, again: str) -> HeadMemory:
    """The fast path's head for ``tokens`` positions with a label: one tile of logits, and the gradient taken at once."""
    from mac_lora_helpers.training.fast.head import tile, tile_bytes

    gradient = tokens * width * itemsize
    return HeadMemory(tile_bytes(tokens, width, vocabulary, itemsize, tile(device, again)) + gradient, gradient)
