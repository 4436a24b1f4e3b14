#pragma once

#include <string>
#include <string_view>

namespace oq {

/// The text in Unicode's Normalization Form C (Unicode Standard Annex 15): `text` itself where it
/// is in it already, as nearly all text is, else a view of `storage`. Bytes that are not UTF-8 stay
/// and nothing composes across them.
///
/// By tables of our own, of Unicode 14: a library would be a dependency for one function, and its
/// version, and with it the ids of a file, would be the machine's. Characters keep their form in
/// all later versions; those that came later pass through.
std::string_view to_nfc(std::string_view text, std::string& storage);

}  // namespace oq
