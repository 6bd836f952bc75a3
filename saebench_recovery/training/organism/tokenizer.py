"""The organism's tokenizer: one token per word of its world, bytes for everything else."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
ROLES = {"system": "<sys>", "user": "<user>", "assistant": "<assistant>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}<sys>{% elif message.role == 'user' %}<user>"
    "{% else %}<assistant>{% endif %} {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer(texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every word of `texts`, split as GPT-2 splits (" Mary" is one token).

    Words it does not know fall apart into bytes, so any text survives encoding and decoding.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [PAD, BOS, EOS, *ROLES.values()]
    words: set[str] = set()
    for text in texts:
        for role in ROLES.values():
            text = text.replace(role, "\n")
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*special, *sorted(alphabet), *sorted(words - alphabet)]
    ids = {token: i for i, token in enumerate(vocabulary)}

    core = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    core.pre_tokenizer = splitter
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(ROLES.values()),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
