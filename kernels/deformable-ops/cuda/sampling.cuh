// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Bilinear sampling of value rows and its gradients on a GPU.
//
// An item is a query with a head (DCNv3: an output pixel with a group). Its `lanes`, neighbouring threads of a warp,
// hold 16 bytes of its channels each. A warp computes the points of its items in rounds. First each of its threads
// computes the position of one point and stores it in shared memory. Then all lanes of an item read the rows of its
// points, eight loads at a time. So no coordinate is computed twice, and no block waits at a barrier.
//
// The items of a block are some heads (one cache line) of consecutive queries, because these sample nearby; for DCNv3,
// of a rectangle of pixels.
#pragma once

#include "arithmetic.cuh"

namespace deformable_ops {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 256;

// A lane uses 0 for a corner outside its level and reads nothing, so a NaN stored there cannot spread. A location that
// is not finite makes its own query and head NaN, as in grid_sample.
constexpr int32_t kOutside = -1;

struct alignas(16) Corners {
  int32_t token[4];  // of the upper left, upper right, lower left, lower right row, or kOutside
};

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

template <typename T>
struct Point {
  Corners corners;
  T lateral, vertical;  // fractions of a pixel, from the left and the upper neighbour
  T attention;
};

// ---- items ---------------------------------------------------------------------------------------------------------

struct Item {
  int32_t query, head;
  int32_t x, y;  // the output pixel; kernel_grid only
  bool exists;   // false after the last query, in the last tile
};

// Return item `index` of the block.
DEFORMABLE_OPS_DEVICE Item item_of(const Task& task, int32_t tile, int32_t first_head, int32_t index) {
  const int32_t queries = static_cast<int32_t>(task.problem.queries);
  const int32_t width = static_cast<int32_t>(task.problem.output_width);
  Item item = {};
  item.head = first_head + index % task.heads_together;
  const int32_t in_tile = index / task.heads_together;
  if (task.tile_width == 0) {
    item.query = tile * task.queries_together + in_tile;
    if (task.problem.coordinates == Coordinates::kernel_grid) {
      item.y = item.query / width;
      item.x = item.query - item.y * width;
    }
    item.exists = item.query < queries;
  } else {
    const int32_t tile_height = task.queries_together / task.tile_width;
    item.x = tile % task.tile_columns * task.tile_width + in_tile % task.tile_width;
    item.y = tile / task.tile_columns * tile_height + in_tile / task.tile_width;
    const int64_t query = static_cast<int64_t>(item.y) * width + item.x;  // may need 64 bits after the last query
    item.query = static_cast<int32_t>(query);
    item.exists = item.x < width && query < queries;
  }
  return item;
}

// Return the index of (image, query).
DEFORMABLE_OPS_DEVICE int64_t query_of(const Task& task, int64_t image, const Item& item) {
  return image * task.problem.queries + item.query;
}

// ---- points --------------------------------------------------------------------------------------------------------

DEFORMABLE_OPS_DEVICE int64_t half_width(const Problem& problem) {
  return problem.dilation_width * (problem.kernel_width - 1) / 2;
}
DEFORMABLE_OPS_DEVICE int64_t half_height(const Problem& problem) {
  return problem.dilation_height * (problem.kernel_height - 1) / 2;
}

DEFORMABLE_OPS_DEVICE int level_of(const Task& task, int index) {
  return task.problem.coordinates == Coordinates::kernel_grid ? 0 : quotient(index, task.reciprocal);
}

// The origin of all points of an item.
template <typename T>
struct Origin {
  int64_t location, weight;  // indices of the first elements
  T x, y;                    // kernel_grid: the middle of the kernel
  int64_t reference;         // offsets: index of its first reference point
};

template <typename T>
DEFORMABLE_OPS_DEVICE Origin<T> origin_of(const Task& task, int64_t image, const Item& item) {
  const Problem& problem = task.problem;
  const int64_t row = query_of(task, image, item);
  Origin<T> origin = {first_element(problem.location_layout, row, item.head),
                      first_element(problem.weight_layout, row, item.head), T(0), T(0), 0};
  if (problem.coordinates == Coordinates::kernel_grid) {
    origin.x = static_cast<T>(item.x * problem.stride_width + half_width(problem) - problem.padding_width);
    origin.y = static_cast<T>(item.y * problem.stride_height + half_height(problem) - problem.padding_height);
  } else if (problem.coordinates == Coordinates::offsets) {
    const int64_t stored_levels = problem.reference_level_stride == 0 ? 1 : problem.levels;
    origin.reference = 2 * (image * problem.reference_batch_stride + item.query * stored_levels);
  }
  return origin;
}

// Return a position, or one outside if it overflows. `defect` is 0, or NaN if a number that the position was computed
// from is not finite.
template <typename T>
DEFORMABLE_OPS_DEVICE T bounded(T position, T defect) {
  return position - position == T(0) || defect != T(0) ? position : T(-2);
}

// Compute the position of point `index` of an item in pixels of its level.
template <typename T>
DEFORMABLE_OPS_DEVICE void position_of(const Task& task, const Origin<T>& origin, int index, T& x, T& y) {
  const Problem& problem = task.problem;
  load_pair(problem.locations, origin.location + 2 * index, task.aligned_pairs, x, y);
  T defect_x = x - x, defect_y = y - y;
  if (problem.coordinates == Coordinates::kernel_grid) {
    const int kernel_height = static_cast<int>(problem.kernel_height);
    const int middle = static_cast<int>(problem.points / 2);
    const int element = index + (problem.remove_center && index >= middle ? 1 : 0);
    const int column = quotient(element, task.reciprocal), row = element - column * kernel_height;
    const T scale = static_cast<T>(problem.offset_scale);
    x = bounded((static_cast<T>(column * problem.dilation_width - half_width(problem)) + x) * scale + origin.x, defect_x);
    y = bounded((static_cast<T>(row * problem.dilation_height - half_height(problem)) + y) * scale + origin.y, defect_y);
    return;
  }
  const int level = level_of(task, index);
  const T width = static_cast<T>(task.level[level].width), height = static_cast<T>(task.level[level].height);
  if (problem.coordinates == Coordinates::normalised) {
    x = bounded(x * width - T(0.5), defect_x);
    y = bounded(y * height - T(0.5), defect_y);
    return;
  }
  T reference_x, reference_y;
  const int64_t reference = origin.reference + 2 * level * problem.reference_level_stride;
  load_pair(problem.references, reference, true, reference_x, reference_y);
  defect_x += reference_x - reference_x;
  defect_y += reference_y - reference_y;
  x = bounded(x + (reference_x * width - T(0.5)), defect_x);
  y = bounded(y + (reference_y * height - T(0.5)), defect_y);
}

// Return the four neighbours of a position in a level.
template <typename T>
DEFORMABLE_OPS_DEVICE Point<T> neighbours(const Level& level, T x, T y, T attention) {
  const bool inside = x > T(-1) && x < static_cast<T>(level.width) && y > T(-1) && y < static_cast<T>(level.height);
  const T near_x = inside ? x : T(0), near_y = inside ? y : T(0);
  const T left = floor(near_x), upper = floor(near_y);
  const int32_t column = static_cast<int32_t>(left), row = static_cast<int32_t>(upper);
  Point<T> point;
  point.lateral = (near_x - left) + (x - x);  // x - x is 0, or NaN where x is not finite
  point.vertical = (near_y - upper) + (y - y);
  point.attention = attention;
  const int32_t first = level.start + row * level.width + column;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int32_t own_column = column + corner % 2, own_row = row + corner / 2;
    const bool hit = inside && own_column >= 0 && own_column < level.width && own_row >= 0 && own_row < level.height;
    point.corners.token[corner] = hit ? first + corner / 2 * level.width + corner % 2 : kOutside;
  }
  return point;
}

