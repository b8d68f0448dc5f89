// The demo's yardstick: byte n-grams with Witten-Bell interpolation, trained on the files that the
// model trains on and scored on every byte of the held-out files.
//
//   p_0(w)      = 1 / 256
//   p_n(w | h)  = (c(hw) + t(h) p_{n-1}(w | h')) / (c(h) + t(h))    h: the n-1 bytes before w, h':
//   all but
//                                                                   the oldest of them
//   c(hw) counts hw in the training files, c(h) = sum_w c(hw), t(h) = distinct w with c(hw) > 0; an
//   h that never occurred leaves p_{n-1}. (Witten and Bell 1991, method C; Bell, Cleary, Witten
//   1990.)
//
// Each file is one document: no context reaches over its start, where shorter contexts are used.
//
// usage: dropless_ngram TRAIN_LIST HELD_OUT_LIST      text files with one path a line
// prints {"unigram_nats","witten_bell5_nats","bytes","train_bytes"}: mean nats per held-out byte of
// orders 1 and 5
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <future>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kMaxOrder = 5;

// The counts of all n-grams of one order. A gram is its n bytes as a number, the newest lowest, so
// that the grams of one context lie side by side.
class GramCounts {
 public:
  GramCounts(int order, const std::vector<std::string>& documents) {
    std::vector<std::uint64_t> occurrences;
    const std::uint64_t mask = (std::uint64_t{1} << (8 * order)) - 1;
    for (const std::string& document : documents) {
      std::uint64_t gram = 0;
      for (std::size_t i = 0; i < document.size(); ++i) {
        gram = ((gram << 8) | static_cast<unsigned char>(document[i])) & mask;
        if (i + 1 >= static_cast<std::size_t>(order)) occurrences.push_back(gram);
      }
    }
    std::sort(occurrences.begin(), occurrences.end());
    for (std::size_t i = 0; i < occurrences.size();) {
      const std::size_t first = i;
      while (i < occurrences.size() && occurrences[i] == occurrences[first]) ++i;
      grams_.push_back(occurrences[first]);
      counts_.push_back(i - first);
    }
  }

  // One step of the interpolation: `lower` is p_{n-1} of the gram's last byte.
  double interpolate(std::uint64_t gram, double lower) const {
    const std::uint64_t context = gram >> 8;
    std::uint64_t gram_count = 0, context_count = 0, distinct = 0;
    auto it = std::lower_bound(grams_.begin(), grams_.end(), context << 8);
    for (; it != grams_.end() && *it >> 8 == context; ++it) {
      const std::uint64_t count = counts_[it - grams_.begin()];
      context_count += count;
      ++distinct;
      if (*it == gram) gram_count = count;
    }
    if (distinct == 0) return lower;
    return (static_cast<double>(gram_count) + static_cast<double>(distinct) * lower) /
           static_cast<double>(context_count + distinct);
  }

 private:
  std::vector<std::uint64_t> grams_;  // ascending
  std::vector<std::uint64_t> counts_;
};

struct Score {
  double unigram_nats = 0;  // sums over `bytes`
  double highest_nats = 0;
  std::uint64_t bytes = 0;
};

Score score(const std::vector<GramCounts>& orders, const std::vector<std::string>& documents) {
  Score total;
  for (const std::string& document : documents) {
    std::uint64_t history = 0;
    for (std::size_t i = 0; i < document.size(); ++i) {
      history = (history << 8) | static_cast<unsigned char>(document[i]);
      double p = 1.0 / 256;
      const int longest = static_cast<int>(std::min<std::size_t>(i + 1, kMaxOrder));
      for (int order = 1; order <= longest; ++order) {
        p = orders[order - 1].interpolate(history & ((std::uint64_t{1} << (8 * order)) - 1), p);
        if (order == 1) total.unigram_nats -= std::log(p);
      }
      total.highest_nats -= std::log(p);
    }
    total.bytes += document.size();
  }
  return total;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> read_documents(const std::string& list_path) {
  std::ifstream list(list_path);
  if (!list) throw std::runtime_error("cannot read " + list_path);
  std::vector<std::string> documents;
  for (std::string path; std::getline(list, path);) {
    if (!path.empty()) documents.push_back(read_file(path));
  }
  return documents;
}

void run(const std::string& train_list, const std::string& held_out_list) {
  const std::vector<std::string> train = read_documents(train_list);
  const std::vector<std::string> held_out = read_documents(held_out_list);
  std::array<std::future<GramCounts>, kMaxOrder> counting;
  for (int order = 1; order <= kMaxOrder; ++order) {
    counting[order - 1] =
        std::async(std::launch::async, [order, &train] { return GramCounts(order, train); });
  }
  std::vector<GramCounts> orders;
  orders.reserve(counting.size());
  for (auto& counts : counting) orders.push_back(counts.get());

  const Score total = score(orders, held_out);
  if (total.bytes == 0) throw std::runtime_error("no held-out bytes in " + held_out_list);
  std::uint64_t train_bytes = 0;
  for (const std::string& document : train) train_bytes += document.size();
  const double bytes = static_cast<double>(total.bytes);
  std::printf(
      "{\"unigram_nats\":%.17g,\"witten_bell5_nats\":%.17g,\"bytes\":%llu,\"train_bytes\":%llu}\n",
      total.unigram_nats / bytes, total.highest_nats / bytes,
      static_cast<unsigned long long>(total.bytes), static_cast<unsigned long long>(train_bytes));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: dropless_ngram TRAIN_LIST HELD_OUT_LIST\n");
    return 2;
  }
  try {
    run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dropless_ngram: %s\n", error.what());
    return 2;
  }
  return 0;
}
