"""What people give: raw datasets, task files, prompts for them, evaluation sets."""

import json
from pathlib import Path
from typing import Any, NewType, NoReturn

import pandas as pd
import yaml
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import JSONPreview, TablePreview
from kedro_datasets.yaml import YAMLDataset

from rebase.datastore.sources import FolderSource, HubSource, Source, find_sources, read_files, read_rows
from rebase.errors import RebaseError
from rebase.records import Task
from rebase.reporting.redaction import public
from rebase.tasks.evaluation_items import EVALUATION_COLUMNS, parse_inputs, parse_items
from rebase.tasks.extraction import extract, split_conclusion

#: A text as it stands. kedro-viz goes by the name of the type that ``preview`` returns; kedro-datasets lacks this one.
TextPreview = NewType("TextPreview", str)


class ReadOnly:
    """A dataset that people write by hand or that is only a handle."""

    def save(self, data: Any) -> NoReturn:
        raise DatasetError(f"{type(self).__name__} is read-only: a pipeline cannot write to it.")


class Handle(ReadOnly):
    """What loads cheaply and opens later: which model it is, is all there is to look at."""

    def preview(self) -> JSONPreview:
        """The settings as kedro-viz shows them, also on a site that is published: without what is secret."""
        return JSONPreview(json.dumps(public(self._describe())))  # type: ignore[attr-defined]


class SourcesDataset(ReadOnly, AbstractDataset[Any, list[Source]]):
    """The raw datasets that ``locations`` name: globs of local folders, hub ids, catalogs (see ``find_sources``)."""

    def __init__(
        self,
        locations: str | list[str],
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._locations = [locations] if isinstance(locations, str) else list(locations)
        self._token = (credentials or {}).get("token")
        self.metadata = metadata

    def load(self) -> list[Source]:
        return find_sources(self._locations, self._token)

    def preview(self, nrows: int = 50) -> TablePreview:
        """The first datasets and where they are, as kedro-viz shows them; none is read."""
        found = [{"dataset": source.dataset, "where": _place(source)} for source in self.load()[:nrows]]
        return TablePreview(pd.DataFrame(found).to_dict(orient="split"))

    def _describe(self) -> dict[str, Any]:
        return {"locations": self._locations}


class TaskDataset(ReadOnly, AbstractDataset[Any, Task]):
    """One task file of a folder, validated; with the instruction and examples of ``prompts``, if given."""

    def __init__(
        self, folder: str, name: str, prompts: str | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        self._folder = Path(folder)
        self._name = name
        self._prompts = prompts
        self.metadata = metadata

    def load(self) -> Task:
        return load_task(self._folder, self._name, self._prompts)

    def preview(self) -> TextPreview:
        """The task as kedro-viz shows it: what its file says, with the published prompts if they are used."""
        said = self.load().model_dump(mode="json", exclude_defaults=True)
        return TextPreview(yaml.dump(said, Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True, width=100))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder / f"{self._name}.yml"), "prompts": self._prompts}


class PromptDataset(ReadOnly, YAMLDataset):
    """A file of prompts: templates that people write."""

    def preview(self) -> TextPreview:
        """The file as kedro-viz shows it: as it stands, with its comments."""
        return TextPreview(Path(self._filepath).read_text(encoding="utf-8"))


