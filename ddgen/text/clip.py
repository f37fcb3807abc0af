"""CLIP's text tower, and the encoder that turns prompts into conditioning with one tower or two.

    h_0 = token_embedding[ids] + position_embedding
    h_n = a + fc2(act(fc1(norm2(a)))),  a = h_(n-1) + out(attention(norm1(h_(n-1)))),  causal
    final = final_norm(h_N),  pooled = text_projection final[first end token]

Parameter names are those of published checkpoints behind `text_model.`. Which h is the context, with or
without the final norm, is the checkpoint's rule (TowerSpec), not the tower's. Ref: Radford et al. 2021, arXiv
2103.00020, section 2.4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddgen.conditioning import Conditioning
from ddgen.errors import UsageError, choose
from ddgen.text.chunks import Chunks, chunk_prompt
from ddgen.text.config import CLIPConfig, TowerSpec
from ddgen.text.tokens import END_ID, Tokenizer

EMPHASIS = ("mean", "scale", "off")
ROWS = 16  # chunks per call: bounds the memory that a long list of prompts takes


@dataclass(frozen=True)
class TextStates:
    """What a tower makes of ids (B, 77).

    hidden: the embeddings and each block's output, (B, 77, D) each: hidden[-1] is the last block's, not
    normed. final:  (B, 77, D) hidden[-1] behind the final norm. pooled: (B, P) the projected final state at
    the first end token; (B, D), not projected, without a projection.
    """

    hidden: list[Tensor]
    final: Tensor
    pooled: Tensor


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def embedding(count: int, width: int) -> nn.Embedding:
    """Return nn.Embedding(count, width), drawn only where there is memory.

    Drawing on `meta` has no effect but that torch imports its compiler for it, more than a second of every start.
    """
    weight = torch.empty(count, width)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding.from_pretrained(weight, freeze=False)


class Embeddings(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.token_embedding = embedding(config.vocab_size, config.width)
        self.position_embedding = embedding(config.positions, config.width)
        self.learnt: Tensor | None
        self.register_buffer("learnt", None, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self._tokens(ids) + self.position_embedding.weight[: ids.shape[1]]

    def _tokens(self, ids: Tensor) -> Tensor:
        """Return the tokens' vectors; ids beyond the vocabulary are rows of `learnt`."""
        if self.learnt is None:
            return self.token_embedding(ids)
        known = self.token_embedding.num_embeddings
        added = self.learnt[(ids - known).clamp(min=0)]
        return torch.where((ids < known)[..., None], self.token_embedding(ids.clamp(max=known - 1)), added)


