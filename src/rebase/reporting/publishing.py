"""Publish a run's training examples and adapter, with cards that list their sources and licenses (``kedro push``).

**Licenses** (the table ``PERMITTED``). Examples are adaptations of source rows, so a source's license must permit
sharing adaptations. Permitted are public-domain dedications, Creative Commons licenses without ND, the open-data
licenses of Open Data Commons and the Linux Foundation, free software licenses and OpenRAIL. Their conditions (name the
source, same license, no commercial use, pass on restrictions) are printed and written on the card; the publisher must
keep them. Rejected are ND licenses, unknown ones (``unknown``, ``other``), and all others. To fix it, train without
these sources (``train.exclude``), or check their licenses and confirm them (``checked``). Adapters follow the same
rule, since it is disputed whether a model is an adaptation of its training data. This is no legal advice.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd

from rebase.errors import RebaseError
from rebase.files import CHECKSUMS, replacing_folder
from rebase.generation.filters.base import find_pattern
from rebase.generation.filters.licenses import license_allowed, license_names
from rebase.parameters import LicensePolicy
from rebase.records import PEOPLE, Adapter, Task
from rebase.reporting.console import visible
from rebase.student.adapters import CARD, ORIGIN, read_origin, sources_of

Line = dict[str, Any]

_BY, _SAME, _RAIL = "name the source", "keep the same license", "pass on its restrictions of use"
_NC = "no commercial use"
#: Licenses that permit sharing adaptations, and their conditions; ``*`` and ``?`` are wildcards.
PERMITTED = {
    **dict.fromkeys(("cc0*", "pddl*", "public-domain", "unlicense", "wtfpl", "0bsd", "mit-0"), ""),
    **dict.fromkeys(("cc-by", "cc-by-?.?", "odc-by*", "cdla-permissive-*", "etalab-*", "ogl*"), _BY),
    **dict.fromkeys(("mit", "apache-2.0", "bsd*", "isc", "zlib", "ncsa", "artistic-2.0", "ecl-2.0", "afl-3.0"), _BY),
    **dict.fromkeys(("cc-by-sa*", "odbl*", "cdla-sharing-*", "gfdl*"), f"{_BY}, {_SAME}"),
    **dict.fromkeys(("gpl*", "lgpl*", "agpl*", "mpl-2.0", "epl-*", "eupl-*"), f"{_BY}, {_SAME}"),
    **dict.fromkeys(("cc-by-nc", "cc-by-nc-?.?"), f"{_BY}, {_NC}"),
    "cc-by-nc-sa*": f"{_BY}, {_NC}, {_SAME}",
    **dict.fromkeys(("openrail*", "*-openrail*", "bigscience-bloom-rail*"), _RAIL),
}
_POLICY = LicensePolicy(allow=tuple(PERMITTED), deny=("*-nd*",), unknown="deny")
#: The permitted licenses that the hub knows; it rejects a card with another one.
_HUB_LICENSES = frozenset([
    "cc0-1.0", "pddl", "unlicense", "wtfpl", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "odc-by",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "etalab-2.0", "mit", "apache-2.0", "bsd", "bsd-2-clause",
    "bsd-3-clause", "isc", "zlib", "ncsa", "artistic-2.0", "ecl-2.0", "afl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "odbl", "cdla-sharing-1.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "agpl-3.0",
    "mpl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "openrail", "bigscience-openrail-m",
    "bigcode-openrail-m", "creativeml-openrail-m",
])  # fmt: skip
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: The published columns: the example and its provenance, without its cost.
_PUBLISHED = [
    "example_id", "prompt", "completion", "query", "answer", "rationale", "agreement", "fields", "dataset", "config",
    "revision", "row_index", "license", "row_id", "rank", "score", "mapping_id", "teacher", "prompt_hash",
]  # fmt: skip
_SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M"}
_DATASET_CARD = """\
# Training examples for the task `{task}`

> {instruction}

{count:,} examples, made with rebase by {teachers}. `prompt` and `completion` train a student; `dataset`, `config`, \
`revision` and `row_index` name the source row of an example: a row of a public dataset, retrieved by its similarity \
to the task (retrieval-based distillation, arXiv 2407.05463).{without_row}

```python
datasets.load_dataset("{repo}", split="train")
```

## Sources
| dataset | revision | license | conditions | examples |
|---|---|---|---|---|
{sources}

The conditions of a source apply to each example made from it (column `license`).

Prompts (the first letters of their SHA-256): {prompts}.

