// Segments an image with a file of
// `segtransformers export --takes-pixels --result labels --output model.onnx`.
"use strict";

const byId = (id) => document.getElementById(id);
const say = (text) => { byId("status").textContent = text; };
ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", location.href).href;

let session = null;
let about = null;

// The description is a metadata entry of the ONNX file, which onnxruntime-web does not expose. It is the text
// after its key: a protocol buffer string, whose length comes first as a varint.
function readDescription(bytes) {
  const key = new TextEncoder().encode("segmentation.json");
  for (let end = bytes.length; ;) {
    const at = lastIndexOf(bytes, key, end);
    if (at < 0) throw new Error("this is no file of `segtransformers export`");
    let place = at + key.length;
    if (bytes[place++] === 0x12) {
      let length = 0;
      for (let shift = 0; ; shift += 7) {
        const byte = bytes[place++];
        length += (byte & 127) * 2 ** shift;
        if (byte < 128) break;
      }
      return JSON.parse(new TextDecoder().decode(bytes.subarray(place, place + length)));
    }
    end = at;
  }
}

function lastIndexOf(bytes, key, end) {
  for (let at = end - key.length; at >= 0; at--) {
    if (key.every((byte, index) => bytes[at + index] === byte)) return at;
  }
  return -1;
}

async function loadModel(file) {
  try {
    say("Loading the model…");
    const bytes = new Uint8Array(await file.arrayBuffer());
    about = readDescription(bytes);
    if (!about.takes_pixels || about.output !== "labels" || about.height === null) {
      throw new Error("export the model with --takes-pixels --result labels, without --dynamic-size");
    }
    const providers = navigator.gpu ? ["webgpu", "wasm"] : ["wasm"];
    session = await ort.InferenceSession.create(bytes, { executionProviders: providers });
    say(`Model of ${about.classes.length} classes, ${about.width} × ${about.height} pixels. Drop an image.`);
  } catch (error) {
    session = null;
    say(`The model cannot be loaded: ${error.message}`);
  }
}

async function segment(file) {
  if (session === null) { say("Choose a model file first."); return; }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    say(`${file.name} is no image that this browser can read.`);
    return;
  }
  const { width, height } = about;
  const input = new OffscreenCanvas(width, height).getContext("2d");
  input.drawImage(bitmap, 0, 0, width, height);
  const rgba = input.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) pixels.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
  const start = performance.now();
  const outputs = await session.run({ [about.input]: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
  const labels = outputs[about.output].data;
  const milliseconds = Math.round(performance.now() - start);
  draw(bitmap, labels);
  say(`Segmented in ${milliseconds} ms.`);
}

function color(index) {
  if (about.palette) return about.palette[index];
  const hue = (index * 137.508) % 360;
  return [0, 8, 4].map((n) => Math.round(255 * (0.5 - 0.4 * Math.max(-1, Math.min((n + hue / 30) % 12 - 3, 9 - (n + hue / 30) % 12, 1)))));
}

function draw(bitmap, labels) {
  const { width, height } = about;
  const overlay = new OffscreenCanvas(width, height);
  const data = new ImageData(width, height);
  const counts = new Map();
  labels.forEach((label, i) => {
    data.data.set([...color(label), 150], 4 * i);
    counts.set(label, (counts.get(label) ?? 0) + 1);
  });
  overlay.getContext("2d").putImageData(data, 0, 0);
  const canvas = byId("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(overlay, 0, 0, bitmap.width, bitmap.height);
  byId("legend").replaceChildren(...[...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const entry = document.createElement("span"), swatch = document.createElement("i");
    swatch.style.background = `rgb(${color(label)})`;
    entry.append(swatch, `${about.classes[label]} ${(100 * count / labels.length).toFixed(1)} %`);
    return entry;
  }));
}

// Browsers report no change when the same file is chosen again, for example after it was exported again.
for (const id of ["model", "image"]) byId(id).addEventListener("click", (event) => { event.target.value = ""; });
byId("model").addEventListener("change", (event) => loadModel(event.target.files[0]));
byId("image").addEventListener("change", (event) => segment(event.target.files[0]));
byId("drop").addEventListener("dragover", (event) => event.preventDefault());
byId("drop").addEventListener("drop", (event) => { event.preventDefault(); segment(event.dataTransfer.files[0]); });
