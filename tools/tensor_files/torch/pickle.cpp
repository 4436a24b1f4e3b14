#include "tools/tensor_files/torch/pickle.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include <fmt/format.h>

#include "format/bytes.h"
#include "tools/tensor_files/torch/pickle_ops.h"
#include "tools/tensor_files/torch/printable.h"
#include "tools/tensor_files/torch/rebuild.h"

namespace oq::torch {

namespace {

constexpr uint64_t kMaxBytes = 64 << 20;
constexpr uint64_t kMaxNodes = 1 << 21;
constexpr int kMaxDepth = 64;

class Unpickler {
 public:
  Unpickler(std::span<const std::byte> pickle, const std::string& where,
            const FindStorage& find_storage, uint64_t max_tensor_bytes)
      : in_(pickle, where),
        where_(std::make_shared<const std::string>(where)),
        find_storage_(find_storage),
        max_tensor_bytes_(max_tensor_bytes) {}

  Value run() {
    if (in_.left() > kMaxBytes) throw error("is too large for what it should hold");
    if (in_.left() < 2 || Op(in_.read<uint8_t>()) != Op::proto) {
      throw error("does not begin as a pickle");
    }
    const auto protocol = in_.read<uint8_t>();
    if (protocol < 2 || protocol > 5) {
      throw error(fmt::format("is of pickle protocol {}, where torch has 2 to 5", protocol));
    }
    for (;;) {
      const auto op = Op(in_.read<uint8_t>());
      if (op == Op::stop) break;
      if (!scalar(op) && !container(op) && !memo(op) && !object(op)) throw unknown(op);
    }
    Value root = pop();
    if (!stack_.empty() || !marks_.empty()) throw error("leaves values that nothing uses");
    if (in_.left() > 0) throw error("goes on after its end");
    return root;
  }

 private:
  enum class Kind { list, tuple, dict, ordered_dict, name_space };

  /// What is known of a dict or list beside what it holds. One that has become part of another
  /// must not change any more: so none can come to hold itself, and `nodes` and `depth` are final
  /// when they are added to those of the other.
  struct Container {
    Kind kind;
    std::shared_ptr<Dict> dict;  ///< one of the two
    std::shared_ptr<List> list;
    uint64_t nodes = 1;  ///< in the tree below, as often as it reaches them
    int depth = 1;
    bool part_of_another = false;
  };

  /// Where the unpickler is. The key that a value will go by is on the stack when it is made.
  std::string place() const {
    std::string where = fmt::format("{}, byte {}", *where_, in_.position());
    const auto key = std::find_if(stack_.rbegin(), stack_.rend(), [](const Value& v) {
      return v.as<std::string_view>() != nullptr;
    });
    if (key == stack_.rend()) return where;
    return where + fmt::format(", after '{}'", printable(*key->as<std::string_view>()));
  }
  Error error(std::string what, std::string expected = {}, std::string found = {}) const {
    return Error({.what = std::move(what),
                  .where = place(),
                  .expected = std::move(expected),
                  .found = std::move(found),
                  .hint = "the file is damaged, or not a checkpoint"});
  }
  Error refused(std::string what) const {
    return Error({.what = std::move(what),
                  .where = fmt::format("{}, byte {}", *where_, in_.position()),
                  .expected = "tensors, dicts, lists and scalars",
                  .hint = "no code of a checkpoint is run: save its state_dict alone"});
  }
  template <class Body>
  Value placed(const Body& body) const {
    try {
      return body();
    } catch (const Error& e) {
      Error::Parts parts = e.parts();
      parts.where = place();
      throw Error(std::move(parts));
    }
  }
  Error unknown(Op op) const {
    const std::string_view name = op_name(op);
    if (name.empty()) return error(fmt::format("has no opcode {:#04x}", unsigned(op)));
    return refused(fmt::format("uses pickle opcode {}, which no checkpoint needs", name));
  }
  Error refused_global(std::string_view module, std::string_view name) const {
    return refused(
        fmt::format("asks for {}.{}, which is not data", printable(module), printable(name)));
  }

