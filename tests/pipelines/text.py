"""Tokenizers and text encoders of miniature pipelines, made in code.

A tokenizer knows bytes and whole words: the words of ordinary short prompts and of the templates it is given are one token
each, every other word is its bytes, so that no two prompts have the same ids and nothing is unknown. Words look in the
vocabulary as they do in published ones, by kind of tokenizer. Each is of a stock class and saves and loads like any other.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from .family import seeded


WIDTH = 32
"""Hidden width of every text encoder here, unless asked otherwise."""

WORDS = (
    "a an the of and in on with at two three four five one red blue green yellow black white brown grey pink purple small "
    "large old new round fox cat cats dog dogs car cars house tree flower bird fish horse face star moon sun heart hand "
    "boat book ball hat cup photo painting picture drawing emoji person man woman child smiling running sleeping under "
    "over near grass snow water sky mountain street night day"
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part.get('text', '') }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCEPIECE = "\u2581"
MARKERS = ("<|im_start|>", "<|im_end|>")
DESCRIBE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
"""The template of Qwen-Image and of its kin, who cut it off by its 34 tokens."""
ENGINEER = DESCRIBE.replace("Describe", "You are a prompt engineer. Describe")
"""That of Kandinsky 5."""


def tokenizer(
    *texts: str,
    bos: str | None = None,
    eos: str | None = "</s>",
    pad: str = "<pad>",
    markers: tuple[str, ...] = MARKERS,
    max_length: int = 77,
    padding_side: str = "right",
    space: str = "\u0120",
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words and bytes; the padding's id is 0, those of `eos`, `bos` and `markers` follow.

    Args:
        texts: templates whose words are one token each, as in published tokenizers; pipelines cut templates off by count.
        bos, eos: put before and after every text; None: none is. `pad` may be the same token as `eos`.
        markers: further special tokens.
        max_length: `model_max_length`.
        padding_side: "right" or "left".
        space: what stands for a space before a word: that of byte-level tokenizers (Qwen, Llama 3, GLM), or "\u2581" as in
            SentencePiece (T5, Gemma).
    """
    if space == SENTENCEPIECE:
        isolated = pre_tokenizers.Split(Regex(r"\n|[^\w\s]"), "isolated")
        split: Any = pre_tokenizers.Sequence([isolated, pre_tokenizers.Metaspace(prepend_scheme="first")])
        decoder: Any = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(space, " "), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [space, *map(chr, range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        split, decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [
        form
        for word in (*WORDS.split(), "system", "user", "assistant")
        for form in (word, f" {word}", word.capitalize())
    ]
    pieces = [piece for text in (*known, *texts) for piece, _ in split.pre_tokenize_str(text)]
    special = [token for token in (pad, eos, bos, *markers) if token is not None]
    ids = {token: i for i, token in enumerate(dict.fromkeys([*special, *alphabet, *pieces]))}
    model = models.BPE(vocab=ids, merges=[], ignore_merges=True, byte_fallback=space == SENTENCEPIECE)
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = split, decoder
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos or eos:
        around = f"{bos or ''} $A {eos or ''}".split()
        ends = [(token, ids[token]) for token in (bos, eos) if token]
        made.post_processor = processors.TemplateProcessing(single=" ".join(around), special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=max_length,
        padding_side=padding_side,
        chat_template=CHAT,
    )


def t5_tokenizer(*texts: str, max_length: int = 512) -> PreTrainedTokenizerFast:
    """As T5's: an end and no start."""
    return tokenizer(*texts, markers=(), max_length=max_length, space=SENTENCEPIECE)


def gemma_tokenizer(*texts: str, max_length: int = 1024) -> PreTrainedTokenizerFast:
    """As Gemma's: a start and no end."""
    return tokenizer(*texts, bos="<bos>", eos=None, max_length=max_length, space=SENTENCEPIECE)


def chat_tokenizer(*texts: str, max_length: int = 1024, **options: Any) -> PreTrainedTokenizerFast:
    """As Qwen's: no token around a text, `<|endoftext|>` as padding."""
    return tokenizer(*texts, eos=None, pad="<|endoftext|>", max_length=max_length, **options)


@cache
def learn_merges() -> tuple[tuple[str, str], ...]:
    """The byte pairs that make each of `WORDS` one token; the library's own trainer ends in another order at every call."""
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in dict.fromkeys(WORDS.split())]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        for word in words:
            for i in reversed(range(len(word) - 1)):
                if tuple(word[i : i + 2]) == merges[-1]:
                    word[i : i + 2] = ["".join(merges[-1])]
    return tuple(merges)


def clip_tokenizer() -> CLIPTokenizer:
    """As CLIP's, which marks the ends of words: a start, an end that is the padding too, 77 tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(learn_merges())
    names = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *map("".join, merges),
    ]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def llama_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """As Llama 3's: a start of the text and no end; its end is the padding too."""
    made = tokenizer(bos="<|begin_of_text|>", eos=None, pad="<|eot_id|>", markers=(), max_length=max_length)
    made.eos_token = "<|eot_id|>"
    return made


def encoder(make: Callable[[], Any], seed: int = 0) -> Any:
    """A text encoder whose token embeddings lie far apart, for most models start them at .02."""

    def spread() -> nn.Module:
        model = make()
        nn.init.normal_(model.get_input_embeddings().weight)
        return model

    return seeded(spread, seed)


def of(name: str, config: Any, seed: int = 0) -> Any:
    """The transformers class `name` around `config`, random."""
    return encoder(lambda: getattr(transformers, name)(config), seed)


def clip(vocabulary: PreTrainedTokenizerFast, projection: bool = False, layers: int = 2, width: int = WIDTH) -> Any:
    """`CLIPTextModel`, or the one with a projection to `width`."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
        hidden_act="quick_gelu",
    )
    return of("CLIPTextModelWithProjection" if projection else "CLIPTextModel", config)


def t5(vocabulary: PreTrainedTokenizerFast, width: int = WIDTH, name: str = "T5EncoderModel") -> Any:
    """`T5EncoderModel` or `UMT5EncoderModel`."""
    config = (transformers.UMT5Config if name.startswith("UMT5") else transformers.T5Config)(
        vocab_size=len(vocabulary),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=vocabulary.pad_token_id,
        eos_token_id=vocabulary.eos_token_id,
    )
    return of(name, config)


def bert(vocabulary: PreTrainedTokenizerFast, width: int = WIDTH) -> Any:
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=128,
        pad_token_id=vocabulary.pad_token_id,
    )
    return of("BertModel", config)


def umt5(vocabulary: PreTrainedTokenizerFast, width: int = WIDTH) -> Any:
    return t5(vocabulary, width, "UMT5EncoderModel")


def decoder_options(vocabulary: PreTrainedTokenizerFast, layers: int = 2, width: int = WIDTH) -> dict[str, Any]:
    """What the configs of decoder-only language models have in common."""
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": 2048,
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.pad_token_id,
    }


def decoder(
    name: str, vocabulary: PreTrainedTokenizerFast, layers: int = 2, width: int = WIDTH, **changes: Any
) -> Any:
    """A decoder-only language model by its class: "Qwen3Model", "LlamaForCausalLM", "Gemma2Model", "GlmModel" and so on.

    Args:
        layers: of the model; pipelines that take hidden states by number need as many.
        changes: further fields of its config.
    """
    config = getattr(transformers, name).config_class(**decoder_options(vocabulary, layers, width) | changes)
    return of(name, config)


def vision_config(width: int = WIDTH) -> dict[str, Any]:
    """The vision tower that the language models with eyes want, as small as they allow; no test shows it a picture."""
    return {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}


def qwen2_5_vl(vocabulary: PreTrainedTokenizerFast, layers: int = 2, width: int = WIDTH) -> Any:
    """`Qwen2_5_VLForConditionalGeneration`, as in Qwen-Image and HunyuanImage."""
    text = decoder_options(vocabulary, layers, width)
    head = text.pop("head_dim")
    text["rope_parameters"] = {
        "rope_type": "default",
        "mrope_section": [head // 4, head // 8, head // 8],
        "rope_theta": 1e4,
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision_config(width))
    return of("Qwen2_5_VLForConditionalGeneration", config)


def mistral3(vocabulary: PreTrainedTokenizerFast, layers: int = 2, width: int = WIDTH) -> Any:
    """`Mistral3ForConditionalGeneration`, as in FLUX.2."""
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**decoder_options(vocabulary, layers, width)),
        vision_config=transformers.PixtralVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32
        ),
    )
    return of("Mistral3ForConditionalGeneration", config)
