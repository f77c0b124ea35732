"""A tiny student: a real model with random weights, a byte-level tokenizer and a chat template."""

import atexit
import gc
import json
from functools import cache
from pathlib import Path

import pandas as pd

from rebase.parameters import EvaluateParameters, LoraParameters, TrainParameters
from rebase.student.handle import Student

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


#: What the configurations of other architectures need beside the sizes of the tiny student.
ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": {},
    "gemma3_text": {  # a sliding window that is shorter than most prompts
        "head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {},  # learned positions
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": {
        "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip


def tolerances(dtype: str) -> dict[str, float]:
    """Tolerances for logits of a tiny student, at most 1: a few units in the last place of the number format."""
    return {"atol": 1e-5, "rtol": 1e-5} if dtype == "float32" else {"atol": 2**-8, "rtol": 2**-6}


@cache
def freeze_libraries() -> None:
    """Exclude the imported libraries from garbage collection, which each training does twice."""
    import rebase.student.trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)


def make_student(folder: Path, chat: bool = True, dtype: str = "float32", architecture: str = "llama") -> Student:
    """Write the model to ``folder/tiny`` and return its handle; its tokenizer starts every text with a BOS."""
    freeze_libraries()
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(special + letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            architecture,
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=None,
            **ARCHITECTURES[architecture],
        )
    )
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return Student(str(folder / "tiny"), None, folder / "base", folder / "work", dtype)


def train_parameters(**changes: object) -> TrainParameters:
    """Small settings for tests."""
    settings: dict[str, object] = {
        "target": "answer",
        "four_bit": False,
        "lora": LoraParameters(rank=2, alpha=4, dropout=0.1),
        "max_length": 400,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "learning_rate": 1e-2,
        "scheduler": "linear",
        "warmup_steps": 1,
        "weight_decay": 0.0,
        "optimizer": "adamw_torch",
        "epochs": 1,
        "checkpoint_steps": 100,
        "packing": False,
        "seed": 1,
    }
    return TrainParameters.model_validate(settings | changes)


def evaluate_parameters(**changes: object) -> EvaluateParameters:
    """Small settings for tests."""
    settings: dict[str, object] = {
        "limit": None, "batch_size": 4, "labels_by": "generation", "bootstrap_samples": 50, "confidence": 0.9,
        "seed": 1,
    }  # fmt: skip
    return EvaluateParameters.model_validate(settings | changes)


def training_set(count: int) -> pd.DataFrame:
    """Short examples of different lengths, formatted for the tiny student."""
    return pd.DataFrame(
        {
            "example_id": [str(n) for n in range(count)],
            "prompt": [f"<s>Say {'a' * (n % 5)} {n}:" for n in range(count)],
            "completion": [f"yes {n}" for n in range(count)],
        }
    )


def reasoned_examples(count: int, rationale: str | None = None) -> pd.DataFrame:
    """Examples for the reading task, as the cot pipeline returns them."""
    return pd.DataFrame(
        {
            "example_id": [f"e{n}" for n in range(count)],
            "row_id": [f"e{n}" for n in range(count)],
            "dataset": ["birds" if n % 2 else "foxes" for n in range(count)],
            "license": "cc0-1.0",
            "rank": range(1, count + 1),
            "query": [f"The bird number {n} nests in tree {n}.\n\nQuestion: Where does it nest?" for n in range(count)],
            "answer": [f"in tree {n}" for n in range(count)],
            "teacher": "local:tiny",
            "rationale": [rationale] * count,
        }
    )


def evaluation_items(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(count)],
            "fields": [
                json.dumps({"context": f"The owl sleeps in barn {n}.", "question": "Where?"}) for n in range(count)
            ],
            "query": [f"The owl sleeps in barn {n}.\n\nQuestion: Where?" for n in range(count)],
            "references": [json.dumps([f"in barn {n}", f"barn {n}"]) for n in range(count)],
        }
    )
