#pragma once

#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

namespace oq {

/// What was measured on one device, as PATH.json and PATH.md, both written anew after every row: a
/// run that is cut short loses nothing, and goes on where it stopped.
class Results {
 public:
  using Json = nlohmann::ordered_json;

  /// Reads PATH.json where there is one. `device` goes into the title.
  Results(std::filesystem::path path, std::string device);

  /// Whether a row is there and did not fail.
  bool has(const std::string& table, const std::string& key) const;
  /// Whether it is there and did.
  bool failed(const std::string& table, const std::string& key) const;

  /// A row of a table; one of the same key is replaced. `columns` keep their order; numbers are
  /// printed to 4 digits. Throws oq::Error when the files cannot be written.
  void put(const std::string& table, const std::string& key, Json columns);
  /// A row that could not be measured. Put before the attempt as well: what ends the process shows.
  void put_failure(const std::string& table, const std::string& key, const std::string& why);

  /// How many rows there are; a line for each that failed or missed what it is held to.
  std::string summary() const;
  bool any_failed() const;

 private:
  const Json* find(const std::string& table, const std::string& key) const;
  void write() const;
  std::string markdown() const;

  std::filesystem::path path_;
  std::string device_;
  Json rows_ = Json::array();  ///< {table, key, columns}
};

/// What a row is held to, as two columns, "held to" and "met"; several calls make one list.
void hold_to(Results::Json& columns, const std::string& aim, bool met);

}  // namespace oq
