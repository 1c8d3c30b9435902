"""What a user writes, checked: a study file becomes frozen models or one clear `InputError`.

Unknown keys are refused with the nearest right spelling. Everything under `compute` but `precision` says how to
execute and never changes a result; everything else is part of a Fit's identity. Each field below is marked with
its kind, and a test refuses unmarked ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from w2s_ray.errors import InputError, nearest
from w2s_ray.families.pretraining import Shape
from w2s_ray.methods import PARAMS
from w2s_ray.tasks.task import SUFFIXES

MAX_CELLS = 1_000_000
PACKAGE = Path(__file__).parent
READY_MADE = PACKAGE / "studies" if (PACKAGE / "studies").is_dir() else PACKAGE.parent / "studies"
"""The folder of the ready-made studies: inside the package where it is installed, beside it in the repository."""
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


def _identity(default: Any = ..., description: str = "", **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"kind": "identity"}, **bounds)


def _execution(default: Any = ..., description: str = "", **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"kind": "execution"}, **bounds)


def _as_list(given: Any) -> Any:
    """One word, or one method with parameters, where a list belongs."""
    return [given] if isinstance(given, str | dict) else given


Words = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])]
Methods = Annotated[
    tuple[str | dict[str, Any], ...],
    BeforeValidator(_as_list, json_schema_input_type=str | dict[str, Any] | tuple[str | dict[str, Any], ...]),
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Training(Section):
    """Hyper-parameters. `auto` takes the family's value for each size."""

    epochs: int = _identity(2, "passes over the half", ge=1, le=1000)
    batch_size: int = _identity(32, "rows in one optimizer step, over all workers", ge=1, le=65536)
    learning_rate: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = _identity(
        "auto", "peak learning rate; auto: the family's, and 10 times that for lora"
    )
    optimizer: Literal["auto", "adam", "adamw"] = _identity("auto", "auto: the family's")
    weight_decay: float = _identity(0.0, "decoupled for adamw", ge=0, le=10)
    warmup_fraction: float = _identity(0.0, "share of the steps over which the rate rises linearly", ge=0, le=1)
    schedule: Literal["cosine", "constant"] = _identity("cosine", "after the warm-up; cosine falls to 0")
    max_grad_norm: float = _identity(0.0, "clip gradients to this global norm; 0: no clipping", ge=0)
    max_tokens: int = _identity(512, "rows longer than this for any model are dropped for all", ge=1, le=1_048_576)
    evals_per_epoch: int = _identity(
        2, "points of the learning curve in an epoch; 0: only that of the end", ge=0, le=1000
    )
    tune: Literal["all", "head", "lora"] = _identity(
        "all",
        "all weights, a new head on the frozen model's features (a linear probe), or low-rank adapters and a head",
    )
    lora_rank: int | None = _identity(None, "of the adapters on every linear layer; default 8", ge=1, le=1024)
    validation: float = _identity(
        0.0, "share of each half held out, to tell from a Fit's own labels where to stop early", ge=0, le=0.5
    )

    stop: Literal["last", "validation"] = _identity(
        "last",
        "which weights predict: the last, or those of the point of the learning curve that agrees best with the Fit's own "
        "labels on the rows held out",
    )

    @model_validator(mode="after")
    def _rows_to_stop_by(self) -> Training:
        if self.stop == "validation" and not self.validation:
            raise ValueError("stop: given 'validation', but no rows are held out; set validation, such as 0.1")
        if self.stop == "validation" and not self.evals_per_epoch:
            raise ValueError(
                "stop: given 'validation', but evals_per_epoch is 0, so there is only one point to stop at"
            )
        return self

    @model_validator(mode="after")
    def _rank_of_adapters(self) -> Training:
        if self.lora_rank is not None and self.tune != "lora":
            raise ValueError(f"lora_rank: given {self.lora_rank}, but tune is '{self.tune}'; allowed with tune: lora")
        return self


class Difficulty(Section):
    """A range of a task's difficulty column."""

    min: float | None = _identity(None, "no easier rows than this", allow_inf_nan=False)
    max: float | None = _identity(None, "no harder rows than this", allow_inf_nan=False)


class Split(Section):
    """How a task's rows are dealt into half A, half B and the common test set."""

    num_train: int | None = _identity(None, "rows in each half; default all there are", ge=2)
    num_test: int | None = _identity(None, "test rows; default the task's test file, or a fifth of the rows", ge=2)
    seed: int = _identity(
        0, "seed of the dealing; decides the test set, which all models, methods and seeds share", ge=0
    )
    per_seed: bool = _identity(True, "deal the halves anew for each seed of the grid, so that seeds are replicates")
    swap: bool = _identity(False, "give each seed a twin with A and B exchanged")
    rows_per_group: int | None = _identity(None, "no part takes more rows of one group; default no limit", ge=1)
    fresh: int = _identity(
        0,
        "further parts of num_train rows each, so that every step of a chain has rows of its own: half B for the last step, "
        "one of these for each before it; 0: steps share half B",
        ge=0,
        le=100,
    )
    difficulty: Difficulty = _identity(
        Difficulty(), "deal the halves from rows of this range, for easy-to-hard; the test set keeps all"
    )

    @model_validator(mode="after")
    def _rows_left_for_fresh_parts(self) -> Split:
        if self.fresh and self.num_train is None:
            raise ValueError(
                f"fresh: given {self.fresh}, but without num_train the halves take all rows; set num_train"
            )
        return self


