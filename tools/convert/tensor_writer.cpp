#include "tools/convert/tensor_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "tools/convert/parallel.h"
#include "tools/convert/quantized/packed_source.h"
#include "tools/convert/rtn.h"

namespace oq::convert {
namespace {

constexpr uint64_t kChunk = 1 << 20;  ///< weights per thread

Error unusable(uint64_t at, float weight, bool finite, Kind dtype) {
  if (!finite) {
    return Error(
        {.what = fmt::format("weight {} is not finite", at), .hint = "the checkpoint is damaged"});
  }
  return Error({.what = fmt::format("weight {} does not fit {}", at, to_string(dtype)),
                .found = fmt::format("{}", weight),
                .hint = dtype == Kind::f16 ? "convert with --dtype bf16 or --dtype f32"
                                           : "convert with --dtype f32"});
}

/// Floats to a stored type; throws on what it cannot hold.
template <class T, class To>
void narrow(std::span<const float> in, std::byte* out, uint64_t first, Kind dtype, To to) {
  bool fits = true;
  for (size_t i = 0; i < in.size(); ++i) {
    const T value = to(in[i]);
    fits &= std::isfinite(to_float(value));
    std::memcpy(out + i * sizeof(T), &value, sizeof(T));
  }
  if (fits) return;
  for (size_t i = 0; i < in.size(); ++i) {
    if (!std::isfinite(to_float(to(in[i])))) {
      throw unusable(first + i, in[i], std::isfinite(in[i]), dtype);
    }
  }
}

void store(std::span<const float> in, std::byte* out, uint64_t first, Kind dtype) {
  switch (dtype) {
    case Kind::f16:
      return narrow<f16>(in, out, first, dtype, [](float x) { return to_f16(x); });
    case Kind::bf16:
      return narrow<bf16>(in, out, first, dtype, [](float x) { return to_bf16(x); });
    default:
      return narrow<float>(in, out, first, dtype, [](float x) { return x; });
  }
}

/// The checkpoint has quantized it, and a file may keep it so.
bool taken_over(const Binding& b) {
  return b.source != nullptr && b.source->packed != nullptr &&
         (b.spec.role == Role::linear || b.spec.role == Role::head);
}

}  // namespace

std::optional<Packing> Storage::packing(Role role) const {
  if (role == Role::linear) return linears;
  return role == Role::embedding || role == Role::head ? head : std::nullopt;
}

Kind Storage::kind(Role role) const {
  if (packing(role)) return Kind::packed;
  return role == Role::f32 ? Kind::f32 : dtype;
}

TensorWriter::TensorWriter(const Checkpoint& checkpoint, const Model& model, const Storage& storage,
                           Writer& out, Progress progress)
    : checkpoint_(checkpoint),
      model_(model),
      storage_(storage),
      out_(out),
      progress_(std::move(progress)) {}

void TensorWriter::write(const Binding& b) {
  if (b.source == nullptr) return write_plain(b);
  with_place(checkpoint_.place_of(*b.source), [&] {
    if (taken_over(b)) {
      write_taken_over(b);
    } else if (const auto packing = storage_.packing(b.spec.role)) {
      write_packed(b, *packing);
    } else {
      write_plain(b);
    }
  });
  checkpoint_.release(*b.source);
}

void TensorWriter::report(const Binding& b, uint64_t rows) const {
  if (b.source != nullptr) progress_(b.source_bytes() / uint64_t(b.spec.rows) * rows, b.spec.name);
}

void TensorWriter::read_rows(const Binding& b, uint64_t row0, uint64_t n, float* out) const {
  const auto cols = uint64_t(b.spec.cols);
  if (b.source == nullptr) {
    for (uint64_t i = 0; i < n; ++i) model_.compute(b.spec.name, row0 + i, {out + i * cols, cols});
  } else if (b.vector() && !b.rows.identity()) {
    std::vector<float> source(b.source->cols);
    checkpoint_.read_rows(*b.source, 0, 1, source.data());
    for (uint64_t i = 0; i < cols; ++i) out[i] = source[b.rows(i)];
  } else {
    for (uint64_t i = 0; i < n;) {
      const uint64_t together = b.rows.together(row0 + i, n - i);
      checkpoint_.read_rows(*b.source, b.rows(row0 + i), together, out + i * cols);
      i += together;
    }
  }
}

void TensorWriter::write_plain(const Binding& b) {
  const auto rows = uint64_t(b.spec.rows), cols = uint64_t(b.spec.cols);
  const Kind kind = storage_.kind(b.spec.role);
  const size_t width = kind == Kind::f32 ? 4 : 2;
  const uint64_t per_thread = std::max<uint64_t>(1, kChunk / cols);
  const uint64_t chunk = std::min(rows, per_thread * uint64_t(storage_.threads));
  floats_.resize(std::max<size_t>(floats_.size(), chunk * cols));
  bytes_.resize(std::max<size_t>(bytes_.size(), chunk * cols * width));
  out_.begin({.name = b.spec.name, .kind = kind, .rows = rows, .cols = cols});
  for (uint64_t row0 = 0; row0 < rows; row0 += chunk) {
    const uint64_t n = std::min(chunk, rows - row0);
    parallel_ranges(n, 1, cols * n < kChunk / 16 ? 1 : storage_.threads,
                    [&](uint64_t begin, uint64_t end) {
                      float* floats = floats_.data() + begin * cols;
                      read_rows(b, row0 + begin, end - begin, floats);
                      store({floats, size_t((end - begin) * cols)},
                            bytes_.data() + begin * cols * width, (row0 + begin) * cols, kind);
                    });
    out_.write({bytes_.data(), size_t(n * cols * width)});
    report(b, n);
  }
  out_.end();
}

void TensorWriter::write_packed(const Binding& b, const Packing& packing) {
  const auto rows = uint64_t(b.spec.rows), cols = uint64_t(b.spec.cols);
  PackedBuilder builder(rows, cols, packing);
  parallel_ranges(rows, kPanelRows, storage_.threads, [&](uint64_t begin, uint64_t end) {
    std::vector<float> weights(cols);
    for (uint64_t row = begin; row < end; ++row) {
      read_rows(b, row, 1, weights.data());
      rtn_row(weights, row, builder);
    }
  });
  out_.add(
      {.name = b.spec.name, .kind = Kind::packed, .rows = rows, .cols = cols, .packing = packing},
      builder.bytes());
  report(b, rows);
}

void TensorWriter::write_taken_over(const Binding& b) {
  const PackedSource& source = *b.source->packed;
  const auto rows = uint64_t(b.spec.rows), cols = uint64_t(b.spec.cols);
  PackedBuilder builder(rows, cols, source.packing());
  builder.set_weak_indices(source.weak_indices());
  parallel_ranges(rows, kPanelRows, storage_.threads, [&](uint64_t begin, uint64_t end) {
    for (uint64_t row = begin; row < end; ++row) source.copy_row(b.rows(row), row, builder);
  });
  out_.add({.name = b.spec.name,
            .kind = Kind::packed,
            .rows = rows,
            .cols = cols,
            .packing = source.packing()},
           builder.bytes());
  report(b, rows);
}

}  // namespace oq::convert
