"""Writes the tables of docs/reference from the code and the configuration: ``python -m docs.reference``.

A table is between ``<!-- NAME -->`` and ``<!-- end -->``. The tables are generated and committed, and not autodoc's,
because they can be read without a build and show Kedro's nodes, click's commands, pydantic's bounds and the comments of
YAML files together. ``tests/test_docs.py`` checks that they are current.
"""

import inspect
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import yaml
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from pydantic import BaseModel

import rebase.parameters
from rebase import cli
from rebase.datasets.teacher import TeacherSettings
from rebase.records import Task, describe_field, flat_schema

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "conf" / "base"
ENVIRONMENTS = ("api", "gpu", "cluster", "test")


def render(page: str) -> str:
    """Return a page with its current tables."""
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def pipelines_table() -> str:
    """Return a section for each pipeline: what it does, its inputs and outputs, and its nodes."""
    sections = []
    for name in sorted(set(pipelines) - {"__default__"}):
        create = import_module(f"rebase.pipelines.{name}").create_pipeline
        nodes = [
            [f"`{node.name}`", (inspect.getdoc(node.func) or "").partition("\n")[0].replace("``", "`")]
            for node in pipelines[name].nodes
        ]
        about = f"{inspect.getdoc(inspect.getmodule(create))}\n\n{inspect.getdoc(create)}".replace("``", "`")
        sections.append(f"## {name}\n\n{about}\n\n{table(['node', 'what it does'], nodes)}")
    return "\n\n".join(sections)


def commands_table() -> str:
    """Return a section for each command."""
    return "\n\n".join(_command(name, command) for name, command in cli.cli.commands.items())


def _command(name: str, command: click.Command) -> str:
    if isinstance(command, click.Group):
        return "\n\n".join(_command(f"{name} {inner}", one) for inner, one in command.commands.items())
    context = click.Context(command, info_name=f"kedro {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    options = [
        [f"`{match[0]}`", match[1]]
        for parameter in command.params
        if isinstance(parameter, click.Option) and (match := parameter.get_help_record(context))
    ]
    about = inspect.cleandoc(command.help or "")
    return f"## {name}\n\n```\nkedro {name} {usage}\n```\n\n{about}\n\n{table(['option', 'what it does'], options)}"


def parameters_table() -> str:
    """Return a section for each parameter group."""
    sections = []
    for group, settings in read(BASE, "parameters_*.yml").items():
        model = getattr(rebase.parameters, f"{group.title()}Parameters")
        sections += [f"## {group}", docstrings(model), settings_table(group, settings, model, "parameters*.yml")]
    return "\n\n".join(sections)


def globals_table() -> str:
    """Return a table of the single globals, and a section for each group of globals."""
    settings = read(BASE, "globals.yml")
    groups = {name: value for name, value in settings.items() if isinstance(value, dict)}
    single = {name: value for name, value in settings.items() if name not in groups}
    sections = [settings_table("", single, None, "globals.yml")]
    for group, values in groups.items():
        model = TeacherSettings if group == "teacher" else None
        about = docstrings(model) if model else comments("globals.yml")[group]
        sections += [f"## {group}", about, settings_table(group, values, model, "globals.yml")]
    return "\n\n".join(sections)


def tasks_table() -> str:
    """Return the fields of a task file, and the repository's task files."""
    rows = []
    for file in sorted((ROOT / "data" / "01_raw" / "tasks").glob("*.yml")):
        task = Task.parse(yaml.safe_load(file.read_text(encoding="utf-8")), str(file))
        cot = "yes" if task.cot else ""
        rows.append([f"`{task.name}`", task.answer.type, ", ".join(task.metrics), cot, code(task.evaluation.source)])
    tasks = table(["task", "answer", "metrics", "chain of thought", "evaluation items"], rows)
    return "\n\n".join([docstrings(Task), settings_table("", {}, Task, "tasks.yml"), "## Tasks", tasks])


def docstrings(model: type[BaseModel]) -> str:
    """Return the docstring of a model, and those of the models in it."""
    inner = model.model_json_schema().get("$defs", {}).values()
    parts = [inspect.getdoc(model) or "", *(f"`{schema['title']}`: {schema['description']}" for schema in inner)]
    return "\n\n".join(parts)