  // The stack, whose part above the last mark is open.

  size_t open() const { return marks_.empty() ? 0 : marks_.back(); }
  void push(Value value) {
    if (++made_ > kMaxNodes) throw error(fmt::format("makes more than {} values", kMaxNodes));
    stack_.push_back(std::move(value));
  }
  Value& top() {
    if (stack_.size() <= open()) throw error("takes a value where there is none");
    return stack_.back();
  }
  Value pop() {
    Value value = std::move(top());
    stack_.pop_back();
    return value;
  }
  /// The values above the last mark, and the mark goes.
  std::vector<Value> pop_marked() {
    if (marks_.empty()) throw error("goes back to a mark where there is none");
    const auto first = stack_.begin() + std::ptrdiff_t(marks_.back());
    std::vector<Value> values(std::make_move_iterator(first),
                              std::make_move_iterator(stack_.end()));
    stack_.erase(first, stack_.end());
    marks_.pop_back();
    return values;
  }

  // Containers.

  Container* container_of(const Value& v) {
    const void* p = v.as<Dict>();
    if (p == nullptr) p = v.as<List>();
    const auto it = p == nullptr ? containers_.end() : containers_.find(p);
    return it == containers_.end() ? nullptr : &it->second;
  }
  void push_dict(Kind kind) {
    auto dict = std::make_shared<Dict>(where_);
    containers_[dict.get()] = {.kind = kind, .dict = dict, .list = nullptr};
    push(Value(std::shared_ptr<const Dict>(std::move(dict))));
  }
  void push_list(Kind kind, std::vector<Value> values = {}) {
    auto list = std::make_shared<List>();
    Container& c = containers_[list.get()] = {.kind = kind, .dict = nullptr, .list = list};
    for (Value& v : values) append(c, std::move(v));
    push(Value(std::shared_ptr<const List>(std::move(list))));
  }

  /// Counts a value that `parent` is about to hold.
  void adopt(Container& parent, const Value& v) {
    Container* child = container_of(v);
    if (parent.part_of_another || child == &parent) throw error("holds a value that holds itself");
    parent.nodes += child == nullptr ? 1 : child->nodes;
    if (parent.nodes > kMaxNodes) {
      throw error(fmt::format("unfolds to more than {} values", kMaxNodes));
    }
    if (child == nullptr) return;
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxDepth) {
      throw error(fmt::format("is nested more than {} levels deep", kMaxDepth));
    }
    child->part_of_another = true;
  }
  void append(Container& list, Value value) {
    adopt(list, value);
    list.list->add(std::move(value));
  }
  void set(Container& dict, const Value& key, Value value) {
    const auto* text = key.as<std::string_view>();
    const auto* number = key.as<int64_t>();
    if (text == nullptr && number == nullptr) {
      throw error("has a dict with an odd key", "a string or an integer", std::string(key.kind()));
    }
    adopt(dict, value);
    if (!dict.dict->add(key, std::move(value))) {
      throw error(fmt::format("has key '{}' twice in one dict",
                              text != nullptr ? printable(*text) : std::to_string(*number)));
    }
  }

  // Opcodes, each group false where `op` is not in it.

  void push_text(uint64_t bytes) {
    const auto text = in_.take(bytes);
    push(Value(std::string_view(reinterpret_cast<const char*>(text.data()), text.size())));
  }

  void push_long(std::span<const std::byte> bytes) {
    if (bytes.size() > 8) throw error("holds an integer of more than 64 bits");
    uint64_t bits = 0;
    for (size_t i = 0; i < bytes.size(); ++i) bits |= uint64_t(bytes[i]) << (8 * i);
    const auto unused = 64 - 8 * unsigned(bytes.size());  // shifting right copies the sign
    push(Value(bytes.empty() ? int64_t(0) : int64_t(bits << unused) >> unused));
  }

