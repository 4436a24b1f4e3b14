// Every family's HF checkpoints: the golden models of golden/make_families.py, whole and changed.

#include <cmath>
#include <map>

#include "tests/convert/golden_models.h"
#include "tools/convert/alibi.h"

using namespace oq;
using test::HfModel;
using test::TempDir;
using test::TinyTensor;
using test::to_oq;

namespace {

ModelConfig base(const char* family, int64_t hidden, int64_t heads, int64_t kv_heads,
                 int64_t head_dim, int64_t mlp, int64_t context) {
  ModelConfig m;
  m.family = family;
  m.vocab = 97;
  m.hidden = hidden;
  m.blocks = 2;
  m.heads = heads;
  m.kv_heads = kv_heads;
  m.head_dim = head_dim;
  m.mlp = mlp;
  m.context = context;
  return m;
}

ModelConfig llama_like(const char* family) {
  ModelConfig m = base(family, 42, 6, 2, 10, 52, 128);
  m.norm_eps = 3e-4;
  m.rope_dim = 10;
  return m;
}

ModelConfig opt() {
  ModelConfig m = base("opt", 44, 4, 4, 11, 58, 50);
  m.norm = NormKind::layer;
  m.norm_eps = 1e-5;
  m.positions = PositionKind::learned;
  m.activation = Activation::relu;
  m.gated = false;
  m.qkv_bias = m.o_bias = m.mlp_bias = m.tied_head = true;
  return m;
}

ModelConfig falcon(int64_t hidden, int64_t heads, int64_t kv_heads, int64_t mlp) {
  ModelConfig m = base("falcon", hidden, heads, kv_heads, hidden / heads, mlp, 128);
  m.norm = NormKind::layer;
  m.norm_eps = 2e-4;
  m.activation = Activation::gelu;
  m.gated = false;
  m.tied_head = true;
  return m;
}

ModelConfig parallel_falcon(int64_t heads, int64_t kv_heads, bool shared_norm) {
  ModelConfig m = falcon(60, heads, kv_heads, 70);
  m.parallel = true;
  m.shared_norm = shared_norm;
  m.rope_dim = m.head_dim;
  return m;
}

ModelConfig alibi_falcon(int64_t hidden, int64_t heads, int64_t mlp) {
  ModelConfig m = falcon(hidden, heads, heads, mlp);
  m.positions = PositionKind::alibi;
  m.qkv_bias = m.o_bias = m.mlp_bias = true;
  return m;
}

ModelConfig bloom() {
  ModelConfig m = base("bloom", 42, 7, 7, 6, 168, 2048);
  m.norm = NormKind::layer;
  m.norm_eps = 2e-4;
  m.embedding_norm = true;
  m.positions = PositionKind::alibi;
  m.activation = Activation::gelu_tanh;
  m.gated = false;
  m.qkv_bias = m.o_bias = m.mlp_bias = m.tied_head = true;
  return m;
}

ModelConfig with(ModelConfig m, const std::function<void(ModelConfig&)>& change) {
  change(m);
  return m;
}

/// What each golden folder is, in OQ's words.
std::map<std::string, ModelConfig> expected_configs() {
  const auto mixtral = [](int64_t experts, int64_t mlp) {
    return with(llama_like("mixtral"), [&](ModelConfig& m) {
      m.experts = experts;
      m.experts_used = 2;
      m.mlp = mlp;
    });
  };
  return {
      {"llama-bias",
       with(llama_like("llama"), [](auto& m) { m.qkv_bias = m.o_bias = m.mlp_bias = true; })},
      {"mistral-window", with(llama_like("mistral"), [](auto& m) { m.window = 9; })},
      {"qwen2-tied", with(llama_like("qwen2"),
                          [](auto& m) {
                            m.hidden = 36;
                            m.head_dim = m.rope_dim = 6;
                            m.qkv_bias = m.tied_head = true;
                          })},
      {"mixtral", mixtral(4, 36)},
      {"mixtral-equal-experts", mixtral(3, 52)},
      {"mixtral-dense-twin", llama_like("mistral")},
      {"opt", opt()},
      {"opt-post-norm", with(opt(),
                             [](auto& m) {
                               m.post_norm = true;
                               m.final_norm = false;
                               m.embedding_width = 26;
                             })},
      {"opt-no-bias", with(opt(),
                           [](auto& m) {
                             m.qkv_bias = m.o_bias = m.mlp_bias = m.final_norm = false;
                             m.activation = Activation::gelu;
                           })},
      {"falcon-7b", parallel_falcon(5, 1, true)},
      {"falcon-40b", parallel_falcon(6, 2, false)},
      {"falcon-11b", parallel_falcon(6, 3, true)},
      {"falcon-rw", alibi_falcon(50, 5, 70)},
      {"falcon-rw-4-heads", with(alibi_falcon(40, 4, 160), [](auto& m) { m.tied_head = false; })},
      {"bloom", bloom()},
  };
}

/// A golden model with something changed, converted.
std::shared_ptr<const File> changed(const std::string& name,
                                    const std::function<void(HfModel&)>& change, const TempDir& dir,
                                    convert::Result* result = nullptr) {
  HfModel model(name);
  change(model);
  model.write(dir / "model");
  return to_oq(dir / "model", dir / "changed.oq", "w16a16", result);
}

}  // namespace

