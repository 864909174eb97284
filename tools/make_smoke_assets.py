"""Make the embedded default: a tiny chat model and the data that tunes it.

    python tools/make_smoke_assets.py --out mac_lora_helpers/smoke
    python tools/make_smoke_assets.py --out /tmp/smoke --data-only

The data depends on the seed alone; the weights on the seed, the number of threads
and the build of torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smoke_data import base_conversations, expected_answers, write_data

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "mac_lora_helpers" / "smoke"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--data-only", action="store_true", help="leave the model alone")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of the base")
    parser.add_argument("--passes", type=int, default=60, help="times each fact is asked")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_model(folder: Path, arguments: argparse.Namespace) -> None:
    """Train tokenizer and model, and write them."""
    import torch
    from smoke_model import train, train_tokenizer, write_model

    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    conversations = base_conversations(arguments.passes, arguments.seed)
    tokenizer = train_tokenizer(conversations)
    model = train(tokenizer, conversations, arguments.steps, arguments.seed)
    write_model(folder, model, tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")


def main() -> None:
    """Write the data, then the model unless told otherwise."""
    arguments = parse_arguments()
    expected_answers()  # stops here if a question has two answers
    print(write_data(arguments.out / "data", arguments.seed))
    if not arguments.data_only:
        make_model(arguments.out / "model", arguments)


if __name__ == "__main__":
    main()
