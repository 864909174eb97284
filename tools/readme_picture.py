"""The README's picture: the figures of one run, one below the other.

python tools/readme_picture.py outputs/local-lora docs/images/run.png
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from mac_lora_helpers.artifacts import RunDir
from mac_lora_helpers.ui import comparison_figure, equivalence_figure, loss_figure


def picture(run: RunDir) -> np.ndarray:
    """Training, evaluation and export figures of a run as one image (rows × 1200 × 3)."""
    steps = run.read_json("train_metrics")["steps"]
    figures = [
        loss_figure(run.read_lines("train_log"), steps),
        comparison_figure(run.read_json("eval_metrics")),
        equivalence_figure(run.read_json("equivalence")),
    ]
    return np.concatenate([_pixels(figure) for figure in figures])


def _pixels(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=1200 / figure.get_figwidth())
    buffer.seek(0)
    return imread(buffer)[:, :, :3]


def main() -> None:
    from matplotlib.image import imsave

    source, target = RunDir(sys.argv[1]), Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    imsave(target, picture(source))


if __name__ == "__main__":
    main()
