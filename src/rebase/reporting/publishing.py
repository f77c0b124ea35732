"""Handing on what a run made: the training examples and the adapter, with cards that say what they are made of.

``kedro push`` uses it. **Licenses** (the table ``PERMITTED``). Examples are adaptations of source rows, so a source's
license must permit adaptations to be passed on. Permitted are public-domain dedications, Creative Commons licenses
without ND, the open-data licenses of Open Data Commons and the Linux Foundation, free software licenses and OpenRAIL;
their conditions (name the source, same license, no commerce, pass the restrictions on) are said when pushing and on
the card, and are the publisher's to keep. Rejected are ND licenses, sources without a known license (``unknown``,
``other``), and all that the table does not know: nobody has said that they permit it. The mend is to train without
them (``train.exclude``), or to look the license up and say so (``checked``). Adapters are held to the same rule, since
it is disputed whether a model is an adaptation of its training data. This is a net for mistakes and no legal advice.
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
from rebase.files import replacing_folder
from rebase.generation.filters import find_pattern, license_allowed
from rebase.parameters import LicensePolicy
from rebase.records import Adapter, Task
from rebase.reporting.console import visible
from rebase.student.adapters import CARD, ORIGIN, read_origin, sources_of

Kind = Literal["dataset", "model"]
Line = dict[str, Any]

_BY, _SAME, _RAIL = "name the source", "keep the same license", "pass on its restrictions of use"
_NC = "no commercial use"
#: Licenses that let adaptations be handed on, and the conditions; ``*`` and ``?`` are wildcards.
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
_POLICY = LicensePolicy(allow=tuple(PERMITTED), deny=("*-nd", "*-nd-*"), unknown="deny")
#: Of those, what the hub knows by that name; a card with another one is rejected there.
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
#: What a published example has: what it says, and where it is from. What it cost is nobody's business.
_PUBLISHED = [
    "example_id", "prompt", "completion", "query", "answer", "rationale", "agreement", "fields", "dataset", "config",
    "revision", "row_index", "license", "row_id", "rank", "score", "teacher", "prompt_hash",
]  # fmt: skip
_SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M"}
_NO_SOURCE = "(none: written without a source)"
_LIMITS = (
    "The examples were written by a model and checked by programs, not by people: what the teacher got wrong is in "
    "them. They are in the form of one task, in the languages of their sources, and share the sources' biases. Rows "
    "that repeat the task's evaluation set were left out as far as a search for shared runs of words finds them. The "
    "terms of the teacher's provider can restrict what its outputs may be used for."
)


@dataclass(frozen=True)
class Parcel:
    """A folder as it is to be handed on, card included."""

    kind: Kind
    folder: Path

    @property
    def name(self) -> str:
        """What it is called among us: the hub calls an adapter a model."""
        return "dataset" if self.kind == "dataset" else "adapter"

    @property
    def files(self) -> dict[str, int]:
        """Its files with their sizes in bytes, by path."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}


def check_licenses(sources: Sequence[Line], checked: Iterable[str] = ()) -> list[str]:
    """The conditions to keep, one a license, as sentences.

    ``sources`` have ``dataset``, ``license`` and ``examples``; those that ``checked`` names pass. Raises RebaseError
    that names each source whose license does not permit it.
    """
    checked = tuple(checked)
    bad = [
        source
        for source in sources
        if source["dataset"] is not None
        and not license_allowed(source["license"] or "unknown", _POLICY)
        and not find_pattern(source["dataset"], checked)
    ]
    if bad:
        names = sorted({source["dataset"] for source in bad})
        listed = "".join(f"\n  {line['dataset']} ({line['license'] or 'unknown'}): {line['examples']}" for line in bad)
        raise RebaseError(
            "push: by their licenses it is forbidden, or not known to be allowed, to hand on what is made of these "
            f"datasets (number of examples):{visible(listed)}\nTrain without them (train.exclude.datasets, as `kedro "
            f"trace {visible(names[0])}` says), or look their licenses up and say so: --license-checked NAME for each."
        )
    licenses = sorted({source["license"] for source in sources if source["license"]})
    return [f"{visible(license)}: {said}" for license in licenses if (said := conditions_of(license))]


def conditions_of(license: str) -> str:
    """The conditions of a license, or of several together; empty where there are none, or none are known."""
    parts = re.split(r"\s+(?:and|or)\s+|[;,()]", license.casefold())
    names = [re.sub(r"[\s_]+", "-", part.strip()) for part in parts if part.strip()]
    said = (PERMITTED[pattern] for name in names if (pattern := find_pattern(name, PERMITTED)))
    return ", ".join(dict.fromkeys(condition for one in said if one for condition in one.split(", ")))


