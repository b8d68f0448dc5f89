// The whole public interface of libdropless.
#pragma once

#include "dropless/activation.h"
#include "dropless/backend.h"
#include "dropless/block_sparse.h"
#include "dropless/decode.h"
#include "dropless/dtype.h"
#include "dropless/error.h"
#include "dropless/grouped_gemm.h"
#include "dropless/index.h"
#include "dropless/moe.h"
#include "dropless/moe_stages.h"
#include "dropless/observe.h"
#include "dropless/permute.h"
#include "dropless/route.h"
#include "dropless/version.h"
#include "dropless/view.h"