class ModelEntry(Section):
    """A model of one's own: a local folder or a hub id."""

    name: str = _identity(..., "its name in tables and figures", pattern=NAME)
    path: str | None = _identity(None, "folder with config.json, safetensors and tokenizer, relative to the study file")
    hub: str | None = _identity(None, "hub id, such as EleutherAI/pythia-70m")
    revision: str | None = _identity(None, "branch, tag or commit of the hub id")
    depth: int | None = _identity(None, "layers to keep, from the first; default all", ge=0)
    params: int | None = _identity(None, "non-embedding parameters; needed for a hub id", ge=1)
    pretraining_tokens: int | None = _identity(None, "for the compute axis", ge=1)
    shape: Shape | None = _execution(None, "for the compute axis; default: that of the folder, none for a hub id")
    learning_rate: float | None = _identity(None, "default: by size", gt=0)


class Grid(Section):
    """Every pair of sizes x task x method x seed."""

    label: str | None = _execution(
        None, "tells grids apart that share a task, in tables and figures: `chess-mate (easy)`", pattern=NAME
    )
    family: str | None = _identity(None, "a family's name, or a path to a family YAML")
    models: tuple[ModelEntry, ...] | None = _identity(None, "models of one's own, weak to strong, instead of a family")
    sizes: Words | None = _identity(None, "sizes weak to strong; default all", min_length=1)
    pairs: Literal["weak<=strong", "all"] | tuple[tuple[str, str], ...] = _identity(
        "weak<=strong", "every weak <= strong, all pairs, or a list of [weak, strong]"
    )
    tasks: Words = _identity(..., "names, or paths to task YAMLs", min_length=1)
    methods: Methods = _identity(("naive",), "names, or {name: confidence, max_weight: 0.75}", min_length=1)
    seeds: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (
        _identity(1, "how many seeds (0, 1, ...), or a list of them")
    )
    controls: bool = _identity(
        True, "train and evaluate the controls that give each PGR its floor: zero-shot and shuffled labels"
    )
    ceiling_split: Literal["A", "B"] = _identity("B", "the half on which ceilings learn from the truth")
    split: Split = _identity(Split())
    training: Training = _identity(Training())

    @field_validator("tasks", "sizes")
    @classmethod
    def _unique(cls, values: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for value in values or ():
            if (values or ()).count(value) > 1:
                raise ValueError(f"'{value}' is listed twice")
        return values

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, entries: tuple[str | dict[str, Any], ...]) -> tuple[str | dict[str, Any], ...]:
        for entry in entries:
            resolve_method(entry)
        if len({str(resolve_method(entry)) for entry in entries}) < len(entries):
            raise ValueError("a method is listed twice with the same parameters")
        return entries

    @field_validator("seeds")
    @classmethod
    def _unique_seeds(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(seeds, tuple) and len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @model_validator(mode="after")
    def _one_ladder(self) -> Grid:
        if (self.family is None) == (self.models is None):
            raise ValueError("give either 'family' or 'models'")
        if self.models is not None and (not self.models or len({m.name for m in self.models}) < len(self.models)):
            raise ValueError("'models' needs at least one entry, and each name once")
        return self

    @property
    def seed_list(self) -> tuple[int, ...]:
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class Compute(Section):
    """How to execute. Nothing here but `precision` changes a result."""

    workers: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = _execution(
        "auto", "Ray Train workers for one Fit; auto: the family's number on GPUs, else 1"
    )
    cpus_per_worker: int = _execution(1, "CPU cores, and torch threads, of a worker", ge=1)
    gpus_per_worker: float = _execution(0, "GPUs of a worker; fractions let small models share one", ge=0, le=1)
    zero_stage: Literal["auto", 0, 1, 2, 3] = _execution(
        "auto",
        "DeepSpeed ZeRO; auto: the family's on GPUs, 1 on CPUs, 0 for one worker, which has nobody to share with",
    )
    precision: Literal["auto", "fp32", "bf16"] = _identity("auto", "auto: bf16 on GPUs, else fp32; changes results")
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = _execution(
        "auto", "rows of a worker in one pass; auto: its whole share of the batch, halved when memory runs out"
    )
    offload: Literal["none", "optimizer", "parameters"] = _execution("none", "what ZeRO keeps in CPU memory")
    activation_checkpointing: bool = _execution(False, "trade compute for memory")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = _execution("auto", "attention kernels")
    compile: bool = _execution(
        False, "torch.compile: minutes for each worker's first Fit of a model, then faster steps on GPUs"
    )
    checkpoint_every_s: float = _execution(120.0, "seconds of training between two mid-fit checkpoints", ge=0)
    usd_per_worker_hour: float | None = _execution(None, "price, for `w2s plan` and --budget-usd", ge=0)
    fits_per_pack: Annotated[int, Field(ge=1)] | Literal["auto"] = _execution(
        "auto", "Fits in one Ray Train run; auto: enough to make start-up a small share"
    )


class Study(Section):
    """A study: grids of weak-to-strong cells, and how to execute them."""

    name: str = _identity(..., "names the output folder", pattern=NAME)
    description: str = _identity("", "for the report")
    grids: tuple[Grid, ...] = _identity(..., "", min_length=1)
    compute: Compute = _execution(Compute())


SECTIONS: dict[str, type[BaseModel]] = {
    "grids": Grid,
    "models": ModelEntry,
    "shape": Shape,
    "training": Training,
    "split": Split,
    "difficulty": Difficulty,
    "compute": Compute,
}


def resolve_method(entry: str | dict[str, Any]) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """(name, all parameters with defaults) of a method as written in a study; ValueError says what is wrong."""
    params = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = params.pop("name", None)
    if name not in PARAMS:
        raise ValueError(f"unknown method {name!r}{nearest(str(name), PARAMS)}; allowed: {', '.join(sorted(PARAMS))}")
    try:
        checked = PARAMS[name].model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(PARAMS[name].model_fields) or "no parameters"
        hint = nearest(field, PARAMS[name].model_fields)
        raise ValueError(f"method '{name}', {field}: {first['msg'].lower()}{hint}; allowed: {allowed}") from error
    return name, tuple(sorted(checked.model_dump().items()))


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, which YAML itself would silently overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        merged = "tag:yaml.org,2002:merge"  # what `<<` brings in may be given again
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merged]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def study_names() -> list[str]:
    """The names of the ready-made studies."""
    return sorted(path.stem for path in READY_MADE.glob("*.yaml"))


