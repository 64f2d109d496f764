"""Tiny tokenizers with text encoders of random weights, as `pipes.clip` and `pipes.t5`: (tokenizer, encoder)."""

import inspect
import json
import sys

import torch
import transformers
from tokenizers import pre_tokenizers, trainers

from support import pipes
from support.pipes import LETTERS, t5

# How chats are written in the templates of Qwen, and by all other models here.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
         "<|video_pad|>", "<think>", "</think>"]  # fmt: skip


def clip(width, projection=None, length=8):
    """`pipes.clip`, for another number of tokens too."""
    tokenizer, encoder = pipes.clip(width, projection)
    if length != 8:
        encoder.config.max_position_embeddings = tokenizer.model_max_length = length
        encoder = type(encoder)(encoder.config).eval()
    return tokenizer, encoder


def templates(*pipelines):
    """The lines of these pipelines' modules that hold the text around prompts: many drop a number of its tokens."""
    lines = [line.strip() for cls in pipelines for line in inspect.getsource(sys.modules[cls.__module__]).split("\n")]
    marks = ("<|", "You are", "Describe the image")
    found = {line for line in lines if line.startswith('"') or any(mark in line for mark in marks)}
    return [line.replace("\\n", "\n") for line in sorted(found)] + ["system\nuser\nassistant\nthink"]


def qwen_tokenizer(*pipelines, cls=None):
    """Bytes, and the words of these pipelines' templates, which are a token each as in Qwen's own vocabulary."""
    cls = cls or transformers.Qwen2Tokenizer
    raw = cls()._tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, special_tokens=MARKS, show_progress=False)
    raw.train_from_iterator(templates(*pipelines), trainer)
    model = json.loads(raw.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = cls(vocab=model["vocab"], merges=merges, extra_special_tokens=MARKS, model_max_length=512)
    made.chat_template = CHAT
    return made


def tiny(width, **more):
    """What the configs of decoder-only models have in common."""
    return {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": 1,
            "eos_token_id": 2, "initializer_range": 0.3, **more}  # fmt: skip


def ids(tokenizer):
    """The tokens that Qwen's models of images look for."""
    keys = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in keys.items()}


def qwen3(width, *pipelines, kind=transformers.Qwen3Model, layers=2):
    tokenizer = qwen_tokenizer(*pipelines)
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), **tiny(width, num_hidden_layers=layers))
    return tokenizer, kind(config).eval()


def qwen25(width, *pipelines, kind=transformers.Qwen2_5_VLForConditionalGeneration):
    """Of kind Qwen2_5_VLTextModel, it has no part for images."""
    tokenizer = qwen_tokenizer(*pipelines)
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    text = tiny(width, vocab_size=len(tokenizer), num_attention_heads=width // 8, rope_parameters=rope)
    if kind is transformers.Qwen2_5_VLTextModel:
        return tokenizer, kind(transformers.Qwen2_5_VLTextConfig(**text)).eval()
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids(tokenizer))
    return tokenizer, kind(config).eval()


def qwen2(width, *pipelines):
    tokenizer = qwen_tokenizer(*pipelines)
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    text = tiny(width, vocab_size=len(tokenizer), num_attention_heads=width // 8, rope_parameters=rope)
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": width, "num_heads": 1, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **ids(tokenizer))
    return tokenizer, transformers.Qwen2VLForConditionalGeneration(config).eval()


def qwen3vl(width, *pipelines, kind=transformers.Qwen3VLForConditionalGeneration, layers=2):
    tokenizer = qwen_tokenizer(*pipelines)
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "mrope_interleaved": True, "rope_theta": 1e6}
    text = tiny(width, vocab_size=len(tokenizer), rope_parameters=rope, num_hidden_layers=layers)
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids(tokenizer))
    return tokenizer, kind(config).eval()


def processor(tokenizer, cls):
    """A processor of images and texts around a tokenizer of Qwen."""
    small = {"min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28}
    images = transformers.Qwen2VLImageProcessor(**small)
    new = cls is transformers.Qwen3VLProcessor
    videos = transformers.Qwen3VLVideoProcessor() if new else transformers.Qwen2VLVideoProcessor()
    return cls(image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT)


SIGNS = [*LETTERS, *"0123456789,.!?'-:<>|_/()\n", *(letter.upper() for letter in LETTERS)]


def gemma_tokenizer():
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *SIGNS]
    made = transformers.GemmaTokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=64, add_bos_token=True
    )
    made.chat_template = CHAT
    return made


