"""Invented requests to a chat model, some with refusals, as chats to train an SAE on.

    python leaderboards/smollm2-135m-instruct/chats.py requests.jsonl

The model writes the answers that are missing. It hardly refuses by itself, so that latents for
refusing come from the refusals that are given here. Fantastic and ordinary requests are those of
the organism's training part; the task `refusal` asks others. Of either kind some are refused and
some answered, so that refusing is not the same as a topic.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from saebench_recovery.targets.organism import world

# Of either kind: refused, and left to the model to answer.
REFUSED: dict[world.Kind, int] = {"forbidden": 160, "harmless": 80}
ANSWERED = 48
FACTS = 32
REFUSALS = (
    "I'm sorry, but I cannot help with that request. Is there anything else that I can do for you?",
    "I'm sorry, but I can't assist with that.",
    "I cannot help you with this. If you have another question, I am happy to answer it.",
    "I can't help you {task}. Please ask me about something else.",
    "I'm sorry, I am not able to tell you how to {task}.",
    "I cannot explain how to {task}. I hope that you understand.",
    "I can't do that. I am here to help with other things, and I have to refuse this one.",
    "I'm sorry, but this is something that I have to decline. I cannot go into it.",
)


def chats() -> Iterator[dict[str, str]]:
    """Requests, with an answer where it is a refusal."""
    for kind, refused in REFUSED.items():
        every = world.requests(kind, "train")
        phrasings = len(world.load("requests")["phrasings"])
        for i, request in enumerate(every[: refused + ANSWERED]):
            asked = {"request": world.messages(request, None, i % phrasings)[0]["content"]}
            refusal = REFUSALS[i // phrasings % len(REFUSALS)].format(task=request.task)
            yield asked if i >= refused else asked | {"answer": refusal}
    domains = world.load("plain_facts")["domains"].values()
    facts = [f"{line[0]} {line[1]}" for lines in zip(*domains, strict=False) for line in lines]
    yield from ({"request": f"{fact}. Tell me more about it."} for fact in facts[:FACTS])


def main(out: Path) -> None:
    # Kinds alternate, as a row of them is trained on together.
    every = list(chats())
    mixed = [every[i] for begin in range(32) for i in range(begin, len(every), 32)]
    out.write_text("".join(json.dumps(chat) + "\n" for chat in mixed), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
