"""The config files of a folder in diffusers' layout, from a Spec: what folder.py reads, written. Torch-free.

Only what diffusers can say is said there; ddgen.json beside them holds the whole Spec.
"""

from dataclasses import replace
from typing import Any

from ddgen.errors import ModelError
from ddgen.nets.config import FirstStageConfig, KLConfig, PatchConfig, TinyConfig, UNetConfig
from ddgen.text.config import TowerSpec
from ddgen.weights.arch import Arch
from ddgen.weights.spec import Spec

Json = dict[str, Any]


def unet_config(arch: Arch) -> Json:
    """Return unet/config.json.

    Raises:
        ModelError: a depth that diffusers' U-Net cannot have.
    """
    unet = arch.unet
    levels = len(unet.channel_mult)
    down = [_level(depths) for depths in unet.down_depth]
    up = [_level(depths) for depths in unet.up_depth[::-1]]
    if unet.mid_depth and not any(unet.down_depth[-1]):
        down[-1] = unet.mid_depth  # diffusers reads the middle's depth from the last level
    elif unet.mid_depth and unet.mid_depth != unet.down_depth[-1][-1]:
        raise ModelError(
            "the middle of this U-Net has another depth than its last level, which diffusers cannot have",
            id="model.layout",
        )
    mirrored = all(
        a == b or not any(depths) for a, b, depths in zip(up, down[::-1], unet.up_depth[::-1], strict=True)
    )
    depth: Any = down
    if not mirrored:
        depth = [[value] * unet.num_res_blocks if isinstance(value, int) else value for value in down]
    config: Json = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": unet.in_channels + unet.position_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": [unet.model_channels * factor for factor in unet.channel_mult],
        "layers_per_block": unet.num_res_blocks,
        "down_block_types": [
            "CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in unet.down_depth
        ],
        "up_block_types": [
            "CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in unet.up_depth[::-1]
        ],
        "mid_block_type": {None: None, 0: "UNetMidBlock2D"}.get(unet.mid_depth, "UNetMidBlock2DCrossAttn"),
        "transformer_layers_per_block": depth if len(set(map(str, down))) > 1 else down[0],
        "reverse_transformer_layers_per_block": None if mirrored else up,
        "attention_head_dim": list(unet.heads) if len(set(unet.heads)) > 1 else unet.heads[0],
        "cross_attention_dim": unet.context_dim,
        "use_linear_projection": unet.linear_projection,
        "norm_num_groups": 32,
        "norm_eps": 1e-05,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }
    if levels == 1:
        config["transformer_layers_per_block"] = down[0]
    if unet.guidance_dim:
        config["time_cond_proj_dim"] = unet.guidance_dim
    if unet.vector_dim and arch.vector_ids:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": unet.vector_dim,
        }
    elif unet.vector_dim:
        config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": unet.vector_dim}
    return config


def _level(depths: tuple[int, ...]) -> Any:
    """Return the depth of a level: one number where its blocks agree (1 where it has none, as the published
    files say)."""
    if not any(depths):
        return 1
    return depths[0] if len(set(depths)) == 1 else list(depths)


def first_stage_config(stage: FirstStageConfig) -> Json:
    """Return vae/config.json; the lossless patches have none."""
    if isinstance(stage, TinyConfig):
        return {
            "_class_name": "AutoencoderTiny",
            "latent_channels": stage.latent_channels,
            "scaling_factor": 1.0,
        }
    assert isinstance(stage, KLConfig)
    levels = len(stage.channel_mult)
    config: Json = {
        "_class_name": "AutoencoderKL",
        "in_channels": stage.in_channels * stage.patch**2,
        "out_channels": stage.in_channels * stage.patch**2,
        "latent_channels": stage.latent_channels,
        "block_out_channels": [stage.model_channels * factor for factor in stage.channel_mult],
        "layers_per_block": stage.num_res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "sample_size": 512,
        "scaling_factor": stage.scale_factor,
        "force_upcast": stage.force_upcast,
    }
    if stage.patch != 1:
        config["patch"] = stage.patch  # diffusers ignores it: see `unsaid`
    if stage.latents_mean is not None and stage.latents_std is not None:
        config |= {"latents_mean": list(stage.latents_mean), "latents_std": list(stage.latents_std)}
    return config


def folder_tower(tower: TowerSpec) -> TowerSpec:
    """Return the tower as a folder holds it: without a last block that is never used, nor a projection that
    is never read."""
    config = tower.config
    if not tower.pooled:
        config = replace(config, projection_dim=None)
    if tower.layer == -2 and tower.final_norm and not tower.pooled:
        return replace(tower, config=replace(config, layers=config.layers - 1), layer=-1)
    return replace(tower, config=config)