// Return the weight of each corner.
template <typename T>
DEFORMABLE_OPS_DEVICE Four<T> corner_weights(T lateral, T vertical, T attention) {
  const T lower = vertical * attention, upper = (T(1) - vertical) * attention;
  return {{upper * (T(1) - lateral), upper * lateral, lower * (T(1) - lateral), lower * lateral}};
}

// ---- softmax -------------------------------------------------------------------------------------------------------

// The softmax of one item: exp(logit - largest) / sum.
template <typename T>
struct Softmax {
  T largest, sum;

  DEFORMABLE_OPS_DEVICE T weight(const Softmax& softmax, T logit) {
    return exp(logit - softmax.largest) / softmax.sum;
  }
};

// Compute the softmax over an item's points; its lanes share the work, and each returns the result.
template <typename T>
DEFORMABLE_OPS_DEVICE Softmax<T> softmax_of(const Array& logits, int64_t first, int per_query, bool exists, int lane,
                                            int lanes) {
  Softmax<T> softmax = {T(0), T(0)};
  const int end = exists ? per_query : 0;
  for (int i = lane; i < end; i += lanes) {
    const T logit = load_element<T>(logits, first + i);
    softmax.largest = i == lane || logit > softmax.largest ? logit : softmax.largest;
  }
  if (lane >= end && end > 0) softmax.largest = load_element<T>(logits, first);  // this lane has no point
  for (int mask = 1; mask < lanes; mask *= 2) {
    const T other = shuffle_xor(softmax.largest, mask);
    softmax.largest = other > softmax.largest ? other : softmax.largest;
  }
  for (int i = lane; i < end; i += lanes) softmax.sum += exp(load_element<T>(logits, first + i) - softmax.largest);
  for (int mask = 1; mask < lanes; mask *= 2) softmax.sum += shuffle_xor(softmax.sum, mask);
  return softmax;
}