  bool scalar(Op op) {
    switch (op) {
      case Op::none:
        return push(Value()), true;
      case Op::new_true:
        return push(Value(true)), true;
      case Op::new_false:
        return push(Value(false)), true;
      case Op::bin_int:
        return push(Value(int64_t(in_.read<int32_t>()))), true;
      case Op::bin_int1:
        return push(Value(int64_t(in_.read<uint8_t>()))), true;
      case Op::bin_int2:
        return push(Value(int64_t(in_.read<uint16_t>()))), true;
      case Op::long1:
        return push_long(in_.take(in_.read<uint8_t>())), true;
      case Op::bin_float:  // the only big-endian value
        return push(Value(std::bit_cast<double>(__builtin_bswap64(in_.read<uint64_t>())))), true;
      case Op::short_bin_unicode:
        return push_text(in_.read<uint8_t>()), true;
      case Op::bin_unicode:
        return push_text(in_.read<uint32_t>()), true;
      case Op::bin_unicode8:
        return push_text(in_.read<uint64_t>()), true;
      default:
        return false;
    }
  }

  bool container(Op op) {
    switch (op) {
      case Op::mark:
        if (marks_.size() >= kMaxNodes) throw error("has too many marks");
        return marks_.push_back(stack_.size()), true;
      case Op::empty_dict:
        return push_dict(Kind::dict), true;
      case Op::empty_list:
        return push_list(Kind::list), true;
      case Op::empty_tuple:
        return push_list(Kind::tuple), true;
      case Op::tuple:
        return push_list(Kind::tuple, pop_marked()), true;
      case Op::tuple1:
      case Op::tuple2:
      case Op::tuple3: {
        std::vector<Value> values(size_t(op) - size_t(Op::tuple1) + 1);
        for (auto v = values.rbegin(); v != values.rend(); ++v) *v = pop();
        return push_list(Kind::tuple, std::move(values)), true;
      }
      case Op::append: {
        Value value = pop();
        return append(top_list(), std::move(value)), true;
      }
      case Op::appends: {
        std::vector<Value> values = pop_marked();
        Container& list = top_list();
        for (Value& v : values) append(list, std::move(v));
        return true;
      }
      case Op::set_item: {
        Value value = pop();
        const Value key = pop();
        return set(top_dict(), key, std::move(value)), true;
      }
      case Op::set_items: {
        std::vector<Value> values = pop_marked();
        if (values.size() % 2 != 0) throw error("has a key without a value");
        Container& dict = top_dict();
        for (size_t i = 0; i < values.size(); i += 2) {
          set(dict, values[i], std::move(values[i + 1]));
        }
        return true;
      }
      default:
        return false;
    }
  }

  Container& top_list() {
    Container* c = container_of(top());
    if (c == nullptr || c->kind != Kind::list) throw wrong("appends to", "a list", top());
    return *c;
  }
  Container& top_dict() {
    Container* c = container_of(top());
    if (c == nullptr || (c->kind != Kind::dict && c->kind != Kind::ordered_dict)) {
      throw wrong("sets an item of", "a dict", top());
    }
    return *c;
  }
  Error wrong(const char* what, const char* expected, const Value& found) const {
    return error(fmt::format("{} something that is not {}", what, expected), expected,
                 std::string(found.kind()));
  }

  bool memo(Op op) {
    switch (op) {
      case Op::frame:
        return in_.read<uint64_t>(), true;  // a hint for reading ahead
      case Op::bin_put:
        return memo_[in_.read<uint8_t>()] = top(), true;
      case Op::long_bin_put:
        return memo_[in_.read<uint32_t>()] = top(), true;
      case Op::memoize:
        return memo_[uint32_t(memo_.size())] = top(), true;
      case Op::bin_get:
        return get(in_.read<uint8_t>()), true;
      case Op::long_bin_get:
        return get(in_.read<uint32_t>()), true;
      default:
        return false;
    }
  }
  void get(uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) throw error(fmt::format("takes memo {}, which is not set", index));
    push(found->second);
  }

