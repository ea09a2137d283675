"""examples/assistant.py on a host without Ray."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from test_examples_local import example

import rayobjects as ro
from rayobjects.objects.model import options_of
from rayobjects.testing import LocalHost, LocalStub

assistant = example("assistant")

LESSON = "Cats chase red dots. Dogs chase blue cars."


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assistant, "WORD_S", 0)


def run(test: Callable[[LocalHost, LocalStub], Awaitable[None]]) -> None:
    async def main() -> None:
        async with LocalHost([assistant.Assistant]) as host:
            await asyncio.wait_for(test(host, host.get("Assistant", "ann")), 60)

    asyncio.run(main())


async def ask(ann: LocalStub, question: str) -> str:
    return " ".join([word async for word in ann.ask.remote(question)])


async def told(ann: LocalStub) -> list[tuple[int, str, str]]:
    return [(each.number, each.question, each.answer) for each in await ann.history.remote()]


def test_each_has_an_actor_of_its_own() -> None:
    options = options_of(assistant.Assistant)
    assert (options.hosting, options.ray_options) == ("dedicated", {"num_cpus": 0.1})


def test_it_answers_with_what_it_was_taught_whatever_dies() -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        assert (await ask(ann, "Do cats swim?")).endswith(".")  # it knows nothing of cats
        assert await host.post(ann, "teach", {"text": LESSON}) == len(LESSON)
        answers = [await ask(ann, "What do cats do?")]
        for end in (host.crash, host.kill, lambda: host.evict(ann)):
            await end()
            answers.append(await ask(ann, "What do CATS do?"))
        assert set(answers) == {"Cats chase red dots."}
        assert await ask(ann, "Cars?") == "Dogs chase blue cars."
        history = await told(ann)
        assert [number for number, _, _ in history] == list(range(1, 7))
        assert history[1] == (2, "What do cats do?", "Cats chase red dots.")

    run(test)


def test_over_http_an_answer_is_a_list_and_a_question_is_checked() -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        await ann.teach.remote(LESSON)
        words = await host.post(ann, "ask", {"question": "Dogs"})
        assert words == ["Dogs", "chase", "blue", "cars."]
        for question in (" ", "x" * 1_001):
            with pytest.raises(ro.InvalidCall, match="a question has 1 to 1000 characters"):
                await host.post(ann, "ask", {"question": question})
        assert len(await told(ann)) == 1

    run(test)


def test_two_answers_and_a_lesson_at_the_same_time() -> None:
    async def test(host: LocalHost, ann: LocalStub) -> None:
        await ann.teach.remote(LESSON)
        first, second = aiter(ann.ask.remote("cats")), aiter(ann.ask.remote("cars"))
        assert [await anext(first), await anext(second)] == ["Cats", "Dogs"]
        await ann.teach.remote("Cows eat green grass.")
        assert [word async for word in second] == ["chase", "blue", "cars."]
        assert [word async for word in first] == ["chase", "red", "dots."]
        assert await ask(ann, "cows") == "Cows eat green grass."
        assert {question for _, question, _ in await told(ann)} == {"cars", "cats", "cows"}

    run(test)


def test_an_answer_whose_reader_leaves_is_not_kept() -> None:
    """It has more words than the method may be ahead of its reader."""

    async def test(host: LocalHost, ann: LocalStub) -> None:
        await ann.teach.remote("Rain " * 1_000)
        response = ann.ask.remote("rain")
        async for word in response:
            assert word == "Rain"
            break
        response.cancel()
        await ann.teach.remote(LESSON)
        await host.evict(ann)
        assert await told(ann) == []

    run(test)


def test_it_says_so_when_it_can_learn_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assistant, "CHARACTERS_MAX", 50)

    async def test(host: LocalHost, ann: LocalStub) -> None:
        await ann.teach.remote(LESSON)
        with pytest.raises(ro.InvalidCall, match="I can learn 8 characters more, and this is 20"):
            await ann.teach.remote("Cats are green now. ")
        assert await ask(ann, "cats") == "Cats chase red dots."
        assert len((await host.state(ann))["storage"]) == 2

    run(test)


def test_long_answers_and_long_histories_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assistant, "HISTORY_KEPT", 3)

    async def test(host: LocalHost, ann: LocalStub) -> None:
        await ann.teach.remote("echo " * 1_000)
        for _ in range(5):
            answer = await ask(ann, "echo")
            assert len(answer.split()) == assistant.ANSWER_WORDS_MAX
        assert [number for number, _, _ in await told(ann)] == [3, 4, 5]

    run(test)