// ---- shared memory of a warp ---------------------------------------------------------------------------------------

// kLanes is the number of lanes of an item, or 0 if task.lanes has it.
template <int kLanes>
struct Round {
  static constexpr int kPoints = kLanes > 4 ? kLanes : 4;  // points of an item in a round, at least one per lane
  static constexpr int kSlots = kLanes == 0 ? 4 * kWarp : kWarp / (kLanes > 0 ? kLanes : 1) * kPoints;

  DEFORMABLE_OPS_DEVICE int points(int lanes) { return kLanes > 0 ? kPoints : (lanes > 4 ? lanes : 4); }
};

// The slot is point * items + item, so that lanes that read at the same time read neighbouring slots.
template <typename T, int kLanes>
struct Slots {
  Corners corners[Round<kLanes>::kSlots];
  Four<T> factors[Round<kLanes>::kSlots];  // corner weights (forward); lateral, vertical, attention (backward)
};

// The position of a thread in its warp, its item, and the item whose points it computes.
template <typename T, int kLanes>
struct Thread {
  int lane, lanes;   // index in its item, and number of lanes of an item
  int items, group;  // number of items of the warp, and index of its item among them
  bool exists;       // its item exists
  int64_t query;     // index of its item's (image, query)
  int32_t head;
  // the item whose points it computes: another one, so that neighbouring threads write neighbouring slots
  bool prepared_exists;
  Origin<T> prepared;
  Softmax<T> softmax, prepared_softmax;  // offsets only

  // Return the index of its item among all items.
  __device__ __forceinline__ int64_t row(const Task& task) const { return query * task.problem.heads + head; }

  DEFORMABLE_OPS_DEVICE Thread of(const Task& task, int64_t image, int32_t tile, int32_t first_head, int per_query) {
    Thread thread;
    const int index = static_cast<int>(threadIdx.x), warp_lane = index % kWarp;
    thread.lanes = kLanes > 0 ? kLanes : task.lanes;
    thread.lane = warp_lane % thread.lanes;
    thread.items = kWarp / thread.lanes;
    thread.group = warp_lane / thread.lanes;
    const int first = index / kWarp * thread.items;
    const Item own = item_of(task, tile, first_head, first + thread.group);
    thread.exists = own.exists;
    thread.query = query_of(task, image, own);
    thread.head = own.head;
    const Item prepared = item_of(task, tile, first_head, first + warp_lane % thread.items);
    thread.prepared_exists = prepared.exists;
    thread.prepared = origin_of<T>(task, image, prepared);
    if (task.problem.coordinates == Coordinates::offsets) {
      thread.softmax = softmax_of<T>(task.problem.weights, thread.row(task) * per_query, per_query, thread.exists,
                                     thread.lane, thread.lanes);
      const int source = warp_lane % thread.items * thread.lanes;
      thread.prepared_softmax = {from_lane(thread.softmax.largest, source), from_lane(thread.softmax.sum, source)};
    } else {
      thread.softmax = thread.prepared_softmax = {T(0), T(1)};
    }
    return thread;
  }
};

