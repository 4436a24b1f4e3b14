// The unpickler on values of every kind, and on pickles that should never run.

#include <limits>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/convert/torch_archive.h"
#include "tests/support.h"
#include "tools/tensor_files/torch/pickle.h"

using namespace oq;
using namespace oq::torch;
using test::dict;
using test::global;
using test::integer;
using test::le;
using test::pickle;
using test::storage;
using test::tensor;
using test::text;

namespace {

const std::string kBytes(48, 's');  // of every storage but "none"

std::shared_ptr<const Storage> find_storage(std::string_view key) {
  if (key == "none") throw Error({.what = "storage 'none' is missing"});
  return std::make_shared<const Storage>(key, std::as_bytes(std::span(kBytes)));
}

Value read(const std::string& bytes) {
  return unpickle(std::as_bytes(std::span(bytes)), "test.pkl", find_storage, 1000);
}

void check_refused(const std::string& bytes, const std::string& says) {
  CAPTURE(says);
  try {
    read(bytes);
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(std::string(e.what()).find(says) != std::string::npos);
    CHECK(std::string(e.what()).find("test.pkl") != std::string::npos);
  }
}

/// The pickle of one value.
template <class T>
T value_of(const std::string& body) {
  const std::string bytes = pickle(body);
  const Value value = read(bytes);
  REQUIRE(value.as<T>() != nullptr);
  return *value.as<T>();
}

const std::string kFloats = storage("FloatStorage", "0", 12);

/// Opcodes of the memo.
std::string put(int i) { return "q" + le(uint8_t(i)); }
std::string get(int i) { return "h" + le(uint8_t(i)); }

}  // namespace

TEST_CASE("scalars") {
  CHECK(read(pickle("N")).none());
  CHECK(value_of<bool>("\x88"));
  CHECK_FALSE(value_of<bool>("\x89"));
  CHECK(value_of<int64_t>("K\xFF") == 255);
  CHECK(value_of<int64_t>("M\xFE\xFF") == 65534);
  CHECK(value_of<int64_t>("J\xFE\xFF\xFF\xFF") == -2);
  CHECK(value_of<int64_t>(std::string("\x8A\x00", 2)) == 0);
  CHECK(value_of<int64_t>("\x8A\x01\xFF") == -1);
  CHECK(value_of<int64_t>(std::string("\x8A\x06\x00\x00\x00\x00\x00\x01", 8)) == int64_t(1) << 40);
  CHECK(value_of<int64_t>("\x8A\x08" + le(std::numeric_limits<int64_t>::min())) ==
        std::numeric_limits<int64_t>::min());
  CHECK(value_of<double>(std::string("G\xBF\xE0\x00\x00\x00\x00\x00\x00", 9)) == -0.5);
  const std::string bytes = pickle(text("größer"));
  CHECK(*read(bytes).as<std::string_view>() == "größer");
  CHECK(read(pickle(global("torch", "bfloat16"))).as<Dtype>()->name == "BF16");
  CHECK(read(pickle("N")).kind() == "None");
  CHECK(read(pickle(global("torch", "Size"))).kind() == "a part of torch");
  CHECK(read(pickle(kFloats)).as<Tensor>() == nullptr);
}

