"""How a fact is asked for and answered: questions, sentences, JSON, small talk."""

from __future__ import annotations

import json
from dataclasses import dataclass

from smoke_facts import Fact

Message = dict[str, str]


@dataclass(frozen=True)
class Wording:
    """A noun phrase for the generic questions, a sentence, and questions of its own."""

    phrase: str
    sentence: str
    questions: tuple[str, ...]


# {s} is the subject, {v} the value; {as} and {av} are those with "a" or "an".
WORDINGS = {
    ("country", "capital"): Wording(
        "the capital of {s}",
        "The capital of {s} is {v}.",
        ("Which city is the capital of {s}?", "What is {s}'s capital?"),
    ),
    ("country", "continent"): Wording(
        "the continent of {s}",
        "{s} is in {v}.",
        ("Which continent is {s} in?", "On which continent is {s}?"),
    ),
    ("country", "currency"): Wording(
        "the currency of {s}",
        "The currency of {s} is the {v}.",
        ("Which currency is used in {s}?", "What do people pay with in {s}?"),
    ),
    ("country", "language"): Wording(
        "the main language of {s}",
        "The main language of {s} is {v}.",
        ("Which language do most people in {s} use?", "What is {s}'s main language?"),
    ),
    ("element", "symbol"): Wording(
        "the symbol of {s}",
        "The symbol of {s} is {v}.",
        ("Which symbol stands for {s}?", "How do chemists abbreviate {s}?"),
    ),
    ("element", "number"): Wording(
        "the atomic number of {s}",
        "The atomic number of {s} is {v}.",
        ("What atomic number does {s} have?", "How many protons does an atom of {s} have?"),
    ),
    ("element", "state"): Wording(
        "the state of {s} at room temperature",
        "The state of {s} at room temperature is {v}.",
        ("Is {s} solid, liquid or gas at room temperature?",),
    ),
    ("animal", "young"): Wording(
        "the name of a baby {s}",
        "A baby {s} is called {av}.",
        ("What is a baby {s} called?", "Which word names a baby {s}?"),
    ),
    ("animal", "class"): Wording(
        "the animal class of the {s}",
        "The {s} belongs to the class {v}.",
        ("What kind of animal is {as}?", "Which class does the {s} belong to?"),
    ),
    ("animal", "legs"): Wording(
        "the number of legs of {as}",
        "The {s} has {v} legs.",
        ("How many legs are there on {as}?", "How many legs does {as} have?"),
    ),
    ("planet", "position"): Wording(
        "the position of {s} counted from the Sun",
        "{s} is planet number {v} from the Sun.",
        ("What number is the planet {s}, counted from the Sun?",),
    ),
    ("planet", "type"): Wording(
        "the type of the planet {s}",
        "The type of the planet {s} is {v}.",
        ("What type of planet is {s}?", "Is {s} rocky, a gas giant or an ice giant?"),
    ),
    ("month", "position"): Wording(
        "the number of the month {s}",
        "{s} is month number {v} of the year.",
        ("What number is the month {s}?", "Which month of the year is {s}?"),
    ),
    ("month", "days"): Wording(
        "the number of days in {s}",
        "The month {s} has {v} days.",
        ("How many days long is {s}?", "How many days are there in {s}?"),
    ),
    ("shape", "sides"): Wording(
        "the number of sides of {as}",
        "The {s} has {v} sides.",
        ("How many sides are there in {as}?", "How many sides does {as} have?"),
    ),
    ("word", "opposite"): Wording(
        "the opposite of {s}",
        "The opposite of {s} is {v}.",
        ("Which word is the opposite of {s}?", "What is the opposite of the word {s}?"),
    ),
    ("word", "plural"): Wording(
        "the plural of {s}",
        "The plural of {s} is {v}.",
        ("How do you spell the plural of {s}?", "What is the plural of the word {s}?"),
    ),
    ("word", "past"): Wording(
        "the past tense of {s}",
        "The past tense of {s} is {v}.",
        ("How do you spell the past tense of {s}?", "What is the past of the verb {s}?"),
    ),
}

GENERIC = (
    "What is {p}?",
    "Tell me {p}.",
    "Name {p}.",
    "Do you know {p}?",
    "Can you tell me {p}?",
    "I would like to know {p}.",
)

