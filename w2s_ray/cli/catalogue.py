"""`w2s tasks`, `families`, `methods` and `schema`: what a study can name. Without a name a verb lists, with one it shows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from w2s_ray.cli.console import out, print_json, print_table
from w2s_ray.cli.options import JsonOption
from w2s_ray.cli.suggest import complete_family, complete_method, complete_task
from w2s_ray.errors import InputError, nearest

MAX_CHARACTERS = 300
"""So much of each text of an example is shown."""


# --- tasks --------------------------------------------------------------------------------------------------------


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="A task's name, or the path of a task YAML.", autocompletion=complete_task)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tasks, or show one: its source, rows, balance and first examples.

    Example: w2s tasks chess-mate
    """
    if as_json:
        print_json(tasks_facts() if name is None else task_facts(name))
    elif name is None:
        print_tasks(tasks_facts())
    else:
        print_task(task_facts(name))


def tasks_facts() -> list[dict[str, Any]]:
    from w2s_ray.tasks import load_task, num_rows, task_names

    facts = []
    for name in task_names():
        task = load_task(name)
        facts.append(
            {
                "name": name,
                "setting": task.setting,
                "rows": num_rows(task),  # None before a task of the hub is downloaded
                "licence": task.licence,
                "description": task.description,
            }
        )
    return facts


def print_tasks(facts: list[dict[str, Any]]) -> None:
    table = Table("task", "setting", "rows", "licence", "about", box=None)
    for task in facts:
        rows = "on the hub" if task["rows"] is None else f"{task['rows']:,}"
        table.add_row(task["name"], task["setting"], rows, task["licence"], escape(task["description"]))
    print_table(table)


def task_facts(name: str) -> dict[str, Any]:
    from w2s_ray.tasks import Deal, deal, files, load_task, part_facts, read_rows, read_task
    from w2s_ray.tasks.near_duplicates import near_duplicates

    task = load_task(name, base=Path.cwd())
    rows = read_rows(task)
    labels = Counter(rows["label"].to_pylist())
    dealt = deal(rows, Deal())
    return {
        "name": task.name,
        "setting": task.setting,
        "licence": task.licence,
        "description": task.description,
        "template": task.template,
        "completions": list(task.completions),
        "label": task.label_column,
        "positive": list(task.positive),
        "negative": list(task.negative),
        "group": list(task.group_columns),
        "files": {part: [str(path) for path in paths] for part, paths in files(task).items()},
        "items": rows.num_rows,
        "groups": len(set(rows["group"].to_pylist())),
        "share_of_label_1": None if None in labels else labels[1] / rows.num_rows,
        "left_out": dict(read_task(task).dropped),
        "parts": {name: asdict(part_facts(part)) for name, part in dealt.items()},
        "near_duplicates": len(near_duplicates(dealt)),
        "examples": [
            {"label": row["label"], "texts": [text for text in (row["text"], *row["completions"]) if text]}
            for row in rows.slice(0, 5).to_pylist()
        ],
    }


def print_task(facts: dict[str, Any]) -> None:
    licence = escape(facts["licence"])
    out.print(f"[bold]{facts['name']}[/bold]  {facts['setting']}; {facts['items']:,} items; licence {licence}")
    out.print(escape(facts["description"]))
    table = Table.grid(padding=(0, 2))
    for part, paths in facts["files"].items():
        table.add_row(part, escape(", ".join(paths[:3]) + (" ..." if len(paths) > 3 else "")))
    for key in ("template", "completions", "label", "positive", "negative", "group"):
        if facts[key]:
            table.add_row(key, escape(json.dumps(facts[key], ensure_ascii=False).strip("[]")))
    table.add_row("groups", f"{facts['groups']:,}")
    if facts["share_of_label_1"] is not None:
        share = f"{facts['share_of_label_1']:.1%}"
        table.add_row("label 1", f"{share} of items, before the halves and the test set are balanced")
    for reason, count in facts["left_out"].items():
        table.add_row("left out", f"{count:,} rows: {escape(reason)}")
    for name, part in facts["parts"].items():
        table.add_row(f"{'test set' if name == 'test' else f'half {name}'}, at most", part_in_words(part))
    table.add_row("near duplicates", f"{facts['near_duplicates']:,} rows of the test set have one in a half")
    print_table(table)
    for example in facts["examples"]:
        if example["label"] is not None:
            out.print(f"  [bold]{example['label']}[/bold]  ", end="")
        out.print(escape(" | ".join(text[:MAX_CHARACTERS] for text in example["texts"])))


def part_in_words(part: dict[str, Any]) -> str:
    """`1,000 rows of 140 groups (the largest has 31; as good as 92 groups of equal size)`."""
    if part["num_groups"] == part["num_rows"]:
        return f"{part['num_rows']:,} rows, each a group of its own"
    return (
        f"{part['num_rows']:,} rows of {part['num_groups']:,} groups (the largest has {part['largest_group']:,}; as good as "
        f"{part['effective_groups']:,.0f} groups of equal size)"
    )


# --- families -----------------------------------------------------------------------------------------------------


