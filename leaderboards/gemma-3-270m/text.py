"""Wikipedia articles that gensim's package holds, as a table of texts to train an SAE on.

    pip install gensim==4.4.0
    python leaderboards/gemma-3-270m/text.py wiki.jsonl

106 articles of the English Wikipedia (CC BY-SA), a row for each section of at least 200 characters:
884 texts, 3.1 million characters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gensim.scripts.segment_wiki import segment_all_articles
from gensim.test.utils import datapath

DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
LEAST = 200  # characters; shorter sections are lists of links


def main(out: Path) -> None:
    articles = segment_all_articles(datapath(DUMP))
    texts = [text.strip() for _, sections in articles for _, text in sections]
    lines = [json.dumps({"text": text}) for text in texts if len(text) >= LEAST]
    out.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
