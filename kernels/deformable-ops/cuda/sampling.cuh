// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Bilinear sampling of value rows and its gradients on a GPU.
//
// An item is a query with a head (DCNv3: an output pixel with a group). Its `lanes`, neighbouring threads of a warp,
// hold 16 bytes of its channels each. A warp goes through the points of its items in rounds: first its threads work out
// where points lie, one point each, and leave that in shared memory; then all lanes of an item read the rows of its
// points, eight loads at a time. So no coordinate is computed twice, and no block has to wait at a barrier.
//
// A block's items are some heads (a line of the cache together) of queries that follow each other, because those sample
// nearby; for DCNv3, of a rectangle of pixels.
#pragma once

#include "arithmetic.cuh"

namespace deformable_ops {

constexpr int kWarp = 32;
constexpr int kMostThreads = 256;

// A lane gets 0 for a row outside of its level and reads nothing: a NaN stored there cannot spread. A location that is
// not finite makes its own query and head NaN, as grid_sample does.
constexpr int32_t kOutside = -1;

struct alignas(16) Corners {
  int32_t token[4];  // upper left, upper right, lower left, lower right; or kOutside
};

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

template <typename T>
struct Point {
  Corners corners;
  T lateral, vertical;  // fractions to the right and the lower neighbour
  T attention;
};

// ---- items ---------------------------------------------------------------------------------------------------------

struct Item {
  int32_t query, head;
  int32_t x, y;  // of the output pixel; kernel_grid only
  bool exists;   // not behind the last query, in the last tile
};

// Item `index` of the block.
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
    const int64_t query = static_cast<int64_t>(item.y) * width + item.x;  // behind the last one it may need 64 bits
    item.query = static_cast<int32_t>(query);
    item.exists = item.x < width && query < queries;
  }
  return item;
}

