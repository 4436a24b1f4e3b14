// The golden models as GGUF files, made here the way llama.cpp's converter makes them, must give
// the same .oq as their HF folders. What it does, from its public sources: Falcon's and BLOOM's
// fused q, k and v are sorted into all of q, all of k, all of v; LLaMA's q and k (and Mistral's and
// Mixtral's, which it calls LLaMA) have the two halves of each head interleaved, Qwen2's not;
// Mixtral's experts are stacked into one tensor of three dimensions, and before that were tensors
// of their own.

#include <cmath>
#include <cstring>

#include "tests/convert/golden_models.h"
#include "tests/gguf_builder.h"

using namespace oq;
using test::GgufBuilder;
using test::HfModel;
using test::TempDir;
using test::TinyTensor;
using test::to_oq;

namespace {

using Floats = std::vector<float>;

/// `values` in pieces of `size`, in another order.
Floats reordered(const Floats& values, size_t size, const std::vector<size_t>& order) {
  REQUIRE(values.size() == size * order.size());
  Floats out;
  for (const size_t piece : order) {
    const auto from = values.begin() + std::ptrdiff_t(piece * size);
    out.insert(out.end(), from, from + std::ptrdiff_t(size));
  }
  return out;
}

/// From [group][its queries, k, v] to [all queries][all k][all v], in heads.
std::vector<size_t> unfused(size_t groups, size_t queries) {
  std::vector<size_t> order;
  const size_t slots = queries + 2;
  for (size_t g = 0; g < groups; ++g) {
    for (size_t i = 0; i < queries; ++i) order.push_back(g * slots + i);
  }
  for (size_t g = 0; g < groups; ++g) order.push_back(g * slots + queries);
  for (size_t g = 0; g < groups; ++g) order.push_back(g * slots + queries + 1);
  return order;
}

/// The halves of each head interleaved, in rows.
std::vector<size_t> interleaved(size_t heads, size_t dim) {
  std::vector<size_t> order;
  for (size_t h = 0; h < heads; ++h) {
    for (size_t i = 0; i < dim / 2; ++i) {
      order.push_back(h * dim + i);
      order.push_back(h * dim + dim / 2 + i);
    }
  }
  return order;
}

/// A GGUF of an HF model, tensor by tensor.
class Gguf {
 public:
  Gguf(HfModel& model, const std::string& arch) : model_(model), arch_(arch) {
    builder_.set_string("general.architecture", arch);
    builder_.set_string("tokenizer.ggml.model", "no_vocab");
  }

  void set(const char* key, uint32_t value) { builder_.set_u32(arch_ + "." + key, value); }
  void set(const char* key, float value) { builder_.set_f32(arch_ + "." + key, value); }
  void set(const char* key, const Floats& values) {
    builder_.set_numbers(arch_ + "." + key, GgufBuilder::f32, values);
  }

  /// The weight, and the bias if there is one.
  void add(const std::string& gguf, const std::string& hf) {
    for (const char* suffix : {".weight", ".bias"}) {
      if (const TinyTensor* t = find(hf + suffix)) put(gguf + suffix, *t, t->values);
    }
  }
  /// The same, in pieces of `rows` rows that change their order.
  void add(const std::string& gguf, const std::string& hf, size_t rows,
           const std::vector<size_t>& order) {
    for (const char* suffix : {".weight", ".bias"}) {
      const TinyTensor* t = find(hf + suffix);
      if (t == nullptr) continue;
      const size_t width = suffix == std::string(".bias") ? 1 : t->cols;
      put(gguf + suffix, *t, reordered(t->values, rows * width, order));
    }
  }
  /// Experts one after another, in one tensor.
  void add_stacked(const std::string& gguf, const std::vector<std::string>& hf) {
    Floats all;
    const TinyTensor& first = model_[hf.front() + ".weight"];
    for (const std::string& name : hf) {
      const Floats& values = model_[name + ".weight"].values;
      all.insert(all.end(), values.begin(), values.end());
    }
    builder_.add_tensor(gguf + ".weight", {first.cols, first.rows, hf.size()}, 0,
                        test::encode_floats(all, "F32"));
  }