class Attention(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, 77, D / heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class Tower(nn.Module):
    """What TextEncoder asks for: ids (B, 77) int64 -> TextStates, and the norm for any of the states."""

    final_layer_norm: nn.Module


class CLIPTextModel(Tower):
    """A CLIP text tower of any size."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.text_projection: nn.Linear | None = None
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.width, config.projection_dim, bias=False)

    def forward(self, ids: Tensor) -> TextStates:
        hidden = [self.embeddings(ids)]
        for layer in self.encoder.layers:
            hidden.append(layer(hidden[-1]))
        final = self.final_layer_norm(hidden[-1])
        pooled = at_first_end(final, ids)
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return TextStates(hidden, final, pooled)


def at_first_end(states: Tensor, ids: Tensor) -> Tensor:
    """Return the state (B, D) at the first end token of each row.

    Not at the greatest id, where others look: the ids of added embeddings are greater.
    """
    place = (ids == END_ID).int().argmax(dim=1)
    return states[torch.arange(len(ids), device=ids.device), place]


def context_of(states: TextStates, spec: TowerSpec, final_norm: nn.Module) -> Tensor:
    """Return the states (B, 77, D) that a checkpoint's rule names."""
    if spec.layer == -1 and spec.final_norm:
        return states.final
    hidden = states.hidden[spec.layer]
    return final_norm(hidden) if spec.final_norm else hidden


class TextEncoder(nn.Module):
    """Prompts -> Conditioning, by CLIPTextModel towers or others alike (text/library.py)."""

    def __init__(self, towers: Sequence[Tower], specs: Sequence[TowerSpec], tokenizer: Tokenizer) -> None:
        super().__init__()
        assert len(towers) == len(specs) > 0
        self.towers = nn.ModuleList(towers)
        self.specs = tuple(specs)
        self.tokenizer = tokenizer

    def learn(self, words: Mapping[str, Sequence[Tensor]]) -> None:
        """Give words of a prompt vectors of their own (textual inversion), in place of all learnt before.

        words: word -> one (n, D) tensor per tower; the word then takes the place of n tokens.

        Raises:
            UsageError: the towers are another library's.
        """
        if words and not all(isinstance(tower, CLIPTextModel) for tower in self.towers):
            raise UsageError(
                "embeddings need ddgen's own text towers",
                "use --text-backend native",
                id="usage.text-backend",
            )
        first = max(tower.config.vocab_size for tower in self.towers) if words else 0
        ids: dict[str, range] = {}
        for word, vectors in words.items():
            ids[word] = range(first, first + len(vectors[0]))
            first = ids[word].stop
        for i, tower in enumerate(self.towers):
            if isinstance(tower, CLIPTextModel):
                table = tower.embeddings.token_embedding.weight
                rows = [vectors[i].to(table) for vectors in words.values()]
                tower.embeddings.learnt = torch.cat(rows) if rows else None
        self.tokenizer.learn(ids)

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        *,
        syntax: str = "a1111",
        emphasis: str = "mean",
        chunks: int = 1,
    ) -> Conditioning:
        """Encode prompts, each distinct chunk of tokens once.

        Changes over the steps and AND belong to the caller (prompt.compose): here a prompt is the text of one
        step.

        emphasis: how a token's weight acts on its states. "scale" multiplies them; "mean" then restores the
        mean over
            each chunk's 77 states, per image and tower (AUTOMATIC1111 takes the mean over all images of a
            batch, so that a picture depends on its neighbours there); "off" ignores weights.
        chunks: the least number of chunks; the longest prompt decides above that. Shorter ones are followed
        by empty
            chunks, which the network sees: to make an image depend on its own prompts alone, encode together
            only prompts of equal `count_chunks`, or say here what the image needs.

        Returns: context (B, 77 k, D) float32 or the towers' wider dtype, vector (B, P) from the first chunk,
        or None.

        Raises:
            UsageError: unknown syntax or emphasis.
        """
        return self.states(prompts, syntax=syntax, emphasis=emphasis, chunks=chunks)

    def states(
        self, prompts: Sequence[str], *, syntax: str = "a1111", emphasis: str = "mean", chunks: int = 1
    ) -> Conditioning:
        """Do what `encode` does, with gradients to what is trained of the towers."""
        choose("emphasis", emphasis, EMPHASIS)
        texts = [chunk_prompt(prompt, self.tokenizer, syntax) for prompt in prompts]
        count = max([chunks, *(len(text) for text in texts)])
        contexts, vector = [], None
        for tower, spec in zip(self.towers, self.specs, strict=True):
            rows, index = _distinct([text.ids(spec.pad_id, count) for text in texts])
            states, pooled = self._run(tower, spec, rows)
            context = states[index]  # (B, k, 77, D)
            if emphasis != "off":
                context = _emphasize(context, texts, count, restore=emphasis == "mean")
            contexts.append(context.flatten(1, 2))
            if spec.pooled:
                vector = pooled[index[:, 0]]
        return Conditioning(torch.cat(contexts, dim=-1), vector)

    def count_chunks(self, prompt: str, syntax: str = "a1111") -> int:
        """Return how many chunks of 77 a prompt needs."""
        return len(chunk_prompt(prompt, self.tokenizer, syntax))

    def _run(self, tower: Tower, spec: TowerSpec, rows: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        device = next(tower.parameters()).device
        contexts, pooled = [], []
        for start in range(0, len(rows), ROWS):
            states = tower(torch.tensor(rows[start : start + ROWS], device=device))
            contexts.append(_wide(context_of(states, spec, tower.final_layer_norm)))
            pooled.append(_wide(states.pooled))
        return torch.cat(contexts), torch.cat(pooled)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _distinct(texts: list[list[tuple[int, ...]]]) -> tuple[list[tuple[int, ...]], Tensor]:
    """Return the distinct rows, and for each text (B) and chunk (k) its row's index."""
    places: dict[tuple[int, ...], int] = {}
    index = [[places.setdefault(row, len(places)) for row in rows] for rows in texts]
    return list(places), torch.tensor(index)


def _emphasize(context: Tensor, texts: list[Chunks], count: int, *, restore: bool) -> Tensor:
    """Multiply states (B, k, 77, D) by their tokens' weights; `restore` the mean that each chunk had."""
    weights = torch.tensor(
        [text.weights(count) for text in texts], dtype=context.dtype, device=context.device
    )
    if bool((weights == 1).all()):
        return context
    scaled = context * weights[..., None]
    if not restore:
        return scaled
    before, after = (x.mean(dim=(2, 3), keepdim=True) for x in (context, scaled))
    ratio = before / after
    return scaled * torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))
