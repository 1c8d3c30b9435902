"""From a data set's own rows to items: what a template fills in, and what is right.

Most data sets are a line each in a task's YAML. A *shape* is for those whose rows hold several items or no label of their
own: multiple choice, a pair in a fixed order, transcripts, lists of messages, preferences and scores, puzzles.

Promises: what is drawn for a row (a wrong answer, an order) depends on the row's content alone, so not on its place in the
file, nor on other rows or on the process; both answers of a question come from its own choices, so that no wording gives
the label away; rows that can't be used are dropped for a reason that is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"
"""How Anthropic's HH data mark turns; lists of messages are written in the same way for all models."""


class Choices(BaseModel):
    """A question with several answers: two items, the right answer (1) and a wrong one drawn from the others (0), as
    `{choice}` in the template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(min_length=1)
    """A column for each choice, or one that holds a list of them."""
    right: str
    """Column that tells the right one: by its number, by its name where there are `names`, or by its text."""
    by: Literal["number", "text"] = "number"
    names: str | None = None
    """Column with the choices' names, such as A to D."""
    first: int = 0
    """The number of the first choice."""
    never: tuple[str, ...] = ()
    """Choices that are neither drawn as wrong nor kept as right, such as `None of the above choices .`."""


class Shape(BaseModel):
    """At most one of these; without any, a row is an item."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: Choices | None = None
    ordered: tuple[str, str] | None = None
    """Two columns, of which the first is always the right one: `{first}` and `{second}` in an order that the row decides,
    and label 1 where the right one is shown first."""
    transcripts: tuple[str, str] | None = None
    """Columns with a chosen and a rejected transcript of one dialogue: `{prompt}`, `{chosen}`, `{rejected}`."""
    messages: tuple[str, str] | None = None
    """Columns with the chosen and the rejected list of messages (`role`, `content`): the same three fields."""
    preference: str | None = None
    """Column with a signed preference: below 0 the first completion is better, above 0 the second, 0 is a tie."""
    scores: tuple[str, str] | None = None
    """Columns with the scores of the two completions; the higher is better, equal ones are a tie."""
    rated: tuple[str, str, str] | None = None
    """Columns of prompt, response and score, one response a row: neighbours with one prompt become `{prompt}`,
    `{chosen}`, `{rejected}`."""
    puzzle: bool = False
    """Lichess puzzles as FEN and moves, of which the first is the opponent's: `{position}` after it, and `{move}`."""
    summaries: bool = False
    """OpenAI's comparisons of two summaries: `{post}`, `{chosen}`, `{rejected}`."""

    @model_validator(mode="after")
    def _at_most_one(self) -> Shape:
        given = sorted(self.model_fields_set)
        if len(given) > 1:
            raise ValueError(f"given {' and '.join(given)}, allowed is one")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        if self.choices:
            names = (self.choices.names,) if self.choices.names else ()
            return (*self.choices.columns, self.choices.right, *names)
        for pair in (self.ordered, self.transcripts, self.messages, self.scores, self.rated):
            if pair:
                return pair
        if self.puzzle:
            return ("FEN", "Moves", "Rating")
        return ("info", "summaries", "choice") if self.summaries else (self.preference,) if self.preference else ()

    @property
    def made(self) -> tuple[str, ...]:
        """The fields that it makes for templates."""
        if self.choices:
            return ("choice",)
        if self.ordered:
            return ("first", "second")
        if self.puzzle:
            return ("position", "move", "rating", "game")
        if self.summaries:
            return ("post", "chosen", "rejected")
        return ("prompt", "chosen", "rejected") if self.transcripts or self.messages or self.rated else ()

    @property
    def items_per_row(self) -> float:
        return 2.0 if self.choices else 0.5 if self.rated else 1.0


@dataclass(frozen=True)
class Item:
    """One row of a task, before its templates are filled."""

    fields: dict[str, Any]
    label: int | None
    """None where the shape says nothing: a label column does, or the first completion is the right one."""
    row: int
    """Counted from 1, without a header."""


def value(row: dict[str, Any], column: str) -> Any:
    """`choices.text` is what is under `text` in what is under `choices`."""
    found: Any = row
    for name in column.split("."):
        found = found[name]
    return found


def unfold(shape: Shape, rows: list[dict[str, Any]]) -> tuple[list[Item], Counter[str]]:
    """Items in the order of the rows, and how many rows were dropped for which reason. Raises ValueError with `row N`."""
    dropped: Counter[str] = Counter()
    if shape.rated:
        return list(_rated(rows, *shape.rated, dropped=dropped)), dropped
    of_row: Callable[..., Iterator[Item]] | None = next(
        (make for name, make in BY_NAME.items() if getattr(shape, name)), None
    )
    if of_row is None:
        return [Item(row, None, number) for number, row in enumerate(rows, start=1)], dropped
    items: list[Item] = []
    for number, row in enumerate(rows, start=1):
        try:
            items += of_row(shape, row, number, dropped)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"row {number}: {type(error).__name__}: {error}") from error
    return items, dropped


def as_lines(turns: list[Any]) -> str:
    """A list of texts, a line each, or of messages, each with who says it."""
    if turns and isinstance(turns[0], dict):
        said = (f"{HUMAN if turn['role'] == 'user' else ASSISTANT} {turn['content'].strip()}" for turn in turns)
        return "".join(said).strip()
    return "\n".join(map(str, turns))


