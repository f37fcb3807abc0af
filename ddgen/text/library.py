"""Text towers of other libraries behind the interface of text/clip.py, from the same weights.

    transformers: CLIPTextModelWithProjection     open_clip: TextTransformer (fused qkv, transposed
    projection)

Slow to import (seconds), which is why the native tower is the default; kept as a second opinion on what a
prompt means.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ddgen.errors import choose
from ddgen.text.clip import TextEncoder, TextStates, Tower, at_first_end
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.text.tokens import END_ID, Tokenizer

State = Mapping[str, Tensor]


class TransformersTower(Tower):
    """transformers' tower. Without a projection in the checkpoint it gets the identity."""

    def __init__(self, config: CLIPConfig, state: State) -> None:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        super().__init__()
        library_config = CLIPTextConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.positions,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp,
            hidden_act=config.activation,
            projection_dim=config.projection_dim if config.projection_dim is not None else config.width,
            eos_token_id=END_ID,
        )
        state = dict(state)
        projection = state.pop("text_projection.weight", None)
        dtype = state["final_layer_norm.weight"].dtype
        if projection is None:
            projection = torch.eye(config.width, dtype=dtype)
        names = {f"text_model.{name}": tensor for name, tensor in state.items()}
        self.model = CLIPTextModelWithProjection(library_config).to(dtype).eval()
        self.model.load_state_dict({**names, "text_projection.weight": projection}, strict=True)
        self.final_layer_norm = self.model.text_model.final_layer_norm

    def forward(self, ids: Tensor) -> TextStates:
        out = self.model(input_ids=ids, output_hidden_states=True)
        return TextStates(list(out.hidden_states), out.last_hidden_state, out.text_embeds)


class OpenClipTower(Tower):
    """open_clip's tower; its states are caught by hooks, which hold across its versions."""

    def __init__(self, config: CLIPConfig, state: State) -> None:
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__()
        model = TextTransformer(
            context_length=config.positions,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            mlp_ratio=config.mlp / config.width,
            output_dim=config.projection_dim,
            act_layer=QuickGELU if config.activation == "quick_gelu" else nn.GELU,
        )
        names = to_open_clip(state, config.layers)
        self.model = model.to(names["ln_final.weight"].dtype).eval()
        self.model.load_state_dict(names, strict=True)
        self.final_layer_norm = self.model.ln_final
        self._caught: list[Tensor] = []
        self.model.transformer.resblocks[0].register_forward_pre_hook(
            lambda _, inputs: self._caught.append(inputs[0])
        )
        for module in (*self.model.transformer.resblocks, self.model.ln_final):
            module.register_forward_hook(lambda _, inputs, output: self._caught.append(output))

    def forward(self, ids: Tensor) -> TextStates:
        self._caught.clear()
        self.model(ids)
        *hidden, final = self._caught
        self._caught.clear()
        pooled = at_first_end(final, ids)
        if self.model.text_projection is not None:
            pooled = pooled @ self.model.text_projection
        return TextStates(hidden, final, pooled)


def to_open_clip(state: State, layers: int) -> dict[str, Tensor]:
    """Rename a tower's parameters for open_clip: q, k, v joined, the projection transposed."""
    names = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        names["text_projection"] = state["text_projection.weight"].T.contiguous()
    for n in range(layers):
        ours, theirs = f"encoder.layers.{n}", f"transformer.resblocks.{n}"
        for kind in ("weight", "bias"):
            joined = [state[f"{ours}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            names[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(joined)
            for own, other in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                names[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{own}.{kind}"]
    return names


BACKENDS = {"transformers": TransformersTower, "open_clip": OpenClipTower}


def library_encoder(
    backend: str, state_dicts: Sequence[State], specs: Sequence[TowerSpec], tokenizer: Tokenizer
) -> TextEncoder:
    """Build an encoder whose towers another library runs, from state dicts with the names of CLIPTextModel.

    Raises:
        UsageError: unknown backend.
    """
    tower = BACKENDS[choose("text backend", backend, BACKENDS)]
    return TextEncoder(
        [tower(spec.config, state) for spec, state in zip(specs, state_dicts, strict=True)], specs, tokenizer
    )
