"""Make the embedded default: a tiny chat model and the data that tunes it.

    python tools/make_smoke_assets.py --out mac_lora_helpers/smoke
    python tools/make_smoke_assets.py --out /tmp/smoke --data-only

The data depends on the seed alone; the weights on the seed, the number of threads
and the build of torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smoke_data import base_conversations, closing_conversations, expected_answers, write_data

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "mac_lora_helpers" / "smoke"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--data-only", action="store_true", help="leave the model alone")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of the base")
    parser.add_argument("--closing-steps", type=int, default=150, help="steps of the second stage")
    parser.add_argument("--continue-from", type=Path, help="model folder of a run with --closing-steps 0")
    parser.add_argument("--passes", type=int, default=60, help="times each fact is asked")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def first_stage(arguments: argparse.Namespace):
    """Tokenizer and model from scratch, or those of an earlier run."""
    from smoke_model import new_model, train, train_tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if arguments.continue_from:
        model = AutoModelForCausalLM.from_pretrained(arguments.continue_from)
        return model, AutoTokenizer.from_pretrained(arguments.continue_from)
    conversations = base_conversations(arguments.passes, arguments.seed)
    tokenizer = train_tokenizer(conversations)
    model = new_model(tokenizer, arguments.seed)
    train(model, tokenizer, conversations, arguments.steps, 2e-3, arguments.seed)
    return model, tokenizer


def make_model(folder: Path, arguments: argparse.Namespace) -> None:
    """Train in two stages, the second short and gentle, and write the result."""
    import torch
    from smoke_model import train, write_model

    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    model, tokenizer = first_stage(arguments)
    if arguments.closing_steps:
        closing = closing_conversations(8, arguments.seed)
        train(model, tokenizer, closing, arguments.closing_steps, 5e-4, arguments.seed + 1)
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
