"""Parameter trees of public models: path, shape and what should decay, every distinct leaf once.

Written down from the sources at the commits named. `+` decays, `-` does not, `e` is a table of
embeddings. Where the project names the leaves that its decay leaves out, the marks are its own:
NFNets, BYOL, S5, LRU, Mamba, modded-nanogpt (whose tables decay: that is the switch `embeddings`).
Elsewhere they are what the field expects: matrices decay; biases, gains, positions, tokens and
rates of state space models do not. A dot in a path stays in the key, as PyTorch's flat names have
it; a slash is a level. Sizes are letters, see `SIZES`.
"""

import jax
import jax.numpy as jnp

SIZES = {
    **{"L": 4, "D": 16, "F": 32, "H": 2, "K": 8, "N": 6, "V": 64, "E": 3, "P": 9, "C": 10, "R": 5}
}

MODELS = {
    "Gemma 3, linen: google-deepmind/gemma 7691fd4": """
        embedder/input_embedding                       V D      e
        embedder/mm_input_projection/w                 F D      +
        embedder/mm_soft_embedding_norm/scale          F        -
        layer_0/attn/attn_vec_einsum/w                 H K D    +
        layer_0/attn/q_einsum/w                        H D K    +
        layer_0/attn/kv_einsum/w                       2 H D K  +
        layer_0/attn/_query_norm/scale                 K        -
        layer_0/mlp/gating_einsum                      2 F D    +
        layer_0/mlp/linear                             F D      +
        layer_0/pre_attention_norm/scale               D        -
        layer_0/post_ffw_norm/scale                    D        -
        final_norm/scale                               D        -
        vision_encoder/siglip_encoder/pos_embedding    1 P D    -
        vision_encoder/siglip_encoder/MAPHead_0/probe  1 1 D    -
        """,
    "Gemma 3 with LoRA: google-deepmind/gemma 7691fd4 (peft)": """
        layer_0/attn/q_einsum/w       H D K  +
        layer_0/attn/q_einsum/lora/a  H D R  +
        layer_0/attn/q_einsum/lora/b  R K    +
        head/kernel                   D C    +
        head/bias                     C      -
        head/lora/a                   D R    +
        head/lora/b                   R C    +
        """,
    "Gemma 3n, linen: google-deepmind/gemma 7691fd4 (gemma3n)": """
        embedder/per_layer_input_embedding        V L K  e
        embedder/per_layer_projection_norm/scale  K      -
        layer_0/altup/correction_coefs            4 L    +
        layer_0/altup/prediction_coefs            4 L L  +
        layer_0/altup/correct_output_scale        D      -
        layer_0/altup/modality_router/w           D 4    +
        layer_0/altup/router_norm/scale           D      -
        layer_0/laurel/linear_left/w              D R    +
        layer_0/laurel/linear_right/w             R D    +
        layer_0/per_layer_input_gate/w            D K    +
        """,
    "RecurrentGemma, linen: google-deepmind/recurrentgemma 2efa84d": """
        embedder/input_embedding                      V D      e
        blocks.0/temporal_pre_norm/scale              D        -
        blocks.0/recurrent_block/linear_y/kernel      D F      +
        blocks.0/recurrent_block/linear_y/bias        F        -
        blocks.0/recurrent_block/conv_1d/w            4 F      +
        blocks.0/recurrent_block/conv_1d/b            F        -
        blocks.0/recurrent_block/rg_lru/a_param       F        -
        blocks.0/recurrent_block/rg_lru/a_imag_param  F        -
        blocks.0/recurrent_block/rg_lru/input_gate/w  H D D    +
        blocks.0/recurrent_block/rg_lru/input_gate/b  H D      -
        blocks.0/attention_block/proj_q/kernel        D D      +
        blocks.0/attention_block/proj_final/bias      D        -
        blocks.0/mlp_block/ffw_up/w                   2 D F    +
        blocks.0/mlp_block/ffw_up/b                   2 1 1 F  -
        blocks.0/mlp_block/ffw_down/kernel            F D      +
        """,
    "DreamerV3, a flat dict: danijar/dreamerv3 e3f0224": """
        dyn/dynin0/kernel       D F      +
        dyn/dynin0/bias         F        -
        dyn/dynin0norm/scale    F        -
        dyn/dynhid0/kernel      K D F    +
        dyn/dynhid0norm/scale   F        -
        dyn/dyngru/bias         F        -
        dyn/prior0/kernel       D F      +
        enc/cnn0/kernel         5 5 3 D  +
        enc/cnn0norm/shift      D        -
        dec/spnorm/scale        D        -
        dec/imgout/kernel       5 5 D 3  +
        rew/head/logits/kernel  D 1      +
        pol/head/mean/kernel    D C      +
        pol/head/stddev/kernel  D C      +
        pol/head/stddev/bias    C        -
        emb/table               V D      e
        gru/init                D        -
        """,
    "Grok-1, haiku: xai-org/grok-1 7050ed2": """
        language_model/in_out_embed/embeddings                     V D    e
        language_model/positional_embeddings                       P D    -
        language_model/rms_norm/scale                              D      -
        transformer/decoder_layer_0/multi_head_attention/query/w   D F    +
        transformer/decoder_layer_0/multi_head_attention/query/b   F      -
        transformer/decoder_layer_0/multi_head_attention/linear/w  F D    +
        transformer/decoder_layer_0/rms_norm_1/scale               D      -
        transformer/decoder_layer_0/layer_norm/offset              D      -
        transformer/decoder_layer_0/router/w                       D E    +
        transformer/decoder_layer_0/moe/linear_v/w                 E D F  +
        transformer/decoder_layer_0/moe/linear_v/b                 E F    -
        transformer/decoder_layer_0/moe/rms_norm_2/scale           E D    -
        """,
    "xLSTM: NX-AI/xlstm-jax 0f3ebc2, scanned": """
        token_embedding/embedding                      V D      e
        blocks/block/xlstm_norm/scale                  L D      -
        blocks/block/xlstm/proj_up/kernel              L D F    +
        blocks/block/xlstm/q_proj/kernel               L H K K  +
        blocks/block/xlstm/q_proj/bias                 L D      -
        blocks/block/xlstm/conv1d/kernel               L 4 1 F  +
        blocks/block/xlstm/learnable_skip              L F      -
        blocks/block/xlstm/mlstm_cell/igate/kernel     L F H    +
        blocks/block/xlstm/mlstm_cell/fgate/bias       L H      -
        blocks/block/xlstm/mlstm_cell/outnorm/scale    L F      -
        blocks/block/xlstm/x_mlstm_conv_scaling/scale  L F      -
        lm_head/kernel                                 D V      +
        """,
    "S5: lindermanlab/S5 3c18fdb, bidirectional, vmapped norm": """
        encoder/encoder/kernel          K D    +
        encoder/encoder/bias            D      -
        encoder/layers_0/norm/scale     D      -
        encoder/layers_0/seq/Lambda_re  N      -
        encoder/layers_0/seq/Lambda_im  N      -
        encoder/layers_0/seq/B          N D 2  -
        encoder/layers_0/seq/C1         D N 2  +
        encoder/layers_0/seq/C2         D N 2  +
        encoder/layers_0/seq/D          D      -
        encoder/layers_0/seq/log_step   N 1    -
        encoder/layers_0/out2/kernel    D D    +
        decoder/kernel                  D C    +
        """,
    "LRU: NicolasZucchet/minimal-LRU bbd71b1": """
        encoder/layers_0/seq/theta_log        N    -
        encoder/layers_0/seq/nu_log           N    -
        encoder/layers_0/seq/gamma_log        N    -
        encoder/layers_0/seq/B_re             N D  -
        encoder/layers_0/seq/B_im             N D  -
        encoder/layers_0/seq/C_re             D N  +
        encoder/layers_0/seq/C_im             D N  +
        encoder/layers_0/seq/D                D    -
        encoder/layers_0/out1/kernel          D D  +
        encoder/layers_0/normalization/scale  D    -
        """,
    "Mamba 1, 2 and 3, flat names: state-spaces/mamba e9594ce": """
        backbone.embedding.weight               V D    e
        backbone.layers.0.norm.weight           D      -
        backbone.layers.0.mixer.in_proj.weight  F D    +
        backbone.layers.0.mixer.conv1d.weight   F 1 4  +
        backbone.layers.0.mixer.conv1d.bias     F      -
        backbone.layers.0.mixer.x_proj.weight   K F    +
        backbone.layers.0.mixer.dt_proj.weight  F R    +
        backbone.layers.0.mixer.dt_proj.bias    F      -
        backbone.layers.0.mixer.A_log           F N    -
        backbone.layers.0.mixer.D               F      -
        backbone.layers.0.mixer.dt_bias         H      -
        backbone.layers.0.mixer.B_bias          H R N  -
        backbone.layers.0.mixer.C_bias          H R N  -
        backbone.layers.0.mixer.norm.weight     F      -
        backbone.norm_f.weight                  D      -
        lm_head.weight                          V D    +
        """,
    "NFNet, haiku: deepmind/deepmind-research d8df415 (nfnets)": """
        NFNet/~/stem_conv0/w                        3 3 3 D  +
        NFNet/~/stem_conv0/gain                     D        -
        NFNet/~/stem_conv0/bias                     D        -
        NFNet/~/nf_block/skip_gain                           -
        NFNet/~/nf_block/~/conv0/w                  1 1 D F  +
        NFNet/~/nf_block/~/squeeze_excite/linear/w  F K      +
        NFNet/~/nf_block/~/squeeze_excite/linear/b  K        -
        NFNet/~/linear/w                            F C      +
        """,
    "BYOL, haiku: deepmind/deepmind-research d8df415 (byol)": """
        res_net50/~/initial_conv/w                                      7 7 3 D  +
        res_net50/~/initial_batchnorm/scale                             1 1 1 D  -
        res_net50/~/initial_batchnorm/offset                            1 1 1 D  -
        res_net50/~/block_group_0/~/block_0/~/shortcut_conv/w           1 1 D F  +
        res_net50/~/block_group_0/~/block_0/~/shortcut_batchnorm/scale  1 1 1 F  -
        projector/linear/w                                              F D      +
        projector/linear/b                                              D        -
        projector/batch_norm/offset                                     1 D      -
        """,
    "modded-nanogpt, flat names: KellerJordan/modded-nanogpt f411b3d": """
        embed.weight         V D       e
        bigram_embed.weight  V D       e
        value_embeds         F D       e
        lm_head.weight       D V       +
        smear_gate.weight    1 12      -
        ve_gate_bank         5 H 12    +
        qk_bank              E F D     +
        vo_bank              E D D     +
        mlp_bank             12 2 F D  +
        post_lambdas         L 2       -
        resid_lambdas        L 2       -
        scalars              D         -
        mudd_w1              L R D     +
        mudd_w2              L K R     +
        mudd_b2              L K       -
        mudd_gate_b2         2 K       -
        _mudd_gate_scale               -
        """,
    "ViT, hybrid, Mixer, LiT: google-research/vision_transformer c6de1e5": """
        cls                                                                     1 1 D    -
        embedding/kernel                                                        4 4 3 D  +
        conv_root/kernel                                                        7 7 3 D  +
        gn_root/scale                                                           D        -
        block1/unit1/gn_proj/scale                                              1 1 1 D  -
        block1/unit1/conv_proj/kernel                                           1 1 D F  +
        Transformer/posembed_input/pos_embedding                                1 P D    -
        Transformer/encoderblock_0/LayerNorm_0/scale                            D        -
        Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel                    D F      +
        Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel  D H K    +
        Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias    H K      -
        Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel    H K D    +
        MixerBlock_0/token_mixing/Dense_0/kernel                                P F      +
        MixerBlock_0/channel_mixing/Dense_1/bias                                D        -
        pre_head_layer_norm/scale                                               D        -
        pre_logits/kernel                                                       D D      +
        head/kernel                                                             D C      +
        t                                                                       1        -
        """,
    "V-MoE, Soft MoE: google-research/vmoe 942a78b": """
        Encoder/encoderblock_1/Moe/Router/dense/kernel   D E    +
        Encoder/encoderblock_1/Moe/Router/mu             D E K  +
        Encoder/encoderblock_1/Moe/Router/scale                 -
        Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel    E D F  +
        Encoder/encoderblock_1/Moe/Mlp/Dense_0/bias      E F    -
        Encoder/encoder_norm/scale                       D      -
        Encoder/posembed_input/pos_embedding             1 P D  -
        MapHead/probe                                    1 1 D  -
        MapHead/MultiHeadDotProductAttention/value/bias  H K    -
        """,
    "T5 in Flaxformer, scanned: google/flaxformer 399ea3a": """
        token_embedder/embedding                         V D        e
        encoder/relpos_bias/rel_embedding                H F        -
        decoder/decoder/self_attention/qkv_fused/kernel  D L 3 H K  +
        decoder/decoder/self_attention/out/kernel        H L K D    +
        decoder/decoder/mlp/wi_fused/kernel              D L 2 F    +
        decoder/decoder/mlp/wo/kernel                    F L D      +
        decoder/decoder/pre_mlp_layer_norm/scale         D L        -
        decoder/decoder_norm/scale                       D          -
        position_embedder/pos_embedding                  P D        -
        logits_dense/kernel                              D V        +
        """,
    "Gemma 4, nnx: google/tunix c7d8950": """
        embedder/input_embedding                V D      e
        embedder/per_layer_input_embedding      V L K    e
        embedder/audio_input_projection/w       F D      +
        layers/0/attn/q_einsum/w                H D K    +
        layers/0/mlp/gate_proj/kernel           D F      +
        layers/0/skip_scale                     1        -
        layers/0/moe/router_logits              D E      +
        layers/0/moe/gating_einsum              E 2 D F  +
        layers/0/moe/linear                     E F D    +
        layers/0/moe/per_expert_scale           E        -
        layers/0/moe/router_scale               D        -
        layers/0/moe_pre_ffw_norm/scale         D        -
        audio/layers/0/depthwise_conv1d/kernel  5 1 D    +
        audio/layers/0/attn/per_dim_scale       K        -
        audio/layers/0/attn/pos_proj/kernel     D H K    +
        audio/layers/0/linear/clip_input_min             -
        audio/subsampling_0/kernel              3 3 1 D  +
        audio/norm_0/scale                      D        -
        """,
    "RWKV-4, Mamba and GPT-OSS, nnx: erfanzar/EasyDeL 090a03b": """
        model/embeddings/embedding                       V D    e
        model/blocks/0/pre_ln/scale                      D      -
        model/blocks/0/attention/time_decay              D      -
        model/blocks/0/attention/time_first              D      -
        model/blocks/0/attention/time_mix_key            1 1 D  -
        model/blocks/0/attention/receptance/kernel       D D    +
        model/blocks/0/feed_forward/time_mix_receptance  1 1 D  -
        model/ln_out/bias                                D      -
        backbone/layers/0/mixer/A_log                    F N    -
        backbone/layers/0/mixer/D                        F      -
        backbone/layers/0/mixer/conv1d/kernel            4 1 F  +
        backbone/layers/0/norm/kernel                    D      -
        gpt_oss/layers/0/self_attn/sinks                 H      -
        gpt_oss/layers/0/self_attn/q_proj/kernel         D F    +
        gpt_oss/layers/0/mlp/experts/gate_proj/kernel    E D F  +
        gpt_oss/layers/0/mlp/experts/gate_proj/bias      E F    -
        gpt_oss/layers/0/input_layernorm/kernel          D      -
        """,
    "AlphaFold 3, haiku: google-deepmind/alphafold3 c0f97ed": """
        evoformer/left_single/weights                                               F K      +
        evoformer/~_relative_encoding/position_activations/weights                  F K      +
        evoformer/prev_embedding_layer_norm/scale                                   K        -
        evoformer/prev_embedding/weights                                            K K      +
        evoformer/__layer_stack/outer_product_mean/output_w                         L K K D  +
        evoformer/__layer_stack/outer_product_mean/output_b                         L D      -
        evoformer/__layer_stack/pair_attention1/act_norm/scale                      L D      -
        evoformer/__layer_stack/pair_attention1/act_norm/offset                     L D      -
        evoformer/__layer_stack/pair_attention1/q_projection/weights                L D H K  +
        trunk_pairformer/__layer_stack/single_attention_q_projection/bias           L H K    -
        evoformer/__layer_stack/triangle_multiplication_outgoing/center_norm/scale  L D      -
        transformer/__layer_stack/transformerffw_single_cond_scale/weights          L D D    +
        transformer/__layer_stack/transformerffw_single_cond_scale/bias             L D      -
        diffusion_head/single_cond_embedding_norm/scale                             D        -
        diffusion_head/noise_embedding_initial_projection/weights                   F D      +
        confidence_head/plddt_logits/weights                                        D H C    +
        """,
    "GraphCast, GenCast, haiku: google-deepmind/graphcast 9c034db": """
        grid2mesh_gnn/~_networks_builder/encoder_edges_grid2mesh_mlp/~/linear_0/w   4 D  +
        grid2mesh_gnn/~_networks_builder/encoder_edges_grid2mesh_mlp/~/linear_0/b   D    -
        grid2mesh_gnn/~_networks_builder/encoder_edges_grid2mesh_layer_norm/scale   D    -
        grid2mesh_gnn/~_networks_builder/encoder_edges_grid2mesh_layer_norm/offset  D    -
        xarray_linear/w_temperature                                                 D F  +
        xarray_linear/b_temperature                                                 F    -
        norm_conditioning/linear/w                                                  D F  +
        norm_conditioning/linear/b                                                  F    -
        """,
    "Nucleotide Transformer, Enformer, haiku: instadeepai/nucleotide-transformer 2dc37b8": """
        esm_transformer/embed/embeddings                                    V D      e
        esm_transformer/emb_layer_norm_before/scale                         D        -
        esm_transformer/attention_layer_0/self_attention/query/w            D F      +
        esm_transformer/attention_layer_0/self_attention/bias_k             1 1 H K  -
        esm_transformer/attention_layer_0/self_attention_layer_norm/offset  D        -
        esm_transformer/attention_layer_0/fc1/w                             D F      +
        roberta_lm_head/lm_head_fc_1/b                                      D        -
        enformer/attention/rel_content_bias                                 1 H 1 K  -
        enformer/attention/rel_pos_bias                                     1 H 1 K  -
        enformer/attention/attn_to_rel_k/w                                  D F      +
        enformer/stem/conv/w                                                15 4 D   +
        perceiver/latent_queries                                            P D      -
        """,
    "Whisper, linen: sanchit-gandhi/whisper-jax f983178": """
        model/encoder/conv1/kernel                                            3 F D  +
        model/encoder/conv1/bias                                              D      -
        model/encoder/embed_positions/embedding                               P D    -
        model/encoder/layers/0/self_attn/q_proj/kernel                        D D    +
        model/encoder/layers/0/self_attn_layer_norm/scale                     D      -
        model/encoder/layers/FlaxEncoderScannableLayer/fc1/kernel             D L F  +
        model/encoder/layers/FlaxEncoderScannableLayer/final_layer_norm/bias  D L    -
        model/decoder/embed_tokens/embedding                                  V D    e
        model/decoder/layers/0/encoder_attn/out_proj/bias                     D      -
        """,
    "Stable Diffusion's UNet, linen: google/maxdiffusion c18fdd2": """
        time_embedding/linear_1/kernel                                         D F      +
        add_embedding/linear_2/bias                                            F        -
        conv_in/kernel                                                         3 3 4 D  +
        down_blocks_0/resnets_0/time_emb_proj/kernel                           F D      +
        down_blocks_0/resnets_0/norm1/scale                                    D        -
        down_blocks_0/resnets_0/conv_shortcut/kernel                           1 1 D F  +
        down_blocks_0/attentions_0/norm/bias                                   D        -
        down_blocks_0/attentions_0/proj_in/kernel                              1 1 D D  +
        down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel      D D      +
        down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_out_0/kernel  D D      +
        down_blocks_0/attentions_0/transformer_blocks_0/ff/net_0/proj/kernel   D F      +
        down_blocks_0/attentions_0/transformer_blocks_0/norm3/scale            D        -
        conv_norm_out/scale                                                    D        -
        conv_out/bias                                                          4        -
        """,
    "PPO's and SAC's networks, linen: google/brax 0b96d05; luchris429/purejaxrl 31756b1": """
        params/hidden_0/kernel         N D  +
        params/hidden_0/bias           D    -
        params/LayerNorm_0/scale       D    -
        params/std_param/value         K    -
        params/std_logparam/log_value  K    -
        actor/Dense_2/kernel           D K  +
        actor/log_std                  K    -
        critic/Dense_5/kernel          D 1  +
        critic/Dense_5/bias            1    -
        rnn/GRUCell_0/hn/kernel        D D  +
        """,
    "Transformers in penzai, labels as keys: google-deepmind/penzai aac7808": """
        transformer/embedder.embeddings                         V D    e
        transformer/block_0/pre_attention_norm/scale.weights    D      -
        transformer/blocks/pre_attention_norm/scale.weights     L D    -
        transformer/block_0/attention/query.weights             D H K  +
        transformer/block_0/attention/query_norm/scale.weights  K      -
        transformer/block_0/attention/output.weights            H K D  +
        transformer/block_0/mlp/gating_linear.weights           D F    +
        transformer/block_0/mlp/in/Linear.weights               D F    +
        transformer/blocks/mlp/in/AddBias.bias                  L F    -
        transformer/final_norm/shift.bias                       D      -
        transformer/lm_head.weights                             D V    +
        """,
    "TAPIR, RVM, TRAJAN: google-deepmind/tapnet c2cbab8": """
        tapir/resnet/initial_conv/w                       7 7 3 D  +
        tapir/resnet/block_0/layer_norm/scale             D        -
        vit/pos_embedding                                 1 P D    -
        vit/mask_token                                    1 1 1 D  -
        vit/unknown_token                                 1 1 D    -
        vit/point_query_token                             1 1 1 D  -
        track_autoencoder/initializer/state_init          P D      -
        track_autoencoder/input_readout_token/state_init  1 D      -
        """,
    "MACE, nnx: ACEsuit/mace-jax 9fe59d9": """
        node_embedding/linear/weight                    1 F    +
        radial_embedding/bessel_fn/bessel_weights       K      -
        radial_embedding/distance_transform/a_param            -
        interactions/0/linear_up/weight                 1 F    +
        interactions/0/conv_tp_weights/layers/0/weight  K D    +
        interactions/0/skip_tp/weight                   1 F    +
        products/0/symmetric_contractions/weight        C F D  +
        atomic_energies_fn/atomic_energies              H V    -
        scale_shift/scale                               H      -
        scale_shift/shift                               H      -
        """,
}