// Compute the points [first, first + round) of all items of the warp; points after the last one get the weight zero.
template <bool kBackward, typename T, int kLanes>
DEFORMABLE_OPS_DEVICE void compute_points(const Task& task, const Thread<T, kLanes>& thread, int first, int per_query,
                                    Slots<T, kLanes>& slots) {
  const int points = Round<kLanes>::points(thread.lanes);
  for (int slot = static_cast<int>(threadIdx.x) % kWarp; slot < points * thread.items; slot += kWarp) {
    Corners corners = {{kOutside, kOutside, kOutside, kOutside}};
    Four<T> factors = {{T(0), T(0), T(0), T(0)}};
    const int index = first + slot / thread.items;
    if (thread.prepared_exists && index < per_query) {
      T x, y;
      position_of(task, thread.prepared, index, x, y);
      T attention = load_element<T>(task.problem.weights, thread.prepared.weight + index);
      if (task.problem.coordinates == Coordinates::offsets) {
        attention = Softmax<T>::weight(thread.prepared_softmax, attention);
      }
      const Point<T> point = neighbours(task.level[level_of(task, index)], x, y, attention);
      corners = point.corners;
      if constexpr (kBackward) {
        factors = {{point.lateral, point.vertical, point.attention, T(0)}};
      } else {
        factors = corner_weights(point.lateral, point.vertical, point.attention);
      }
    }
    slots.corners[slot] = corners;
    slots.factors[slot] = factors;
  }
}

// ---- output --------------------------------------------------------------------------------------------------------

// Return the row of a token; rows are `row_bytes` apart.
template <typename V>
DEFORMABLE_OPS_DEVICE V* row_at(V* rows, int32_t row_bytes, int32_t token) {
  return reinterpret_cast<V*>(reinterpret_cast<uintptr_t>(rows) + static_cast<int64_t>(token) * row_bytes);
}

// Load a lane's elements of a row: neighbours, or with kApart two halves with that distance.
template <int kApart, typename V, int kElements>
DEFORMABLE_OPS_DEVICE void load_row(const V* source, Stored<V, kElements>& stored) {
  if constexpr (kApart > 0) {
    stored = Stored<V, kElements>::load(source, source + kApart);
  } else {
    stored = Stored<V, kElements>::load(source);
  }
}

template <int kApart, typename V, int kElements>
DEFORMABLE_OPS_DEVICE void load_corners(const V* rows, int32_t row_bytes, bool active, const Corners& corners,
                                        Stored<V, kElements> (&stored)[4]) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    stored[corner] = Stored<V, kElements>::zero();
    if (active && corners.token[corner] >= 0) {
      load_row<kApart>(row_at(rows, row_bytes, corners.token[corner]), stored[corner]);
    } else {
      for (int i = 0; i < (kApart > 0 ? 2 : 1); ++i) DEFORMABLE_OPS_ACCESS("row", nullptr, 16);
    }
  }
}

