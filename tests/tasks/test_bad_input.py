"""Bad data on the command line: one line that says where and what, and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.cli import main

QUESTION = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


LABELLED = jsonl(*({"text": f"some text {i}", "label": "abc"[i % 3]} for i in range(90)))


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        (
            "tpp",
            "d.jsonl",
            jsonl({"text": "t", "class": "a"}),
            "row 1: no column 'label'; needed: ['text', 'label'], found: ['text', 'class']",
        ),
        ("tpp", "d.csv", b"text,label\n" + b"some,a\nother,a\n" * 9, "has the labels ['a']"),
        ("tpp", "d.jsonl", LABELLED + b"\n", "row 91: is empty"),
        ("tpp", "d.csv", b"text,label\nt,a\n\xff\xfe,b\n", "row 2: not UTF-8"),
        ("tpp", "d.csv", b"text,label\nt,a\n,b\n", "row 2: text: is empty"),
        (
            "unlearning",
            "d.jsonl",
            jsonl(QUESTION, {**QUESTION, "choices": ["a", "b", "c"]}),
            "row 2: choices: 3 options, not four",
        ),
        ("unlearning", "d.jsonl", jsonl(QUESTION) + b"\xff\n", "row 2: not UTF-8"),
        (
            "refusal",
            "d.csv",
            b"request,topic\nhow,x\n",
            "row 1: no column 'goal'; needed: ['goal'], found: ['request', 'topic']",
        ),
        ("refusal", "nowhere.csv", None, "nowhere.csv': No such file"),
        ("tpp", "d.json", b'{"text": "t"}', "not a JSON array of objects"),
        (
            "unlearning",
            "d.csv",
            b"question,choices,answer\nW?,['a' 'b' 'c'],1\n",
            "row 1: choices: 3 options, not four",
        ),
    ],
)
def test_bad_data_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    data, corpus = tmp_path / name, tmp_path / "corpus.jsonl"
    corpus.write_bytes(jsonl({"text": "a text"}))
    if content is not None:
        data.write_bytes(content)
    settings = ["-T", f"data={data}"]
    if task == "unlearning":
        settings += [f"-Tforget_corpus={corpus}", f"-Tretain_corpus={corpus}"]
    arguments = ["run", "--json", "--task", task, *settings, "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["saebench", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert [line for line in lines if "Traceback" in line] == []
