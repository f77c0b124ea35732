"""What the adapter relies on in sentence-transformers and transformers: an update that changes it fails here."""

import inspect

import numpy as np
import pytest

from rebase.datastore.packed_attention import pack, use_packed_attention, use_padded_attention
from tests.datastore.test_encoder import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Positions of this model start at the id of its padding token."""
    return tiny(tmp_path_factory.mktemp("model"), "XLMRoberta")


def test_the_private_parts_exist(model):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    transformer = model[0]
    assert transformer._infer_flatten_position_offset() == 2  # the padding token's id, 1, and one more
    assert transformer.auto_model.is_backend_compatible()
    assert list(inspect.signature(transformer.auto_model.set_attn_implementation).parameters)
    assert list(inspect.signature(sdpa_attention_forward).parameters)[:5] == [
        "module", "query", "key", "value", "attention_mask"]  # fmt: skip
    assert AttentionInterface.register
    assert AttentionMaskInterface.register


def test_a_packed_batch_is_flattened_and_gives_the_vectors_of_single_texts(model):
    import torch

    batch = model.tokenizer(["otter swims at dusk", "the nest", "on stone"])["input_ids"]
    assert use_packed_attention(model)
    features = pack(model, batch)
    assert features["input_ids"].shape == (1, sum(map(len, batch)))
    assert features["position_ids"][0, : len(batch[0])].tolist() == list(range(2, 2 + len(batch[0])))
    assert features["cu_seq_lens_q"].tolist() == [0, *np.cumsum(list(map(len, batch)))]
    with torch.inference_mode():
        together = model(features)["sentence_embedding"].numpy()
    use_padded_attention(model)
    alone = model.encode(["otter swims at dusk", "the nest", "on stone"])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_model_with_its_own_attention_is_left_alone(tmp_path):
    assert not use_packed_attention(tiny(tmp_path, "MPNet"))
