"""What `report_nanogcg` runs in nanoGCG's own environment: it imports nothing of ours.

`python nanogcg_worker.py FOLDER` reads `task.json`, the model and the tokenizer there, runs each
search that is asked for on one thread, and prints the losses of its steps and its CPU seconds.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m['content'] }}{% endfor %}"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    nanogcg = importlib.import_module("nanogcg")
    task = json.loads((folder / "task.json").read_text())
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    tokenizer.chat_template = TEMPLATE
    for search in task["searches"]:
        config = nanogcg.GCGConfig(
            optim_str_init=task["suffix"],
            topk=task["topk"],
            buffer_size=0,
            seed=0,
            verbosity="ERROR",
            **search,
        )
        started = time.process_time()
        found = nanogcg.run(model, tokenizer, task["prompt"], task["answer"], config)
        seconds = time.process_time() - started
        print(json.dumps({"losses": found.losses, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