DEFORMABLE_OPS_DEVICE int64_t row_of(const Task& task, int64_t image, const Item& item) {
  return (image * task.problem.queries + item.query) * task.problem.heads + item.head;
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

// What all points of an item share.
template <typename T>
struct Origin {
  int64_t first;  // of its points among all points
  T x, y;         // kernel_grid: the middle of the kernel
  int64_t pair;   // offsets: its first reference point
};

template <typename T>
DEFORMABLE_OPS_DEVICE Origin<T> origin_of(const Task& task, int64_t image, const Item& item, int per_query) {
  const Problem& problem = task.problem;
  Origin<T> origin = {row_of(task, image, item) * per_query, T(0), T(0), 0};
  if (problem.coordinates == Coordinates::kernel_grid) {
    origin.x = static_cast<T>(item.x * problem.stride_width + half_width(problem) - problem.padding_width);
    origin.y = static_cast<T>(item.y * problem.stride_height + half_height(problem) - problem.padding_height);
  } else if (problem.coordinates == Coordinates::offsets) {
    const int64_t stored_levels = problem.reference_level_stride == 0 ? 1 : problem.levels;
    origin.pair = image * problem.reference_batch_stride + item.query * stored_levels;
  }
  return origin;
}

// Where point `index` of an item lies in its level, in pixels.
template <typename T>
DEFORMABLE_OPS_DEVICE void place_of(const Task& task, const Origin<T>& origin, int index, T& x, T& y) {
  const Problem& problem = task.problem;
  load_pair(problem.locations, origin.first + index, x, y);
  if (problem.coordinates == Coordinates::kernel_grid) {
    const int kernel_height = static_cast<int>(problem.kernel_height);
    const int middle = static_cast<int>(problem.points / 2);
    const int place = index + (problem.remove_center && index >= middle ? 1 : 0);
    const int column = quotient(place, task.reciprocal), row = place - column * kernel_height;
    const T scale = static_cast<T>(problem.offset_scale);
    x = (static_cast<T>(column * problem.dilation_width - half_width(problem)) + x) * scale + origin.x;
    y = (static_cast<T>(row * problem.dilation_height - half_height(problem)) + y) * scale + origin.y;
    return;
  }
  const int level = level_of(task, index);
  const T width = static_cast<T>(task.level[level].width), height = static_cast<T>(task.level[level].height);
  if (problem.coordinates == Coordinates::normalised) {
    x = x * width - T(0.5);
    y = y * height - T(0.5);
    return;
  }
  T reference_x, reference_y;
  load_pair(problem.references, origin.pair + level * problem.reference_level_stride, reference_x, reference_y);
  x += reference_x * width - T(0.5);
  y += reference_y * height - T(0.5);
}

// The four neighbours of a place in a level.
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

// How much each corner counts.
template <typename T>
DEFORMABLE_OPS_DEVICE Four<T> corner_weights(T lateral, T vertical, T attention) {
  const T lower = vertical * attention, upper = (T(1) - vertical) * attention;
  return {{upper * (T(1) - lateral), upper * lateral, lower * (T(1) - lateral), lower * lateral}};
}

// ---- softmax -------------------------------------------------------------------------------------------------------

// Of one item: exp(logit - largest) / sum.
template <typename T>
struct Softmax {
  T largest, sum;

  DEFORMABLE_OPS_DEVICE T weight(const Softmax& softmax, T logit) {
    return exp(logit - softmax.largest) / softmax.sum;
  }
};

// Over an item's points, by its lanes together; each gets it.
template <typename T>
DEFORMABLE_OPS_DEVICE Softmax<T> softmax_of(const Array& logits, int64_t first, int per_query, bool exists, int lane,
                                            int lanes) {
  Softmax<T> softmax = {T(0), T(0)};
  const int end = exists ? per_query : 0;
  for (int i = lane; i < end; i += lanes) {
    const T logit = load_element<T>(logits, first + i);
    softmax.largest = i == lane || logit > softmax.largest ? logit : softmax.largest;
  }
  if (lane >= end && end > 0) softmax.largest = load_element<T>(logits, first);  // no point of its own
  for (int mask = 1; mask < lanes; mask *= 2) {
    const T other = across(softmax.largest, mask);
    softmax.largest = other > softmax.largest ? other : softmax.largest;
  }
  for (int i = lane; i < end; i += lanes) softmax.sum += exp(load_element<T>(logits, first + i) - softmax.largest);
  for (int mask = 1; mask < lanes; mask *= 2) softmax.sum += across(softmax.sum, mask);
  return softmax;
}

// ---- what a warp shares --------------------------------------------------------------------------------------------

// kLanes is the number of lanes of an item, or 0 where it is in task.lanes.
template <int kLanes>
struct Round {
  static constexpr int kPoints = kLanes > 4 ? kLanes : 4;  // of an item in a round; with more lanes than 4, one each
  static constexpr int kSlots = kLanes == 0 ? 4 * kWarp : kWarp / (kLanes > 0 ? kLanes : 1) * kPoints;

  DEFORMABLE_OPS_DEVICE int points(int lanes) { return kLanes > 0 ? kPoints : (lanes > 4 ? lanes : 4); }
};

// Slot point * items + item: lanes that read at the same time find neighbouring slots.
template <typename T, int kLanes>
struct Slots {
  Corners corners[Round<kLanes>::kSlots];
  Four<T> factors[Round<kLanes>::kSlots];  // corner weights (forward); lateral, vertical, attention (backward)
};

// What a thread knows of its place.
template <typename T, int kLanes>
struct Place {
  int lane, lanes;       // in its item's group
  int items, group;      // of the warp; the number of its item among them
  bool exists;           // its item
  int64_t row;           // of its item, among all
  int32_t head;
  // whose points it works out: another item's, so that neighbouring threads write neighbouring slots
  bool seen_exists;
  Origin<T> seen;
  Softmax<T> softmax, seen_softmax;  // offsets only

  DEFORMABLE_OPS_DEVICE Place of(const Task& task, int64_t image, int32_t tile, int32_t first_head, int per_query) {
    Place place;
    const int thread = static_cast<int>(threadIdx.x), warp_lane = thread % kWarp;
    place.lanes = kLanes > 0 ? kLanes : task.lanes;
    place.lane = warp_lane % place.lanes;
    place.items = kWarp / place.lanes;
    place.group = warp_lane / place.lanes;
    const int first = thread / kWarp * place.items;
    const Item own = item_of(task, tile, first_head, first + place.group);
    place.exists = own.exists;
    place.row = row_of(task, image, own);
    place.head = own.head;
    const Item seen = item_of(task, tile, first_head, first + warp_lane % place.items);
    place.seen_exists = seen.exists;
    place.seen = origin_of<T>(task, image, seen, per_query);
    if (task.problem.coordinates == Coordinates::offsets) {
      place.softmax = softmax_of<T>(task.problem.weights, place.row * per_query, per_query, place.exists, place.lane,
                                    place.lanes);
      const int source = warp_lane % place.items * place.lanes;
      place.seen_softmax = {from_lane(place.softmax.largest, source), from_lane(place.softmax.sum, source)};
    } else {
      place.softmax = place.seen_softmax = {T(0), T(1)};
    }
    return place;
  }
};

// The points [first, first + round) of all items of the warp; what is beyond the last counts nothing.
template <bool kBackward, typename T, int kLanes>
DEFORMABLE_OPS_DEVICE void work_out(const Task& task, const Place<T, kLanes>& place, int first, int per_query,
                                    Slots<T, kLanes>& slots) {
  const int points = Round<kLanes>::points(place.lanes);
  for (int slot = static_cast<int>(threadIdx.x) % kWarp; slot < points * place.items; slot += kWarp) {
    Corners corners = {{kOutside, kOutside, kOutside, kOutside}};
    Four<T> factors = {{T(0), T(0), T(0), T(0)}};
    const int index = first + slot / place.items;
    if (place.seen_exists && index < per_query) {
      T x, y;
      place_of(task, place.seen, index, x, y);
      T attention = load_element<T>(task.problem.weights, place.seen.first + index);
      if (task.problem.coordinates == Coordinates::offsets) {
        attention = Softmax<T>::weight(place.seen_softmax, attention);
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

// The row of a token; `row_bytes` apart.
template <typename V>
DEFORMABLE_OPS_DEVICE V* row_at(V* rows, int32_t row_bytes, int32_t token) {
  return reinterpret_cast<V*>(reinterpret_cast<uintptr_t>(rows) + static_cast<int64_t>(token) * row_bytes);
}

template <typename V, int kElements>
DEFORMABLE_OPS_DEVICE void load_corners(const V* rows, int32_t row_bytes, bool active, const Corners& corners,
                                        Stored<V, kElements> (&stored)[4]) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    stored[corner] = Stored<V, kElements>::zero();
    if (active && corners.token[corner] >= 0) {
      stored[corner] = Stored<V, kElements>::load(row_at(rows, row_bytes, corners.token[corner]));
    }
  }
}

template <typename V, int kElements, int kLanes>
DEFORMABLE_OPS_DEVICE void forward_items(const Task& task, int64_t image, int32_t tile, int32_t first_head,
                                         Slots<typename Element<V>::Compute, kLanes>& slots) {
  typedef typename Element<V>::Compute T;
  const Problem& problem = task.problem;
  const int per_query = static_cast<int>(problem.levels * problem.points);
  const Place<T, kLanes> place = Place<T, kLanes>::of(task, image, tile, first_head, per_query);
  const int points = Round<kLanes>::points(place.lanes);
  const int32_t row_bytes = static_cast<int32_t>(problem.heads * problem.channels * sizeof(V));
  const V* rows = static_cast<const V*>(problem.value.data) +
                  (image * problem.tokens * problem.heads + place.head) * problem.channels;
  // once, where kLanes is not 0
  for (int64_t start = 0; start < problem.channels; start += place.lanes * kElements) {
    const int64_t channel = start + place.lane * kElements;
    const bool active = place.exists && channel < problem.channels;
    T sums[kElements] = {};
    for (int first = 0; first < per_query; first += points) {
      __syncwarp();  // the slots of the round before have been read
      work_out<false>(task, place, first, per_query, slots);
      __syncwarp();
      const int end = per_query - first < points ? per_query - first : points;
      for (int point = 0; point < end; point += 2) {  // a round has an even number, the last may count nothing
        Stored<V, kElements> stored[2][4];
        Four<T> factors[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int slot = (point + i) * place.items + place.group;
          const Corners corners = slots.corners[slot];
          load_corners(rows + channel, row_bytes, active, corners, stored[i]);
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
    if (active) store<V, kElements>(static_cast<V*>(problem.output.data) + place.row * problem.channels + channel, sums);
    if constexpr (kLanes > 0) break;
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------------

// A lane's part of the gradients of a point's attention weight, x and y (in pixels), from its rows times gradient.
template <typename T>
DEFORMABLE_OPS_DEVICE void differentiate(const T (&dots)[4], const Four<T>& factors, T (&gradients)[3]) {
  const T right = factors.x[0], lower = factors.x[1], attention = factors.x[2];
  const T left = T(1) - right, upper = T(1) - lower;
  gradients[0] = upper * (left * dots[0] + right * dots[1]) + lower * (left * dots[2] + right * dots[3]);
  gradients[1] = attention * (upper * (dots[1] - dots[0]) + lower * (dots[3] - dots[2]));
  gradients[2] = attention * (left * (dots[2] - dots[0]) + right * (dots[3] - dots[1]));
}

// Sum the parts of four points over the lanes of an item. Lanes share out the points on the way, which takes a third of
// the shuffles of summing one after the other: with four lanes and more, each of the first four ends with one point.
template <typename T>
DEFORMABLE_OPS_DEVICE void sum_over_lanes(T (&gradients)[4][3], int lane, int lanes) {
  if (lanes >= 2) {  // of lanes 2 i and 2 i + 1 the first keeps points 0 and 1, the second 2 and 3
    const bool second = lane % 2 != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const T given = second ? gradients[i][k] : gradients[i + 2][k];
        const T kept = second ? gradients[i + 2][k] : gradients[i][k];
        gradients[i][k] = kept + across(given, 1);
      }
    }
  }
  if (lanes >= 4) {
    const bool second = lane / 2 % 2 != 0;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const T given = second ? gradients[0][k] : gradients[1][k];
      const T kept = second ? gradients[1][k] : gradients[0][k];
      gradients[0][k] = kept + across(given, 2);
    }
  }
  for (int mask = 4; mask < lanes; mask *= 2) {
#pragma unroll
    for (int k = 0; k < 3; ++k) gradients[0][k] += across(gradients[0][k], mask);
  }
}

// Write the gradients of a point.
template <typename T>
DEFORMABLE_OPS_DEVICE void finish_point(const Task& task, int64_t row, int per_query, int index,
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
  store_pair(problem.grad_locations, row * per_query + index, gradients[1] * scale_x, gradients[2] * scale_y);
  if (problem.coordinates == Coordinates::offsets) {
    static_cast<T*>(task.raw_weights)[row * per_query + index] = gradients[0];
  } else {
    store_element(problem.grad_weights, row * per_query + index, gradients[0]);
  }
}

template <typename V, int kElements, int kLanes>
DEFORMABLE_OPS_DEVICE void backward_items(const Task& task, int64_t image, int32_t tile, int32_t first_head,
                                          Slots<typename Element<V>::Compute, kLanes>& slots) {
  typedef typename Element<V>::Compute T;
  const Problem& problem = task.problem;
  const int per_query = static_cast<int>(problem.levels * problem.points);
  const Place<T, kLanes> place = Place<T, kLanes>::of(task, image, tile, first_head, per_query);
  const bool fused = problem.coordinates == Coordinates::offsets;
  const int points = Round<kLanes>::points(place.lanes);
  const int32_t row_bytes = static_cast<int32_t>(problem.heads * problem.channels * sizeof(V));
  const int32_t sums_bytes = static_cast<int32_t>(problem.heads * problem.channels * sizeof(T));
  const int64_t head = (image * problem.tokens * problem.heads + place.head) * problem.channels;
  const V* rows = static_cast<const V*>(problem.value.data) + head;
  T* sums = static_cast<T*>(problem.grad_value.data) + head;
  const V* grad_output = static_cast<const V*>(problem.grad_output.data) + place.row * problem.channels;

  T own[kElements] = {};
  const auto load_own = [&](int64_t channel, bool active) {
    unpack(active ? Stored<V, kElements>::load(grad_output + channel) : Stored<V, kElements>::zero(), own);
  };
  if constexpr (kLanes > 0) load_own(place.lane * kElements, place.exists);

  T mean = T(0);  // of the gradients of the softmax's weights
  for (int first = 0; first < per_query; first += points) {
    __syncwarp();
    work_out<true>(task, place, first, per_query, slots);
    __syncwarp();
    const int end = per_query - first < points ? per_query - first : points;
    for (int four = 0; four < end; four += 4) {
      T gradients[4][3];
#pragma unroll
      for (int two = 0; two < 4; two += 2) {
        T dots[2][4] = {};
        for (int64_t start = 0; start < problem.channels; start += place.lanes * kElements) {
          const int64_t channel = start + place.lane * kElements;
          const bool active = place.exists && channel < problem.channels;
          if constexpr (kLanes == 0) load_own(channel, active);
          Stored<V, kElements> stored[2][4];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const Corners corners = slots.corners[(four + two + i) * place.items + place.group];
            load_corners(rows + channel, row_bytes, active, corners, stored[i]);
          }
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int slot = (four + two + i) * place.items + place.group;
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
                add(row_at(sums + channel, sums_bytes, corners.token[corner]), part);
              }
            }
          }
          if constexpr (kLanes > 0) break;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Four<T> factors = slots.factors[(four + two + i) * place.items + place.group];
          differentiate(dots[i], factors, gradients[two + i]);
          if (fused) mean += factors.x[2] * gradients[two + i][0];
        }
      }
      sum_over_lanes(gradients, place.lane, place.lanes);
      const int held = place.lanes >= 4 ? 1 : 4 / place.lanes;
      const int point = first + four + (place.lanes >= 2 ? place.lane % 2 * 2 : 0) + place.lane / 2 % 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < held && place.lane < 4 && place.exists && point + i < per_query) {
          finish_point(task, place.row, per_query, point + i, gradients[i]);
        }
      }
    }
  }
  if (!fused) return;
  for (int mask = 1; mask < place.lanes; mask *= 2) mean += across(mean, mask);
  __syncwarp();  // the raw gradients are written
  if (!place.exists) return;
  for (int i = place.lane; i < per_query; i += place.lanes) {
    const T weight = Softmax<T>::weight(place.softmax, load_element<T>(problem.weights, place.row * per_query + i));
    const T raw = static_cast<const T*>(task.raw_weights)[place.row * per_query + i];
    store_element(problem.grad_weights, place.row * per_query + i, weight * (raw - mean));
  }
}

}  // namespace deformable_ops
