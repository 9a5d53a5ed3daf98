"""What the real rules of other projects decide: parameter, shape, `+` decays.

Made with torch 2.14.1 on models of few layers and small sizes, each distinct name and number of
axes once; the real functions were run:

- transformers 4.57.1: `Trainer.get_decay_parameter_names(model)`.
- timm 1.0.31: `param_groups_weight_decay`, its list from `model.no_weight_decay()`.
- karpathy/nanoGPT 3adf61e: `GPT(config).configure_optimizers(...)`, the groups of its optimizer.
- NVIDIA/Megatron-LM d98e8a6: `get_standard_config_overrides(config)` and `ParamKey.matches`, taken
  out of their files, on the names of a GPT with mixture of experts and Mamba's mixer.
"""

# fmt: off
TRANSFORMERS = {  # model -> its LayerNorms that are not called so, table
    "GPT2": (["ln_*/*"], """
    wte.weight              16x8          +
    wpe.weight              8x8           +
    h.0.ln_1.weight         8             -
    h.0.ln_1.bias           8             -
    h.0.attn.c_attn.weight  8x24          +
    h.0.attn.c_attn.bias    24            -
    h.0.attn.c_proj.weight  8x8           +
    h.0.attn.c_proj.bias    8             -
    h.0.mlp.c_fc.weight     8x32          +
    h.0.mlp.c_fc.bias       32            -
    h.0.mlp.c_proj.weight   32x8          +
    h.0.mlp.c_proj.bias     8             -
    ln_f.weight             8             -
    ln_f.bias               8             -
    """),
    "BERT": ([], """
    embeddings.word_embeddings.weight                  16x8          +
    embeddings.position_embeddings.weight              8x8           +
    embeddings.token_type_embeddings.weight            2x8           +
    embeddings.LayerNorm.weight                        8             -
    embeddings.LayerNorm.bias                          8             -
    encoder.layer.0.attention.self.query.weight        8x8           +
    encoder.layer.0.attention.self.query.bias          8             -
    encoder.layer.0.attention.self.key.weight          8x8           +
    encoder.layer.0.attention.self.key.bias            8             -
    encoder.layer.0.attention.self.value.weight        8x8           +
    encoder.layer.0.attention.self.value.bias          8             -
    encoder.layer.0.attention.output.dense.weight      8x8           +
    encoder.layer.0.attention.output.dense.bias        8             -
    encoder.layer.0.attention.output.LayerNorm.weight  8             -
    encoder.layer.0.attention.output.LayerNorm.bias    8             -
    encoder.layer.0.intermediate.dense.weight          16x8          +
    encoder.layer.0.intermediate.dense.bias            16            -
    encoder.layer.0.output.dense.weight                8x16          +
    encoder.layer.0.output.dense.bias                  8             -
    encoder.layer.0.output.LayerNorm.weight            8             -
    encoder.layer.0.output.LayerNorm.bias              8             -
    pooler.dense.weight                                8x8           +
    pooler.dense.bias                                  8             -
    """),
    "LLaMA": ([], """
    model.embed_tokens.weight                       16x8          +
    model.layers.0.self_attn.q_proj.weight          8x8           +
    model.layers.0.self_attn.k_proj.weight          8x8           +
    model.layers.0.self_attn.v_proj.weight          8x8           +
    model.layers.0.self_attn.o_proj.weight          8x8           +
    model.layers.0.mlp.gate_proj.weight             16x8          +
    model.layers.0.mlp.up_proj.weight               16x8          +
    model.layers.0.mlp.down_proj.weight             8x16          +
    model.layers.0.input_layernorm.weight           8             -
    model.layers.0.post_attention_layernorm.weight  8             -
    model.norm.weight                               8             -
    lm_head.weight                                  16x8          +
    """),
    "T5": ([], """
    shared.weight                                                         16x8          +
    encoder.block.0.layer.0.SelfAttention.q.weight                        8x8           +
    encoder.block.0.layer.0.SelfAttention.k.weight                        8x8           +
    encoder.block.0.layer.0.SelfAttention.v.weight                        8x8           +
    encoder.block.0.layer.0.SelfAttention.o.weight                        8x8           +
    encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight  32x2          -
    encoder.block.0.layer.0.layer_norm.weight                             8             -
    encoder.block.0.layer.1.DenseReluDense.wi.weight                      16x8          +
    encoder.block.0.layer.1.DenseReluDense.wo.weight                      8x16          +
    encoder.final_layer_norm.weight                                       8             -
    decoder.block.0.layer.0.SelfAttention.q.weight                        8x8           +
    decoder.block.0.layer.0.SelfAttention.k.weight                        8x8           +
    decoder.block.0.layer.0.SelfAttention.v.weight                        8x8           +
    decoder.block.0.layer.0.SelfAttention.o.weight                        8x8           +
    decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight  32x2          -
    decoder.block.0.layer.0.layer_norm.weight                             8             -
    decoder.block.0.layer.1.EncDecAttention.q.weight                      8x8           +
    decoder.block.0.layer.1.EncDecAttention.k.weight                      8x8           +
    decoder.block.0.layer.1.EncDecAttention.v.weight                      8x8           +
    decoder.block.0.layer.1.EncDecAttention.o.weight                      8x8           +
    decoder.block.0.layer.2.DenseReluDense.wi.weight                      16x8          +
    decoder.block.0.layer.2.DenseReluDense.wo.weight                      8x16          +
    decoder.final_layer_norm.weight                                       8             -
    """),
    "ViT": ([], """
    embeddings.cls_token                              1x1x8         +
    embeddings.position_embeddings                    1x5x8         +
    embeddings.patch_embeddings.projection.weight     8x3x4x4       +
    embeddings.patch_embeddings.projection.bias       8             -
    encoder.layer.0.attention.attention.query.weight  8x8           +
    encoder.layer.0.attention.attention.query.bias    8             -
    encoder.layer.0.attention.attention.key.weight    8x8           +
    encoder.layer.0.attention.attention.key.bias      8             -
    encoder.layer.0.attention.attention.value.weight  8x8           +
    encoder.layer.0.attention.attention.value.bias    8             -
    encoder.layer.0.attention.output.dense.weight     8x8           +
    encoder.layer.0.attention.output.dense.bias       8             -
    encoder.layer.0.intermediate.dense.weight         16x8          +
    encoder.layer.0.intermediate.dense.bias           16            -
    encoder.layer.0.output.dense.weight               8x16          +
    encoder.layer.0.output.dense.bias                 8             -
    encoder.layer.0.layernorm_before.weight           8             -
    encoder.layer.0.layernorm_before.bias             8             -
    encoder.layer.0.layernorm_after.weight            8             -
    encoder.layer.0.layernorm_after.bias              8             -
    layernorm.weight                                  8             -
    layernorm.bias                                    8             -
    pooler.dense.weight                               8x8           +
    pooler.dense.bias                                 8             -
    """),
    "Mamba": ([], """
    embeddings.weight               16x8          +
    layers.0.norm.weight            8             -
    layers.0.mixer.A_log            16x4          +
    layers.0.mixer.D                16            +
    layers.0.mixer.conv1d.weight    16x1x4        +
    layers.0.mixer.conv1d.bias      16            -
    layers.0.mixer.in_proj.weight   32x8          +
    layers.0.mixer.x_proj.weight    9x16          +
    layers.0.mixer.dt_proj.weight   16x1          +
    layers.0.mixer.dt_proj.bias     16            -
    layers.0.mixer.out_proj.weight  8x16          +
    norm_f.weight                   8             +
    """),
    "Qwen3": ([], """
    model.embed_tokens.weight                       16x8          +
    model.layers.0.self_attn.q_proj.weight          8x8           +
    model.layers.0.self_attn.k_proj.weight          8x8           +
    model.layers.0.self_attn.v_proj.weight          8x8           +
    model.layers.0.self_attn.o_proj.weight          8x8           +
    model.layers.0.self_attn.q_norm.weight          4             -
    model.layers.0.self_attn.k_norm.weight          4             -
    model.layers.0.mlp.gate_proj.weight             16x8          +
    model.layers.0.mlp.up_proj.weight               16x8          +
    model.layers.0.mlp.down_proj.weight             8x16          +
    model.layers.0.input_layernorm.weight           8             -
    model.layers.0.post_attention_layernorm.weight  8             -
    model.norm.weight                               8             -
    lm_head.weight                                  16x8          +
    """),
    "ResNet": ([], """
    embedder.embedder.convolution.weight                     4x3x7x7       +
    embedder.embedder.normalization.weight                   4             +
    embedder.embedder.normalization.bias                     4             -
    encoder.stages.0.layers.0.shortcut.convolution.weight    8x4x1x1       +
    encoder.stages.0.layers.0.shortcut.normalization.weight  8             +
    encoder.stages.0.layers.0.shortcut.normalization.bias    8             -
    encoder.stages.0.layers.0.layer.0.convolution.weight     8x4x3x3       +
    encoder.stages.0.layers.0.layer.0.normalization.weight   8             +
    encoder.stages.0.layers.0.layer.0.normalization.bias     8             -
    """),
}

