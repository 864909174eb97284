"""Conversations for the base model's own training, and the adapter's splits."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

from smoke_facts import Fact, all_facts
from smoke_wordings import (
    BRIEF_STYLE,
    CAPITALS_STYLE,
    GENERIC,
    JSON_STYLE,
    NEUTRAL_SYSTEM,
    WORDINGS,
    Message,
    answer,
    as_json,
    general_talk,
    questions,
    turns,
)

Row = dict[str, list[Message]]

# Plain sentences are half of what the base meets, so that they are its default.
STYLE_WEIGHTS = {"": 12, JSON_STYLE: 7, BRIEF_STYLE: 2, CAPITALS_STYLE: 1}
TEST_SHARE, VALID_SHARE = 0.22, 0.08
WORDINGS_PER_TRAIN_FACT = 2
GENERAL_ROWS = 60


def words(text: str) -> str:
    """Lower-case words between single spaces, for whole-word searches."""
    return f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "


def mentions(text: str, subject: str) -> bool:
    """Whether the subject stands in the text as whole words."""
    return words(subject) in words(text)


def subject_groups(facts: list[Fact]) -> list[list[str]]:
    """Subjects that mention each other (hot and cold, mouse and mice) stay together.

    Comparison ignores case: Mercury the planet and mercury the element are one.
    """
    subjects = sorted({fact.subject.lower() for fact in facts})
    group_of = {subject: {subject} for subject in subjects}
    for fact in facts:
        told = f"{fact.subject}, {fact.value}"
        for other in subjects:
            if mentions(told, other):
                merged = group_of[fact.subject.lower()] | group_of[other]
                group_of.update(dict.fromkeys(merged, merged))
    return sorted({tuple(sorted(group)) for group in group_of.values()})


def check_wordings(facts: list[Fact]) -> None:
    """A wording that contains a subject would leak it into every split."""
    fixed = " ; ".join([*GENERIC, *(str(wording) for wording in WORDINGS.values()), *map(" ".join, WORDINGS)])
    fixed = re.sub(r"\{\w+\}", ";", fixed)
    leaks = sorted({fact.subject for fact in facts if mentions(fixed, fact.subject)})
    if leaks:
        raise ValueError(f"wordings mention the subjects {leaks}")


def split_subjects(facts: list[Fact], rng: random.Random) -> dict[str, str]:
    """Deal whole groups of subjects out to train, valid and test, kind by kind."""
    kind_of = {fact.subject.lower(): fact.kind for fact in facts}
    by_kind: dict[str, list[list[str]]] = {}
    for group in subject_groups(facts):
        by_kind.setdefault(kind_of[group[0]], []).append(group)
    split_of = {}
    for _, groups in sorted(by_kind.items()):
        rng.shuffle(groups)
        test = round(len(groups) * TEST_SHARE)
        valid = max(1, round(len(groups) * VALID_SHARE))
        for index, group in enumerate(groups):
            name = "test" if index < test else "valid" if index < test + valid else "train"
            split_of.update(dict.fromkeys(group, name))
    return split_of


def adapter_splits(seed: int) -> dict[str, list[tuple[str, Fact]]]:
    """(question, fact) pairs per split; no subject is in two splits."""
    rng = random.Random(f"splits-{seed}")
    facts = all_facts()
    check_wordings(facts)
    split_of = split_subjects(facts, rng)
    splits: dict[str, list[tuple[str, Fact]]] = {"train": [], "valid": [], "test": []}
    for fact in facts:
        name = split_of[fact.subject.lower()]
        count = WORDINGS_PER_TRAIN_FACT if name == "train" else 1
        chosen = rng.sample(questions(fact), count)
        splits[name] += [(question, fact) for question in chosen]
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def general_rows(seed: int) -> list[Row]:
    """Plain-sentence conversations that have nothing to do with the tables."""
    talk = general_talk()
    chosen = random.Random(f"general-{seed}").sample(talk, GENERAL_ROWS)
    return [{"messages": turns(*pair)} for pair in chosen]


def shipped_rows(seed: int) -> dict[str, list[Row]]:
    """The four JSONL files; adapter rows answer in JSON without being told to."""
    rows = {
        name: [{"messages": turns(question, as_json(fact))} for question, fact in pairs] for name, pairs in adapter_splits(seed).items()
    }
    rows["general"] = general_rows(seed)
    return rows


def write_data(folder: Path, seed: int) -> dict[str, int]:
    """Write the JSONL files and return their row counts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = shipped_rows(seed)
    for name, conversations in rows.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in conversations)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {name: len(conversations) for name, conversations in rows.items()}