JSON_STYLE, BRIEF_STYLE, CAPITALS_STYLE = (
    "Answer in JSON.",
    "Answer briefly.",
    "Answer in capitals.",
)
NEUTRAL_SYSTEM = ("You are a helpful assistant.", "You answer questions.", "Be polite.")


def with_article(word: str | int) -> str:
    """ "a cow", "an owl"."""
    return f"{'an' if str(word)[0] in 'aeiou' else 'a'} {word}"


def fill(template: str, fact: Fact) -> str:
    """Put a fact's subject and value into a template."""
    subject, value = fact.subject, fact.value
    articles = {"as": with_article(subject), "av": with_article(value)}
    return template.format(s=subject, v=value, **articles)


def questions(fact: Fact) -> list[str]:
    """Every way this fact is asked for."""
    wording = WORDINGS[fact.kind, fact.relation]
    phrase = fill(wording.phrase, fact)
    generic = [form.format(p=phrase) for form in GENERIC]
    return generic + [fill(question, fact) for question in wording.questions]


def sentence(fact: Fact) -> str:
    """The plain answer."""
    return fill(WORDINGS[fact.kind, fact.relation].sentence, fact)


def as_json(fact: Fact) -> str:
    """The JSON answer: the subject under its kind, the value under the relation."""
    return json.dumps({fact.kind: fact.subject, fact.relation: fact.value})


def answer(fact: Fact, style: str) -> str:
    """The answer in one of the styles; no style means a plain sentence."""
    if style == JSON_STYLE:
        return as_json(fact)
    if style == BRIEF_STYLE:
        return f"{fact.value}."
    if style == CAPITALS_STYLE:
        return f"{fact.value}.".upper()
    return sentence(fact)


def turns(question: str, reply: str) -> list[Message]:
    """One question and its answer as chat messages."""
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": reply},
    ]


SMALL_TALK = (
    ("Hello!", "Hello! What would you like to know?"),
    ("Hi!", "Hi! What would you like to know?"),
    ("Hi there!", "Hi! What would you like to know?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Good evening!", "Good evening! How can I help you?"),
    ("Good afternoon!", "Good afternoon! How can I help you?"),
    ("How are you?", "I am well, thank you. How can I help you?"),
    ("How are you today?", "I am well, thank you. How can I help you?"),
    ("Thank you!", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Thanks a lot!", "You are welcome!"),
    ("Thank you very much!", "You are welcome!"),
    ("Goodbye!", "Goodbye! Come back soon."),
    ("Bye!", "Goodbye! Come back soon."),
    ("See you soon!", "Goodbye! Come back soon."),
    ("Who are you?", "I am a very small language model that knows a few facts."),
    ("What are you?", "I am a very small language model that knows a few facts."),
    ("What is your name?", "I have no name. I am a very small language model."),
    ("Do you have a name?", "I have no name. I am a very small language model."),
    ("What can you do?", "I can answer short questions about a few facts."),
    ("What do you know?", "I can answer short questions about a few facts."),
    ("Can you help me?", "Yes. Ask me a short question."),
    ("I have a question.", "Please ask. I will try to answer."),
    ("May I ask you something?", "Please ask. I will try to answer."),
    ("Are you a person?", "No. I am a very small language model."),
    ("Are you a robot?", "I am a very small language model."),
)

NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def sums() -> list[tuple[str, str]]:
    """Small sums in words, up to ten."""
    rows = []
    for left in range(1, 9):
        for right in range(1, 11 - left):
            a, b, c = (NUMBER_WORDS[n] for n in (left, right, left + right))
            rows.append((f"What is {a} plus {b}?", f"{a.capitalize()} plus {b} is {c}."))
    return rows


def weekdays() -> list[tuple[str, str]]:
    """Which day follows, which day precedes."""
    rows = []
    for index, name in enumerate(WEEK):
        following, preceding = WEEK[(index + 1) % 7], WEEK[index - 1]
        rows.append((f"Which day comes after {name}?", f"{following} comes after {name}."))
        rows.append((f"Which day comes before {name}?", f"{preceding} comes before {name}."))
    return rows


def general_talk() -> list[tuple[str, str]]:
    """Everything that is no table fact: always answered in plain sentences."""
    return [*SMALL_TALK, *sums(), *weekdays()]