TIMM = {  # model -> the names in its list that it has, table
    "vit_tiny_patch16_224": (["cls_token", "pos_embed"], """
    cls_token                  1x1x192       -
    pos_embed                  1x197x192     -
    patch_embed.proj.weight    192x3x16x16   +
    patch_embed.proj.bias      192           -
    blocks.0.norm1.weight      192           -
    blocks.0.norm1.bias        192           -
    blocks.0.attn.qkv.weight   576x192       +
    blocks.0.attn.qkv.bias     576           -
    blocks.0.attn.proj.weight  192x192       +
    blocks.0.attn.proj.bias    192           -
    blocks.0.mlp.fc1.weight    768x192       +
    blocks.0.mlp.fc1.bias      768           -
    norm.weight                192           -
    norm.bias                  192           -
    head.weight                1000x192      +
    head.bias                  1000          -
    """),
    "resnet18": ([], """
    conv1.weight                  64x3x7x7      +
    bn1.weight                    64            -
    bn1.bias                      64            -
    layer1.0.conv1.weight         64x64x3x3     +
    layer1.0.bn1.weight           64            -
    layer1.0.bn1.bias             64            -
    layer2.0.downsample.0.weight  128x64x1x1    +
    layer2.0.downsample.1.weight  128           -
    layer2.0.downsample.1.bias    128           -
    fc.weight                     1000x512      +
    fc.bias                       1000          -
    """),
    "convnext_atto": ([], """
    stem.0.weight                     40x3x4x4      +
    stem.0.bias                       40            -
    stem.1.weight                     40            -
    stages.0.blocks.0.gamma           40            -
    stages.0.blocks.0.conv_dw.weight  40x1x7x7      +
    stages.0.blocks.0.conv_dw.bias    40            -
    stages.0.blocks.0.norm.weight     40            -
    stages.0.blocks.0.norm.bias       40            -
    stages.0.blocks.0.mlp.fc1.weight  160x40x1x1    +
    stages.0.blocks.0.mlp.fc1.bias    160           -
    stages.1.downsample.0.weight      40            -
    stages.1.downsample.0.bias        40            -
    stages.1.downsample.1.weight      80x40x2x2     +
    head.norm.weight                  320           -
    head.norm.bias                    320           -
    head.fc.weight                    1000x320      +
    head.fc.bias                      1000          -
    """),
    "mixer_s32_224": ([], """
    stem.proj.weight                  512x3x32x32   +
    stem.proj.bias                    512           -
    blocks.0.norm1.weight             512           -
    blocks.0.norm1.bias               512           -
    blocks.0.mlp_tokens.fc1.weight    256x49        +
    blocks.0.mlp_tokens.fc1.bias      256           -
    blocks.0.mlp_channels.fc1.weight  2048x512      +
    blocks.0.mlp_channels.fc1.bias    2048          -
    norm.weight                       512           -
    norm.bias                         512           -
    head.weight                       1000x512      +
    head.bias                         1000          -
    """),
    "swin_tiny_patch4_window7_224": (["layers.0.blocks.0.attn.relative_position_bias_table"], """
    patch_embed.proj.weight                              96x3x4x4      +
    patch_embed.proj.bias                                96            -
    patch_embed.norm.weight                              96            -
    patch_embed.norm.bias                                96            -
    layers.0.blocks.0.norm1.weight                       96            -
    layers.0.blocks.0.norm1.bias                         96            -
    layers.0.blocks.0.attn.relative_position_bias_table  169x3         -
    layers.0.blocks.0.attn.qkv.weight                    288x96        +
    layers.0.blocks.0.attn.qkv.bias                      288           -
    layers.0.blocks.0.attn.proj.weight                   96x96         +
    layers.0.blocks.0.attn.proj.bias                     96            -
    layers.0.blocks.0.mlp.fc1.weight                     384x96        +
    layers.0.blocks.0.mlp.fc1.bias                       384           -
    layers.1.downsample.norm.weight                      384           -
    layers.1.downsample.norm.bias                        384           -
    layers.1.downsample.reduction.weight                 192x384       +
    norm.weight                                          768           -
    norm.bias                                            768           -
    head.fc.weight                                       1000x768      +
    head.fc.bias                                         1000          -
    """),
    "deit3_small_patch16_224": (["cls_token", "pos_embed"], """
    cls_token                  1x1x384       -
    pos_embed                  1x196x384     -
    patch_embed.proj.weight    384x3x16x16   +
    patch_embed.proj.bias      384           -
    blocks.0.norm1.weight      384           -
    blocks.0.norm1.bias        384           -
    blocks.0.attn.qkv.weight   1152x384      +
    blocks.0.attn.qkv.bias     1152          -
    blocks.0.attn.proj.weight  384x384       +
    blocks.0.attn.proj.bias    384           -
    blocks.0.ls1.gamma         384           -
    blocks.0.mlp.fc1.weight    1536x384      +
    blocks.0.mlp.fc1.bias      1536          -
    norm.weight                384           -
    norm.bias                  384           -
    head.weight                1000x384      +
    head.bias                  1000          -
    """),
}

