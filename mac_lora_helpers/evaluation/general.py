"""Is old behaviour kept? Loss on general conversations that have nothing to do with the training data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mac_lora_helpers.config import EMBEDDED
from mac_lora_helpers.errors import InputError
from mac_lora_helpers.evaluation.generation import render
from mac_lora_helpers.evaluation.loading import Trained
from mac_lora_helpers.evaluation.losses import IGNORED, Losses, compare_losses
from mac_lora_helpers.model import turn_end

#: Everyday questions with plain answers: facts, arithmetic, rewriting, advice, code, refusal of the impossible.
CONVERSATIONS: tuple[tuple[str, str], ...] = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("How many minutes are there in an hour?", "There are 60 minutes in an hour."),
    ("What is 12 times 8?", "12 times 8 is 96."),
    (
        "Why is the sky blue?",
        "Air scatters short wavelengths of sunlight more than long ones, so blue light reaches us from all directions.",
    ),
    ("What do bees make?", "Bees make honey from the nectar of flowers. They also make wax, from which they build their combs."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("Name three primary colours of light.", "Red, green and blue."),
    ("Translate 'good morning' into French.", "Bonjour."),
    ("What is the opposite of 'generous'?", "The opposite of generous is stingy."),
    ("Rewrite this politely: Send me the report.", "Could you please send me the report when you have a moment?"),
    ("Correct this sentence: He go to school every day.", "He goes to school every day."),
    ("Put these words in alphabetical order: pear, apple, fig.", "apple, fig, pear"),
    ("Give me a synonym for 'quick'.", "A synonym for quick is fast."),
    (
        "How do I boil an egg?",
        "Put the egg into boiling water. Take it out after six minutes for a soft yolk, or after ten for a hard one.",
    ),
    (
        "I can't sleep. What can I do?",
        "Try to go to bed at the same time each night, keep the room dark and cool, and leave your phone in another room.",
    ),
    (
        "How do I remove a coffee stain from a shirt?",
        "Rinse it with cold water, rub in a little liquid soap, wait ten minutes and wash it as usual.",
    ),
    ("What should I pack for a day at the beach?", "Take sunscreen, a towel, a hat, water, a snack and something to read."),
    ("Write a one-line Python function that doubles a number.", "def double(x): return 2 * x"),
    ("What does the command `ls` do?", "It lists the files in a folder."),
    ("What is a variable in programming?", "A variable is a name that refers to a value, so that the value can be used and changed later."),
    ("Is 17 a prime number?", "Yes. 17 can only be divided evenly by 1 and by itself."),
    ("If I have 3 apples and eat one, how many are left?", "Two apples are left."),
    ("Anna is taller than Ben. Ben is taller than Carl. Who is the shortest?", "Carl is the shortest."),
    ("What weighs more, a kilogram of iron or a kilogram of feathers?", "They weigh the same: one kilogram each."),
    ("Summarise in one sentence: The train was late, so Maria missed the meeting.", "Maria missed the meeting because her train was late."),
    ("Write a short thank-you note for a gift.", "Thank you so much for the lovely gift. It was very kind of you to think of me!"),
    ("Suggest a name for a black cat.", "How about Shadow?"),
    ("What will the weather be tomorrow?", "I cannot see weather forecasts. A weather service for your town can tell you."),
    ("Hello, how are you?", "Hello! I am doing well, thank you. How can I help you today?"),
    ("Thank you for your help.", "You are welcome! Let me know if there is anything else I can do."),
)


def compare_general(trained: Trained) -> Losses:
    """Base against tuned on general conversations; only the answers' tokens count.

    The embedded model is asked the small talk that ships beside it, since it knows little else; any other
    model is asked ``CONVERSATIONS``.
    """
    embedded = trained.config.model_id == EMBEDDED
    conversations = _embedded() if embedded else [_turns(*pair) for pair in CONVERSATIONS]
    rows = [conversation_tokens(trained.tokenizer, messages) for messages in conversations]
    return compare_losses(trained, rows, source="embedded general conversations" if embedded else "general conversations")


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _embedded() -> list[list[dict[str, str]]]:
    from mac_lora_helpers import smoke

    try:
        lines = smoke.GENERAL.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        fix = "install the package again; its data files are missing"
        raise InputError(f"the embedded conversations cannot be read: {error.strerror}", where=smoke.GENERAL.name, fix=fix) from None
    return [json.loads(line)["messages"] for line in lines if line.strip()]


def conversation_tokens(tokenizer: Any, messages: Sequence[dict[str, str]]) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` of a conversation's last answer and its end token, after the prompt that inference sees."""
    prompt = render(tokenizer, messages[:-1])
    end = turn_end(tokenizer)
    end = tokenizer.eos_token_id if end is None else end
    answer = [*tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"], *([] if end is None else [end])]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}