def settings_table(group: str, settings: Any, model: type[BaseModel] | None, files: str) -> str:
    """Return a group's settings: types and bounds, defaults, comments, and the values of other environments."""
    fields, values = flat_schema(model.model_json_schema()) if model else {}, flatten(settings)
    parents = {name.rpartition(".")[0] for name in values}
    prefix = f"{group}." if group else ""
    environments = {name: flatten(read(ROOT / "conf" / name, files)) for name in ENVIRONMENTS}
    paths = [path for environment in environments.values() for path in environment if path.startswith(prefix)]
    elsewhere = [path.removeprefix(prefix) for path in paths if group or "." not in path]
    rows = []
    for name in dict.fromkeys([*fields, *values, *elsewhere]):
        field, path = fields.get(name, {}), prefix + name
        default = values.get(name, field.get("default", ""))
        shown = code(default) or ("required" if field and name not in parents else "")
        changed = [
            f"`{environment}` {code(others[path])}"
            for environment, others in environments.items()
            if others.get(path, default) != default
        ]
        rows.append([f"`{name}`", describe_field(field), shown, comments(files).get(path, ""), ", ".join(changed)])
    return table(["setting", "type", "default", "what", "elsewhere"], rows)


@cache
def comments(files: str) -> dict[str, str]:
    """Return the comment beside each setting of conf/base, by dotted names."""
    setting = re.compile(r"^( *)([\w-]+):[^#\n]*(?:# (.*))?$", re.MULTILINE)
    comment_of: dict[str, str] = {}
    for file in BASE.glob(files):
        path: list[str] = []
        for indent, key, comment in setting.findall(file.read_text(encoding="utf-8")):
            path[len(indent) // 2 :] = [key]
            comment_of[".".join(path)] = comment
    return comment_of


def catalog_table() -> str:
    """Return the entries of the catalog, file by file, with the nodes that write and read them."""
    nodes = [node for pipeline in pipelines.values() for node in pipeline.nodes]
    sections = []
    for file in sorted(BASE.glob("catalog_*.yml")):
        rows = []
        for name, entry in read(BASE, file.name).items():
            if name.startswith("_"):
                continue
            # "{set}.adapter" stands for one entry in each namespace.
            matches = re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(name))).fullmatch
            writers = dict.fromkeys(f"`{node.short_name}`" for node in nodes if any(map(matches, node.outputs)))
            readers = dict.fromkeys(f"`{node.short_name}`" for node in nodes if any(map(matches, node.inputs)))
            path = entry.get("filepath", entry.get("folder", "")).replace("/", "/<wbr>")
            kind = f"`{entry['type']}`{', versioned' if entry.get('versioned') else ''}"
            kind += f"<br><code>{path}</code>" if path else ""
            rows.append([f"`{name}`", kind, ", ".join(writers), ", ".join(readers)])
        head = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        columns = table(["entry", "type and path", "written by", "read by"], rows)
        sections.append(f"## {file.stem.removeprefix('catalog_')}\n\n{head}\n\n{columns}")
    return "\n\n".join(sections)


def read(folder: Path, files: str) -> dict[str, Any]:
    """Read the YAML files of a folder into one mapping."""
    return {
        name: value
        for file in sorted(folder.glob(files))
        for name, value in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).items()
    }


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted names."""
    if not isinstance(settings, Mapping) or (prefix and not settings):
        return {prefix.rstrip("."): settings}
    return {name: inner for key, value in settings.items() for name, inner in flatten(value, f"{prefix}{key}.").items()}


def code(value: Any) -> str:
    """Return a value as YAML, in backticks."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return "" if value == "" else f"`{text.strip().removesuffix('...').strip()}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table without its empty columns."""
    columns = [number for number in range(len(head)) if any(row[number] for row in rows)]
    lines = [[head[number] for number in columns], ["---"] * len(columns)]
    lines += [[" ".join(row[number].split()).replace("|", "\\|") for number in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = {
    "parameters": parameters_table,
    "globals": globals_table,
    "catalog": catalog_table,
    "tasks": tasks_table,
    "pipelines": pipelines_table,
    "commands": commands_table,
}

if __name__ == "__main__":
    bootstrap_project(ROOT)
    for file in (ROOT / "docs" / "reference").glob("*.md"):
        file.write_text(render(file.read_text(encoding="utf-8")), encoding="utf-8")