def find_study(given: str | Path) -> Path:
    """The file of a study that is given by its path or, where there is no such file, by a ready-made study's name."""
    path, names = Path(given), study_names()
    try:
        if path.exists() and not path.is_dir():
            return path
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    if str(given) in names:
        return READY_MADE / f"{given}.yaml"
    beside = {file.stem: file.name for file in path.parent.glob("*.yaml")}
    hint = nearest(path.stem, names, files=beside)
    raise InputError(
        f"{given}: no such file{hint}; give the path of a study's YAML, or the name of a ready-made one: {', '.join(names)}"
    )


def load_study(given: str | Path) -> Study:
    """Read and check a study; InputError names the file and field."""
    path = find_study(given)
    if path.name.endswith((*SUFFIXES, ".gz")):
        raise InputError(
            f"{path}: is a data file, not a study; write a task over it, then a study: w2s new task {path}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error})") from error
    return study_of(text, path)


def study_of(text: str, path: Path) -> Study:
    """The study that a YAML's text describes; `path` says where it is from, or where it will lie."""
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not a study: nested too deeply") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a study is a mapping with 'name' and 'grids', this is a {type(content).__name__}")
    if "grids" not in content and {"setting", "train"} <= content.keys():
        raise InputError(f"{path}: is a task, not a study; write a study of it with: w2s new study {path}")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        places = [problem["loc"] for problem in problems]
        # what holds a wrong part is reported, too, as being without it; the part itself says what to mend
        parts = [p for p in problems if not any(place[: len(p["loc"])] == p["loc"] != place for place in places)]
        lines = [f"{path}: {_say(problem)}" for problem in parts]
        raise InputError("\n".join(dict.fromkeys(lines))) from error


def _say(problem: Any) -> str:
    """One line for one pydantic problem: field, what was given, what is allowed."""
    where = ""
    for part in problem["loc"]:
        # pydantic adds the tried branch of a union (int, tuple[...], literal[...]) to the location; users wrote no such key
        if isinstance(part, int):
            where += f"[{part}]"
        elif not any(mark in part for mark in "[('") and part not in ("int", "float", "str", "constrained-float"):
            where += f".{part}" if where else part
    if problem["type"] == "extra_forbidden":
        parents = [part for part in problem["loc"][:-1] if part in SECTIONS]
        allowed = (SECTIONS[parents[-1]] if parents else Study).model_fields
        key = str(problem["loc"][-1])
        return f"{where}: unknown key '{key}'{nearest(key, allowed)}; allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    given = "" if isinstance(problem["input"], dict) else f"given {problem['input']!r}: "
    return f"{where}: {given}{problem['msg'].removeprefix('Value error, ')}"


def schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}
