"""Pre-trains the base model that ships with the demo, from nothing, on one core.

Run as: OMP_NUM_THREADS=1 python -m benchmarks.pretraining.model

A LLaMA of 2.6 million parameters and a byte-level BPE tokenizer of 1,024 tokens. The text is `text.py`:
what the project generates itself, and the stories of `../shared/assets/data/tinystories`. Hidden matrices are
stepped by Muon (Jordan et al., 2024), the rest by AdamW, under bfloat16 autocast. The model is written every
200 steps as well as at the end, so that an early stop still leaves one.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.assets import ASSETS
from benchmarks.pretraining.text import documents, read_stories
from coordinator.demo.plan import MODEL

VOCABULARY, CONTEXT = 1024, 256
SPECIAL = ("<pad>", "<bos>", "<eos>")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"  # a line answers a line


def train_tokenizer(stories: list[str], seed: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer; digits stand alone, so that numbers are copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(stories, seed), 6000), trainer)
    pad, bos, eos = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    fast.model_max_length, fast.chat_template = CONTEXT, CHAT_TEMPLATE
    return fast


def new_model(seed: int) -> LlamaForCausalLM:
    """Returns the model before its first step."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
        attn_implementation="eager",  # 1.3 times as fast here as the fused kernel's backward pass
    )
    return LlamaForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, stories: list[str], rows: int, seed: int
) -> Iterator[torch.Tensor]:
    """Yields (rows, CONTEXT) token ids without end: documents between their marks, end to end."""
    bos, eos = 1, 2
    texts, needed = documents(stories, seed), rows * CONTEXT
    tokens: list[int] = []
    while True:
        while len(tokens) < needed:
            for encoding in tokenizer.backend_tokenizer.encode_batch(list(islice(texts, 64))):
                tokens += [bos, *encoding.ids, eos]
        yield torch.tensor(tokens[:needed]).view(rows, CONTEXT)
        tokens = tokens[needed:]


def new_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Returns Muon for the hidden matrices, AdamW for the embedding and the norms."""
    parameters = dict(model.named_parameters())
    matrices = [tensor for name, tensor in parameters.items() if tensor.ndim == 2 and "embed" not in name]
    others = [tensor for name, tensor in parameters.items() if tensor.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def pretrain(arguments: argparse.Namespace) -> None:
    """Runs it all: tokenizer, steps, checkpoints."""
    stories = read_stories(sorted((ASSETS / "data" / "tinystories").glob("*.txt")))
    tokenizer = train_tokenizer(stories, arguments.seed)
    model = new_model(arguments.seed)
    optimizers = new_optimizers(model, arguments.lr)
    start, smooth = time.monotonic(), 0.0
    stream = batches(tokenizer, stories, arguments.rows, arguments.seed + 1)
    for step, tokens in enumerate(islice(stream, arguments.steps), 1):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = arguments.lr * _schedule(step - 1, arguments.steps)
        loss = _train(model, optimizers, tokens)
        smooth = loss if step == 1 else 0.95 * smooth + 0.05 * loss
        if step % 20 == 0:
            seconds = time.monotonic() - start
            rate = step * tokens.numel() / seconds
            print(
                f"step {step}/{arguments.steps}  loss {smooth:.3f}  {rate:.0f} tok/s  {seconds:.0f} s",
                flush=True,
            )
        if step % 200 == 0 or step == arguments.steps:
            save(model, tokenizer, arguments.out)


def _train(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], tokens: torch.Tensor) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the folder as transformers and mlx-lm read it, weights in float16."""
    copy.deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    settings = out / "tokenizer_config.json"
    written = json.loads(settings.read_text())
    # The class's name of today is unknown to transformers 4.
    written |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(written, indent=2) + "\n")


def _schedule(step: int, steps: int) -> float:
    """Scales the learning rate: up over 100 steps, then down along a cosine to a twentieth."""
    return min((step + 1) / 100, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    pretrain(parser.parse_args())