  std::shared_ptr<const File> convert(const TempDir& dir) const {
    test::write_file(dir / "model.gguf", builder_.bytes());
    return to_oq(dir / "model.gguf", dir / "gguf.oq");
  }

 private:
  const TinyTensor* find(const std::string& name) const {
    for (const TinyTensor& t : model_.tensors) {
      if (t.hf_name == name) return &t;
    }
    return nullptr;
  }
  void put(const std::string& name, const TinyTensor& t, const Floats& values) {
    std::vector<uint64_t> dims = {t.cols};
    if (t.rows > 1) dims.push_back(t.rows);
    builder_.add_tensor(name, dims, 0, test::encode_floats(values, "F32"));
  }

  HfModel& model_;
  std::string arch_;
  GgufBuilder builder_;
};

void set_sizes(Gguf& g, const ModelConfig& m) {
  g.set("embedding_length", uint32_t(m.hidden));
  g.set("block_count", uint32_t(m.blocks));
  g.set("attention.head_count", uint32_t(m.heads));
  g.set("attention.head_count_kv", uint32_t(m.kv_heads));
  g.set("feed_forward_length", uint32_t(m.mlp));
  g.set("context_length", uint32_t(m.context));
  g.set(
      m.norm == NormKind::rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
      float(m.norm_eps));
}

std::string block(const char* pattern, int64_t b) {
  std::string name = pattern;
  return name.replace(name.find('#'), 1, std::to_string(b));
}

void add_falcon(Gguf& g, const ModelConfig& m) {
  g.add("token_embd", "transformer.word_embeddings");
  for (int64_t b = 0; b < m.blocks; ++b) {
    g.add(block("blk.#.attn_norm", b),
          block(m.shared_norm ? "transformer.h.#.input_layernorm" : "transformer.h.#.ln_mlp", b));
    g.add(block("blk.#.attn_norm_2", b), block("transformer.h.#.ln_attn", b));
    g.add(block("blk.#.attn_qkv", b), block("transformer.h.#.self_attention.query_key_value", b),
          size_t(m.head_dim), unfused(size_t(m.kv_heads), size_t(m.heads / m.kv_heads)));
    g.add(block("blk.#.attn_output", b), block("transformer.h.#.self_attention.dense", b));
    g.add(block("blk.#.ffn_up", b), block("transformer.h.#.mlp.dense_h_to_4h", b));
    g.add(block("blk.#.ffn_down", b), block("transformer.h.#.mlp.dense_4h_to_h", b));
  }
  g.add("output_norm", "transformer.ln_f");
}

void add_bloom(Gguf& g, const ModelConfig& m) {
  g.add("token_embd", "transformer.word_embeddings");
  g.add("token_embd_norm", "transformer.word_embeddings_layernorm");
  for (int64_t b = 0; b < m.blocks; ++b) {
    g.add(block("blk.#.attn_norm", b), block("transformer.h.#.input_layernorm", b));
    g.add(block("blk.#.attn_qkv", b), block("transformer.h.#.self_attention.query_key_value", b),
          size_t(m.head_dim), unfused(size_t(m.heads), 1));
    g.add(block("blk.#.attn_output", b), block("transformer.h.#.self_attention.dense", b));
    g.add(block("blk.#.ffn_norm", b), block("transformer.h.#.post_attention_layernorm", b));
    g.add(block("blk.#.ffn_up", b), block("transformer.h.#.mlp.dense_h_to_4h", b));
    g.add(block("blk.#.ffn_down", b), block("transformer.h.#.mlp.dense_4h_to_h", b));
  }
  g.add("output_norm", "transformer.ln_f");
}

void add_experts(Gguf& g, const ModelConfig& m, int64_t b, bool stacked) {
  const std::pair<const char*, const char*> parts[] = {
      {"ffn_gate", "w1"}, {"ffn_down", "w2"}, {"ffn_up", "w3"}};
  g.add(block("blk.#.ffn_gate_inp", b), block("model.layers.#.block_sparse_moe.gate", b));
  for (const auto& [gguf, hf] : parts) {
    std::vector<std::string> names;
    for (int64_t e = 0; e < m.experts; ++e) {
      names.push_back(block("model.layers.#.block_sparse_moe.experts.", b) + std::to_string(e) +
                      "." + hf);
      const std::string own = block("blk.#.", b) + gguf + "." + std::to_string(e);
      if (!stacked) g.add(own, names.back());
    }
    if (stacked) g.add_stacked(block("blk.#.", b) + gguf + "_exps", names);
  }
}

void add_llama(Gguf& g, const ModelConfig& m, bool interleave, bool stacked = true) {
  const auto dim = size_t(m.head_dim);
  const auto order = [&](int64_t heads) {
    auto rows = interleaved(size_t(heads), dim);
    if (!interleave) std::sort(rows.begin(), rows.end());
    return rows;
  };
  g.set("rope.dimension_count", uint32_t(m.rope_dim));
  g.set("attention.key_length", uint32_t(m.head_dim));
  g.set("attention.value_length", uint32_t(m.head_dim));
  g.add("token_embd", "model.embed_tokens");
  for (int64_t b = 0; b < m.blocks; ++b) {
    g.add(block("blk.#.attn_norm", b), block("model.layers.#.input_layernorm", b));
    g.add(block("blk.#.attn_q", b), block("model.layers.#.self_attn.q_proj", b), 1, order(m.heads));
    g.add(block("blk.#.attn_k", b), block("model.layers.#.self_attn.k_proj", b), 1,
          order(m.kv_heads));
    g.add(block("blk.#.attn_v", b), block("model.layers.#.self_attn.v_proj", b));
    g.add(block("blk.#.attn_output", b), block("model.layers.#.self_attn.o_proj", b));
    g.add(block("blk.#.ffn_norm", b), block("model.layers.#.post_attention_layernorm", b));
    if (m.experts > 0) {
      add_experts(g, m, b, stacked);
      continue;
    }
    g.add(block("blk.#.ffn_gate", b), block("model.layers.#.mlp.gate_proj", b));
    g.add(block("blk.#.ffn_up", b), block("model.layers.#.mlp.up_proj", b));
    g.add(block("blk.#.ffn_down", b), block("model.layers.#.mlp.down_proj", b));
  }
  g.add("output_norm", "model.norm");
  g.add("output", "lm_head");
}

/// Holds the GGUF that `fill` makes of a golden model to the .oq of its folder.
void check_equal(const char* name, const char* arch, const char* family,
                 const std::function<void(Gguf&, const ModelConfig&)>& fill) {
  CAPTURE(name);
  const TempDir dir;
  const auto hf = to_oq(test::golden("families") / name, dir / "hf.oq");
  ModelConfig config = ModelConfig::load(*hf);
  HfModel model(name);
  Gguf gguf(model, arch);
  set_sizes(gguf, config);
  fill(gguf, config);
  const auto file = gguf.convert(dir);
  config.family = family;
  CHECK(ModelConfig::load(*file) == config);
  test::check_same_tensors(*hf, *file);
}

}  // namespace