## Known limits
{writers} The examples have the form of one task and the languages and biases of their sources. Rows that repeat the \
task's evaluation set were rejected as far as a search for shared n-grams finds them. The terms of the teacher's \
provider can restrict the use of its outputs.
"""
_EVALUATION = """\
## Evaluation
{n} items of the task's evaluation set (`{source}`), in percent, with bootstrap intervals of {confidence:.0%}. \
`student` is the base model without the adapter.

| system | metric | value | interval |
|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Parcel:
    """A folder to publish, ``dataset`` or ``adapter``, with its card; ``kind`` is the hub's type of repository."""

    kind: Literal["dataset", "model"]
    folder: Path

    @property
    def files(self) -> dict[str, int]:
        """The files' sizes in bytes, by path."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}


def check_licenses(sources: Sequence[Line], checked: Sequence[str] = ()) -> list[str]:
    """Check the licenses of sources (``dataset``, ``license``, ``examples``), and list their conditions.

    Sources that match ``checked`` pass. Raises RebaseError with each source whose license does not permit sharing.
    """
    rejected = [
        source
        for source in sources
        if source["dataset"] is not None
        and not license_allowed(source["license"] or "unknown", _POLICY)
        and not find_pattern(source["dataset"], checked)
    ]
    if rejected:
        name = visible(min(source["dataset"] for source in rejected))
        lines = (f"\n  {line['dataset']} ({line['license'] or 'unknown'}): {line['examples']}" for line in rejected)
        raise RebaseError(
            "push: the licenses of these datasets forbid sharing what is made from them, or are not known to allow it "
            f"(number of examples):{visible(''.join(lines))}\nTrain without them (train.exclude.datasets, as `kedro "
            f"trace {name}` shows), or check their licenses and confirm them: --license-checked NAME for each."
        )
    licenses = sorted({source["license"] for source in sources if source["license"]})
    return [f"{visible(license)}: {conditions}" for license in licenses if (conditions := conditions_of(license))]


def conditions_of(license: str) -> str:
    """The conditions of a license, or of several in one text; empty if there are none, or none are known."""
    conditions = (PERMITTED[pattern] for name in license_names(license) if (pattern := find_pattern(name, PERMITTED)))
    return ", ".join(dict.fromkeys(condition for text in conditions if text for condition in text.split(", ")))


@contextmanager
def packed(
    repo: str,
    task: Task,
    examples: pd.DataFrame | None,
    adapter: Adapter | None,
    scores: Line | None,
    checked: Sequence[str] = (),
) -> Iterator[tuple[list[Parcel], list[str]]]:
    """Pack the examples, the adapter or both into a temporary folder; also gives the conditions of their licenses.

    ``examples`` are those of the training set with ``prompt`` and ``completion``; ``scores`` are the adapter's. Raises
    RebaseError before anything is packed if a license forbids it.
    """
    example_sources = [] if examples is None else sources_of(examples)
    adapter_sources = [] if adapter is None else _read_origin(adapter)
    conditions = check_licenses([*example_sources, *adapter_sources], checked)
    with TemporaryDirectory(prefix="rebase-push-") as temporary:
        parcels = []
        if examples is not None:
            parcels.append(_pack_dataset(Path(temporary) / "dataset", repo, task, examples, example_sources, checked))
        if adapter is not None:
            parcels.append(_pack_adapter(Path(temporary) / "adapter", repo, task, adapter, adapter_sources, scores))
        yield parcels, list(dict.fromkeys(conditions))


def published_examples(reasoned_examples: pd.DataFrame, training_set: pd.DataFrame) -> pd.DataFrame:
    """The examples of the training set, in its order, with their provenance; RebaseError if one has none."""
    origins = reasoned_examples.drop_duplicates("example_id").drop(columns=["prompt", "completion"], errors="ignore")
    trained = training_set[["example_id", "prompt", "completion"]]
    if unknown := (~trained["example_id"].isin(origins["example_id"])).sum():
        raise RebaseError(
            f"push: {unknown} examples of the training set are not among the current examples, so their sources are "
            "unknown. Run the train pipeline again."
        )
    return trained.merge(origins, on="example_id", how="left", validate="many_to_one")


def scores_of(adapter: Adapter, scores: Line | None, evaluate_summary: Line | None) -> Line | None:
    """The scores, if the evaluation's summary names this adapter."""
    evaluated = (evaluate_summary or {}).get("adapter")
    return scores if scores and evaluated == adapter.folder.parent.name else None


def put(parcel: Parcel, folder: Path) -> str:
    """Copy a parcel into a folder, and return its path; RebaseError if it exists."""
    target = folder / parcel.folder.name
    if target.exists():
        raise RebaseError(f"push: {target} exists already: name another folder, or move it away first.")
    with replacing_folder(target) as part:
        shutil.copytree(parcel.folder, part, dirs_exist_ok=True)
    return str(target)


