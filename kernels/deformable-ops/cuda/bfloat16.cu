// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
#include "launch.cuh"

namespace deformable_ops {
template int launch<BFloat16>(Task, bool, const Launch&);
}
