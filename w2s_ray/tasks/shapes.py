"""Shapes: from a data set's own rows to items, the fields that templates fill in and the label.

In most data sets a row is an item. A *shape* is for the others, whose rows hold several items or have no label column:
multiple choice, a pair in a fixed order, transcripts, lists of messages, preferences and scores, puzzles.

Promises: what is drawn for a row (a wrong answer, an order) depends on the row's content alone, not on other rows, on its
place in the file or on the process; both answers of a question come from its own choices, so that no wording gives the
label away; rows that can't be used are dropped and counted by reason.
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
"""Turn markers of Anthropic's HH data. Lists of messages are written in the same way, for all models alike."""


class Choices(BaseModel):
    """A multiple-choice question. It becomes two items: the right answer (label 1) and a wrong one drawn from the other
    choices (label 0). The template shows it as `{choice}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    columns: tuple[str, ...] = Field(min_length=1)
    """One column for each choice, or one column with a list of all choices."""
    right: str
    """Column with the right choice: its name where there are `names`, otherwise its number or its text (`by`)."""
    by: Literal["number", "text"] = "number"
    names: str | None = None
    """Column with the names of the choices, such as A to D."""
    first: int = 0
    """The number of the first choice."""
    never: tuple[str, ...] = ()
    """Choices that are never shown, right or wrong, such as `None of the above choices .`."""


class Shape(BaseModel):
    """How rows become items. At most one of these fields is set; without any, a row is an item."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    choices: Choices | None = None
    ordered: tuple[str, str] | None = None
    """Two columns, the first of which is always the right one. They become `{first}` and `{second}` in an order drawn from
    the row's content; label 1 means that the right one is shown first."""
    transcripts: tuple[str, str] | None = None
    """Columns with the chosen and the rejected transcript of one dialogue. They become `{prompt}`, `{chosen}`, `{rejected}`."""
    messages: tuple[str, str] | None = None
    """Columns with the chosen and the rejected list of messages (`role`, `content`). They become the same three fields."""
    preference: str | None = None
    """Column with a signed preference: below 0 the first completion is better, above 0 the second; 0 is a tie."""
    scores: tuple[str, str] | None = None
    """Columns with the scores of the two completions. The higher is better; equal scores are a tie."""
    rated: tuple[str, str, str] | None = None
    """Columns with prompt, response and score, for data with one response a row. Two neighbouring rows with the same prompt
    become one item with `{prompt}`, `{chosen}`, `{rejected}`."""
    puzzle: bool = False
    """Lichess puzzles: a FEN and moves, the first of which is the opponent's. They become `{position}` (after the opponent's
    move) and `{move}` (the solution's first move)."""
    summaries: bool = False
    """OpenAI's comparisons of two summaries. They become `{post}`, `{chosen}`, `{rejected}`."""

    @model_validator(mode="after")
    def _at_most_one(self) -> Shape:
        given = sorted(self.model_fields_set)
        if len(given) > 1:
            raise ValueError(f"given {' and '.join(given)}, allowed is one of them")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the shape reads."""
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
    def added_fields(self) -> tuple[str, ...]:
        """The fields that the shape adds to a row, for templates."""
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
    def gives_label(self) -> bool:
        """Whether the shape decides the label, so that no label column is read."""
        return bool(self.choices or self.ordered or self.preference or self.scores)

    @property
    def items_per_row(self) -> float:
        return 2.0 if self.choices else 0.5 if self.rated else 1.0


@dataclass(frozen=True)
class Item:
    """One row of a task, before its templates are filled."""

    fields: dict[str, Any]
    label: int | None
    """None where the shape gives no label."""
    row: int
    """The row's number in its file, from 1, not counting a header."""


class Dropped(Counter[str]):
    """Reason -> number of rows that can't be used, and where the first of them is."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}
        """Reason -> `row 7`, or `file.csv: row 7`."""

    def note_first(self, place: str) -> None:
        """The reasons that are new came up here."""
        for reason in self:
            self.first.setdefault(reason, place)

    def take_over(self, other: Dropped, *, file: str = "") -> None:
        """Count what was dropped in a file, too."""
        self.update(other)
        for reason, place in other.first.items():
            self.first.setdefault(reason, f"{file}: {place}" if file else place)


def value(row: dict[str, Any], column: str) -> Any:
    """A field of a row. A dot leads into a nested one: `choices.text` is `row["choices"]["text"]`."""
    field: Any = row
    for name in column.split("."):
        field = field[name]
    return field


def unfold(shape: Shape, rows: list[dict[str, Any]]) -> tuple[list[Item], Dropped]:
    """The items of these rows, in their order, and the number of dropped rows by reason.

    Raises ValueError whose message begins with `row N` where a row can't be read.
    """
    dropped = Dropped()
    if shape.rated:
        return list(_rated(rows, *shape.rated, dropped=dropped)), dropped
    unfold_row = next((function for name, function in BY_NAME.items() if getattr(shape, name)), None)
    if unfold_row is None:
        return [Item(row, None, number) for number, row in enumerate(rows, start=1)], dropped
    items: list[Item] = []
    for number, row in enumerate(rows, start=1):
        try:
            items += unfold_row(shape, row, number, dropped)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"row {number}: {type(error).__name__}: {error}") from error
        dropped.note_first(f"row {number}")
    return items, dropped


def as_lines(turns: list[Any]) -> str:
    """One text from a list: a line for each text, or each message after its turn marker."""
    if turns and isinstance(turns[0], dict):
        messages = (f"{HUMAN if turn['role'] == 'user' else ASSISTANT} {turn['content'].strip()}" for turn in turns)
        return "".join(messages).strip()
    return "\n".join(map(str, turns))


def _draw(row: dict[str, Any], num: int) -> int:
    """A pseudo-random number below `num`, from the row's content alone."""
    text = json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)
    return int(hashlib.sha256(f"draw:{text}".encode()).hexdigest(), 16) % num