TEST_CASE("settings become the config that says the same") {
  const auto expected = expected_configs();
  for (const std::string& name : test::golden_families()) {
    CAPTURE(name);
    const TempDir dir;
    const auto file = to_oq(test::golden("families") / name, dir / "out.oq");
    const ModelConfig config = ModelConfig::load(*file);
    CHECK_NOTHROW(check_tensors(*file, config));
    if (const auto it = expected.find(name); it != expected.end()) CHECK(config == it->second);
  }
}

TEST_CASE("every weight of the checkpoint arrives once") {
  for (const std::string& name : test::golden_families()) {
    CAPTURE(name);
    const TempDir dir;
    const auto file = to_oq(test::golden("families") / name, dir / "out.oq");
    std::vector<float> source, arrived;
    for (const TinyTensor& t : HfModel(name).tensors) {
      const bool opt_positions = t.hf_name.find("embed_positions") != std::string::npos;
      const auto first = t.values.begin() + std::ptrdiff_t(opt_positions ? 2 * t.cols : 0);
      source.insert(source.end(), first, t.values.end());
    }
    for (const TensorSpec& spec : tensor_specs(ModelConfig::load(*file))) {
      if (spec.name == "rope.inv_freq" || spec.name == "alibi") continue;
      const std::vector<float> values = test::floats(*file, spec.name);
      arrived.insert(arrived.end(), values.begin(), values.end());
    }
    std::sort(source.begin(), source.end());
    std::sort(arrived.begin(), arrived.end());
    CHECK(source == arrived);
  }
}

TEST_CASE("fused q, k and v come apart, weights and biases") {
  // Number of KV heads, query heads of each, size of a head.
  struct Case {
    const char* name;
    uint64_t groups, queries, dim;
    bool bias;
  };
  for (const Case& c : {Case{"falcon-7b", 1, 5, 12, false}, Case{"falcon-40b", 2, 3, 10, false},
                        Case{"falcon-rw", 5, 1, 10, true}, Case{"bloom", 7, 1, 6, true}}) {
    CAPTURE(c.name);
    const TempDir dir;
    const auto file = to_oq(test::golden("families") / c.name, dir / "out.oq");
    HfModel model(c.name);
    const std::string fused = "transformer.h.1.self_attention.query_key_value.";
    const auto check = [&](const TinyTensor& t, uint64_t width, const std::string& suffix) {
      std::vector<float> q, k, v;
      // Slot after slot, as they lie in memory.
      for (uint64_t group = 0, at = 0; group < c.groups; ++group) {
        for (uint64_t slot = 0; slot < c.queries + 2; ++slot, at += c.dim * width) {
          auto& to = slot < c.queries ? q : slot == c.queries ? k : v;
          const auto from = t.values.begin() + std::ptrdiff_t(at);
          to.insert(to.end(), from, from + std::ptrdiff_t(c.dim * width));
        }
      }
      CHECK(q == test::floats(*file, "blocks.1.q" + suffix));
      CHECK(k == test::floats(*file, "blocks.1.k" + suffix));
      CHECK(v == test::floats(*file, "blocks.1.v" + suffix));
    };
    const TinyTensor& weight = model[fused + "weight"];
    check(weight, weight.cols, "");
    if (c.bias) check(model[fused + "bias"], 1, ".bias");
  }
}

