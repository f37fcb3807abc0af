"""The shapes of CLIP text towers, and how a checkpoint reads their states. Torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CLIPConfig:
    """A CLIP text transformer (Radford et al. 2021, arXiv 2103.00020): pre-norm, causal, learned positions.

    activation:     "quick_gelu" (OpenAI's weights) or "gelu" (open_clip's H and bigG).
    projection_dim: width of `text_projection`; None when the checkpoint holds none.
    """

    vocab_size: int = 49408
    positions: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    activation: str = "quick_gelu"
    projection_dim: int | None = None


@dataclass(frozen=True)
class TowerSpec:
    """One tower of a checkpoint and the rule by which its states become conditioning.

    layer:      which hidden state is the context: -1 the last block's output, -2 the penultimate, ... (as transformers' hidden_states).
    final_norm: apply the final layer norm to that state.
    pooled:     its projected state at the first end-of-text token is the pooled vector.
    pad_id:     what fills a chunk behind the end-of-text token (49407; 0 for SD2, bigG).
    prefix:     where the tower lies in a single file, e.g. "cond_stage_model.transformer.text_model.".
    layout:     "hf" (transformers names) or "openclip" (resblocks with fused qkv) in a single file.
    """

    config: CLIPConfig
    layer: int = -1
    final_norm: bool = True
    pooled: bool = False
    pad_id: int = 49407
    prefix: str = "cond_stage_model.transformer.text_model."
    layout: str = "hf"
