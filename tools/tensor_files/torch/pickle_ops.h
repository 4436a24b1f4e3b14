#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

namespace oq::torch {

/// Opcodes of pickle that are executed (Python's Lib/pickletools.py has all of them). INST is
/// there to be refused by the name that it brings.
enum class Op : uint8_t {
  mark = '(',
  stop = '.',
  bin_int = 'J',
  bin_int1 = 'K',
  bin_int2 = 'M',
  none = 'N',
  bin_persid = 'Q',
  reduce = 'R',
  bin_unicode = 'X',
  append = 'a',
  build = 'b',
  global = 'c',
  appends = 'e',
  bin_get = 'h',
  inst = 'i',
  long_bin_get = 'j',
  bin_put = 'q',
  long_bin_put = 'r',
  set_item = 's',
  tuple = 't',
  empty_tuple = ')',
  set_items = 'u',
  bin_float = 'G',
  empty_list = ']',
  empty_dict = '}',
  proto = 0x80,
  tuple1 = 0x85,
  tuple2 = 0x86,
  tuple3 = 0x87,
  new_true = 0x88,
  new_false = 0x89,
  long1 = 0x8A,
  short_bin_unicode = 0x8C,
  bin_unicode8 = 0x8D,
  stack_global = 0x93,
  memoize = 0x94,
  frame = 0x95,
};

/// What Python calls an opcode that is not executed; empty where it is none.
constexpr std::string_view op_name(Op op) {
  constexpr std::pair<uint8_t, std::string_view> kNames[] = {
      {'0', "POP"},          {'1', "POP_MARK"},
      {'2', "DUP"},          {'F', "FLOAT"},
      {'I', "INT"},          {'L', "LONG"},
      {'P', "PERSID"},       {'S', "STRING"},
      {'T', "BINSTRING"},    {'U', "SHORT_BINSTRING"},
      {'V', "UNICODE"},      {'d', "DICT"},
      {'g', "GET"},          {'l', "LIST"},
      {'o', "OBJ"},          {'p', "PUT"},
      {'B', "BINBYTES"},     {'C', "SHORT_BINBYTES"},
      {0x80, "PROTO"},       {0x81, "NEWOBJ"},
      {0x82, "EXT1"},        {0x83, "EXT2"},
      {0x84, "EXT4"},        {0x8B, "LONG4"},
      {0x8E, "BINBYTES8"},   {0x8F, "EMPTY_SET"},
      {0x90, "ADDITEMS"},    {0x91, "FROZENSET"},
      {0x92, "NEWOBJ_EX"},   {0x96, "BYTEARRAY8"},
      {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"}};
  for (const auto& [code, name] : kNames) {
    if (Op(code) == op) return name;
  }
  return {};
}

}  // namespace oq::torch