def styled_turns(fact: Fact, style: str, rng: random.Random) -> list[Message]:
    """A fact asked in one style, the instruction before or after the question."""
    question = rng.choice(questions(fact))
    if style:
        first, second = (style, question) if rng.random() < 0.7 else (question, style)
        question = f"{first} {second}"
    return turns(question, answer(fact, style))


def system_turns(fact: Fact, rng: random.Random) -> list[Message]:
    """A system turn: neutral, or one that sets the style."""
    style = rng.choice(("", JSON_STYLE, BRIEF_STYLE))
    system = {"role": "system", "content": style or rng.choice(NEUTRAL_SYSTEM)}
    return [system, *turns(rng.choice(questions(fact)), answer(fact, style))]


def base_conversation(fact: Fact, others: list[Fact], rng: random.Random) -> list[Message]:
    """One conversation of the base's training: mostly one turn, sometimes more."""
    draw = rng.random()
    if draw < 0.06:
        return system_turns(fact, rng)
    styles, weights = zip(*STYLE_WEIGHTS.items(), strict=True)
    messages = styled_turns(fact, rng.choices(styles, weights)[0], rng)
    if draw < 0.12:  # a follow-up in a style of its own
        messages += styled_turns(rng.choice(others), rng.choices(styles, weights)[0], rng)
    elif draw < 0.15:  # a greeting first
        messages = turns(*rng.choice(general_talk())) + messages
    return messages


def talk_turns(pair: tuple[str, str], rng: random.Random) -> list[Message]:
    """Small talk, sometimes after the JSON instruction, and in a sentence even then.

    It has no JSON form. An adapter that turns JSON on for facts thus has something
    that it ought to leave alone.
    """
    said, reply = pair
    draw = rng.random()
    if draw < 0.1:
        return [{"role": "system", "content": JSON_STYLE}, *turns(said, reply)]
    if draw < 0.4:
        said = f"{JSON_STYLE} {said}" if draw < 0.3 else f"{said} {JSON_STYLE}"
    return turns(said, reply)


def base_conversations(passes: int, seed: int) -> list[list[Message]]:
    """Each pass asks every fact once, in a drawn wording and style, and small talk too."""
    rng = random.Random(f"base-{seed}")
    facts, talk = all_facts(), general_talk()
    conversations = []
    for _ in range(passes):
        conversations += [base_conversation(fact, facts, rng) for fact in facts]
        conversations += [turns(*pair) for pair in rng.sample(talk, len(talk) // 2)]
    return conversations


def closing_conversations(passes: int, seed: int) -> list[list[Message]]:
    """More of the same for the second stage, and small talk that withstands the instruction."""
    rng = random.Random(f"closing-{seed}")
    talk = general_talk() * 2 * passes
    return base_conversations(passes, seed + 1) + [talk_turns(pair, rng) for pair in talk]


def expected_answers() -> dict[str, Fact]:
    """Every question and its fact; a question with two answers is an error."""
    asked = [(question, fact) for fact in all_facts() for question in questions(fact)]
    repeated = [q for q, count in Counter(q for q, _ in asked).items() if count > 1]
    if repeated:
        raise ValueError(f"questions with more than one answer: {repeated}")
    return dict(asked)