def upload(parcel: Parcel, repo: str, *, public: bool) -> str:
    """Commit a parcel to a repository of the hub, private unless ``public``, and return the commit's address.

    The token is that of ``hf auth login`` or ``HF_TOKEN``. Raises RebaseError if the hub rejects it, or if the
    repository is public already and ``public`` is not set.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo, repo_type=parcel.kind, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo, repo_type=parcel.kind).private:
            raise RebaseError(f"push: the {parcel.kind} {repo} exists already and is public: nothing was uploaded. "
                              "Add --public if everybody may read it, or name another one.")  # fmt: skip
        commit = api.upload_folder(
            repo_id=repo, folder_path=parcel.folder, repo_type=parcel.kind, commit_message="Upload with rebase"
        )
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError, ValueError, KeyError, RuntimeError) as error:
        message = str(error).replace(get_token() or "\0", "(the token)")
        raise RebaseError(
            f"push: the hub rejected the {parcel.kind} {repo}: {message}\nCheck that there is a token with write "
            "access (`hf auth login`, or HF_TOKEN), that the name is yours, and that HF_HUB_OFFLINE is unset."
        ) from None
    return str(commit.commit_url)


def describe_parcels(parcels: Sequence[Parcel], repo: str, folder: Path | None, *, public: bool) -> str:
    """Each parcel with its destination, its files and their sizes in bytes."""
    lines = []
    for parcel in parcels:
        hub = f"the hub's {parcel.kind} {repo}, {'public' if public else 'private'}"
        lines.append(f"To {folder / parcel.folder.name if folder else hub}: {sum(parcel.files.values()):,} bytes")
        lines += [f"  {size:>13,}  {name}" for name, size in parcel.files.items()]
    return "\n".join(lines)


def _read_origin(adapter: Adapter) -> list[Line]:
    sources = read_origin(adapter.folder)
    if sources is None:
        raise RebaseError(
            f"push: the adapter in {adapter.folder} does not say what it was trained on ({ORIGIN} is missing or "
            "damaged), so its licenses cannot be checked. Run the train pipeline again."
        )
    return sources


def _pack_dataset(
    folder: Path, repo: str, task: Task, examples: pd.DataFrame, sources: Sequence[Line], checked: Sequence[str]
) -> Parcel:
    from huggingface_hub import DatasetCard, DatasetCardData

    (folder / "data").mkdir(parents=True)
    examples[[name for name in _PUBLISHED if name in examples]].to_parquet(folder / "data/train.parquet", index=False)
    by_people = sum(source["examples"] for source in sources if source["teacher"] == PEOPLE)
    by_model = _written_by_model(examples, by_people)
    data = DatasetCardData(
        license=_hub_license(sources),
        pretty_name=f"Training examples for {task.name}",
        size_categories=[next((name for limit, name in _SIZES.items() if len(examples) < limit), "n>1M")],
        source_datasets=_hub_datasets(sources),
        annotations_creators=[*["found"] * bool(by_people), *["machine-generated"] * bool(by_model)],
        tags=["rebase", *["synthetic"] * bool(by_model), task.name],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.parquet"}]}],
    )
    without_row = "" if all(source["dataset"] for source in sources) else " Those without a `dataset` have no such row."
    teachers = _codes(source["teacher"] for source in sources if source["teacher"] != PEOPLE)
    body = _DATASET_CARD.format(
        task=task.name,
        instruction=_line(task.instruction),
        count=len(examples),
        teachers=" and ".join([*[teachers] * bool(teachers), *["people"] * bool(by_people or not teachers)]),
        without_row=without_row,
        repo=repo,
        sources="\n".join(_source_rows(sources, checked)),
        prompts=_codes(source["prompt_hash"] for source in sources) or "unknown",
        writers=_describe_writers(by_people, by_model),
    )
    DatasetCard(f"---\n{data.to_yaml()}\n---\n{body}").save(folder / CARD)
    return Parcel("dataset", folder)


def _written_by_model(examples: pd.DataFrame, by_people: int) -> str:
    """What a model wrote, as the subject of a sentence; empty if nothing. ``by_people`` counts people's labels."""
    if not by_people:
        return "The examples"
    rationales = "rationale" in examples and examples["rationale"].notna().any()
    parts = [*["the other examples"] * (by_people < len(examples)), *["all rationales"] * bool(rationales)]
    return " and ".join(parts).capitalize()