def families(
    name: Annotated[
        str | None,
        typer.Argument(help="A family's name, or the path of a family YAML.", autocompletion=complete_family),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the model families, or show the sizes of one.

    Example: w2s families pythia
    """
    if as_json:
        print_json(families_facts() if name is None else family_facts(name))
    elif name is None:
        print_families(families_facts())
    else:
        print_family(family_facts(name))


def families_facts() -> list[dict[str, Any]]:
    from w2s_ray.families import family_names, load_family

    facts = []
    for name in family_names():
        family = load_family(name)
        facts.append(
            {
                "name": name,
                "sizes": [size.size for size in family.sizes],
                "licence": family.licence,
                "description": family.description,
            }
        )
    return facts


def print_families(facts: list[dict[str, Any]]) -> None:
    table = Table("family", "sizes", "licence", "about", box=None)
    for family in facts:
        table.add_row(family["name"], ", ".join(family["sizes"]), family["licence"], escape(family["description"]))
    print_table(table)


def family_facts(name: str) -> dict[str, Any]:
    from w2s_ray.families import load_family, pretraining_flops

    family = load_family(name, base=Path.cwd())
    return {
        "name": family.name,
        "licence": family.licence,
        "description": family.description,
        "sizes": [
            {
                "size": size.size,
                "source": size.source,
                "params": size.params,
                "pretraining_tokens": size.pretraining_tokens,
                "pretraining_flops": pretraining_flops(family, size.size),
                "learning_rate": size.learning_rate,
                "gpus": size.gpus,
                "zero_stage": size.zero_stage,
            }
            for size in family.sizes
        ],
    }


def print_family(facts: dict[str, Any]) -> None:
    table = Table(
        "size", "source", "params", "pretraining tokens", "FLOPs", "learning rate", "80 GB GPUs", "ZeRO", box=None
    )
    for size in facts["sizes"]:
        tokens, flops = size["pretraining_tokens"], size["pretraining_flops"]
        table.add_row(
            size["size"],
            size["source"],
            f"{size['params']:,}",
            f"{tokens:,}" if tokens else "?",
            f"{flops:.2g}" if flops else "?",
            f"{size['learning_rate']:g}",
            str(size["gpus"]),
            str(size["zero_stage"]),
        )
    out.print(f"[bold]{facts['name']}[/bold]  {escape(facts['description'])} Licence: {facts['licence']}")
    print_table(table, names=2)


# --- methods ------------------------------------------------------------------------------------------------------


def methods(
    name: Annotated[str | None, typer.Argument(help="A method's name.", autocompletion=complete_method)] = None,
    as_json: JsonOption = False,
) -> None:
    """List the training methods, or show one with its parameters.

    Example: w2s methods confidence
    """
    if as_json:
        print_json(methods_facts() if name is None else method_facts(name))
    elif name is None:
        print_methods(methods_facts())
    else:
        print_method(method_facts(name))


def methods_facts() -> dict[str, list[dict[str, Any]]]:
    """Kind -> methods of that kind."""
    from w2s_ray.methods import CHAINS, LOSSES, PARAMS, TRANSFORMS

    kinds: dict[str, list[str]] = {
        "losses: how a student learns from labels": list(LOSSES),
        "transforms: change the labels, and go with any loss": list(TRANSFORMS),
        "chains: learn from other Fits, or start from them": list(CHAINS),
    }
    return {
        kind: [
            {
                "name": name,
                "description": PARAMS[name].__doc__,
                "defaults": {field: info.default for field, info in PARAMS[name].model_fields.items()},
            }
            for name in names
        ]
        for kind, names in kinds.items()
    }


def print_methods(facts: dict[str, list[dict[str, Any]]]) -> None:
    for kind, methods_of_kind in facts.items():
        table = Table("method", "about", "parameters", box=None, title=kind, title_justify="left")
        for method in methods_of_kind:
            parameters = ", ".join(f"{field}={default}" for field, default in method["defaults"].items())
            table.add_row(method["name"], escape(method["description"]), escape(parameters))
        print_table(table)


def method_facts(name: str) -> dict[str, Any]:
    from w2s_ray.fit import Method
    from w2s_ray.methods import PARAMS, refusal

    if name not in PARAMS:
        raise InputError(f"unknown method '{name}'{nearest(name, PARAMS)}; allowed: {', '.join(PARAMS)}")
    schema = PARAMS[name].model_json_schema()
    return {
        "name": name,
        "description": PARAMS[name].__doc__ or "",
        "not_for_generation": refusal(Method(name), ["generation"]),
        "parameters": schema.get("properties", {}),
    }


def print_method(facts: dict[str, Any]) -> None:
    out.print(f"[bold]{facts['name']}[/bold]  {escape(facts['description'])}")
    if facts["not_for_generation"]:
        out.print(f"Not for generation: {facts['not_for_generation']}")
    table = Table("parameter", "default", "allowed", "about", box=None)
    for field, schema in facts["parameters"].items():
        about = escape(schema.get("description", ""))
        table.add_row(field, str(schema.get("default")), escape(_allowed(schema)), about)
    if table.row_count:
        print_table(table)
    out.print(f"In a study: [cyan]methods: \\[{facts['name']}][/cyan]", soft_wrap=True)


def _allowed(schema: dict[str, Any]) -> str:
    """What a parameter's JSON Schema allows, in words: `from 0 to 1`."""
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(option.get("const") or "a list" for option in schema["anyOf"])
    bounds = {"from": "minimum", "above": "exclusiveMinimum", "to": "maximum", "below": "exclusiveMaximum"}
    return " ".join(f"{word} {schema[bound]}" for word, bound in bounds.items() if schema.get(bound) is not None)


# --- schema -------------------------------------------------------------------------------------------------------


def schema(
    kind: Annotated[
        Literal["study", "task"], typer.Argument(metavar="[KIND]", help="Of which file: study or task.")
    ] = "study",
) -> None:
    """Print the JSON Schema of a study or task file, for editors.

    Example: w2s schema task > task.schema.json
    """
    from w2s_ray import study
    from w2s_ray import tasks as room

    print_json(study.schema() if kind == "study" else room.schema())