template <typename V, int kElements, int kLanes>
DEFORMABLE_OPS_DEVICE void forward_items(const Task& task, int64_t image, int32_t tile, int32_t first_head,
                                         Slots<typename Element<V>::Compute, kLanes>& slots) {
  typedef typename Element<V>::Compute T;
  const Problem& problem = task.problem;
  const int per_query = static_cast<int>(problem.levels * problem.points);
  const Thread<T, kLanes> thread = Thread<T, kLanes>::of(task, image, tile, first_head, per_query);
  const int points = Round<kLanes>::points(thread.lanes);
  const int32_t row_bytes = static_cast<int32_t>(problem.heads * problem.channels * sizeof(V));
  const V* rows = static_cast<const V*>(problem.value.data) +
                  (image * problem.tokens * problem.heads + thread.head) * problem.channels;
  // one iteration if kLanes is not 0
  for (int64_t start = 0; start < problem.channels; start += thread.lanes * kElements) {
    const int64_t channel = start + thread.lane * kElements;
    const bool active = thread.exists && channel < problem.channels;
    T sums[kElements] = {};
    for (int first = 0; first < per_query; first += points) {
      __syncwarp();  // the slots of the previous round have been read
      compute_points<false>(task, thread, first, per_query, slots);
      __syncwarp();
      const int end = per_query - first < points ? per_query - first : points;
      for (int point = 0; point < end; point += 2) {  // a round has an even number of points, the last with weight zero
        Stored<V, kElements> stored[2][4];
        Four<T> factors[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int slot = (point + i) * thread.items + thread.group;
          const Corners corners = slots.corners[slot];
          load_corners<0>(rows + channel, row_bytes, active, corners, stored[i]);
          factors[i] = slots.factors[slot];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            T row[kElements];
            unpack(stored[i][corner], row);
#pragma unroll
            for (int c = 0; c < kElements; ++c) sums[c] += row[c] * factors[i].x[corner];
          }
        }
      }
    }
    V* output = static_cast<V*>(problem.output.data) + thread.row(task) * problem.channels + channel;
    if (active) store<V, kElements>(output, sums);
    if constexpr (kLanes > 0) break;
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------------

// Compute a lane's part of the gradients of a point's attention weight, x and y (in pixels), from the dot products.
template <typename T>
DEFORMABLE_OPS_DEVICE void differentiate(const T (&dots)[4], const Four<T>& factors, T (&gradients)[3]) {
  const T right = factors.x[0], lower = factors.x[1], attention = factors.x[2];
  const T left = T(1) - right, upper = T(1) - lower;
  gradients[0] = upper * (left * dots[0] + right * dots[1]) + lower * (left * dots[2] + right * dots[3]);
  gradients[1] = attention * (upper * (dots[1] - dots[0]) + lower * (dots[3] - dots[2]));
  gradients[2] = attention * (left * (dots[2] - dots[0]) + right * (dots[3] - dots[1]));
}

// Sum the parts of four points over the lanes of an item. The lanes distribute the points between them on the way,
// which needs a third of the shuffles of four separate sums. With four or more lanes, each of the first four gets one
// point.
template <typename T>
DEFORMABLE_OPS_DEVICE void sum_over_lanes(T (&gradients)[4][3], int lane, int lanes) {
  if (lanes >= 2) {  // lane 2 i keeps points 0 and 1, lane 2 i + 1 keeps 2 and 3
    const bool second = lane % 2 != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const T given = second ? gradients[i][k] : gradients[i + 2][k];
        const T kept = second ? gradients[i + 2][k] : gradients[i][k];
        gradients[i][k] = kept + shuffle_xor(given, 1);
      }
    }
  }
  if (lanes >= 4) {
    const bool second = lane / 2 % 2 != 0;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const T given = second ? gradients[0][k] : gradients[1][k];
      const T kept = second ? gradients[1][k] : gradients[0][k];
      gradients[0][k] = kept + shuffle_xor(given, 2);
    }
  }
  for (int mask = 4; mask < lanes; mask *= 2) {
#pragma unroll
    for (int k = 0; k < 3; ++k) gradients[0][k] += shuffle_xor(gradients[0][k], mask);
  }
}

// Store the gradients of a point.
template <typename T>
DEFORMABLE_OPS_DEVICE void finish_point(const Task& task, int64_t query, int32_t head, int index,
                                        const T (&gradients)[3]) {
  const Problem& problem = task.problem;
  T scale_x = T(1), scale_y = T(1);
  if (problem.coordinates == Coordinates::normalised) {
    const Level& level = task.level[level_of(task, index)];
    scale_x = static_cast<T>(level.width);
    scale_y = static_cast<T>(level.height);
  } else if (problem.coordinates == Coordinates::kernel_grid) {
    scale_x = scale_y = static_cast<T>(problem.offset_scale);
  }
  store_pair(problem.grad_locations, first_element(problem.location_layout, query, head) + 2 * index, task.aligned_pairs,
             gradients[1] * scale_x, gradients[2] * scale_y);
  const int64_t weight = first_element(problem.weight_layout, query, head) + index;
  if (problem.coordinates == Coordinates::offsets) {
    DEFORMABLE_OPS_ACCESS("store element", static_cast<T*>(task.raw_weights) + weight, sizeof(T));
    static_cast<T*>(task.raw_weights)[weight] = gradients[0];
  } else {
    store_element(problem.grad_weights, weight, gradients[0]);
  }
}