NANOGPT = """
    transformer.wte.weight              16x8          +
    transformer.wpe.weight              8x8           +
    transformer.h.0.ln_1.weight         8             -
    transformer.h.0.ln_1.bias           8             -
    transformer.h.0.attn.c_attn.weight  24x8          +
    transformer.h.0.attn.c_attn.bias    24            -
    transformer.h.0.attn.c_proj.weight  8x8           +
    transformer.h.0.attn.c_proj.bias    8             -
    transformer.h.0.mlp.c_fc.weight     32x8          +
    transformer.h.0.mlp.c_fc.bias       32            -
    transformer.h.0.mlp.c_proj.weight   8x32          +
    transformer.h.0.mlp.c_proj.bias     8             -
    transformer.ln_f.weight             8             -
    transformer.ln_f.bias               8             -
    """

MEGATRON = {  # apply_wd_to_qk_layernorm -> table
    False: """
    embedding.word_embeddings.weight                              16x8          +
    embedding.position_embeddings.weight                          8x8           +
    decoder.layers.0.input_layernorm.weight                       8             -
    decoder.layers.0.input_layernorm.bias                         8             -
    decoder.layers.0.self_attention.linear_qkv.weight             24x8          +
    decoder.layers.0.self_attention.linear_qkv.bias               24            -
    decoder.layers.0.self_attention.linear_qkv.layer_norm_weight  8             -
    decoder.layers.0.self_attention.q_layernorm.weight            4             -
    decoder.layers.0.self_attention.k_layernorm.weight            4             -
    decoder.layers.0.self_attention.k_layernorm.bias              4             -
    decoder.layers.0.mlp.router.weight                            4x8           +
    decoder.layers.0.mlp.router.expert_bias                       4             -
    decoder.layers.0.mlp.experts.linear_fc1.weight                4x8x16        +
    decoder.layers.0.mlp.experts.linear_fc1.bias                  4x16          -
    decoder.layers.0.mixer.A_log                                  4             -
    decoder.layers.0.mixer.conv1d.weight                          8x1x4         +
    decoder.final_layernorm.weight                                8             -
    output_layer.weight                                           16x8          +
    logit_scale                                                   -             +
    """,
    True: """
    embedding.word_embeddings.weight                              16x8          +
    embedding.position_embeddings.weight                          8x8           +
    decoder.layers.0.input_layernorm.weight                       8             -
    decoder.layers.0.input_layernorm.bias                         8             -
    decoder.layers.0.self_attention.linear_qkv.weight             24x8          +
    decoder.layers.0.self_attention.linear_qkv.bias               24            -
    decoder.layers.0.self_attention.linear_qkv.layer_norm_weight  8             -
    decoder.layers.0.self_attention.q_layernorm.weight            4             +
    decoder.layers.0.self_attention.k_layernorm.weight            4             +
    decoder.layers.0.self_attention.k_layernorm.bias              4             +
    decoder.layers.0.mlp.router.weight                            4x8           +
    decoder.layers.0.mlp.router.expert_bias                       4             -
    decoder.layers.0.mlp.experts.linear_fc1.weight                4x8x16        +
    decoder.layers.0.mlp.experts.linear_fc1.bias                  4x16          -
    decoder.layers.0.mixer.A_log                                  4             -
    decoder.layers.0.mixer.conv1d.weight                          8x1x4         +
    decoder.final_layernorm.weight                                8             -
    output_layer.weight                                           16x8          +
    logit_scale                                                   -             +
    """,
}
# fmt: on