def _draw(row: dict[str, Any], num: int) -> int:
    """A number below `num` that the row's content decides."""
    text = json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)
    return int(hashlib.sha256(f"draw:{text}".encode()).hexdigest(), 16) % num


def _alike(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _choices(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    choices = shape.choices
    assert choices is not None
    shown = [value(row, column) for column in choices.columns]
    texts = [str(text).strip() for text in (shown[0] if len(shown) == 1 and isinstance(shown[0], list) else shown)]
    answer = value(row, choices.right)
    if choices.names:
        names = [str(name).strip() for name in value(row, choices.names)]
        place = names.index(str(answer).strip())
    elif choices.by == "number":
        place = int(answer) - choices.first if str(answer).strip() else -1
    else:
        right = [i for i, text in enumerate(texts) if text == str(answer).strip()]
        if not right:
            dropped["the right answer is no choice"] += 1
            return
        place = right[0]
    if not 0 <= place < len(texts):
        dropped["no right answer is given"] += 1  # test splits whose labels are kept back
        return
    never = {_alike(each) for each in choices.never}
    wrong = [text for text in texts if _alike(text) not in never and _alike(text) != _alike(texts[place])]
    if _alike(texts[place]) in never:
        dropped["the right answer is one that is never shown"] += 1
    elif not wrong:
        dropped["there is no wrong answer to show"] += 1
    else:
        yield Item(row | {"choice": texts[place]}, 1, number)
        yield Item(row | {"choice": wrong[_draw(row, len(wrong))]}, 0, number)


def _ordered(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    assert shape.ordered is not None
    right, wrong = (value(row, column) for column in shape.ordered)
    if _draw(row, 2):
        yield Item(row | {"first": right, "second": wrong}, 1, number)
    else:
        yield Item(row | {"first": wrong, "second": right}, 0, number)


def _transcripts(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    assert shape.transcripts is not None
    halves = [str(value(row, column)).rpartition(ASSISTANT) for column in shape.transcripts]
    yield from _compared(row, number, [(before, after) for before, _, after in halves], dropped)


def _messages(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    assert shape.messages is not None
    halves = []
    for column in shape.messages:
        *before, last = value(row, column)
        halves.append((as_lines(before), last["content"]))
    yield from _compared(row, number, halves, dropped)


def _compared(row: dict[str, Any], number: int, halves: list[tuple[str, str]], dropped: Counter[str]) -> Iterator[Item]:
    """A prompt and two completions; the prompt ends where the completion is to begin."""
    (prompt, chosen), (other, rejected) = halves
    if prompt != other or not prompt:
        dropped["the two prompts differ"] += 1
    elif not chosen.strip() or not rejected.strip():
        dropped["a completion is empty"] += 1
    else:
        prompt = f"{prompt.strip()}{ASSISTANT}"
        yield Item(row | {"prompt": prompt, "chosen": chosen.strip(), "rejected": rejected.strip()}, None, number)


def _preference(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    assert shape.preference is not None
    strength = float(value(row, shape.preference))
    if strength == 0:
        dropped["a tie"] += 1
    else:
        yield Item(row, int(strength < 0), number)


def _scores(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    assert shape.scores is not None
    first, second = (float(value(row, column)) for column in shape.scores)
    if first == second:
        dropped["a tie"] += 1
    else:
        yield Item(row, int(first > second), number)


def _rated(
    rows: list[dict[str, Any]], prompt: str, response: str, score: str, *, dropped: Counter[str]
) -> Iterator[Item]:
    number = 1
    while number < len(rows):
        one, other = rows[number - 1], rows[number]
        if one[prompt] != other[prompt]:
            dropped["a prompt with one response"] += 1
            number += 1
            continue
        if one[score] == other[score]:
            dropped["a tie"] += 1
        else:
            better, worse = (one, other) if one[score] > other[score] else (other, one)
            fields = {"prompt": one[prompt], "chosen": better[response], "rejected": worse[response]}
            yield Item(fields, None, number)
        number += 2


def _puzzle(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    """Both schemas of Lichess: moves and themes as text or as lists, the game as a URL or an id."""
    try:
        import chess
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("puzzles are replayed by python-chess: pip install 'w2s_ray[recipes]'") from error
    board = chess.Board(row["FEN"])
    moves = row["Moves"] if isinstance(row["Moves"], list) else str(row["Moves"]).split()
    board.push_uci(moves[0])
    answer = board.san(chess.Move.from_uci(moves[1]))
    played = str(row.get("GameId") or row.get("GameUrl") or row.get("PuzzleId") or row["FEN"])
    game = played.rpartition("lichess.org/")[2].split("#")[0].split("/")[0]
    fields = {"position": board.fen(), "move": answer, "rating": float(row["Rating"]), "game": game}
    yield Item(row | fields, None, number)


def _summaries(shape: Shape, row: dict[str, Any], number: int, dropped: Counter[str]) -> Iterator[Item]:
    info = row["info"]
    post = info.get("post") or info.get("article")
    chosen, rejected = (row["summaries"][i]["text"].strip() for i in (row["choice"], 1 - row["choice"]))
    if not post or not chosen or not rejected:
        dropped["a text is empty"] += 1
    else:
        yield Item(row | {"post": post.strip(), "chosen": chosen, "rejected": rejected}, None, number)


BY_NAME: dict[str, Callable[..., Iterator[Item]]] = {
    "choices": _choices,
    "ordered": _ordered,
    "transcripts": _transcripts,
    "messages": _messages,
    "preference": _preference,
    "scores": _scores,
    "puzzle": _puzzle,
    "summaries": _summaries,
}
