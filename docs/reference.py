"""A hook of MkDocs that makes the reference from the code and the configuration, each time the site is built.

``pages`` says what every page holds: types, bounds and docstrings of the parameter groups, what conf/base and the
environments set them to and the comments that stand there; the catalog, the pipelines, the commands, the task files.
"""

import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import click
import yaml
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ("api", "gpu", "cluster", "test")
BOUNDS = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
#: Pages of the repository that are pages of the site too, and where the site has them.
SHARED = {
    "conf/README.md": "reference/configuration.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/ (an event of MkDocs)."""
    for uri, content in pages().items():
        files.append(File.generated(config, uri, content=content))
    return files


def pages() -> dict[str, str]:
    """Every generated page: its place in the site, and its Markdown."""
    bootstrap_project(ROOT)
    made = {
        f"reference/{name}.md": write()
        for name, write in {
            "globals": global_settings,
            "parameters": parameters,
            "catalog": catalog,
            "pipelines": flows,
            "commands": commands,
            "tasks": task_files,
        }.items()
    }
    return made | {there: shared_page(here, there) for here, there in SHARED.items() if here != "README.md"}


def shared_page(here: str, there: str) -> str:
    """A page of the repository, its links turned to where the site has what they name."""

    def turn(link: re.Match[str]) -> str:
        target, _, anchor = link.group(1).partition("#")
        path = (ROOT / here).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        place = SHARED.get(path, path.removeprefix("docs/"))
        up = "../" * there.count("/")
        return f"]({up}{place}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", turn, (ROOT / here).read_text(encoding="utf-8"))


def parameters() -> str:
    """The parameter groups, one a stage."""
    text = [
        "# Parameters",
        "The settings of each stage, as `conf/base/parameters_*.yml` has them. Any of them can be given for one run: "
        "`--params=retrieve.top_n=1000`. They are checked against their types before any work. The last column says "
        "which environments (`--env`) set another value.",
    ]
    types = parameter_types()
    for name, settings in base_settings("parameters_*.yml").items():
        text += [f"## {name}", explain(types.get(name)), settings_table(name, settings, types.get(name), "parameters*")]
    return "\n\n".join(text)


def global_settings() -> str:
    """What globals.yml says."""
    from rebase.datasets.teacher import TeacherSettings

    types: dict[str, type[BaseModel]] = {"teacher": TeacherSettings}
    groups = base_settings("globals.yml")
    single = {name: value for name, value in groups.items() if not isinstance(value, dict)}
    text = [
        "# Globals",
        "What `conf/base/globals.yml` says: which task, datastore and models, and where everything lies. An "
        "environment sets others in its own `globals.yml`. Of these, `--params` reaches what the "
        "[catalog](catalog.md) declares with `runtime_params`, and `seed`.",
        settings_table("", single, None, "globals"),
    ]
    for name in (name for name in groups if name not in single):
        shown = settings_table(name, groups[name], types.get(name), "globals")
        text += [f"## {name}", explain(types.get(name)) or comments("globals").get(name, ""), shown]
    return "\n\n".join(text)


def settings_table(group: str, settings: Any, model: type[BaseModel] | None, files: str) -> str:
    """A table of a group's settings: name, type, default, what the comment says, and other environments' values."""
    given, fields = flatten(settings), dict(model_fields(model)) if model else {}
    only_elsewhere = [
        path.removeprefix(f"{group}.")
        for environment in ENVIRONMENTS
        for path in environment_settings(environment, files)
        if path.rpartition(".")[0] == group
    ]
    lines = []
    groups = {name.rpartition(".")[0] for name in given}
    for name in dict.fromkeys([*(name for name in fields if name not in groups), *given, *only_elsewhere]):
        path = ".".join(filter(None, (group, name)))
        field = fields.get(name)
        default = given.get(name, field.default if field else PydanticUndefined)
        elsewhere = [
            f"`{environment}` {code(values[path])}"
            for environment in ENVIRONMENTS
            if path in (values := environment_settings(environment, files)) and values[path] != default
        ]
        lines.append([f"`{name}`", describe(field), code(default), comments(files).get(path, ""), ", ".join(elsewhere)])
    return table(["setting", "type", "default", "what", "elsewhere"], lines)


