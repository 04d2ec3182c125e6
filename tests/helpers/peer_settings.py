"""Settings of public models, and unusual ones, by the names of diffusers and transformers."""

SD = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
NO_1X1 = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
AUTOENCODERS = {
    "Stable Diffusion 1.x, 2.x": SD,
    "SDXL": {**SD, "scaling_factor": 0.13025, "force_upcast": True},
    "SD 3": {**SD, **NO_1X1, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    "FLUX.1": {**SD, **NO_1X1, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    "x4 upscaler": {**SD, "block_out_channels": (128, 256, 512), "scaling_factor": 0.08333},
}
ODD_AUTOENCODERS = {
    "gray images, decreasing widths": {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (24, 8, 16),
        "layers_per_block": 3,
        "norm_num_groups": 8,
    },
    "four image channels, latents_mean and latents_std": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
        "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
        "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
    },
    "one level, no attention": {
        "block_out_channels": (32,),
        "mid_block_add_attention": False,
        "latent_channels": 3,
    },
    "no 1x1 convolutions, 16 latent channels": {
        **NO_1X1,
        "block_out_channels": (16, 48, 32),
        "norm_num_groups": 16,
        "shift_factor": -0.2,
    },
}
SD15 = {"cross_attention_dim": 768}
SD21 = {
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
X4_UPSCALER = {
    "in_channels": 7,
    "block_out_channels": (256, 512, 512, 1024),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    "only_cross_attention": (True, True, True, False),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "num_class_embeds": 1000,
}
UNETS = {
    "Stable Diffusion 1.x": SD15,
    "Stable Diffusion 2.x": SD21,
    "inpainting (9 channels)": {**SD15, "in_channels": 9},
    "x4 upscaler (7 channels, noise levels)": X4_UPSCALER,
}
SMALL_UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
ODD_UNETS = {
    "heads per level": SMALL_UNET,
    "linear projection, 8 channels": {
        **SMALL_UNET,
        "in_channels": 8,
        "out_channels": 8,
        "use_linear_projection": True,
        "attention_head_dim": 4,
    },
    "three levels with attention": {
        **SMALL_UNET,
        "in_channels": 9,
        "block_out_channels": (16, 40, 24),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": (4, 5, 3),
    },
    "attention in the middle only, layers per level": {
        **SMALL_UNET,
        "block_out_channels": (48, 16, 32),
        "layers_per_block": (1, 3, 2),
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "attention_head_dim": 8,
    },
    "attention in the upsampling half only": {
        **SMALL_UNET,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "use_linear_projection": True,
    },
    "no text": {
        **SMALL_UNET,
        "down_block_types": ("DownBlock2D",) * 2,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("UpBlock2D",) * 2,
    },
    "no text, self-attention at one level": {
        **SMALL_UNET,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    },
    "self-attention and text": {
        **SMALL_UNET,
        "down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": 8,
    },
    "x4 upscaler, narrow": {
        **X4_UPSCALER,
        "block_out_channels": (16, 32, 32, 48),
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "num_class_embeds": 350,
    },
    "pooled text": {
        **SMALL_UNET,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 3,
    },
    "pooled text, noise levels": {
        **SMALL_UNET,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 8,
        "num_class_embeds": 1000,
    },
    "self-attention in the middle only, class embedded like a timestep": {
        **SMALL_UNET,
        "only_cross_attention": True,
        "class_embed_type": "timestep",
    },
}

TEXT_ENCODERS = {
    "Stable Diffusion 1.x (CLIP ViT-L/14)": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    "Stable Diffusion 2.x (OpenCLIP ViT-H/14, 23 layers)": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}

# config.json of public repositories, except for the widths.
PUBLISHED_1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [32] * 4,
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
PUBLISHED_2 = PUBLISHED_1 | {
    "attention_head_dim": [2, 4, 8, 8],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
PUBLISHED_UPSCALER = PUBLISHED_2 | {
    "attention_head_dim": 8,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
    "in_channels": 7,
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, True, False],
    "sample_size": 128,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
}
PUBLISHED_UNETS = {
    "Stable Diffusion 1": PUBLISHED_1,
    "inpainting": PUBLISHED_1 | {"in_channels": 9},
    "Stable Diffusion 2": PUBLISHED_2,
    "x4 upscaler": PUBLISHED_UPSCALER,
}
PUBLISHED_VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "block_out_channels": [32] * 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
LATER = {"_name_or_path": "../vae/", "force_upcast": True, "norm_num_groups": 32}
PUBLISHED_AUTOENCODERS = {
    "Stable Diffusion 1": PUBLISHED_VAE,
    "SDXL": {**PUBLISHED_VAE, **LATER, "sample_size": 1024, "scaling_factor": 0.13025},
    "SD 3": {
        **PUBLISHED_VAE,
        **LATER,
        "latent_channels": 16,
        "latents_mean": None,
        "latents_std": None,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    },
    "FLUX.1": {
        **PUBLISHED_VAE,
        **LATER,
        "latent_channels": 16,
        "latents_mean": None,
        "latents_std": None,
        "mid_block_add_attention": True,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    },
    "Playground 2.5": {
        **PUBLISHED_VAE,
        **LATER,
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
        "scaling_factor": 0.5,
    },
}