def _normalised(text: str) -> str:
    """Texts that differ only in case, spaces or a final full stop are the same choice."""
    return " ".join(text.lower().split()).rstrip(".")


def _choices(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    choices = shape.choices
    assert choices is not None
    columns = [value(row, column) for column in choices.columns]
    is_list = len(columns) == 1 and isinstance(columns[0], list)
    texts = [str(text).strip() for text in (columns[0] if is_list else columns)]
    answer = value(row, choices.right)
    if choices.names:
        names = [str(name).strip() for name in value(row, choices.names)]
        right = names.index(str(answer).strip())
    elif choices.by == "number":
        right = int(answer) - choices.first if str(answer).strip() else -1
    elif str(answer).strip() in texts:
        right = texts.index(str(answer).strip())
    else:
        dropped["the right answer is not among the choices"] += 1
        return
    if not 0 <= right < len(texts):
        dropped["no right answer is given"] += 1  # test splits with hidden labels
        return
    never = {_normalised(text) for text in choices.never}
    not_wrong = never | {_normalised(texts[right])}
    wrong = [text for text in texts if _normalised(text) not in not_wrong]
    if _normalised(texts[right]) in never:
        dropped["the right answer is one that is never shown"] += 1
    elif not wrong:
        dropped["there is no wrong answer to show"] += 1
    else:
        yield Item(row | {"choice": texts[right]}, 1, number)
        yield Item(row | {"choice": wrong[_draw(row, len(wrong))]}, 0, number)


def _ordered(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    assert shape.ordered is not None
    right, wrong = (value(row, column) for column in shape.ordered)
    if _draw(row, 2):
        yield Item(row | {"first": right, "second": wrong}, 1, number)
    else:
        yield Item(row | {"first": wrong, "second": right}, 0, number)


def _transcripts(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    assert shape.transcripts is not None
    transcripts = [str(value(row, column)).rpartition(ASSISTANT) for column in shape.transcripts]
    yield from _dialogue(row, number, [(prompt, answer) for prompt, _, answer in transcripts], dropped)


def _messages(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    assert shape.messages is not None
    dialogues = []
    for column in shape.messages:
        *prompt, answer = value(row, column)
        dialogues.append((as_lines(prompt), answer["content"]))
    yield from _dialogue(row, number, dialogues, dropped)


def _dialogue(row: dict[str, Any], number: int, dialogues: list[tuple[str, str]], dropped: Dropped) -> Iterator[Item]:
    """One item from the chosen and the rejected (prompt, answer), which must have the same prompt."""
    (prompt, chosen), (prompt_of_rejected, rejected) = dialogues
    if prompt != prompt_of_rejected or not prompt:
        dropped["the two prompts differ"] += 1
    elif not chosen.strip() or not rejected.strip():
        dropped["a completion is empty"] += 1
    else:
        prompt = f"{prompt.strip()}{ASSISTANT}"
        yield Item(row | {"prompt": prompt, "chosen": chosen.strip(), "rejected": rejected.strip()}, None, number)


def _preference(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    assert shape.preference is not None
    strength = float(value(row, shape.preference))
    if strength == 0:
        dropped["a tie"] += 1
    else:
        yield Item(row, int(strength < 0), number)


def _scores(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    assert shape.scores is not None
    first, second = (float(value(row, column)) for column in shape.scores)
    if first == second:
        dropped["a tie"] += 1
    else:
        yield Item(row, int(first > second), number)


def _rated(rows: list[dict[str, Any]], prompt: str, response: str, score: str, *, dropped: Dropped) -> Iterator[Item]:
    number = 1
    while number < len(rows):
        row, next_row = rows[number - 1], rows[number]
        if row[prompt] != next_row[prompt]:
            dropped["a prompt with one response"] += 1
            dropped.note_first(f"row {number}")
            number += 1
            continue
        if row[score] == next_row[score]:
            dropped["a tie"] += 1
            dropped.note_first(f"row {number}")
        else:
            better, worse = (row, next_row) if row[score] > next_row[score] else (next_row, row)
            fields = {"prompt": row[prompt], "chosen": better[response], "rejected": worse[response]}
            yield Item(fields, None, number)
        number += 2


def _puzzle(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    """Reads both schemas that Lichess has published: moves as text or as a list, the game as a URL or an id."""
    try:
        import chess
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("puzzles need python-chess: pip install 'w2s_ray[recipes]'") from error
    board = chess.Board(row["FEN"])
    moves = row["Moves"] if isinstance(row["Moves"], list) else str(row["Moves"]).split()
    board.push_uci(moves[0])
    answer = board.san(chess.Move.from_uci(moves[1]))
    game = str(row.get("GameId") or row.get("GameUrl") or row.get("PuzzleId") or row["FEN"])
    game = game.rpartition("lichess.org/")[2].split("#")[0].split("/")[0]
    fields = {"position": board.fen(), "move": answer, "rating": float(row["Rating"]), "game": game}
    yield Item(row | fields, None, number)


def _summaries(shape: Shape, row: dict[str, Any], number: int, dropped: Dropped) -> Iterator[Item]:
    info = row["info"]
    post = info.get("post") or info.get("article")
    chosen, rejected = (row["summaries"][index]["text"].strip() for index in (row["choice"], 1 - row["choice"]))
    if not post or not chosen or not rejected:
        dropped["a text is empty"] += 1
    else:
        yield Item(row | {"post": post.strip(), "chosen": chosen, "rejected": rejected}, None, number)


# field of `Shape` -> (shape, row, row number, counts of dropped rows) -> items; `rated` reads two rows at once
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