TEST_CASE("dicts and lists, and asking them for what they hold") {
  const std::string bytes =
      pickle(dict({{"bits", "K\x03"},
                   {"name", text("x")},
                   {"list",
                    "](K\x01K\x02NeK\x03"
                    "a"},
                   {"none", "N"},
                   {"inner", dict({{"ok", "\x88"}})},
                   {"space", global("types", "SimpleNamespace") + ")R}" + text("n") + "K\x07sb"},
                   {"size", global("torch", "Size") + "K\x02\x85\x85R"}}) +
             "K\x07" + text("seven") + "s");
  const Value root = read(bytes);
  const Dict& d = *root.as<Dict>();
  CHECK(d.items().size() == 8);
  CHECK(d.get<int64_t>("bits") == 3);
  CHECK(d.get<std::string_view>("name") == "x");
  CHECK(d.get<List>("list").items().size() == 4);
  CHECK(d.get<Dict>("inner").get<bool>("ok"));
  CHECK(d.get<Dict>("space").get<int64_t>("n") == 7);
  CHECK(*d.get<List>("size").items()[0].as<int64_t>() == 2);
  CHECK(*d.find(int64_t(7))->as<std::string_view>() == "seven");
  CHECK(d.find<int64_t>("absent") == nullptr);
  CHECK(d.find<int64_t>("none") == nullptr);
  CHECK(d.find(int64_t(8)) == nullptr);
  CHECK_THROWS_WITH_AS(d.get<int64_t>("absent"),
                       "test.pkl: has no usable 'absent' (expected an integer, found nothing)",
                       Error);
  CHECK_THROWS_WITH_AS(d.find<bool>("bits"),
                       "test.pkl: has no usable 'bits' (expected a boolean, found an integer)",
                       Error);
  CHECK_THROWS_WITH_AS(d.get<Tensor>("inner"),
                       "test.pkl: has no usable 'inner' (expected a tensor, found a dict)", Error);
}

TEST_CASE("an OrderedDict with attributes, and values that are shared") {
  const std::string shared =
      pickle(global("collections", "OrderedDict") + ")R" + text("a") + "]" + put(1) +
             "K\x05"
             "as" +
             text("b") + get(1) + "s}" + text("_metadata") + "}sb");
  const Value root = read(shared);
  const Dict& d = *root.as<Dict>();
  REQUIRE(d.items().size() == 2);
  CHECK(&d.get<List>("a") == &d.get<List>("b"));
  CHECK(d.find("_metadata") == nullptr);
}

TEST_CASE("tensors and what they may not be") {
  const auto sound = [](uint64_t offset, const std::vector<uint64_t>& shape,
                        const std::vector<uint64_t>& strides) {
    const std::string bytes = pickle(tensor(kFloats, offset, shape, strides));
    const Value v = read(bytes);
    REQUIRE(v.as<Tensor>() != nullptr);
    return *v.as<Tensor>();
  };
  CHECK(sound(0, {3, 4}, {4, 1}).contiguous());
  CHECK(sound(0, {3, 4}, {4, 1}).bytes().size() == 48);
  CHECK(sound(4, {2, 1, 4}, {4, 77, 1}).contiguous());
  CHECK_FALSE(sound(0, {4, 3}, {1, 4}).contiguous());
  CHECK_FALSE(sound(11, {5, 1}, {0, 1}).contiguous());
  CHECK(sound(11, {}, {}).elements() == 1);
  CHECK(sound(99, {0, 9}, {9, 1}).bytes().empty());
  const Tensor odd = sound(1, {2, 2}, {5, 3});
  CHECK(odd.place().size() == 9 * 4);

  const auto refused = [&](uint64_t offset, const std::vector<uint64_t>& shape,
                           const std::vector<uint64_t>& strides, const char* says) {
    check_refused(pickle(tensor(kFloats, offset, shape, strides)), says);
  };
  const uint64_t most = uint64_t(std::numeric_limits<int64_t>::max());
  refused(0, {13}, {1}, "beyond its storage '0'");
  refused(1, {3, 4}, {4, 1}, "beyond its storage");
  refused(12, {}, {}, "beyond its storage");
  refused(0, {2, 2}, {11, 1}, "beyond its storage");
  refused(0, {most, most, 4}, {1, 1, 1}, "beyond its storage");
  refused(most, {2}, {most}, "beyond its storage");
  refused(0, {0, most, most, most}, {1, 1, 1, 1}, "beyond its storage");
  refused(0, {1000, 1000}, {0, 0}, "larger than its file");
  refused(0, {3}, {}, "as many strides");
  refused(0, {uint64_t(-1)}, {1}, "wrong sizes");
  refused(0, std::vector<uint64_t>(65, 1), std::vector<uint64_t>(65, 1), "at most 64 sizes");

  check_refused(pickle(text("layer.weight") + tensor(kFloats, 0, {13}, {1}) + "\x86"),
                "after 'layer.weight'");
  check_refused(pickle(storage("FloatStorage", "0", 13)), "about its size");
  check_refused(pickle(storage("FloatStorage", "0", 11)), "about its size");
  check_refused(pickle(storage("DoubleStorage", "0", uint64_t(1) << 61)), "about its size");
  check_refused(pickle(storage("FloatStorage", "none", 12)), "'none' is missing");
  check_refused(pickle("K\x01Q"), "no storage");
  check_refused(pickle("(" + text("module") + "NNNNtQ"), "no storage");
  check_refused(pickle(tensor("N", 0, {1}, {1})), "wrong arguments");
  check_refused(pickle(tensor(kFloats, 0, {1}, {1}, dict({{"conj", "\x88"}}))), "whose values");
  CHECK_NOTHROW(read(pickle(tensor(kFloats, 0, {1}, {1}, "}"))));
  check_refused(pickle(tensor("(" + text("storage") + global("torch.storage", "UntypedStorage") +
                                  text("0") + text("cpu") + integer(48) + "tQ",
                              0, {1}, {1})),
                "without a dtype");
}