TEST_CASE("Falcon from GGUF") {
  for (const char* name : {"falcon-7b", "falcon-40b", "falcon-11b"}) {
    check_equal(name, "falcon", "falcon", add_falcon);
  }
}

TEST_CASE("BLOOM from GGUF, its head left out or written as a copy of the embedding") {
  check_equal("bloom", "bloom", "bloom", add_bloom);
  check_equal("bloom", "bloom", "bloom", [](Gguf& g, const ModelConfig& m) {
    add_bloom(g, m);
    g.add("output", "transformer.word_embeddings");
  });
}

TEST_CASE("Qwen2 from GGUF: q and k as they are") {
  check_equal("qwen2-tied", "qwen2", "qwen2",
              [](Gguf& g, const ModelConfig& m) { add_llama(g, m, false); });
}

TEST_CASE("LLaMA with biases and Mistral from GGUF: q and k interleaved") {
  check_equal("llama-bias", "llama", "llama", [](Gguf& g, const ModelConfig& m) {
    g.set("rope.freq_base", 500.0f);
    add_llama(g, m, true);
  });
  check_equal("mistral-window", "llama", "llama", [](Gguf& g, const ModelConfig& m) {
    g.set("attention.sliding_window", uint32_t(m.window));
    add_llama(g, m, true);
  });
}

