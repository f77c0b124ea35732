import pytest
from kedro.io import DatasetError

from rebase.datasets import PromptDataset
from rebase.errors import RebaseError
from rebase.generation.prompts.templates import SynthesizePrompt

CONTENT = "# A comment.\nversion: 1\nsystem: |\n  Write.\nuser: Example {number}.\n"


def load(path, content=CONTENT):
    path.write_text(content)
    return PromptDataset(str(path), "synthesize").load()


def test_a_prompt_is_typed_and_knows_its_path(tmp_path, monkeypatch):
    prompt = load(tmp_path / "mine.yml")
    assert isinstance(prompt, SynthesizePrompt)
    assert (prompt.system, prompt.path) == ("Write.\n", tmp_path / "mine.yml")
    monkeypatch.chdir(tmp_path)
    assert str(load(tmp_path / "mine.yml").path) == "mine.yml"


@pytest.mark.parametrize(
    ("content", "words"),
    [("user: [", "cannot be read"), ("version: 1\nsystem: x\nuser: y", "not a valid prompt"), ("", "is empty")],
)
def test_a_wrong_file_is_named(tmp_path, content, words):
    with pytest.raises(DatasetError) as error:
        load(tmp_path / "mine.yml", content)
    assert isinstance(error.value.__cause__, RebaseError)
    assert str(error.value.__cause__).startswith(f"{tmp_path / 'mine.yml'}: ")
    assert words in str(error.value.__cause__)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.yml: the prompt file cannot be read"):
        PromptDataset(str(tmp_path / "gone.yml"), "cot").load()


def test_prompts_are_shown_with_their_comments_and_never_written(tmp_path):
    (tmp_path / "mine.yml").write_text(CONTENT)
    dataset = PromptDataset(str(tmp_path / "mine.yml"), "synthesize")
    assert dataset.preview() == CONTENT
    with pytest.raises(DatasetError, match="read-only"):
        dataset.save(dataset.load())
