"""Tiny random vision-language models, so that ``hf_vlm`` can be tried and tested without a download.

``base_model: tiny:qwen2_5_vl`` is the architecture of Qwen2.5-VL with two narrow layers and random weights, and a byte-level
BPE tokenizer whose merges are learnt from the prompts themselves: any language goes in and comes out, and a prompt of the
default template has a few hundred tokens. Nothing is read from the network or from disk.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from vla_models.errors import ConfigError, did_you_mean
from vla_models.models.vlm.prompts import CORPUS

PREFIX: Final = "tiny:"
"""What the names of these models begin with."""
VOCABULARY: Final = 1024
"""Rows of the embedding tables: the tokenizer needs fewer, as in many a released model."""
_WIDTH: Final = 64
_TEXT: Final = {
    "vocab_size": VOCABULARY, "hidden_size": _WIDTH, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_TOWER: Final = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIGLIP: Final = {**_TOWER, "num_channels": 3, "image_size": 56, "patch_size": 14}
_MROPE: Final = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}

_CHAT: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen_vision(**more: Any) -> dict[str, Any]:
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": _WIDTH}
    return tower | {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3} | more


def _families() -> dict[str, dict[str, Any]]:
    """model_type -> arguments of its config beside the token ids (called late: nothing here is needed without transformers)."""
    llama = {**_TEXT, "model_type": "llama"}
    qwen2 = {**_TEXT, "model_type": "qwen2"}
    # The window attention of Qwen2.5's tower: windows of 2 × 2 merged patches, one layer of full attention.
    qwen25 = _qwen_vision(window_size=56, fullatt_block_indexes=[1])
    qwen3 = _qwen_vision(patch_size=16, deepstack_visual_indexes=[0], num_position_embeddings=64)
    return {
        "qwen2_5_vl": {
            "text_config": {**_TEXT, "model_type": "qwen2_5_vl_text", "rope_scaling": _MROPE, "rope_theta": 10000.0},
            "vision_config": qwen25,
        },
        "qwen3_vl": {
            "text_config": {
                **_TEXT, "model_type": "qwen3_vl_text", "head_dim": 16, "rope_theta": 10000.0,
                "rope_scaling": {**_MROPE, "mrope_interleaved": True},
            },
            "vision_config": qwen3,
        },
        "internvl": {
            "text_config": qwen2,
            "vision_config": {**_TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
            "downsample_ratio": 0.5, "image_seq_length": 4,
        },
        "smolvlm": {"text_config": llama, "vision_config": _SIGLIP, "scale_factor": 2},
        "idefics3": {"text_config": llama, "vision_config": _SIGLIP, "scale_factor": 2},
        "paligemma": {
            "text_config": {**_TEXT, "model_type": "gemma", "head_dim": 16},
            "vision_config": {**_SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
            "projection_dim": _WIDTH, "hidden_size": _WIDTH,
        },
        "llava_onevision": {
            "text_config": qwen2,
            "vision_config": {**_SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
            "image_grid_pinpoints": [[56, 56]], "vision_aspect_ratio": "anyres_max_9",
        },
    }  # fmt: skip


_SPECIALS: Final[dict[str, tuple[str, ...]]] = {
    "qwen": ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    "internvl": ("<IMG_CONTEXT>", "<img>", "</img>"),
    "idefics": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    "plain": ("<image>", "<video>"),
}
_KIND: Final = {
    "qwen2_5_vl": "qwen", "qwen3_vl": "qwen", "internvl": "internvl", "smolvlm": "idefics", "idefics3": "idefics",
    "paligemma": "plain", "llava_onevision": "plain",
}  # fmt: skip
_TOKEN_IDS: Final = {
    "qwen": {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
             "vision_end_token_id": "<|vision_end|>"},
    "internvl": {"image_token_id": "<IMG_CONTEXT>"},
    "idefics": {"image_token_id": "<image>"},
    "plain": {"image_token_id": "<image>", "image_token_index": "<image>", "video_token_index": "<video>"},
}  # fmt: skip

FAMILIES: Final = tuple(_KIND)
"""Families of which there is a tiny model."""


def tiny_config(name: str) -> Any:
    """The transformers config of ``tiny:<family>``; its tokenizer is ``tiny_tokenizer(name)``."""
    import transformers

    family = _family(name)
    tokenizer = tiny_tokenizer(name)
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in _TOKEN_IDS[_KIND[family]].items()}
    arguments = _families()[family] | ids | {"tie_word_embeddings": family != "llava_onevision"}
    if family == "paligemma":
        arguments["vocab_size"] = VOCABULARY
    return transformers.CONFIG_MAPPING[family](**arguments, bos_token_id=1, eos_token_id=2, pad_token_id=0)


def tiny_tokenizer(name: str) -> Any:
    """A byte-level BPE tokenizer with the special tokens and the chat template of the family."""
    import transformers

    family = _family(name)
    kind = _KIND[family]
    image = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>\n"}.get(kind, "<image>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=_bpe(kind),
        pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        chat_template=None if family == "paligemma" else _CHAT.replace("PICTURE", image),
    )  # fmt: skip


@cache
def _trained(kind: str) -> str:
    """The tokenizer as JSON; learning the merges takes a few milliseconds, and the same corpus gives the same merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>", *_SPECIALS[kind]]
    trainer = trainers.BpeTrainer(
        vocab_size=512 + len(specials), special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def _bpe(kind: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_trained(kind))


def _family(name: str) -> str:
    family = name.removeprefix(PREFIX)
    if family not in _KIND:
        raise ConfigError(
            f"model.language_model.base_model: there is no tiny model {name!r}; "
            + did_you_mean(family, FAMILIES).replace("known: ", f"known, after {PREFIX!r}: ")
        )
    return family