@contextmanager
def packed(
    repo: str,
    task: Task,
    examples: pd.DataFrame | None,
    adapter: Adapter | None,
    scores: Line | None,
    checked: Sequence[str] = (),
) -> Iterator[tuple[list[Parcel], list[str]]]:
    """Pack the examples, the adapter or both in a temporary folder; with the conditions of their licenses.

    ``examples`` are those of the training set with ``prompt`` and ``completion``; ``scores`` are the adapter's, None
    where it has none. Raises RebaseError before anything is packed where a license forbids it.
    """
    given = [] if examples is None else sources_of(examples)
    learned = [] if adapter is None else _read_origin(adapter)
    conditions = check_licenses([*given, *learned], checked)
    with TemporaryDirectory(prefix="rebase-push-") as temporary:
        parcels = []
        if examples is not None:
            parcels.append(_pack_dataset(Path(temporary) / "dataset", repo, task, examples, given, checked))
        if adapter is not None:
            parcels.append(_pack_adapter(Path(temporary) / "adapter", repo, task, adapter, learned, scores))
        yield parcels, list(dict.fromkeys(conditions))


def published_examples(reasoned_examples: pd.DataFrame, training_set: pd.DataFrame) -> pd.DataFrame:
    """The examples of the training set with all that is known of them, in its order.

    Raises RebaseError where of one nothing is known.
    """
    origins = reasoned_examples.drop_duplicates("example_id").drop(columns=["prompt", "completion"], errors="ignore")
    own = training_set[["example_id", "prompt", "completion"]]
    if unknown := sum(~own["example_id"].isin(origins["example_id"])):
        raise RebaseError(
            f"push: {unknown} examples of the training set are not among the examples of now, so it is not known where "
            "they are from. Run the train pipeline again."
        )
    return own.merge(origins, on="example_id", how="left", validate="many_to_one")


def scores_of(adapter: Adapter, scores: Line | None, evaluate_summary: Line | None) -> Line | None:
    """The scores, if they are this adapter's: the evaluation says which one it was given."""
    evaluated = (evaluate_summary or {}).get("adapter")
    return scores if scores and evaluated == adapter.folder.parent.name else None


def put(parcel: Parcel, folder: Path) -> str:
    """Copy a parcel into a folder that is not there yet; gives its name. Raises RebaseError where it is there."""
    target = folder / parcel.name
    if target.exists():
        raise RebaseError(f"push: {target} is there already: name another folder, or take it away first.")
    with replacing_folder(target) as part:
        shutil.copytree(parcel.folder, part, dirs_exist_ok=True)
    return str(target)