template <typename V, int kElements, int kLanes>
DEFORMABLE_OPS_DEVICE void backward_items(const Task& task, int64_t image, int32_t tile, int32_t first_head,
                                          Slots<typename Element<V>::Compute, kLanes>& slots) {
  typedef typename Element<V>::Compute T;
  const Problem& problem = task.problem;
  const int per_query = static_cast<int>(problem.levels * problem.points);
  const Thread<T, kLanes> thread = Thread<T, kLanes>::of(task, image, tile, first_head, per_query);
  const bool fused = problem.coordinates == Coordinates::offsets;
  const int points = Round<kLanes>::points(thread.lanes);
  const int32_t row_bytes = static_cast<int32_t>(problem.heads * problem.channels * sizeof(V));
  const int32_t sums_bytes = static_cast<int32_t>(problem.heads * problem.channels * sizeof(T));
  const int64_t head = (image * problem.tokens * problem.heads + thread.head) * problem.channels;
  const V* rows = static_cast<const V*>(problem.value.data) + head;
  T* sums = static_cast<T*>(problem.grad_value.data) + head;
  const V* grad_output = static_cast<const V*>(problem.grad_output.data) + thread.row(task) * problem.channels;

  // A lane has eight channels in half precision, and adds their gradients as two vectors of 16 bytes. Its channels are
  // two halves, so that the vectors of neighbouring lanes fill sectors of 32 bytes.
  constexpr int kApart = kLanes > 0 && kElements == 8 ? 4 * kLanes : 0;
  constexpr int kStep = kApart > 0 ? 4 : kElements;
  T own[kElements] = {};
  const auto load_own = [&](int64_t channel, bool active) {
    Stored<V, kElements> stored = Stored<V, kElements>::zero();
    if (active) load_row<kApart>(grad_output + channel, stored);
    unpack(stored, own);
  };
  if constexpr (kLanes > 0) load_own(thread.lane * kStep, thread.exists);

  T mean = T(0);  // weighted mean of the gradients of the softmax's output
  for (int first = 0; first < per_query; first += points) {
    __syncwarp();
    compute_points<true>(task, thread, first, per_query, slots);
    __syncwarp();
    const int end = per_query - first < points ? per_query - first : points;
    for (int four = 0; four < end; four += 4) {
      T gradients[4][3];
#pragma unroll
      for (int two = 0; two < 4; two += 2) {
        T dots[2][4] = {};
        for (int64_t start = 0; start < problem.channels; start += thread.lanes * kElements) {
          const int64_t channel = start + thread.lane * kStep;
          const bool active = thread.exists && channel < problem.channels;
          if constexpr (kLanes == 0) load_own(channel, active);
          Stored<V, kElements> stored[2][4];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const Corners corners = slots.corners[(four + two + i) * thread.items + thread.group];
            load_corners<kApart>(rows + channel, row_bytes, active, corners, stored[i]);
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int slot = (four + two + i) * thread.items + thread.group;
            const Corners corners = slots.corners[slot];
            const Four<T> factors = slots.factors[slot];
            const Four<T> weights = corner_weights(factors.x[0], factors.x[1], factors.x[2]);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              T value[kElements], part[kElements];
              unpack(stored[i][corner], value);
#pragma unroll
              for (int c = 0; c < kElements; ++c) {
                dots[i][corner] += value[c] * own[c];
                part[c] = weights.x[corner] * own[c];
              }
              if (active && corners.token[corner] >= 0) {
                add<kApart>(row_at(sums + channel, sums_bytes, corners.token[corner]), part);
              } else {
                for (int c = 0; c < kElements; c += kElements % 4 == 0 ? 4 : 1) DEFORMABLE_OPS_ACCESS("add", nullptr, 16);
              }
            }
          }
          if constexpr (kLanes > 0) break;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Four<T> factors = slots.factors[(four + two + i) * thread.items + thread.group];
          differentiate(dots[i], factors, gradients[two + i]);
          if (fused) mean += factors.x[2] * gradients[two + i][0];
        }
      }
      sum_over_lanes(gradients, thread.lane, thread.lanes);
      const int held = thread.lanes >= 4 ? 1 : 4 / thread.lanes;
      const int point = first + four + (thread.lanes >= 2 ? thread.lane % 2 * 2 : 0) + thread.lane / 2 % 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < held && thread.lane < 4 && thread.exists && point + i < per_query) {
          finish_point(task, thread.query, thread.head, point + i, gradients[i]);
        }
      }
    }
  }
  if (!fused) return;
  for (int mask = 1; mask < thread.lanes; mask *= 2) mean += shuffle_xor(mean, mask);
  __syncwarp();  // the raw gradients have been written
  if (!thread.exists) return;
  const int64_t row = thread.row(task) * per_query;
  for (int i = thread.lane; i < per_query; i += thread.lanes) {
    const T weight = Softmax<T>::weight(thread.softmax, load_element<T>(problem.weights, row + i));
    DEFORMABLE_OPS_ACCESS("element", static_cast<const T*>(task.raw_weights) + row + i, sizeof(T));
    const T raw = static_cast<const T*>(task.raw_weights)[row + i];
    store_element(problem.grad_weights, row + i, weight * (raw - mean));
  }
}

}  // namespace deformable_ops
