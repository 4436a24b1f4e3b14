#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/metadata.h"
#include "runtime/tokenizer/tokenizer.h"

namespace oq {

enum class ChatRole { system, user, assistant };

struct ChatMessage {
  ChatRole role = ChatRole::user;
  std::string text;
};

/// A part of a rendered conversation. What people wrote is never searched for special tokens:
/// a user who types "<|im_end|>" does not end a turn.
struct ChatPiece {
  std::string text;
  bool is_message = false;  ///< someone's words; else the template's
};

/// How a model wants a conversation to be written down. Checkpoints carry Jinja programs; OQ does
/// not run them, it knows the common ones by fingerprint and writes the same text (tests hold it
/// to what Jinja renders). Immutable, with static lifetime.
class ChatTemplate {
 public:
  /// Throws oq::Error that lists the names when there is none of this name.
  static const ChatTemplate& named(std::string_view name);
  /// The template that a .oq names; throws oq::Error that lists the names for `--template`.
  static const ChatTemplate& of(const Metadata& metadata);
  /// The name for a checkpoint's Jinja source: "unknown" where none fits.
  static std::string recognise(std::string_view jinja);
  static std::vector<std::string_view> names();

  std::string_view name() const { return name_; }

  /// The text of all messages, each with the end of its turn. With `open_answer`, also the start of
  /// an assistant's turn, for the model to go on. Throws oq::Error where the template cannot say
  /// it (a system message that does not come first).
  std::vector<ChatPiece> render(std::span<const ChatMessage> messages, bool open_answer) const;

  /// What follows in `render(messages, open_answer)` on `messages[answered]`, an assistant's whose
  /// text the model has just written after render(messages[0..answered), true): the end of its
  /// turn, then the rest. So a cache that holds the conversation so far needs only this. The texts
  /// of the two renderings, with answer_lead() and the answer (trimmed where the template trims)
  /// between them, make the full one.
  std::vector<ChatPiece> render_next(std::span<const ChatMessage> messages, size_t answered,
                                     bool open_answer) const;

  /// What the model itself writes between the open turn and its answer: " " or nothing.
  std::string_view answer_lead() const { return answer_lead_; }

  /// Whether the tokenizer's BOS goes first, where it has the habit.
  bool bos_first() const { return bos_first_; }

  /// Tokens and strings that end an answer besides the model's own stop ids.
  std::span<const std::string_view> stop_tokens() const { return stop_tokens_; }
  std::span<const std::string_view> stop_strings() const { return stop_strings_; }

 private:
  struct Table;
  friend struct Table;

  struct Turn {
    std::string_view open, close;
  };
  enum class Trim { nothing, answers, all };

  const Turn& turn(ChatRole role) const;
  std::string shown(const ChatMessage& message, bool leads) const;
  void render_from(std::span<const ChatMessage> messages, size_t first, bool open_answer,
                   std::vector<ChatPiece>& out) const;

  std::string_view name_;
  std::string_view start_;  ///< once, before everything
  Turn system_, user_, assistant_;
  std::string_view answer_open_;     ///< `assistant_.open` up to where the model takes over
  std::string_view answer_lead_;     ///< and the rest of it
  std::string_view default_system_;  ///< used where the conversation has no system message
  bool always_system_ = false;       ///< there is a system turn even with no text for it
  bool system_in_user_ = false;      ///< the system message stands inside the first user's turn
  bool bos_first_ = false;
  Trim trim_ = Trim::nothing;  ///< which messages lose the white space around them
  bool joins_lines_ = false;   ///< CRLF becomes LF, then two LF one, but in the system message
  std::vector<std::string_view> stop_tokens_, stop_strings_;
};

/// The ids of `render(messages, open_answer)`. BOS goes first only where the template says so: most
/// write it themselves or do without, whatever the tokenizer's own habit is.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                 std::span<const ChatMessage> messages, bool open_answer);

/// The ids of `render_next`: what a cache that holds the conversation up to the answer's last
/// token (without the token that ended it) takes next.
std::vector<int32_t> encode_chat_next(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                      std::span<const ChatMessage> messages, size_t answered,
                                      bool open_answer);

/// The model's stop ids, and those of the template's stop tokens that the vocabulary has.
std::vector<int32_t> chat_stop_ids(const Tokenizer& tokenizer, const ChatTemplate& chat);

}  // namespace oq