TEST_CASE("tensors lie under the names that the file gives them") {
  struct Case {
    const char *model, *oq, *hf;
  };
  const TempDir dir;
  for (const Case& c :
       {Case{"falcon-40b", "blocks.0.attn_norm.bias", "transformer.h.0.ln_attn.bias"},
        {"falcon-40b", "blocks.0.mlp_norm", "transformer.h.0.ln_mlp.weight"},
        {"falcon-rw", "blocks.1.mlp_norm", "transformer.h.1.post_attention_layernorm.weight"},
        {"falcon-rw-4-heads", "head", "lm_head.weight"},
        {"bloom", "embedding_norm.bias", "transformer.word_embeddings_layernorm.bias"},
        {"bloom", "blocks.1.up.bias", "transformer.h.1.mlp.dense_h_to_4h.bias"},
        {"opt", "blocks.1.mlp_norm", "model.decoder.layers.1.final_layer_norm.weight"},
        {"opt", "final_norm.bias", "model.decoder.final_layer_norm.bias"},
        {"opt-post-norm", "project_out", "model.decoder.project_out.weight"},
        {"mixtral", "blocks.1.experts.3.gate",
         "model.layers.1.block_sparse_moe.experts.3.w1.weight"},
        {"mixtral", "blocks.0.experts.2.up", "model.layers.0.block_sparse_moe.experts.2.w3.weight"},
        {"mixtral", "blocks.0.experts.1.down",
         "model.layers.0.block_sparse_moe.experts.1.w2.weight"},
        {"mixtral", "blocks.1.router", "model.layers.1.block_sparse_moe.gate.weight"},
        {"qwen2-tied", "blocks.1.k.bias", "model.layers.1.self_attn.k_proj.bias"}}) {
    CAPTURE(c.oq);
    const auto file = to_oq(test::golden("families") / c.model, dir / "out.oq");
    CHECK(test::floats(*file, c.oq) == HfModel(c.model)[c.hf].values);
  }
  const auto file = to_oq(test::golden("families") / "opt", dir / "out.oq");
  const TinyTensor positions = HfModel("opt")["model.decoder.embed_positions.weight"];
  CHECK(test::floats(*file, "positions") == test::rows_of(positions, 2, 50));
}

TEST_CASE("ALiBi is rounded where transformers rounds it") {
  const nlohmann::json truth = convert::read_json(test::golden("families") / "alibi.json");
  const auto positions = truth["positions"].get<std::vector<size_t>>();
  const auto divisor = float(std::sqrt(truth["head_dim"].get<double>()));
  for (const char* family : {"bloom", "falcon"}) {
    for (const auto& entry : truth[family].items()) {
      const std::string& heads = entry.key();
      const nlohmann::json& rows = entry.value();
      CAPTURE(family);
      CAPTURE(heads);
      convert::Alibi alibi;
      alibi.slopes = convert::alibi_slopes(std::stoll(heads));
      if (family == std::string("falcon")) alibi.in_bf16 = true, alibi.divisor = divisor;
      REQUIRE(rows.size() == alibi.slopes.size());
      for (size_t head = 0; head < rows.size(); ++head) {
        std::vector<float> row(2048);
        alibi.row(head, row);
        for (size_t i = 0; i < positions.size(); ++i) {
          const auto expected = rows[head][i].get<float>();
          // torch's power function is not the last bit's.
          const float slack = alibi.in_bf16 ? 0 : std::fabs(expected) * 0x1p-22f;
          CHECK(std::fabs(row[positions[i]] - expected) <= slack);
        }
      }
    }
  }
}

