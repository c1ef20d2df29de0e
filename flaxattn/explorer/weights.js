// What is shown and what is chosen; weights, masks and colours. No drawing.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

// `cell` is [query, key] or null; if `pinned`, it stays when the pointer leaves.
const now = { sentence: 0, kind: 0, layer: 0, head: 0, cell: null, pinned: false, toMost: false };

const sentence = () => data.sentences[now.sentence];
const kind = () => sentence().kinds[now.kind];
const layer = () => kind().layers[now.layer];

const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const inDigits = (x) => x.toFixed(4);
const signed = (x) => inDigits(x).replace("-", "\u2212");
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function unpacked(layer) {
  layer.shares ??= new Uint16Array(bytes(layer.weights).buffer);
  layer.bits ??= bytes(layer.mask);
  return layer;
}

const index = (layer, head, q, k) => (head * layer.queries.length + q) * layer.keys.length + k;

function weight(layer, head, q, k) {
  return unpacked(layer).shares[index(layer, head, q, k)] / data.full;
}

function isHidden(layer, head, q, k) {
  if (!layer.maskHeads) return false;
  const at = index(layer, layer.maskHeads > 1 ? head : 0, q, k);
  return !((unpacked(layer).bits[at >> 3] >> (at & 7)) & 1);
}

function row(layer, head, q) {
  return layer.keys.map((_, k) => weight(layer, head, q, k));
}

// The weight that the last colour stands for.
function top(layer, head) {
  if (!now.toMost) return 1;
  const shares = unpacked(layer).shares.subarray(index(layer, head, 0, 0), index(layer, head + 1, 0, 0));
  return shares.reduce((a, b) => Math.max(a, b), 0) / data.full || 1;
}

const scales = { light: bytes(data.scales.light), dark: bytes(data.scales.dark) };
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

// [red, green, blue] of a share of the scale.
function colour(share) {
  const scale = scales[isDark() ? "dark" : "light"];
  const at = 3 * Math.round(clamp(share, 0, 1) * (scale.length / 3 - 1));
  return [scale[at], scale[at + 1], scale[at + 2]];
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;
const isBright = (rgb) => 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140;
const styleOf = (element, name) => getComputedStyle(element)[name];