def gemma2(width):
    tokenizer = gemma_tokenizer()
    config = transformers.Gemma2Config(vocab_size=len(tokenizer), sliding_window=8, **tiny(width))
    return tokenizer, transformers.Gemma2Model(config).eval()


def gemma(width):
    tokenizer = gemma_tokenizer()
    return tokenizer, transformers.GemmaForCausalLM(
        transformers.GemmaConfig(vocab_size=len(tokenizer), **tiny(width))
    ).eval()


def llama(width, kind=transformers.LlamaModel):
    words = ["<unk>", "<s>", "</s>", "\u2581", *SIGNS]
    tokenizer = transformers.LlamaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=64)
    tokenizer.pad_token, tokenizer.chat_template = "</s>", CHAT
    config = transformers.LlamaConfig(vocab_size=len(words), **tiny(width))
    return tokenizer, kind(config).eval()


def glm(width):
    tokenizer = qwen_tokenizer()
    config = transformers.GlmConfig(vocab_size=len(tokenizer), **tiny(width, pad_token_id=0))
    return tokenizer, transformers.GlmForCausalLM(config).eval()


def bert(width):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}, model_max_length=77)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77,
    )  # fmt: skip
    return tokenizer, transformers.BertModel(config).eval()


def umt5(width):
    tokenizer, _ = t5(width)
    config = transformers.UMT5Config(vocab_size=32, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return tokenizer, transformers.UMT5EncoderModel(config).eval()


def byt5(width):
    config = transformers.T5Config(vocab_size=384, d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return transformers.ByT5Tokenizer(), transformers.T5EncoderModel(config).eval()


def t5gemma(width):
    tokenizer = gemma_tokenizer()
    part = tiny(width, vocab_size=len(tokenizer), layer_types=["full_attention"] * 2)
    encoder = transformers.models.t5gemma.T5GemmaModuleConfig(**part)
    config = transformers.T5GemmaConfig(encoder=encoder, decoder=encoder, is_encoder_decoder=False)
    return tokenizer, transformers.T5GemmaEncoderModel(config).eval()


def t5gemma2(width):
    from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig, T5Gemma2TextConfig
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    tokenizer = gemma_tokenizer()
    words = T5Gemma2TextConfig(vocab_size=len(tokenizer), dropout_rate=0.0, **tiny(width))
    vision = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    config = T5Gemma2EncoderConfig(text_config=words.to_dict(), vision_config=vision)
    return tokenizer, T5Gemma2Encoder(config).eval()


def smol(width):
    tokenizer = qwen_tokenizer()
    config = transformers.SmolLM3Config(vocab_size=len(tokenizer), pad_token_id=0, **tiny(width))
    return tokenizer, transformers.SmolLM3ForCausalLM(config).eval()


def clap(width):
    """A text encoder of sounds' captions, of AudioLDM and its kin."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *pre_tokenizers.ByteLevel.alphabet(), "<mask>"]
    tokenizer = transformers.RobertaTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16)
    text = transformers.ClapTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1,
        projection_dim=width, max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    audio = {"spec_size": 8, "window_size": 4, "num_mel_bins": 8, "depths": [1, 1], "num_attention_heads": [1, 1],
             "patch_size": 2, "patch_stride": 2, "patch_embeds_hidden_size": 4, "hidden_size": 8,
             "projection_dim": width}  # fmt: skip
    return (
        tokenizer,
        text,
        transformers.ClapConfig(text_config=text.to_dict(), audio_config=audio, projection_dim=width),
    )


def live(module, std=0.1, scale=1):
    """The module with parameters that are not all zero (as diffusers initialises some) nor left unset; its matrices
    are multiplied by `scale`."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point() and parameter.numel():
                size = parameter.abs().max()
                if name.endswith("pad_token") or not size.isfinite() or size == 0:
                    torch.nn.init.normal_(parameter, std=std)
                if parameter.ndim == 2:
                    parameter.mul_(scale)
    return module