TEST_CASE("the table of biases is written for every position") {
  const TempDir dir;
  const auto bloom = to_oq(test::golden("families") / "bloom", dir / "bloom.oq");
  const std::vector<float> table = test::floats(*bloom, "alibi");
  CHECK(bloom->tensor("alibi").rows == 7);
  CHECK(bloom->tensor("alibi").cols == 2048);
  CHECK(table[0] == 0);
  CHECK(table[2047] == doctest::Approx(2047 * 0.25));                  // 2^(-8/4)
  CHECK(table[4 * 2048 + 3] == doctest::Approx(3 * std::exp2(-1.0)));  // 2^(-4/4)
  CHECK(table[6 * 2048 + 2] == doctest::Approx(2 * std::exp2(-5.0)));  // 2^(-5 * 4/4)
  const auto falcon = to_oq(test::golden("families") / "falcon-rw", dir / "falcon.oq");
  // bf16(2^(-4/4)) * 100 in bf16, divided by sqrt(10)
  CHECK(test::floats(*falcon, "alibi")[4 * 128 + 100] ==
        doctest::Approx(50 / std::sqrt(10.0)).epsilon(1e-6));
}

TEST_CASE("names without the base model's prefix are known") {
  const TempDir dir;
  for (const auto& entry : std::map<std::string, std::string>{{"opt", "model."},
                                                              {"opt-post-norm", "model."},
                                                              {"bloom", "transformer."},
                                                              {"falcon-rw-4-heads", "transformer."},
                                                              {"mixtral", "model."},
                                                              {"llama-bias", "model."}}) {
    const std::string &name = entry.first, &prefix = entry.second;
    CAPTURE(name);
    const auto with_prefix = to_oq(test::golden("families") / name, dir / "with.oq");
    const auto without = changed(
        name, [&](HfModel& m) { m.strip(prefix); }, dir);
    test::check_same_tensors(*with_prefix, *without);
  }
}

TEST_CASE("a head that is the embedding is stored once; one that is not is kept, with a notice") {
  const auto add_head = [](HfModel& m, bool equal) {
    TinyTensor head = m["model.decoder.embed_tokens.weight"];
    head.hf_name = "lm_head.weight";
    if (!equal) head.values[500] += 1;
    m.tensors.push_back(head);
  };
  const TempDir dir;
  convert::Result result;
  const auto equal = changed(
      "opt", [&](HfModel& m) { add_head(m, true); }, dir, &result);
  CHECK(equal->find("head") == nullptr);
  const size_t notices = result.notices.size();
  const auto own = changed(
      "opt", [&](HfModel& m) { add_head(m, false); }, dir, &result);
  REQUIRE(own->find("head") != nullptr);
  CHECK_FALSE(ModelConfig::load(*own).tied_head);
  CHECK(test::floats(*own, "head") != test::floats(*own, "embedding"));
  CHECK(result.notices.size() == notices + 1);
}

TEST_CASE("the first Falcon releases, under their own names") {
  const TempDir dir;
  const auto rename = [](nlohmann::json& c, const char* from, const char* to) {
    if (to != nullptr) c[to] = c[from];
    c.erase(from);
  };
  const auto old = [&](HfModel& m, const char* type) {
    m.config["model_type"] = type;
    rename(m.config, "num_hidden_layers", "n_layer");
    rename(m.config, "num_attention_heads", "n_head");
    rename(m.config, "new_decoder_architecture", nullptr);
    rename(m.config, "num_ln_in_parallel_attn", nullptr);
    rename(m.config, "max_position_embeddings", nullptr);
    rename(m.config, "rope_parameters", nullptr);
    rename(m.config, "tie_word_embeddings", nullptr);
  };
  const auto config_of = [&](const char* name, const std::function<void(HfModel&)>& change) {
    ModelConfig m = ModelConfig::load(*changed(name, change, dir));
    CHECK(m.context == 2048);
    m.context = 128;
    return m;
  };
  const auto expected = expected_configs();
  CHECK(config_of("falcon-40b", [&](HfModel& m) {
          old(m, "RefinedWeb");
          rename(m.config, "num_kv_heads", "n_head_kv");
        }) == expected.at("falcon-40b"));
  const auto without_kv_heads = [&](HfModel& m) {
    old(m, "RefinedWebModel");
    rename(m.config, "num_kv_heads", nullptr);
  };
  CHECK(config_of("falcon-7b", without_kv_heads) == expected.at("falcon-7b"));
  CHECK(config_of("falcon-rw", [&](HfModel& m) {
          without_kv_heads(m);
          rename(m.config, "multi_query", nullptr);  // these were off where nothing was said
          rename(m.config, "parallel_attn", nullptr);
        }) == expected.at("falcon-rw"));
}

