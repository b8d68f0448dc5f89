// Documents to an MDS set in LLM Foundry's form: `tokens: ndarray:int32` rows of one length, or
// `text: str`, one document a sample; and instructions with answers, for the loader `finetuning`.
//
// Rows: every document's ids, between those of bos_text and eos_text, follow one another in a
// buffer that is cut into rows of `concat_tokens`. What is left of a document after its last row
// goes on into the next row (wrap) or is dropped; the last, partial row is dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/data/documents.h"
#include "train/data/mds_writer.h"
#include "train/tokenizer/tokenizer.h"

namespace dropless::train {

struct TextSetOptions {
  std::shared_ptr<const Tokenizer> tokenizer;  // needed for rows only
  std::int64_t concat_tokens = 0;              // 0: `text`
  std::string bos_text;  // put around each document; the text of a special token, such as the
  std::string eos_text;  // bytes tokenizer's "<|endoftext|>", is that one id
  bool wrap = true;
  int threads = 1;  // that tokenise
  // Which documents and which tokenizer these are. Not empty: a call that is cut off leaves its whole
  // shards, and the next one with these options goes on from them, reading what was read before but
  // not tokenising it again.
  std::string source;
  bool progress = false;
  MdsWriterOptions mds;
};

struct TextSetCounts {
  std::int64_t documents = 0;
  std::int64_t samples = 0;
  std::int64_t tokens = 0;          // in the rows written
  std::int64_t dropped_tokens = 0;  // at the ends
};

// The same set for any number of threads. Throws Error(kInvalidArgument): text that is not UTF-8 for
// `text`, not enough text for one row; nothing then stands under `folder`.
TextSetCounts write_text_set(DocumentSource& documents, const std::string& folder,
                             const TextSetOptions& options);

// Lines of {"prompt", "response"} (columns of str) or of {"messages"} (a column of json).
TextSetCounts write_finetuning_set(LineDocuments& lines, JsonKind kind, const std::string& folder,
                                   const TextSetOptions& options);

}  // namespace dropless::train
