// Golden models with settings that OQ cannot run, or that their tensors contradict.

#include "tests/convert/golden_models.h"

using namespace oq;
using test::HfModel;
using test::TempDir;
using test::TinyTensor;

namespace {

/// A golden model with something changed is refused.
void refused(const std::string& name, const std::string& says,
             const std::function<void(HfModel&)>& change) {
  CAPTURE(name);
  const TempDir dir;
  HfModel model(name);
  change(model);
  model.write(dir / "model");
  test::check_refused(dir / "model", says);
}

}  // namespace

TEST_CASE("what cannot be run is refused by name") {
  const auto setting = [](const char* model, const char* key, const nlohmann::json& value,
                          const char* says) {
    CAPTURE(key);
    refused(model, says, [&](HfModel& m) { m.config[key] = value; });
  };
  setting("bloom", "apply_residual_connection_post_layernorm", true, "post_layernorm' is true");
  setting("bloom", "seq_length", 131073, "'seq_length' asks for more positions");
  setting("bloom", "seq_length", int64_t(1) << 30, "'seq_length' asks for more positions");
  setting("bloom", "seq_length", int64_t(1) << 40, "model.context");
  setting("bloom", "n_head", 0, "no attention heads");
  setting("bloom", "n_head", 5, "query_key_value.weight' disagrees");
  setting("bloom", "hidden_size", int64_t(1) << 62, "model.hidden");
  setting("falcon-rw", "apply_residual_connection_post_layernorm", true, "is true");
  setting("falcon-rw", "max_position_embeddings", 1 << 20, "'max_position_embeddings' asks");
  setting("falcon-40b", "parallel_attn", false, "'parallel_attn' is false");
  setting("falcon-40b", "num_ln_in_parallel_attn", 3, "'num_ln_in_parallel_attn'");
  setting("falcon-40b", "num_ln_in_parallel_attn", 1, "h.0.ln_mlp.weight");
  setting("falcon-40b", "num_kv_heads", 3, "query_key_value.weight' disagrees");
  setting("falcon-40b", "num_kv_heads", 0, "model.kv_heads");
  setting("falcon-40b", "num_kv_heads", 4, "do not share");
  setting("falcon-7b", "num_ln_in_parallel_attn", 2, "'num_ln_in_parallel_attn'");
  setting("falcon-7b", "multi_query", false, "query_key_value.weight' disagrees");
  setting("falcon-7b", "parallel_attn", false, "h.0.ln_mlp.weight' is missing");
  setting("falcon-7b", "bias", true, "query_key_value.bias' is missing");
  setting("falcon-7b", "ffn_hidden_size", 71, "dense_h_to_4h.weight' disagrees");
  setting("falcon-7b", "activation", "mish", "'activation'");
  setting("opt", "layer_norm_elementwise_affine", false, "'layer_norm_elementwise_affine'");
  setting("opt", "word_embed_proj_dim", 0, "'word_embed_proj_dim'");
  setting("opt", "word_embed_proj_dim", -3, "embedding_width");
  setting("opt", "word_embed_proj_dim", 26, "embed_tokens.weight' disagrees");
  setting("opt", "max_position_embeddings", 52, "embed_positions.weight' disagrees");
  setting("opt", "max_position_embeddings", 48, "embed_positions.weight' disagrees");
  setting("opt", "do_layer_norm_before", false, "final_layer_norm");
  setting("opt", "_remove_final_layer_norm", true, "final_layer_norm");
  setting("opt", "enable_bias", false, "not part of a opt model");
  setting("opt", "vocab_size", 98, "embed_tokens.weight' disagrees");
  setting("mixtral", "num_local_experts", 0, "no expert to choose");
  setting("mixtral", "num_local_experts", -1, "no expert to choose");
  setting("mixtral", "num_local_experts", 5, "block_sparse_moe.gate.weight' disagrees");
  setting("mixtral", "num_local_experts", 3, "gate.weight' disagrees");
  setting("mixtral", "num_local_experts", 60000, "more experts");
  setting("mixtral", "num_experts_per_tok", 5, "experts used");
  setting("mixtral", "num_experts_per_tok", 0, "experts used");
  setting("mistral-window", "sliding_window", -1, "model.window");
  setting("qwen2-tied", "quantization_config", {{"quant_method", "quip"}}, "quip");
  refused("qwen2-tied", "'max_window_layers'", [](HfModel& m) {
    m.config["use_sliding_window"] = true;
    m.config["max_window_layers"] = 1;
    m.config.erase("layer_types");
  });
  refused("qwen2-tied", "'layer_types'", [](HfModel& m) {
    m.config["use_sliding_window"] = true;
    m.config["layer_types"] = {"full_attention", "sliding_attention"};
  });
}

TEST_CASE("tensors that are missing, extra or doubled") {
  refused("mixtral", "experts.3.w2.weight' is missing",
          [](HfModel& m) { m.erase("model.layers.1.block_sparse_moe.experts.3.w2.weight"); });
  refused("mixtral", "not part of a mixtral model", [](HfModel& m) {
    TinyTensor extra = m["model.layers.1.block_sparse_moe.experts.3.w2.weight"];
    extra.hf_name = "model.layers.1.block_sparse_moe.experts.4.w2.weight";
    m.tensors.push_back(extra);
  });
  refused("bloom", "query_key_value.bias' is missing",
          [](HfModel& m) { m.erase("transformer.h.0.self_attention.query_key_value.bias"); });
  // One tensor under both spellings: which one is meant?
  refused("opt", "decoder.layers.0.fc1.weight", [](HfModel& m) {
    TinyTensor twice = m["model.decoder.layers.0.fc1.weight"];
    twice.hf_name = "decoder.layers.0.fc1.weight";
    m.tensors.push_back(twice);
  });
  refused("falcon-7b", "disagrees", [](HfModel& m) {
    TinyTensor& t = m["transformer.h.0.self_attention.query_key_value.weight"];
    std::swap(t.rows, t.cols);
  });
}