TEST_CASE("no code is run") {
  for (const std::string& name :
       {std::string("os\nsystem"), std::string("posix\nsystem"), std::string("builtins\neval"),
        std::string("subprocess\nPopen"), std::string("torch\nload"),
        std::string("torch.hub\nload"), std::string("torch._utils\n_rebuild_qtensor"),
        std::string("collections\ndefaultdict"), std::string("numpy.core.multiarray\nscalar"),
        std::string("torch\n__builtins__")}) {
    std::string dotted = name;
    dotted[dotted.find('\n')] = '.';
    const std::string says = "asks for " + dotted + ",";
    check_refused(pickle("c" + name + "\n" + text("echo pwned") + "\x85R"), says);
    check_refused(pickle("(" + text("echo pwned") + "i" + name + "\n"), says);
    const size_t at = name.find('\n');
    check_refused(pickle(text(name.substr(0, at)) + text(name.substr(at + 1)) + "\x93)R"), says);
  }
  check_refused(pickle("cos\nsys\x1B[2Jtem\n)R"), "os.sys?[2Jtem");
  check_refused(pickle("c" + std::string(100'000, 'a') + "\nb\n"), "aaa..");
  check_refused(pickle(global("collections", "OrderedDict") + ")\x81"), "NEWOBJ");
  check_refused(pickle("(" + global("collections", "OrderedDict") + "o"), "OBJ");
  check_refused(pickle("Pid\n"), "PERSID");
  check_refused(pickle("\x82\x01"), "EXT1");
  check_refused(pickle("C\x01x"), "SHORT_BINBYTES");
  check_refused(pickle("\x8F"), "EMPTY_SET");
  check_refused(pickle("\x97"), "NEXT_BUFFER");
  check_refused(pickle("N0"), "POP");
  check_refused(pickle("\x01"), "no opcode 0x01");
  check_refused(pickle(global("torch", "float16") + ")R"), "no function");
  check_refused(pickle(global("torch", "FloatStorage") + ")R"), "no function");
  check_refused(pickle(global("torch", "Size") + ")R"), "arguments");
  check_refused(pickle(global("collections", "OrderedDict") + "K\x01\x85R"), "arguments");
  check_refused(pickle(global("torch._utils", "_rebuild_parameter") + "N\x85R"), "arguments");
  check_refused(pickle("K\x01)R"), "no function");
  check_refused(pickle("]}b"), "sets attributes of a list");
  check_refused(pickle(tensor(kFloats, 0, {1}, {1}) + "}b"), "sets attributes of a tensor");
}

TEST_CASE("values that hold themselves") {
  const std::string self = "holds itself";
  check_refused(pickle("]" + put(0) + get(0) + "a"), self);
  check_refused(pickle("}" + put(0) + text("a") + get(0) + "s"), self);
  check_refused(pickle("]" + put(0) + get(0) +
                       "\x85"
                       "a"),
                self);
  // a = [], b = [a], then b into a
  check_refused(pickle("]" + put(0) + "]" + put(1) + get(0) + "a" + get(0) + get(1) + "a\x86"),
                self);
  check_refused(
      pickle(global("types", "SimpleNamespace") + ")R" + put(0) + "}" + text("me") + get(0) + "sb"),
      self);
  check_refused(pickle(get(3)), "memo 3, which is not set");
  check_refused(pickle("j\xFF\xFF\xFF\xFF"), "memo 4294967295");
  CHECK_NOTHROW(read(pickle("Nr\xFF\xFF\xFF\xFF")));
}

TEST_CASE("pickles that grow") {
  // Each list holds the one before it ten times: ten to the power of the depth.
  std::string laughs = "]" + put(0);
  for (int i = 0; i < 9; ++i) {
    laughs += "](";
    for (int k = 0; k < 10; ++k) laughs += get(i);
    laughs += "e" + put(i + 1);
  }
  check_refused(pickle(laughs), "unfolds to more than");

  check_refused(pickle(std::string(100, ']') + std::string(99, 'a')), "nested more than 64");
  std::string deep;
  for (int i = 0; i < 50'000; ++i) deep += "]";
  for (int i = 1; i < 50'000; ++i) deep += "a";
  check_refused(pickle(deep), "nested more than 64");
  check_refused(pickle(std::string(3'000'000, 'N')), "more than 2097152 values");
  check_refused(pickle(std::string(3'000'000, '(')), "too many marks");
  check_refused(std::string("\x80\x02", 2) + std::string(size_t(65) << 20, 'N'), "too large");
  // Errors say where: finding that out must not cost a walk over the stack for every tensor.
  std::string many = std::string(1'000'000, 'N') + kFloats + put(0);
  for (int i = 0; i < 20'000; ++i) many += tensor(get(0), 0, {1}, {1});
  check_refused(pickle(many), "nothing uses");
}

TEST_CASE("pickles that are broken") {
  check_refused("", "does not begin");
  check_refused("x", "does not begin");
  check_refused("no pickle", "does not begin");
  check_refused("\x80\x01N.", "protocol 1");
  check_refused("\x80\x06N.", "protocol 6");
  check_refused("\x80\x02.", "where there is none");
  check_refused(pickle("NN"), "nothing uses");
  check_refused(pickle("(N"), "nothing uses");
  check_refused(pickle("N") + "N", "goes on");
  check_refused(pickle("t"), "mark where there is none");
  check_refused(pickle("K\x01(\x85"), "where there is none");
  check_refused(pickle("K\x01K\x02"
                       "a"),
                "not a list");
  check_refused(pickle(")K\x02"
                       "a"),
                "not a list");
  check_refused(pickle("]K\x01K\x02s"), "not a dict");
  check_refused(pickle("}(K\x01u"), "key without a value");
  check_refused(pickle("}]Ns"), "odd key");
  check_refused(pickle("}" + text("a") + "Ns" + text("a") + "Ns"), "'a' twice");
  check_refused(pickle("}K\x05NsK\x05Ns"), "'5' twice");
  check_refused(pickle("\x8A\x09"
                       "123456789"),
                "64 bits");
  check_refused(pickle("X\xFF\xFF\xFF\xFF"
                       "a"),
                "ends in the middle");
  check_refused(pickle("\x8D\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), "ends in the middle");
  check_refused(pickle("cos"), "ends in the middle");
  check_refused(pickle("K\x01K\x02\x93"), "no string");
}

TEST_CASE("a pickle truncated at every byte, and with flipped bits") {
  const std::string sound =
      pickle(dict({{"a", tensor(kFloats, 2, {2, 3}, {3, 1})},
                   {"b", "](K\x01" + text("x") + put(2) + get(2) + "e"},
                   {"c", global("types", "SimpleNamespace") + ")R}" + text("n") + "K\x07sb"}}));
  CHECK_NOTHROW(read(sound));
  for (size_t n = 0; n < sound.size(); ++n) {
    CAPTURE(n);
    CHECK_THROWS_AS(read(sound.substr(0, n)), Error);
  }
  for (size_t i = 0; i < sound.size(); ++i) {
    for (int mask = 1; mask < 256; ++mask) {
      std::string bytes = sound;
      bytes[i] = char(bytes[i] ^ mask);
      try {
        read(bytes);
      } catch (const Error&) {
      }
    }
  }
}