TEST_CASE("Mixtral from GGUF, experts stacked or apart") {
  for (const bool stacked : {true, false}) {
    CAPTURE(stacked);
    for (const char* name : {"mixtral", "mixtral-equal-experts"}) {
      check_equal(name, "llama", "mixtral", [&](Gguf& g, const ModelConfig& m) {
        g.set("expert_count", uint32_t(m.experts));
        g.set("expert_used_count", uint32_t(m.experts_used));
        g.set("rope.freq_base", 1e6f);
        add_llama(g, m, true, stacked);
      });
    }
  }
}

TEST_CASE("GGUF files whose settings and tensors disagree") {
  const auto refused = [](const char* name, const char* arch, const std::string& says,
                          const std::function<void(Gguf&, const ModelConfig&)>& fill) {
    const TempDir dir;
    const ModelConfig config =
        ModelConfig::load(*to_oq(test::golden("families") / name, dir / "hf.oq"));
    HfModel model(name);
    Gguf gguf(model, arch);
    fill(gguf, config);
    try {
      gguf.convert(dir);
      FAIL_CHECK("was not refused: " << says);
    } catch (const Error& e) {
      CAPTURE(e.what());
      CHECK(std::string(e.what()).find(says) != std::string::npos);
    }
  };
  const auto mixtral = [&](uint32_t experts, uint32_t used, const char* says) {
    refused("mixtral", "llama", says, [=](Gguf& g, const ModelConfig& m) {
      set_sizes(g, m);
      g.set("expert_count", experts);
      g.set("expert_used_count", used);
      add_llama(g, m, true);
    });
  };
  mixtral(0, 0, "'blk.0.ffn_gate.weight' is missing");
  mixtral(4, 0, "experts used");
  mixtral(4, 5, "experts used");
  mixtral(3, 2, "disagrees");
  mixtral(5, 2, "disagrees");
  mixtral(1u << 31, 2, "model.experts");
  refused("bloom", "bloom", "'bloom.context_length' asks for more positions",
          [](Gguf& g, const ModelConfig& m) {
            ModelConfig longer = m;
            longer.context = 1 << 29;
            set_sizes(g, longer);
            add_bloom(g, m);
          });
  refused("bloom", "bloom", "'blk.0.attn_qkv.weight' disagrees", [](Gguf& g, const ModelConfig& m) {
    ModelConfig other = m;
    other.heads = other.kv_heads = 40;
    set_sizes(g, other);
    add_bloom(g, m);
  });
  refused("falcon-40b", "falcon", "'blk.0.attn_qkv.weight' disagrees",
          [](Gguf& g, const ModelConfig& m) {
            ModelConfig other = m;
            other.kv_heads = 1;
            set_sizes(g, other);
            add_falcon(g, m);
          });
  const float nan = std::nanf("");
  const std::vector<Floats> odd = {{nan, nan}, {nan, 4}, {4, nan}, {4.5f, 4.5f}, {1e30f}};
  for (const auto& heads : odd) {  // per block
    refused("bloom", "bloom", "'bloom.attention.head_count' holds what is no whole number",
            [&](Gguf& g, const ModelConfig& m) {
              g.set("embedding_length", uint32_t(m.hidden));
              g.set("block_count", uint32_t(m.blocks));
              g.set("attention.head_count", heads);
              add_bloom(g, m);
            });
  }
  refused("opt", "opt", "model family", [](Gguf&, const ModelConfig&) {});
}
