// The table of shapes against what the models' papers and cards say.

#include "bench/shapes.h"

#include <cmath>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "format/file_layout.h"
#include "format/scheme.h"

using namespace oq;

namespace {

struct Published {
  const char* name;
  double parameters;
};

}  // namespace

TEST_CASE("shapes have the published number of parameters") {
  const Published published[] = {
      {"smollm2-135m", 134.5e6}, {"llama-1.1b", 1.100e9},  {"llama-7b", 6.738e9},
      {"llama-13b", 13.016e9},   {"llama-30b", 32.529e9},  {"opt-125m", 125.2e6},
      {"opt-1.3b", 1.316e9},     {"opt-6.7b", 6.658e9},    {"falcon-rw-1b", 1.312e9},
      {"falcon-7b", 6.922e9},    {"falcon-180b", 178.6e9}, {"mixtral-8x7b", 46.703e9},
      {"bloom-1b1", 1.065e9},
  };
  CHECK(std::size(published) + 1 == shapes().size());  // all but the mini, which nobody published
  for (const Published& p : published) {
    CAPTURE(p.name);
    const Shape* shape = find_shape(p.name);
    REQUIRE(shape != nullptr);
    CHECK(std::abs(double(parameters(shape->config)) / p.parameters - 1) < 0.003);
  }
  // "7.2B" counts the embedding a second time, as the head that the checkpoint holds too.
  const ModelConfig& falcon = find_shape("falcon-7b")->config;
  const int64_t with_head = parameters(falcon) + falcon.vocab * falcon.hidden;
  CHECK(std::abs(double(with_head) / 7.217e9 - 1) < 0.003);
}

TEST_CASE("every shape is a model that can be stored") {
  std::set<std::string_view> names;
  for (const Shape& shape : shapes()) {
    CAPTURE(shape.name);
    CHECK(names.insert(shape.name).second);
    CHECK(shape.config.hidden % shape.config.heads == 0);
    shape.config.check();
    Metadata m;
    shape.config.store(m);
    CHECK(ModelConfig::load(m) == shape.config);
    for (const TensorSpec& spec : tensor_specs(shape.config)) {
      REQUIRE(spec.name.size() < sizeof(disk::Entry::name));
    }
    CHECK(shape_names().find(shape.name) != std::string::npos);
  }
  CHECK(find_shape("llama-7") == nullptr);
  CHECK(find_shape("") == nullptr);
}

TEST_CASE("mixtral-mini is Mixtral with fewer blocks, and fits 8 GB at 4 bits") {
  ModelConfig mini = find_shape("mixtral-mini")->config;
  uint64_t bytes = 0;
  for (const TensorSpec& spec : tensor_specs(mini)) {
    TensorInfo t{.name = spec.name,
                 .kind = Kind::packed,
                 .rows = uint64_t(spec.rows),
                 .cols = uint64_t(spec.cols),
                 .packing = head_packing(8)};
    if (spec.role == Role::linear) t.packing = packing_of(Scheme::parse("w4a16g32"));
    if (spec.role == Role::f32) t.kind = Kind::f32;
    bytes += t.expected_bytes();
  }
  CHECK(bytes < 6e9);  // room for the rest of the machine
  mini.blocks = 32;
  CHECK(mini == find_shape("mixtral-8x7b")->config);
}