def text_config(tower: TowerSpec) -> Json:
    """Return text_encoder/config.json of a tower that `folder_tower` has seen."""
    clip = tower.config
    return {
        "architectures": ["CLIPTextModelWithProjection" if clip.projection_dim else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": clip.vocab_size,
        "max_position_embeddings": clip.positions,
        "hidden_size": clip.width,
        "num_hidden_layers": clip.layers,
        "num_attention_heads": clip.heads,
        "intermediate_size": clip.mlp,
        "hidden_act": clip.activation,
        "projection_dim": clip.projection_dim or clip.width,
        "layer_norm_eps": 1e-05,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


def tokenizer_configs(tower: TowerSpec) -> dict[str, Json]:
    """Return the small files of a tokenizer folder; only the padding differs between towers."""
    pad = {0: "!", 49407: "<|endoftext|>"}.get(tower.pad_id, "<|endoftext|>")
    words = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    return {
        "special_tokens_map.json": dict(words),
        "tokenizer_config.json": words
        | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
    }


def scheduler_config(spec: Spec) -> Json | None:
    """Return scheduler/scheduler_config.json; None for schedules that diffusers does not have."""
    schedule = spec.schedule
    words = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    if schedule["kind"] == "edm" and spec.prediction == "edm":
        return {
            "_class_name": "EDMDPMSolverMultistepScheduler",
            "sigma_min": schedule.get("sigma_min", 0.002),
            "sigma_max": schedule.get("sigma_max", 80.0),
            "sigma_data": spec.sigma_data,
            "prediction_type": "epsilon",
        }
    if schedule["kind"] not in ("scaled_linear", "linear") or spec.prediction not in words:
        return None
    beta_start, beta_end = (0.00085, 0.012) if schedule["kind"] == "scaled_linear" else (1e-4, 0.02)
    return {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": schedule["kind"],
        "beta_start": schedule.get("beta_start", beta_start),
        "beta_end": schedule.get("beta_end", beta_end),
        "num_train_timesteps": schedule.get("steps", 1000),
        "prediction_type": words[spec.prediction],
        "rescale_betas_zero_snr": bool(schedule.get("zero_terminal_snr", False)),
        "timestep_spacing": "trailing" if spec.defaults.spacing == "trailing" else "leading",
        "steps_offset": 1,
    }


def model_index(spec: Spec, folders: tuple[str, ...]) -> Json | None:
    """Return model_index.json; None for models that no pipeline of diffusers runs. `folders`: the text
    encoders' names."""
    arch = spec.arch
    pipeline = _pipeline(arch.unet, bool(arch.vector_ids), len(arch.text))
    if pipeline is None or scheduler_config(spec) is None or not isinstance(arch.first_stage, KLConfig):
        return None
    index: Json = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", scheduler_config(spec)["_class_name"]],  # type: ignore[index]
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, tower in zip(folders, arch.text, strict=True):
        index[name] = ["transformers", text_config(folder_tower(tower))["architectures"][0]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if arch.vector_ids:
        index["force_zeros_for_empty_prompt"] = spec.zero_negative
        for name in ("text_encoder", "tokenizer"):
            index.setdefault(name, [None, None])
        if "aesthetic_score" in arch.vector_ids:
            index["requires_aesthetics_score"] = True
    else:
        index |= {
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
    return index


def unsaid(spec: Spec) -> tuple[str, ...]:
    """Return what diffusers' layout cannot say of a model and its users have to do themselves, a line each."""
    stage, unet, lines = spec.arch.first_stage, spec.arch.unet, []
    if isinstance(stage, KLConfig) and stage.patch != 1:
        n = stage.patch
        lines.append(
            f"vae: {stage.in_channels * n * n} channels are {n} x {n} pixels as torch's pixel_unshuffle(pictures, {n})"
            f" lays them; pixel_shuffle(decoded, {n}) makes pictures again"
        )
    elif isinstance(stage, PatchConfig):
        n = stage.factor
        lines.append(f"there is no vae: latents are pixel_unshuffle(pictures, {n})")
    if unet.position_channels:
        lines.append(
            f"unet: {unet.in_channels} of its {unet.in_channels + unet.position_channels} input channels are latents, "
            f"{unet.position_channels} say where a pixel is"
        )
    if unet.vector_dim and not spec.arch.vector_ids:
        lines.append("unet: class_labels takes the pooled text")
    if scheduler_config(spec) is None:
        kind = spec.schedule["kind"]
        lines.append(f"scheduler: none of diffusers' has the schedule '{kind}' with the prediction '{spec.prediction}'")
    return tuple(lines)


def _pipeline(unet: UNetConfig, sized: bool, towers: int) -> str | None:
    if unet.position_channels or (unet.vector_dim and not sized):
        return None
    if sized:
        wide = {
            4: "StableDiffusionXLPipeline",
            9: "StableDiffusionXLInpaintPipeline",
            8: "StableDiffusionXLInstructPix2PixPipeline",
        }
        return "StableDiffusionXLImg2ImgPipeline" if towers == 1 else wide.get(unet.in_channels)
    plain = {
        4: "StableDiffusionPipeline",
        9: "StableDiffusionInpaintPipeline",
        8: "StableDiffusionInstructPix2PixPipeline",
    }
    return plain.get(unet.in_channels)


def folder_arch(arch: Arch) -> tuple[Arch, tuple[str, ...]]:
    """Return the Arch as a folder holds it, and the names of its text encoders' folders."""
    refiner = len(arch.text) == 1 and bool(arch.vector_ids)
    names = ("text_encoder_2",) if refiner else ("text_encoder", "text_encoder_2")[: len(arch.text)]
    return replace(arch, text=tuple(folder_tower(tower) for tower in arch.text)), names