# Leaves of one model or of several, each for what makes its name or shape hard to read.
PIECES = {
    "AlphaFold 2, layers stacked": """
        evo/attention/query_w   L D H K  +
        evo/attention/gating_w  L D H K  +
        evo/attention/gating_b  L H K    -
        evo/attention/output_b  L D      -
        """,
    "AlphaFold 2, one layer": """
        attention/gating_w  D H K  +
        attention/gating_b  H K    -
        """,
    "Praxis, repeated; adapters": """
        repeat/ffn_layer1/linear/w  L D K  +
        repeat/ffn_layer1/bias/b    L K    -
        adapter/up_w                3 K D  +
        adapter/up_b                3 D    -
        """,
    "S4, vmapped over features": """
        seq/Lambda_re  N H    -
        seq/Lambda_im  N H    -
        seq/P          N H    -
        seq/B          N H    -
        seq/C          N H 2  +
        seq/D          1 H    -
        seq/log_step   1 H    -
        out/kernel     H H    +
        """,
    "S4D": """
        seq/A_re      N H    -
        seq/A_im      N H    -
        seq/C         N H 2  +
        seq/D         1 H    -
        seq/log_step  1 H    -
        """,
    "tokens of CrossViT, CoaT; a pooling probe": """
        cls_token_0       1 1 D  -
        cls_token1        1 1 D  -
        attn_pool/latent  1 1 D  -
        head/kernel       D K    +
        """,
    "one vector for each layer": """
        blocks/learnable_skip       L D    -
        layers/sinks                H L    -
        layers/pre_forward_scale_2  D L    -
        layers/mlp/kernel           L D K  +
        """,
    "one axis": """
        ipa/trainable_point_weights  H  -
        scaling/learnable_weight     1  -
        """,
    "PyTorch's names in a flat dict: DiT, ADM, SAM, T5": """
        blocks.0.attn.qkv.weight            48 D   +
        blocks.0.adaLN_modulation.1.weight  96 D   +
        time_embed.0.weight                 64 D   +
        time_embed.2.weight                 64 64  +
        mask_decoder.mask_tokens.weight     4 D    -
        shared.weight                       V D    e
        """,
    "relative positions, one table a direction": """
        attn/rel_pos_h   27 D  -
        attn/rel_pos_w   27 D  -
        attn/qkv/kernel  D 48  +
        """,
    "RMSNorm gains called kernel: EasyLM": """
        transformer/h/0/attention_norm/kernel  D    -
        transformer/h/0/attention/wq/kernel    D D  +
        transformer/ln_f/kernel                D    -
        lm_head/kernel                         D V  +
        """,
    "the same, scanned": """
        h/attention_norm/kernel  L D    -
        h/wq/kernel              L D D  +
        """,
}


def listed(text):
    """Path -> (shape, mark) of one model."""
    rows = [line.split() for line in text.strip().splitlines()]
    return {
        path: (tuple(SIZES.get(size) or int(size) for size in sizes), mark)
        for path, *sizes, mark in rows
    }


def nested(leaves):
    """Shapes in nested dicts: slashes are levels, dots stay in the key."""
    tree = {}
    for path, (shape, _) in leaves.items():
        *above, last = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree
