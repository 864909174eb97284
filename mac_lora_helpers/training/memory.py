"""Memory that training uses, per device: thin readings, and a peak sampled while the trainer runs.

CPU: resident set of this process. MPS: ``driver_allocated_memory`` (what Metal holds for PyTorch, caches included).
CUDA: ``max_memory_allocated``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading

#: Seconds between two samples; one sample costs about 20 µs.
INTERVAL = 0.02
#: Bytes in use on a device before the model was loaded (``recipe.loading``): not the training's.
BASELINE: dict[str, int] = {}


def used(device: str) -> int:
    """Bytes in use now: by this process on CPU, by PyTorch on a GPU."""
    if device == "mps":
        import torch

        return int(torch.mps.driver_allocated_memory())
    if device == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


def settle() -> None:
    """Drops what is dead and, on Linux, gives the heap's free blocks back, so that a baseline counts only what lives."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available(device: str) -> int:
    """Bytes that training could still take on this device without swapping."""
    import psutil

    free = int(psutil.virtual_memory().available)
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    limit = recommended(device)
    return free if limit is None else min(free, limit)


def recommended(device: str) -> int | None:
    """What Metal recommends to use at most; None on other devices."""
    if device != "mps":
        return None
    import torch

    return int(torch.mps.recommended_max_memory())


class PeakMeter:
    """Highest use between ``start`` and ``stop``, above a baseline taken before the model was loaded.

    Args:
        device: cpu, mps or cuda.
        baseline: bytes to subtract; 0 on a GPU, where only PyTorch's own memory is counted.
    """

    def __init__(self, device: str, baseline: int = 0) -> None:
        self.device, self.baseline = device, baseline
        self._peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def now(self) -> int:
        """Bytes used now, above the baseline."""
        return max(used(self.device) - self.baseline, 0)

    @property
    def peak(self) -> int:
        """Highest reading so far, above the baseline."""
        return max(self._peak - self.baseline, 0)

    def start(self) -> None:
        """Begins sampling; the samples' thread ends with ``stop`` or with the process."""
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        self._stop.clear()
        self._thread = threading.Thread(target=self._sample, name="memory-peak", daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Ends sampling and returns the peak."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._see()
        return self.peak

    def _sample(self) -> None:
        self._see()
        while not self._stop.wait(INTERVAL):
            self._see()

    def _see(self) -> None:
        self._peak = max(self._peak, _high_water(self.device))


def _high_water(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return used(device)