TEST_CASE("settings in their other spellings") {
  const TempDir dir;
  const auto config_of = [&](const char* name, const std::function<void(nlohmann::json&)>& change) {
    return ModelConfig::load(*changed(
        name, [&](HfModel& m) { change(m.config); }, dir));
  };
  CHECK(config_of("bloom", [](auto& c) {
          c["n_embed"] = c["hidden_size"];
          c.erase("hidden_size");
          c["num_attention_heads"] = c["n_head"];
          c.erase("n_head");
          c["seq_length"] = 300;
        }) == with(bloom(), [](auto& m) { m.context = 300; }));
  CHECK(config_of("mistral-window", [](auto& c) { c["sliding_window"] = nullptr; }).window == 0);
  CHECK(config_of("mistral-window", [](auto& c) { c.erase("sliding_window"); }).window == 0);
  CHECK(config_of("mixtral", [](auto& c) { c["sliding_window"] = 7; }).window == 7);

  const auto qwen2 = [&](int64_t full, const nlohmann::json& types) {
    return config_of("qwen2-tied",
                     [&](auto& c) {
                       c["use_sliding_window"] = true;
                       c["sliding_window"] = 11;
                       c["max_window_layers"] = full;
                       c["layer_types"] = types;
                     })
        .window;
  };
  CHECK(qwen2(28, nullptr) == 0);
  CHECK(qwen2(2, nullptr) == 0);
  CHECK(qwen2(0, nullptr) == 11);
  CHECK(qwen2(28, {"sliding_attention", "sliding_attention"}) == 11);
  CHECK(qwen2(0, {"full_attention", "full_attention"}) == 0);
}

TEST_CASE("rope_theta is the family's where it is not given") {
  const TempDir dir;
  for (const auto& [name, theta] :
       std::map<std::string, double>{{"mixtral", 1e6}, {"mistral-window", 1e4}}) {
    const auto file = changed(
        name, [](HfModel& m) { m.config.erase("rope_parameters"); }, dir);
    CHECK(test::floats(*file, "rope.inv_freq")[1] == doctest::Approx(std::pow(theta, -0.2)));
  }
}

TEST_CASE("progress counts every byte of the checkpoint once") {
  for (const std::string& name : test::golden_families()) {
    CAPTURE(name);
    const TempDir dir;
    convert::Options o;
    o.source = test::golden("families") / name;
    o.output = dir / "out.oq";
    uint64_t last = 0, total = 0;
    convert::convert(o, {.progress = [&](uint64_t done, uint64_t of, std::string_view) {
                       CHECK(done >= last);
                       last = done;
                       total = of;
                     }});
    CHECK(last == total);
    uint64_t bytes = 0;
    for (const TinyTensor& t : HfModel(name).tensors) bytes += t.values.size() * 2;
    CHECK(total <= bytes);
    CHECK(total + 2 * 2 * 44 >= bytes);  // OPT's two unused positions
  }
}

TEST_CASE("every family is quantized too, parts of fused tensors row by row") {
  for (const std::string& name : test::golden_families()) {
    CAPTURE(name);
    const TempDir dir;
    const auto file = to_oq(test::golden("families") / name, dir / "q.oq", "w4a16g32");
    for (const TensorSpec& spec : tensor_specs(ModelConfig::load(*file))) {
      CAPTURE(spec.name);
      CHECK((file->tensor(spec.name).kind == Kind::packed) ==
            (spec.role == Role::linear || spec.role == Role::embedding || spec.role == Role::head));
    }
  }
}