def _describe_writers(by_people: int, by_model: str) -> str:
    """Who wrote the examples, and what can be wrong with them."""
    of_people = (
        f"{by_people:,} examples have the labels of their datasets, which people gave (`teacher` is `people`): they "
        "contain the mistakes of these people, and of the mapping that chose their columns (`mapping_id`)."
    )
    of_model = (
        f"{by_model} were written by a model and checked by programs, not by people: they contain the teacher's "
        "mistakes."
    )
    return " ".join([*[of_people] * bool(by_people), *[of_model] * bool(by_model)])


def _pack_adapter(
    folder: Path, repo: str, task: Task, adapter: Adapter, sources: Sequence[Line], scores: Line | None
) -> Parcel:
    from huggingface_hub import ModelCard

    shutil.copytree(adapter.folder, folder, ignore=shutil.ignore_patterns(CHECKSUMS))
    file = folder / CARD
    default = f"---\nlibrary_name: peft\n---\n# An expert for the task `{task.name}`\n"
    card = ModelCard(file.read_text(encoding="utf-8") if file.exists() else default, ignore_metadata_errors=True)
    data: Any = card.data
    if not _HUB_ID.fullmatch(adapter.base_model):  # A package or a folder: the hub knows no such model.
        data.base_model = None
    data.license = _hub_license(sources)
    data.datasets = _hub_datasets(sources)
    if scores:
        data.model_name = repo.partition("/")[2]
        data.eval_results = list(_eval_results(task, scores))
        rows = [
            f"| {system} | {metric} | {cell['value']:.1f} | {cell['low']:.1f} to {cell['high']:.1f} |"
            for system, metrics in scores["systems"].items()
            for metric, cell in metrics.items()
        ]
        evaluation = _EVALUATION.format(
            n=scores["n"], source=_line(task.evaluation.source), confidence=scores["confidence"], rows="\n".join(rows)
        )
        card.text = f"{card.text.rstrip()}\n\n{evaluation}"
    card.save(file)
    return Parcel("model", folder)


def _eval_results(task: Task, scores: Line) -> Iterator[Any]:
    """The expert's scores in the hub's ``model-index`` form."""
    from huggingface_hub import EvalResult

    source = task.evaluation
    is_on_hub = bool(_HUB_ID.fullmatch(source.source)) and not source.source.endswith((".jsonl", ".csv", ".parquet"))
    place: Line = {}
    if is_on_hub:
        place = {"dataset_config": source.config, "dataset_split": source.split, "dataset_revision": source.revision}
    for metric, cell in scores["systems"]["expert"].items():
        yield EvalResult(
            task_type="text-generation",
            dataset_type=source.source if is_on_hub else task.name,
            dataset_name=task.name,
            **place,
            metric_type=metric,
            metric_name=f"{metric} (percent)",
            metric_value=cell["value"],
            metric_args={"n": scores["n"], "confidence": scores["confidence"], "interval": [cell["low"], cell["high"]]},
        )


def _source_rows(sources: Sequence[Line], checked: Sequence[str]) -> Iterator[str]:
    """The lines of the card's table of sources."""
    nothing = {"dataset": "(none: written without a source)", "revision": "", "license": ""}
    table = pd.DataFrame(sources, columns=[*nothing, "examples"]).fillna(nothing)
    for (dataset, revision, license), count in table.groupby([*nothing], sort=False)["examples"].sum().items():
        conditions = conditions_of(license)
        if find_pattern(dataset, checked) and not license_allowed(license or "unknown", _POLICY):
            conditions = "checked by the publisher"
        yield f"| {' | '.join(map(_line, (dataset, revision, license, conditions)))} | {count} |"


def _hub_license(sources: Sequence[Line]) -> str | list[str]:
    """The sources' licenses if the hub knows them all, else ``other``."""
    licenses = sorted({(source["license"] or "unknown").casefold() for source in sources if source["dataset"]})
    if not licenses or not _HUB_LICENSES.issuperset(licenses):
        return "other"
    return licenses[0] if len(licenses) == 1 else licenses


def _hub_datasets(sources: Sequence[Line]) -> list[str] | None:
    return sorted({source["dataset"] for source in sources if _HUB_ID.fullmatch(source["dataset"] or "")}) or None


def _codes(names: Iterable[str | None]) -> str:
    return ", ".join(f"`{_line(name)}`" for name in sorted({str(name) for name in names if name}))


def _line(text: str) -> str:
    """A text on one line of Markdown that cannot end a table cell or start a tag."""
    return re.sub(r"\s+", " ", re.sub(r"([|<>`])", r"\\\1", text)).strip()