def catalog() -> str:
    """The entries of the catalog, by file."""
    text = [
        "# Catalog",
        "Everything that flows between nodes, by the file of `conf/base` that declares it. `kedro viz run` shows the "
        "same. `${_task}` and `${_datastore}` stand for the names of the task and the datastore, `${globals:data}` for "
        "`data` of the [globals](globals.md), and `${_folder}` for where the datastore lies: the same folder, unless "
        "`datastores` is set.",
    ]
    nodes = pipelines["__default__"].nodes + [node for pipeline in pipelines.values() for node in pipeline.nodes]
    for file in sorted((ROOT / "conf" / "base").glob("catalog_*.yml")):
        lines = []
        for name, entry in read(file).items():
            if name.startswith("_"):
                continue
            layer = entry.get("metadata", {}).get("kedro-viz", {}).get("layer", "a handle")
            kind = entry["type"] + (", versioned" if entry.get("versioned") else "")
            place = entry.get("filepath", entry.get("folder", "")).replace("/", "/<wbr>")
            # "{set}.adapter" stands for an entry a namespace.
            same = re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(name))).fullmatch
            made = names(node.name for node in nodes if any(map(same, node.outputs)))
            used = names(node.name for node in nodes if any(map(same, node.inputs)))
            where = f"`{kind}`" + (f"<br><code>{place}</code>" if place else "")
            lines.append([f"`{name}`", layer, where, made, used])
        text += [
            f"## {file.stem.removeprefix('catalog_')}",
            head_comment(file),
            table(["entry", "layer", "type and place", "made by", "read by"], lines),
        ]
    return "\n\n".join(text)


def flows() -> str:
    """The pipelines and their nodes."""
    text = [
        "# Pipelines",
        "What `kedro run --pipelines=NAME` can name. `kedro run` without a name runs `rebase`, the whole method.",
    ]
    for name in sorted(set(pipelines) - {"__default__"}):
        module = importlib.import_module(f"rebase.pipelines.{name}.pipeline")
        modules = {node: node.func.__module__ for node in pipelines[name].nodes}
        stages = {
            node: module.removeprefix("rebase.pipelines.").partition(".nodes")[0] for node, module in modules.items()
        }
        # A stage that is part of this pipeline, and a pipeline of its own, is explained there.
        others = [stage for stage in dict.fromkeys(stages.values()) if stage in pipelines and stage != name]
        lines = [
            [f"`{node.name}`", first_line(node.func), names(node.inputs), names(node.outputs)]
            for node, stage in stages.items()
            if stage == name or not others
        ]
        text += [
            f"## {name}",
            markdown(inspect.getdoc(module)),
            markdown(inspect.getdoc(module.create_pipeline)),
            "It has the nodes of " + ", ".join(f"[{stage}](#{stage})" for stage in others) + "." if others else "",
            table(["node", "what", "reads", "writes"], lines),
        ]
    return "\n\n".join(text)


def commands() -> str:
    """The project's own commands, and the options of `kedro run`."""
    from rebase.cli import cli, run

    text = ["# Commands", "Run them in the project's folder, with its environment active."]
    for words, command in [*walk(cli, ()), (("run",), run)]:
        context = click.Context(command, info_name="kedro " + " ".join(words))
        usage = " ".join(command.collect_usage_pieces(context))
        options = [
            [f"`{record[0]}`", markdown(record[1])]
            for parameter in command.get_params(context)
            if (record := parameter.get_help_record(context)) and "--help" not in record[0]
        ]
        text += [
            f"## kedro {' '.join(words)}",
            markdown(inspect.cleandoc(command.help or "")),
            f"```bash\nkedro {' '.join(words)} {usage}\n```",
            table(["option", "what"], options),
        ]
    return "\n\n".join(text)


def task_files() -> str:
    """What a task file may say, and which tasks are there."""
    from rebase.records import AnswerSpec, EvaluationSpec, Task

    text = [
        "# Task files",
        "A task is one file, `data/01_raw/tasks/NAME.yml`. [The tutorial](../tutorial/index.md) writes one.",
    ]
    for title, model in (("A task", Task), ("answer", AnswerSpec), ("evaluation", EvaluationSpec)):
        lines = [
            [f"`{name}`", describe(field), "required" if field.is_required() else code(field.default)]
            for name, field in model.model_fields.items()
        ]
        text += [f"## {title}", explain(model), table(["field", "type", "default"], lines)]
    lines = []
    for file in sorted((ROOT / "data" / "01_raw" / "tasks").glob("*.yml")):
        task = Task.parse(read(file), str(file))
        cot = "yes" if task.cot else ""
        lines.append([f"`{task.name}`", task.answer.type, ", ".join(task.metrics), cot, code(task.evaluation.source)])
    return "\n\n".join(
        [*text, "## Tasks that are there", table(["task", "answer", "metrics", "cot", "evaluation"], lines)]
    )


def parameter_types() -> dict[str, type[BaseModel]]:
    """The type of each parameter group: what the nodes that take it whole say it is."""
    found = {}
    for node in (node for pipeline in pipelines.values() for node in pipeline.nodes):
        arguments = inspect.signature(node.func, eval_str=True).parameters
        # Inputs are given in the order of the arguments, or by their names.
        given = node._inputs if isinstance(node._inputs, dict) else dict(zip(arguments, node.inputs, strict=False))
        for argument, name in given.items():
            kind = arguments[argument].annotation if argument in arguments else None
            if name.startswith("params:") and inspect.isclass(kind) and issubclass(kind, BaseModel):
                found[name.removeprefix("params:")] = kind
    return found