  bool object(Op op) {
    switch (op) {
      case Op::global: {
        const std::string_view module = line();
        return push_global(module, line()), true;
      }
      case Op::inst: {  // makes an object at once: nothing that is known here is made so
        const std::string_view module = line();
        throw refused_global(module, line());
      }
      case Op::stack_global: {
        const Value name = pop(), module = pop();
        const auto *n = name.as<std::string_view>(), *m = module.as<std::string_view>();
        if (n == nullptr || m == nullptr) throw error("names a global by what is no string");
        return push_global(*m, *n), true;
      }
      case Op::bin_persid:
        return persistent(pop()), true;
      case Op::reduce: {
        const Value arguments = pop(), function = pop();
        return call(function, arguments), true;
      }
      case Op::build: {
        const Value state = pop();
        return build(state), true;
      }
      default:
        return false;
    }
  }

  std::string_view line() {
    const std::span<const std::byte> start = in_.take(0);
    size_t bytes = 0;
    while (in_.read<char>() != '\n') ++bytes;
    return {reinterpret_cast<const char*>(start.data()), bytes};
  }

  void push_global(std::string_view module, std::string_view name) {
    auto global = find_global(module, name);
    if (!global) throw refused_global(module, name);
    push(std::move(*global));
  }

  void persistent(const Value& id) {
    push(placed([&] { return load_storage(id, find_storage_); }));
  }

  void call(const Value& function, const Value& arguments) {
    const Part* part = function.as<Part>();
    const List* list = arguments.as<List>();
    if (part == nullptr || list == nullptr) throw error("calls what is no function");
    const std::span<const Value> args = list->items();
    switch (part->id) {
      case Part::Id::ordered_dict:
        if (args.empty()) return push_dict(Kind::ordered_dict);
        break;
      case Part::Id::name_space:
        if (args.empty()) return push_dict(Kind::name_space);
        break;
      case Part::Id::size:
        if (args.size() == 1 && args[0].as<List>() != nullptr) return push(args[0]);
        break;
      case Part::Id::rebuild_parameter:
        if (args.size() == 3 && args[0].as<Tensor>() != nullptr) return push(args[0]);
        break;
      case Part::Id::rebuild_tensor_v2:
      case Part::Id::rebuild_tensor_v3:
        return push(placed([&] { return rebuild_tensor(part->id, args, max_tensor_bytes_); }));
      default:
        throw error("calls what is no function");
    }
    throw error("calls a function with arguments that it does not have");
  }

  /// Attributes: they are what a namespace holds; those of an OrderedDict (a state_dict's
  /// versions) tell nothing about its weights.
  void build(const Value& state) {
    Container* c = container_of(top());
    const Dict* dict = state.as<Dict>();
    if (c == nullptr || dict == nullptr ||
        (c->kind != Kind::ordered_dict && c->kind != Kind::name_space)) {
      throw refused(fmt::format("sets attributes of {}", top().kind()));
    }
    if (c->kind == Kind::ordered_dict) return;
    for (const Dict::Item& item : dict->items()) set(*c, item.key, item.value);
  }

  ByteReader in_;
  std::shared_ptr<const std::string> where_;
  const FindStorage& find_storage_;
  uint64_t max_tensor_bytes_;
  std::vector<Value> stack_;
  std::vector<size_t> marks_;
  std::map<uint32_t, Value> memo_;
  std::unordered_map<const void*, Container> containers_;
  uint64_t made_ = 0;
};

}  // namespace

Value unpickle(std::span<const std::byte> pickle, const std::string& where,
               const FindStorage& find_storage, uint64_t max_tensor_bytes) {
  return Unpickler(pickle, where, find_storage, max_tensor_bytes).run();
}

}  // namespace oq::torch
