// Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
//
// Segments an image of any size in overlapping windows, as sliding_windows.py does, with OpenVINO's C++ API.
// It runs files of `segtransformers export --takes-pixels --output model.xml`, or model.onnx.
//
//     sliding_windows MODEL IMAGE.ppm LABELS.pgm

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    size_t height, width;
    std::vector<uint8_t> pixels;  // red, green and blue of each pixel, row by row
};

size_t read_number(std::istream& file) {
    while (file >> std::ws && file.peek() == '#') file.ignore(1 << 20, '\n');
    size_t number = 0;
    file >> number;
    return number;
}

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    file >> kind;
    Image image{};
    image.width = read_number(file);
    image.height = read_number(file);
    const size_t largest = read_number(file);
    file.get();
    if (!file || kind != "P6" || largest != 255 || image.width > 65536 || image.height > 65536)
        throw std::runtime_error(path + " is no PPM file (P6) of 8-bit colours");
    image.pixels.resize(image.height * image.width * 3);
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size()))
        throw std::runtime_error(path + " ends early");
    return image;
}

// The first pixels of the windows along one side. The last window ends with the image.
std::vector<size_t> origins(size_t side, size_t window, size_t stride) {
    std::vector<size_t> found{0};
    while (found.back() + window < side) found.push_back(std::min(found.back() + stride, side - window));
    return found;
}

std::vector<uint8_t> segment(ov::InferRequest& request, const ov::Shape& input, const Image& image) {
    const size_t window_height = input[1], window_width = input[2];
    // an image smaller than the window gets black pixels at the right and the bottom
    const size_t height = std::max(image.height, window_height), width = std::max(image.width, window_width);
    std::vector<float> sums, counts(height * width);
    size_t classes = 0;
    for (size_t top : origins(height, window_height, window_height * 2 / 3)) {
        for (size_t left : origins(width, window_width, window_width * 2 / 3)) {
            ov::Tensor crop(ov::element::u8, input);
            uint8_t* pixels = crop.data<uint8_t>();
            std::fill_n(pixels, crop.get_size(), uint8_t{0});
            const size_t rows = std::min(window_height, image.height - top);
            const size_t columns = std::min(window_width, image.width - left);
            for (size_t y = 0; y < rows; y++)
                std::copy_n(&image.pixels[((top + y) * image.width + left) * 3], columns * 3,
                            pixels + y * window_width * 3);
            request.set_input_tensor(crop);
            request.infer();
            const ov::Tensor logits = request.get_output_tensor();
            classes = logits.get_shape()[1];
            sums.resize(classes * height * width);
            const float* values = logits.data<const float>();
            for (size_t index = 0; index < classes; index++)
                for (size_t y = 0; y < window_height; y++)
                    for (size_t x = 0; x < window_width; x++)
                        sums[(index * height + top + y) * width + left + x] += *values++;
            for (size_t y = 0; y < window_height; y++)
                for (size_t x = 0; x < window_width; x++) counts[(top + y) * width + left + x] += 1;
        }
    }
    std::vector<uint8_t> labels(image.height * image.width);
    for (size_t y = 0; y < image.height; y++)
        for (size_t x = 0; x < image.width; x++) {
            float best = 0;
            for (size_t index = 0; index < classes; index++) {
                const float mean = sums[(index * height + y) * width + x] / counts[y * width + x];
                if (index == 0 || mean > best) {
                    best = mean;
                    labels[y * image.width + x] = static_cast<uint8_t>(index);
                }
            }
        }
    return labels;
}

int main(int count, char** words) {
    if (count != 4) {
        std::cerr << "usage: sliding_windows MODEL IMAGE.ppm LABELS.pgm\n";
        return 2;
    }
    try {
        const Image image = read_ppm(words[2]);
        ov::CompiledModel model =
            ov::Core().compile_model(words[1], "CPU", ov::hint::inference_precision(ov::element::f32));
        const ov::Output<const ov::Node> input = model.input();
        if (input.get_partial_shape().is_dynamic() || input.get_shape().size() != 4 || input.get_shape()[3] != 3 ||
            input.get_element_type() != ov::element::u8)
            throw std::runtime_error(std::string(words[1]) +
                                     " must take images (1, height, width, 3): export it with --takes-pixels");
        ov::InferRequest request = model.create_infer_request();
        const std::vector<uint8_t> labels = segment(request, input.get_shape(), image);
        std::ofstream file(words[3], std::ios::binary);
        file << "P5\n" << image.width << " " << image.height << "\n255\n";
        file.write(reinterpret_cast<const char*>(labels.data()), labels.size());
        if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + words[3]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
