"""Tasks: data sets as YAML entries, read into rows and dealt into halves and a test set.

`task.py` is the YAML entry and its files, `shapes.py` turns a data set's own rows into items, `rows.py` fills the
templates, `promises.py` checks the rows against the YAML, `grouping.py` says which rows belong together, `split.py` deals the
rows, `replicates.py` checks that every replicate can be dealt, `near_duplicates.py` finds what a deal left in two parts, and
`size_estimate.py` tells a task's size without reading all of it. `draft.py` writes a task for a data file. `catalogue/` holds
the tasks that ship.
"""

from w2s_ray.tasks.promises import RowCounts, check
from w2s_ray.tasks.replicates import facts_of_replicates
from w2s_ray.tasks.rows import Row, read_rows, read_task
from w2s_ray.tasks.size_estimate import Size, num_rows, size
from w2s_ray.tasks.split import (
    MIN_EFFECTIVE_GROUPS,
    Arranged,
    Deal,
    PartFacts,
    arrange,
    deal,
    deal_arranged,
    part_facts,
)
from w2s_ray.tasks.task import (
    Task,
    files,
    fingerprint,
    is_here,
    load_pinned,
    load_task,
    resolve_commits,
    schema,
    task_names,
)

__all__ = [
    "MIN_EFFECTIVE_GROUPS",
    "Arranged",
    "Deal",
    "PartFacts",
    "Row",
    "RowCounts",
    "Size",
    "Task",
    "arrange",
    "check",
    "deal",
    "deal_arranged",
    "facts_of_replicates",
    "files",
    "fingerprint",
    "is_here",
    "load_pinned",
    "load_task",
    "num_rows",
    "part_facts",
    "read_rows",
    "read_task",
    "resolve_commits",
    "schema",
    "size",
    "task_names",
]