def upload(parcel: Parcel, repo: str, *, public: bool) -> str:
    """Commit a parcel to the hub, where the repository is made private unless ``public``; gives the commit's address.

    The token is that of ``hf auth login`` or ``HF_TOKEN``. Raises RebaseError where the hub does not take it, and
    where the repository is public already and ``public`` was not said.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo, repo_type=parcel.kind, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo, repo_type=parcel.kind).private:
            raise RebaseError(f"push: the {parcel.kind} {repo} is there already and public: nothing was uploaded. "
                              "Say --public if all the world may read it, or name another one.")  # fmt: skip
        commit = api.upload_folder(
            repo_id=repo, folder_path=parcel.folder, repo_type=parcel.kind, commit_message="Upload with rebase"
        )
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError, ValueError, KeyError, RuntimeError) as error:
        said = str(error).replace(get_token() or "\0", "(the token)")
        raise RebaseError(
            f"push: the hub did not take the {parcel.kind} {repo}: {said}\nIs there a token that may write "
            "(`hf auth login`, or HF_TOKEN), is the name yours, and is HF_HUB_OFFLINE unset?"
        ) from None
    return str(commit.commit_url)


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
    from huggingface_hub import DatasetCardData

    (folder / "data").mkdir(parents=True)
    columns = [name for name in _PUBLISHED if name in examples]
    examples[columns].to_parquet(folder / "data" / "train.parquet", index=False)
    size = next((name for most, name in _SIZES.items() if len(examples) < most), "n>1M")
    data = DatasetCardData(
        license=_hub_license(sources),
        pretty_name=f"Training examples for {task.name}",
        size_categories=[size],
        source_datasets=sorted({s["dataset"] for s in sources if _HUB_ID.fullmatch(s["dataset"] or "")}) or None,
        annotations_creators=["machine-generated"],
        tags=["rebase", "synthetic", task.name],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.parquet"}]}],
    )
    teachers = sorted({str(source["teacher"]) for source in sources if source["teacher"]})
    without_row = "" if all(source["dataset"] for source in sources) else " Those without a `dataset` have no such row."
    body = [
        f"# Training examples for the task `{task.name}`",
        "",
        f"> {_line(task.instruction)}",
        "",
        f"{len(examples):,} examples, made with rebase by {', '.join(map(_code, teachers)) or 'people'}. "
        "`prompt` and `completion` are what a student is trained on; `dataset`, `config`, `revision` and `row_index` "
        "lead to the row that an example was made of: one of a public dataset, chosen by its likeness to the task "
        f"(retrieval-based distillation, arXiv 2407.05463).{without_row}",
        "",
        "```python",
        f'datasets.load_dataset("{repo}", split="train")',
        "```",
        "",
        *_sources_in_words(sources, checked),
        "",
        "## Known limits",
        _LIMITS,
        "",
    ]
    return _write_card(Parcel("dataset", folder), data.to_yaml(), "\n".join(body))


def _pack_adapter(
    folder: Path, repo: str, task: Task, adapter: Adapter, sources: Sequence[Line], scores: Line | None
) -> Parcel:
    from huggingface_hub import ModelCard

    shutil.copytree(adapter.folder, folder)
    try:
        card = ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (OSError, ValueError):
        card = ModelCard(f"---\nlibrary_name: peft\n---\n# An expert for the task `{task.name}`\n")
    data: Any = card.data
    if not _HUB_ID.fullmatch(adapter.base_model):  # A package or a folder: the hub knows no such model.
        data.base_model = None
    data.license = _hub_license(sources)
    data.datasets = sorted({s["dataset"] for s in sources if _HUB_ID.fullmatch(s["dataset"] or "")}) or None
    body = card.text
    if scores:
        data.model_name = repo.partition("/")[2]
        data.eval_results = list(_eval_results(task, scores))
        body = f"{body.rstrip()}\n\n{_scores_in_words(task, scores)}\n"
    return _write_card(Parcel("model", folder), data.to_yaml(), body)


def _eval_results(task: Task, scores: Line) -> Iterator[Any]:
    """The expert's scores in the hub's ``model-index`` form."""
    from huggingface_hub import EvalResult

    source = task.evaluation
    is_on_hub = bool(_HUB_ID.fullmatch(source.source)) and not source.source.endswith((".jsonl", ".csv", ".parquet"))
    for metric, found in scores["systems"]["expert"].items():
        yield EvalResult(
            task_type="text-generation",
            dataset_type=source.source if is_on_hub else task.name,
            dataset_name=task.name,
            dataset_config=source.config if is_on_hub else None,
            dataset_split=source.split if is_on_hub else None,
            dataset_revision=source.revision if is_on_hub else None,
            metric_type=metric,
            metric_name=f"{metric} (percent)",
            metric_value=found["value"],
            metric_args={
                "n": scores["n"],
                "confidence": scores["confidence"],
                "interval": [found["low"], found["high"]],
            },
        )


def _scores_in_words(task: Task, scores: Line) -> str:
    rows = [
        f"| {system} | {metric} | {found['value']:.1f} | {found['low']:.1f} to {found['high']:.1f} |"
        for system, metrics in scores["systems"].items()
        for metric, found in metrics.items()
    ]
    return "\n".join(
        [
            "## Evaluation",
            f"{scores['n']} items of the task's evaluation set (`{_line(task.evaluation.source)}`), in percent, with "
            f"bootstrap intervals of {scores['confidence']:.0%}. `student` is the base model without the adapter.",
            "",
            "| system | metric | value | interval |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _sources_in_words(sources: Sequence[Line], checked: Sequence[str]) -> list[str]:
    lines = [
        "## Sources",
        "| dataset | revision | license | conditions | examples |",
        "|---|---|---|---|---|",
    ]
    totals: dict[tuple[str, str, str], int] = {}
    for source in sources:
        key = (source["dataset"] or _NO_SOURCE, source["revision"] or "", source["license"] or "")
        totals[key] = totals.get(key, 0) + source["examples"]
    for (dataset, revision, license), count in totals.items():
        said = conditions_of(license)
        if find_pattern(dataset, checked) and not license_allowed(license or "unknown", _POLICY):
            said = "checked by the publisher"
        lines.append(f"| {' | '.join(map(_line, (dataset, revision, license, said)))} | {count} |")
    hashes = sorted({str(source["prompt_hash"]) for source in sources if source["prompt_hash"]})
    return [
        *lines,
        "",
        "What is made of a source stands under its conditions, example by example (column `license`).",
        "",
        f"Prompts (the first letters of their SHA-256): {', '.join(map(_code, hashes)) or 'not known'}.",
    ]


def _hub_license(sources: Sequence[Line]) -> str | list[str]:
    """What stands under ``license``: the sources' licenses where the hub knows them all, else ``other``."""
    licenses = sorted({(source["license"] or "unknown").casefold() for source in sources if source["dataset"]})
    if not licenses or not _HUB_LICENSES.issuperset(licenses):
        return "other"
    return licenses[0] if len(licenses) == 1 else licenses


def _write_card(parcel: Parcel, front: str, body: str) -> Parcel:
    (parcel.folder / CARD).write_text(f"---\n{front.strip()}\n---\n{body}", encoding="utf-8")
    return parcel


def _code(text: str) -> str:
    return f"`{_line(text)}`"


def _line(text: str) -> str:
    """A text on one line of Markdown, in a cell of a table or elsewhere: it cannot end the cell or begin a tag."""
    return re.sub(r"\s+", " ", re.sub(r"([|<>`])", r"\\\1", text)).strip()


def describe_parcels(parcels: Sequence[Parcel], repo: str, folder: Path | None, *, public: bool) -> str:
    """What goes where, one line a file, with sizes in bytes."""
    lines = []
    for parcel in parcels:
        hub = f"the hub's {parcel.kind} {repo}, {'public' if public else 'private'}"
        lines.append(f"To {folder / parcel.name if folder else hub}: {sum(parcel.files.values()):,} bytes")
        lines += [f"  {size:>13,}  {name}" for name, size in parcel.files.items()]
    return "\n".join(lines)