class EvaluationDataset(ReadOnly, AbstractDataset[Any, pd.DataFrame]):
    """A task's evaluation items: ``item_id``, ``fields``, ``query``, ``answers``.

    Read from where the task file says, a file or a hub id, or from ``source`` instead.
    """

    _what, _parameter = "evaluation set", "evaluation_source"

    def __init__(
        self,
        folder: str,
        name: str,
        source: str | None = None,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._name = name
        self._source = source
        self._token = (credentials or {}).get("token")
        self.metadata = metadata

    def load(self) -> pd.DataFrame:
        task = load_task(self._folder, self._name)
        where = self._source or task.evaluation.source
        return parse_items(task, self._read(task, where, task.evaluation.split)[0], where)

    def preview(self, nrows: int = 20) -> TablePreview:
        """The first items as kedro-viz shows them."""
        return TablePreview(self.load().head(nrows).to_dict(orient="split"))

    def _read(
        self, task: Task, where: str, split: str, *, with_card: bool = False
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The rows, and what is known of where they come from: ``dataset``, ``config``, ``revision``, ``license``.

        The last two are asked for ``with_card``. A file is known by its name: paths of this machine are not handed on.
        """
        if Path(where).suffix in (".parquet", ".jsonl", ".json", ".csv", ".tsv"):
            if not Path(where).exists():
                raise RebaseError(f"The {self._what} of task {task.name!r} is missing: there is no file {where}.")
            try:
                return list(read_rows(read_files([Path(where)]))), {"dataset": Path(where).name}
            except Exception as error:  # The readers raise whatever their format makes them raise.
                raise RebaseError(
                    f"The {self._what} of task {task.name!r} cannot be read from {where}: {error}\nMend the file."
                ) from error
        spec = task.evaluation
        is_own = where == spec.source
        try:
            # The revision is one of the evaluation set; a config's name may be another dataset's as well.
            source = HubSource(where, spec.revision if is_own else None, self._token)
            config = spec.config if is_own else None
            if not config:
                configs = source.configs()
                config = spec.config if spec.config in configs else configs[0]
            card = source.card() if with_card else None
            known = {"revision": card.revision, "license": card.license} if card else {}
            return list(read_rows(source.batches(config, split))), {"dataset": where, "config": config, **known}
        except Exception as error:
            raise RebaseError(
                f"The {self._what} of task {task.name!r} cannot be read from the hub as {where!r}: {error}\n"
                f"Give a file instead: --params={self._parameter}=FILE."
            ) from error

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder), "name": self._name, "source": self._source}


class InputsDataset(EvaluationDataset):
    """Inputs of a task without answers, as ``examples`` are: ``row_id``, ``dataset``, ``fields``, ``query``.

    Read from ``source``, a file or a hub id (its train split, with the columns of the task's evaluation set, and its
    config if there is one of that name), with what is known of where they come from; where that is None, the file of
    ReBase's own ``examples``, whose inputs will do.
    """

    _what, _parameter = "inputs", "inputs_source"

    def __init__(self, folder: str, name: str, examples: str, **given: Any) -> None:
        super().__init__(folder, name, **given)
        self._examples = Path(examples)

    @property
    def are_examples(self) -> bool:
        """Whether the inputs are read from the file of ``examples``."""
        return not self._source

    def load(self) -> pd.DataFrame:
        task = load_task(self._folder, self._name)
        if self._source:
            rows, origin = self._read(task, self._source, "train", with_card=True)
            return parse_inputs(task, rows, self._source, origin["dataset"]).assign(**origin)
        if not self._examples.exists():
            raise RebaseError(
                f"The inputs of task {task.name!r} are missing: there are no examples in {self._examples}. "
                "Run transform, or give a file or a hub id: --params=inputs_source=FILE."
            )
        return pd.read_parquet(self._examples)


class RealDataset(EvaluationDataset):
    """Real examples of a task, in the form of an evaluation set; none where there is no ``source``.

    A file, or a hub id: its train split, as ``InputsDataset`` reads it.
    """

    _what, _parameter = "real examples", "real_source"

    def load(self) -> pd.DataFrame:
        if not self._source:
            return pd.DataFrame(columns=list(EVALUATION_COLUMNS))
        task = load_task(self._folder, self._name)
        rows, origin = self._read(task, self._source, "train", with_card=True)
        return parse_items(task, rows, self._source).assign(**origin)


class _ReadableDumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


_ReadableDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _place(source: Source) -> str:
    if isinstance(source, FolderSource):
        return str(source.folder)
    return f"hf://{source.dataset}@{getattr(source, 'revision', None) or 'main'}"


def load_task(folder: Path, name: str, prompts: str | None = None) -> Task:
    """Read and validate ``folder/name.yml``; raises RebaseError that names the tasks there are, or the field.

    ``prompts`` is a file of published prompts (see ``use_prompts``).
    """
    path = folder / f"{name}.yml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yml"))) or "none"
        raise RebaseError(f"There is no task {name!r} in {folder}: known are {known}. A task is one YAML file there.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RebaseError(f"{path}: not valid YAML. {error}") from None
    task = Task.parse(content, str(path))
    if task.name != name:
        raise RebaseError(f"{path}: `name` is {task.name!r}, the file's name says {name!r}. Make them the same.")
    return use_prompts(task, Path(prompts)) if prompts else task


def use_prompts(task: Task, path: Path) -> Task:
    """The task with the instruction and examples that a file of published prompts has for it.

    The file is JSON: ``{task: {"instruction": ..., "examples": [[question, "... The answer is X."], ...]}}``, with the
    task's name with or without ``bbh_``. Raises RebaseError that says what is missing, and which example has no answer.
    """
    try:
        entries = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RebaseError(f"There is no file of prompts {path}. Mend `task_prompts`.") from None
    except (OSError, ValueError, TypeError) as error:
        raise RebaseError(f"{path}: not a JSON object with an entry a task. {error}") from None
    short = task.name.removeprefix("bbh_")
    name = next((name for name in (task.name, short, f"bbh_{short}") if name in entries), None)
    if name is None:
        raise RebaseError(f"{path}: there is no prompt for task {task.name!r}; there are {', '.join(sorted(entries))}.")
    where = f"{path}, {name}"
    if len(task.query_fields) != 1:
        raise RebaseError(f"{where}: its examples have one field, the task's queries {', '.join(task.query_fields)}.")
    try:
        instruction = entries[name]["instruction"]
        pairs = [(str(question), str(rationale)) for question, rationale in entries[name]["examples"]]
    except (KeyError, TypeError, ValueError):
        raise RebaseError(f"{where}: needs `instruction` and `examples`, each [question, rationale].") from None
    examples = [_published_example(task, *pair, f"{where}, example {number}") for number, pair in enumerate(pairs)]
    return Task.parse(task.model_dump() | {"instruction": instruction, "examples": examples}, where)


def _published_example(task: Task, question: str, rationale: str, where: str) -> dict[str, str]:
    parts = split_conclusion(rationale)
    answer = extract(parts[1], task.answer) if parts else ""
    if parts is None or not answer:
        raise RebaseError(f"{where}: no answer can be read from its rationale, which must end in 'The answer is X.'.")
    steps = {"rationale": parts[0]} if task.cot else {}
    return {task.query_fields[0]: question, "answer": answer} | steps