def model_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """A model's fields, those of models in it by dotted names."""
    for name, field in model.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from model_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def describe(field: FieldInfo | None) -> str:
    """A field's type and bounds in words."""
    if field is None:
        return ""
    bounds = [
        f"{sign} {getattr(bound, kind.__name__.lower()):g}"
        for bound in field.metadata
        for kind, sign in BOUNDS.items()
        if isinstance(bound, kind)
    ]
    return " ".join([type_words(field.annotation), ", ".join(bounds)]).strip()


def type_words(kind: Any) -> str:
    """A type as people say it: ``Literal["a", "b"]`` is `a`, `b`."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        return " or ".join("`null`" if one is NoneType else type_words(one) for one in inside)
    if origin is tuple or origin is list:
        return f"list of {type_words(inside[0])}"
    if origin is dict:
        return f"{type_words(inside[0])} to {type_words(inside[1])}"
    words = {"str": "text", "bool": "`true`, `false`", "int": "integer", "float": "number"}
    return words.get(kind.__name__, f"`{kind.__name__}`")


def explain(model: type[BaseModel] | None) -> str:
    """A model's docstring, and those of groups in it."""
    if model is None:
        return ""
    inner = {name: field.annotation for name, field in model.model_fields.items()}
    groups = [
        f"`{name}`: {markdown(inspect.getdoc(kind))}"
        for name, kind in inner.items()
        if inspect.isclass(kind) and issubclass(kind, BaseModel) and model.__module__ != "rebase.records"
    ]
    return "\n\n".join([markdown(inspect.getdoc(model)), *groups])


@functools.cache
def comments(files: str) -> dict[str, str]:
    """What the comment beside, or right above, each setting of conf/base says."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "conf" / "base").glob(f"{files}.yml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        for path, key, value in nodes_of(yaml.compose("\n".join(lines))):
            first, last = key.start_mark.line, value.end_mark.line
            # A block ends where the next key begins: what stands there is not about it.
            beside = lines[last][value.end_mark.column :].strip() if last == first else ""
            above = list(itertools.takewhile(lambda line: line.strip().startswith("#"), reversed(lines[:first])))
            if beside.startswith("#"):
                found[path] = beside.lstrip("# ")
            elif above and len(above) < first:  # else it is the file's own head
                found[path] = " ".join(line.strip("# ") for line in reversed(above))
    return found


def nodes_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key and value of a YAML mapping, with the dotted name; each knows where in the file it stands."""
    for key, value in node.value:
        yield prefix + key.value, key, value
        if isinstance(value, yaml.MappingNode):
            yield from nodes_of(value, f"{prefix}{key.value}.")


def base_settings(pattern: str) -> dict[str, Any]:
    """The settings of conf/base."""
    return {
        name: value for file in sorted((ROOT / "conf" / "base").glob(pattern)) for name, value in read(file).items()
    }


@functools.cache
def environment_settings(environment: str, files: str) -> dict[str, Any]:
    """What an environment sets, by dotted names."""
    return {
        name: value
        for file in (ROOT / "conf" / environment).glob(f"{files}.yml")
        for name, value in flatten(read(file)).items()
    }


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix.rstrip("."): settings}
    return {name: inner for key, value in settings.items() for name, inner in flatten(value, f"{prefix}{key}.").items()}


def walk(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands of a group and of the groups in it."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from walk(command, (*words, name))
        else:
            yield (*words, name), command


def read(file: Path) -> dict[str, Any]:
    """A YAML file."""
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def head_comment(file: Path) -> str:
    """The comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in lines[: next(n for n, line in enumerate(lines) if line[:1] != "#")])


def markdown(text: str | None) -> str:
    """A docstring as Markdown: code stands between single backticks."""
    return (text or "").replace("``", "`")


def first_line(function: Callable[..., Any]) -> str:
    """What a function does, by the first paragraph of its docstring."""
    return markdown(inspect.getdoc(function)).split("\n\n")[0]


def names(given: Any) -> str:
    """Names as code, in order, each once."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(given))


def code(value: Any) -> str:
    """A value as YAML has it."""
    if value is PydanticUndefined or value == "":
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1000)
    return f"`{text.strip().removesuffix('...').strip()}`"


def table(head: list[str], lines: list[list[str]]) -> str:
    """A table, without the columns in which nothing stands."""
    if not lines:
        return ""
    kept = [n for n in range(len(head)) if any(line[n] for line in lines)]
    rows = [[head[n] for n in kept], ["---"] * len(kept)]
    rows += [[" ".join(line[n].split()).replace("|", "\\|") for n in kept] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
