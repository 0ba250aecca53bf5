// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
#include "launch.cuh"

namespace deformable_ops {
template int launch<double>(Task, bool, const Launch&);
}
