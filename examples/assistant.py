"""An assistant of your own: a language model in a process of its own, which you teach and ask.

    rayobjects serve examples/assistant.py    then open http://127.0.0.1:8000/

Without the page:

    rayobjects call Assistant ann teach text="$(cat README.md)"
    url=http://127.0.0.1:8000/objects/Assistant/ann
    curl -N $url/ask -H 'Accept: text/event-stream' --json '{"question": "When do schedules fire?"}'
    curl $url/history --json '{}'

Every assistant is one object, and an actor of its own with resources of its own: its model may fill
the memory, and compute for seconds, and no other object notices. What it was taught and what it
has said are on disk; the model is built from that when the actor starts. It leaves when nobody
needs it.

The model is the smallest one that there is: it knows which word follows which two. Where a large
one would differ, a comment says so.
"""

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import rayobjects as ro

ANSWER_WORDS_MAX = 80
CHARACTERS_MAX = 2_000_000
"""What one assistant can be taught."""

HISTORY_KEPT = 100
QUESTION_CHARACTERS_MAX = 1_000
WORD_S = 0.05
"""Between two words: a large model takes its time by itself."""


@dataclass
class Answer:
    """What somebody asked, and what they were told."""

    number: int
    question: str
    answer: str
    at: datetime


class Model:
    """Which word follows which two, and how sentences begin that have a certain word."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.following: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.openings: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for text in texts:
            self.read(text)

    def read(self, text: str) -> None:
        """Learns from a text."""
        for sentence in re.split(r"(?<=[.!?:])\s+|\n\s*\n", text):
            words = sentence.split()
            for first, second, third in zip(words, words[1:], words[2:], strict=False):
                self.following[first, second].append(third)
            if len(words) > 2:
                for term in {"", *_terms(sentence)}:
                    self.openings[term].append((words[0], words[1]))

    def answer(self, question: str, chance: random.Random) -> Iterator[str]:
        """Word by word: a sentence such as those with the question's rarest word."""
        known = [self.openings[term] for term in _terms(question) if self.openings.get(term)]
        pair = chance.choice(min(known, key=len, default=self.openings[""]))
        yield from pair
        while following := self.following.get(pair):
            pair = (pair[1], chance.choice(following))
            yield pair[1]


class Assistant(
    ro.DurableObject,
    hosting="dedicated",
    ray_options={"num_cpus": 0.1},  # a large model: {"num_gpus": 1, "memory": 40 * 2**30}
):
    """Knows what it was taught."""

    texts: int = ro.durable(0)
    characters: int = ro.durable(0)
    answers: int = ro.durable(0)

    async def on_start(self) -> None:
        """Builds the model, on a thread, so that the process can be reached meanwhile."""
        texts = self.storage.list(prefix="text/").values()
        self.model = await asyncio.to_thread(Model, [BASICS, *texts])  # or: load it

    @ro.blocking
    def teach(self, text: str) -> int:
        """Reads a text; returns how many characters it has read. Runs on a thread, so that answers
        that are under way go on."""
        if self.characters + len(text) > CHARACTERS_MAX:
            why = f"I can learn {CHARACTERS_MAX - self.characters:,} characters more"
            raise ro.InvalidCall(f"{why}, and this is {len(text):,}", status=413)
        self.texts += 1
        self.characters += len(text)
        self.storage[f"text/{self.texts:012}"] = text
        self.model.read(text)  # last: what raises undoes the rest, but not this
        return self.characters

    @ro.concurrent
    async def ask(self, question: str) -> AsyncIterator[str]:
        """An answer, word by word, beside the others. It is kept when it has ended; whoever leaves
        before ends it, too."""
        if not 0 < len(question.strip()) <= QUESTION_CHARACTERS_MAX:
            why = f"a question has 1 to {QUESTION_CHARACTERS_MAX} characters"
            raise ro.InvalidCall(why, status=422)
        words: list[str] = []
        answer = self.model.answer(question, self.random)
        while len(words) < ANSWER_WORDS_MAX:
            word = await asyncio.to_thread(next, answer, None)  # what computes, on a thread
            if word is None:
                break
            words.append(word)
            yield word
            await asyncio.sleep(WORD_S)
        async with self.turn():
            self.answers += 1
            told = Answer(self.answers, question, " ".join(words), self.now())
            self.storage[f"answer/{self.answers:012}"] = asdict(told)
            self.storage.pop(f"answer/{self.answers - HISTORY_KEPT:012}", None)

    @ro.concurrent
    async def history(self) -> list[Answer]:
        """The last answers, oldest first."""
        return [Answer(**each) for each in self.storage.list(prefix="answer/").values()]


def _terms(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


BASICS = """\
A durable object is an instance of a class with a name, a storage and one live copy.
I am a durable object, and this conversation is in my storage.
My model is in the memory of an actor, and the actor is mine alone.
When nobody asks for a minute, the actor goes, and the memory goes with it.
When somebody asks again, a new actor reads what I was taught and builds the model again.
A model that needs a GPU says so, and Ray finds a node which has one.
A word is sent as soon as it is there, and an answer is kept when it has ended.
An actor may die in the middle of a sentence, and what I was taught is still on disk.
Teach me a text, and ask about a word of it.
The more I read, the less I repeat.
"""

pages = {"/": Path(__file__).with_name("assistant.html")}
