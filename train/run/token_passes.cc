#include "train/run/token_passes.h"

#include <algorithm>
#include <utility>

namespace dropless::train {

namespace {

// A capture takes as long as about ten passes that are queued kernel by kernel.
constexpr std::int64_t kWorthACapture = 12;  // tokens that may follow
constexpr std::int64_t kLeastRoom = 256;

}  // namespace

TokenPasses::TokenPasses(Transformer& model, Precision precision, const at::Tensor& pads_B,
                         std::int64_t tokens)
    : model_(model),
      captures_(tokens >= kWorthACapture && model.can_be_captured(precision)),
      most_(tokens) {
  options_.pads_B = pads_B;
}

at::Tensor TokenPasses::read_prompts(const at::Tensor& tokens_BS) {
  RouterRecord record;
  length_ = tokens_BS.size(1);
  most_ += length_;
  host_ = at::empty({tokens_BS.size(0) + 1}, at::kLong);
  if (captures_) host_ = host_.pin_memory();
  return model_.forward(tokens_BS, record, &cache_, options_);
}

at::Tensor TokenPasses::run(const at::Tensor& tokens_B1) {
  RouterRecord record;
  return model_.forward(tokens_B1, record, &cache_, options_).select(1, 0);
}

at::Tensor TokenPasses::read_tokens(const std::vector<TokenId>& ids) {
  model_.check_positions(length_ + 1);
  const std::int64_t B = host_.size(0) - 1;
  auto* host = host_.mutable_data_ptr<std::int64_t>();
  std::copy(ids.begin(), ids.end(), host);
  host[B] = length_++;
  if (!captures_) {
    return run(host_.narrow(0, 0, B).unsqueeze(1).to(model_.device())).cpu();
  }
  if (!graph_ || length_ > cache_.layers[0].keys.size(2)) capture();
  inputs_.copy_(host_, /*non_blocking=*/true);
  graph_->launch();
  host_logits_BV_.copy_(logits_BV_, /*non_blocking=*/true);
  stream_->synchronize();
  return host_logits_BV_;
}

// With room for as many positions again, so that a long text is captured a few times only.
void TokenPasses::capture() {
  graph_.reset();
  if (!stream_) stream_.emplace(model_.device());
  const std::int64_t room = std::max(kLeastRoom, 2 * length_);
  cache_ = with_room(std::move(cache_), std::min(room, most_));
  inputs_ = host_.to(model_.device());
  const std::int64_t B = inputs_.size(0) - 1;
  const at::Tensor tokens_B1 = inputs_.narrow(0, 0, B).unsqueeze(1);
  options_.position_1 = inputs_.narrow(0, B, 1);
  // Its first runs write the same keys and values to the same place.
  graph_ = std::make_unique<DeviceGraph>(model_.device(), [&] { logits_BV_ = run(tokens_B1); });
  host_logits_BV_ =
      at::empty(logits_BV_.sizes(), logits_BV_.options().device(at::kCPU)).pin_memory();
}

}  // namespace dropless::train
