"""The exported expert: other servers make the prompt of the training, and give its answers."""

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from rebase import Expert
from rebase.datasets import ModelFolderDataset
from rebase.pipelines.export.nodes import merge_adapter
from rebase.records import Adapter, Task
from rebase.serving.export import GGUF, expert_template, export_files, write_gguf
from rebase.student.formatting import render_prompt
from rebase.student.handle import Student
from tests.serving.test_expert import FIELDS
from tests.tiny import CHAT_TEMPLATE

TEMPLATES = {
    "chat": CHAT_TEMPLATE,
    "plain": None,
    "dated": "{{ bos_token }}It is {{ strftime_now('%Y') }}.\n" + CHAT_TEMPLATE.removeprefix("{{ bos_token }}"),
    "thinking": CHAT_TEMPLATE + "{% if enable_thinking is not false %}<think>{% endif %}",
    "trimmed": CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim"),
    "no system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE,
}
INSTRUCTIONS = ["Answer in the owl's words.", 'Fill {{ x }} in, """ quoted """, \\n, tab\t, zero\u200bwidth, 日本 😀.']


def ollama_prompt(modelfile: str, query: str) -> str:
    """The prompt that Ollama makes of a query: its parser drops what cannot be printed, its templates are Go's."""
    [template] = re.findall(r'^TEMPLATE """(.*?)"""$', modelfile, re.DOTALL | re.MULTILINE)
    template = "".join(char for char in template if char.isprintable() or char == "\n")

    def evaluate(action: re.Match[str]) -> str:
        if action[1] == ".Prompt":
            return query
        escapes = re.sub(r"\\U0000([0-9a-f]{4})", r"\\u\1", action[1])
        return str(json.loads(escapes))

    return re.sub(r'\{\{ (\.Prompt|"(?:[^"\\]|\\.)*") \}\}', evaluate, template)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_that_of_the_training(student: Student, reading_task: Task, name: str, instruction: str) -> None:
    task = reading_task.model_copy(update={"instruction": instruction})
    tokenizer = student.tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    for query in ("Where does {{ it }} sleep?", "Zwei\n\nZeilen"):
        trained = render_prompt(tokenizer, task, query)
        modelfile = export_files(tokenizer, task, "owner/model", [2])["Modelfile"]
        assert "<s>" + ollama_prompt(modelfile, query) == trained, "Ollama begins with the tokenizer's <s> itself"
        served = tokenizer.apply_chat_template(
            [{"role": "system", "content": "Be kind."}, {"role": "user", "content": query}],
            chat_template=expert_template(tokenizer, task),
            tokenize=False,
            add_generation_prompt=True,
        )
        assert served == trained


def test_settings_of_the_modelfile(student: Student, reading_task: Task) -> None:
    lines = export_files(student.tokenizer(), reading_task, "owner/model", [2])["Modelfile"].splitlines()
    assert lines[0] == "FROM ."
    assert lines[-5:] == [
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        "PARAMETER num_ctx 8192",
        f"PARAMETER num_predict {reading_task.max_new_tokens}",
        'PARAMETER stop "<|im_end|>"',
    ]


def run_python(text: str, capsys: pytest.CaptureFixture[str], **replaced: str) -> str:
    """Execute the last block of Python of a page, as its reader would, and return what it prints."""
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    for old, new in replaced.items():
        assert f'{old}="…"' in code
        code = code.replace(f'{old}="…"', f"{old}={new!r}")
    capsys.readouterr()
    exec(code, {})
    return capsys.readouterr().out.removesuffix("\n")


def written(expert: Expert, fields: dict[str, str]) -> str:
    """What the expert writes, before an answer is read from it."""
    task = expert.task.model_copy(update={"answer": expert.task.answer.model_copy(update={"type": "text"})})
    return Expert(task, expert.student, expert.adapter, "generation", 1).answer(**fields)


@pytest.fixture(scope="module")
def merged(student: Student, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.datasets.model_folder.write_gguf", lambda folder: None)
        dataset = ModelFolderDataset(str(tmp_path_factory.mktemp("models") / "merged"))
        dataset.save(merge_adapter(student, adapter))
    return dataset.load()


def test_the_page_beside_the_weights_shows_how_to_get_the_expert_s_answer(
    merged: Path, student: Student, adapter: Adapter, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = Expert.load(adapter.folder, student.model)
    monkeypatch.chdir(merged)
    page = Path("README.md").read_text(encoding="utf-8")
    for command in ("ollama create tiny_reading -f Modelfile", "vllm serve .", f"llama-server -m {GGUF} --jinja"):
        assert command in page
    [example, *_] = expert.task.examples
    fields = {name: example[name] for name in expert.task.query_fields}
    assert run_python(page, capsys).strip() == written(expert, fields)
    settings = json.loads(Path("generation_config.json").read_text())
    assert (settings["do_sample"], settings["eos_token_id"]) == (False, [2])


def test_without_the_converter_to_gguf_the_export_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebase.serving.export.distribution", lambda name: distribution("no-such-package"))
    with caplog.at_level("INFO"):
        write_gguf(tmp_path)
    assert "no GGUF file; its converter comes with the extra `gguf`" in caplog.text


@pytest.mark.slow
def test_a_model_that_the_converter_does_not_know(merged: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The tiny student's tokenizer is none that llama.cpp has."""
    write_gguf(merged)
    assert "export: no GGUF file: NotImplementedError" in caplog.text
    assert not (merged / GGUF).exists()


def test_the_adapter_s_card_shows_how_to_get_the_expert_s_answer(
    student: Student, adapter: Adapter, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With peft alone: the base model is found by the name in the adapter's configuration."""
    expert = Expert.load(adapter.folder, student.model)
    for file in adapter.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tiny").symlink_to(student.model)
    monkeypatch.chdir(tmp_path)
    card = ModelCard(Path("README.md").read_text(encoding="utf-8"))
    assert 'Expert.load(".").answer(context="…", question="…")' in card.text
    assert run_python(card.text, capsys, **FIELDS[2]).strip() == written(expert, FIELDS[2])
