// The overview of all heads, and the map of one.
const VEIL = 0.8; // of the tone over what is hidden: a weight that should not be there shines through
const [SMALLEST, LARGEST, HIGHEST] = [12, 52, 580]; // pixels: of a cell, and of the map

// ---- Elements --------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A token, as text; the sign that tokenizers write for a space is made faint.
function token(text, className = "") {
  const [, space, rest] = text.match(/^(\u2581*)([^]*)$/u);
  const faint = space ? [make("span", { className: "space" }, space)] : [];
  return make("bdi", { className, title: text }, ...faint, rest);
}

// ---- All heads -------------------------------------------------------------------------------

function thumbnail(layer, head) {
  const [height, width] = [layer.queries.length, layer.keys.length];
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const [most, veil] = [top(layer, head), styleOf($("swatch"), "backgroundColor").match(/\d+/g)];
  for (let i = 0; i < width * height; i++) {
    const [q, k] = [Math.floor(i / width), i % width];
    const under = colour(weight(layer, head, q, k) / most);
    const over = under.map((c, j) => (1 - VEIL) * c + VEIL * veil[j]);
    image.data.set([...(isHidden(layer, head, q, k) ? over : under), 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function thumbButton(at, head) {
  const here = kind().layers[at];
  const isChosen = at === now.layer && head === now.head;
  const name = `layer ${here.layer}, head ${head}`;
  const button = make("button", { type: "button", title: name }, thumbnail(here, head));
  button.setAttribute("aria-label", name);
  button.setAttribute("aria-pressed", isChosen);
  button.tabIndex = isChosen ? 0 : -1; // one stop of the tab key; arrows go on from there
  button.addEventListener("click", () => choose({ layer: at, head }));
  return button;
}

function drawOverview() {
  const { layers } = kind();
  const heads = Math.max(...layers.map((l) => l.heads));
  const cells = [make("span")];
  for (let h = 0; h < heads; h++) cells.push(make("span", { className: "name" }, `head ${h}`));
  layers.forEach((l, at) => {
    cells.push(make("span", { className: "name layer" }, `layer ${l.layer}`));
    for (let h = 0; h < heads; h++) cells.push(h < l.heads ? thumbButton(at, h) : make("span"));
  });
  const hadFocus = $("overview").contains(document.activeElement);
  $("overview").style.gridTemplateColumns = `auto repeat(${heads}, minmax(0, 1fr))`;
  $("overview").replaceChildren(...cells);
  if (hadFocus) $("overview").querySelector('[aria-pressed="true"]').focus();
}

// ---- One head --------------------------------------------------------------------------------

const map = $("map");
let cellSize = SMALLEST;
let unmarked = null; // the map without the marks of the chosen cell

function drawLabels() {
  const { queries, keys, writes } = layer();
  const arrow = () => make("span", { className: "reads" }, "→");
  const fontSize = `${clamp(Math.round(cellSize * 0.7), 9, 14)}px`;
  const label = (size, ...children) => {
    const item = make("li", {}, ...children);
    return Object.assign(item.style, { fontSize, ...size }) && item;
  };
  const height = `${cellSize}px`;
  $("rows").replaceChildren(
    ...queries.map((reads, q) =>
      writes
        ? label({ height }, token(reads, "reads"), arrow(), token(writes[q]))
        : label({ height }, token(reads)),
    ),
  );
  $("columns").replaceChildren(...keys.map((key) => label({ width: height }, token(key))));
  $("axes").style.height = `${$("columns").offsetHeight}px`;
}

function fitCells() {
  const { queries, keys } = layer();
  const room = Math.floor(($("scroll").clientWidth) / keys.length);
  cellSize = clamp(Math.min(room, Math.floor(HIGHEST / queries.length)), SMALLEST, LARGEST);
}

function hatching(pen, ratio) {
  const size = Math.round(6 * ratio);
  const tile = make("canvas", { width: size, height: size });
  const line = tile.getContext("2d");
  line.strokeStyle = styleOf($("swatch"), "color");
  line.lineWidth = ratio;
  for (const start of [-size, 0, size]) {
    line.moveTo(start - 1, size + 1);
    line.lineTo(start + size + 1, -1);
  }
  line.stroke();
  return pen.createPattern(tile, "repeat");
}

function drawCells() {
  const [here, ratio] = [layer(), devicePixelRatio];
  const size = [here.keys.length, here.queries.length].map((n) => n * cellSize);
  Object.assign(map.style, { width: `${size[0]}px`, height: `${size[1]}px` });
  [map.width, map.height] = size.map((n) => Math.round(n * ratio));
  unmarked = make("canvas", { width: map.width, height: map.height });
  const pen = unmarked.getContext("2d");
  const [most, hatch] = [top(here, now.head), hatching(pen, ratio)];
  const tone = styleOf($("swatch"), "backgroundColor");
  const edge = (i) => Math.round(i * cellSize * ratio);
  here.queries.forEach((_, q) =>
    here.keys.forEach((_, k) => {
      const box = [edge(k), edge(q), edge(k + 1) - edge(k) - 1, edge(q + 1) - edge(q) - 1];
      const paint = (style, alpha) => {
        Object.assign(pen, { fillStyle: style, globalAlpha: alpha });
        pen.fillRect(...box);
      };
      paint(css(colour(weight(here, now.head, q, k) / most)), 1);
      if (isHidden(here, now.head, q, k)) paint(tone, VEIL), paint(hatch, 1);
    }),
  );
}

function drawMarks() {
  const pen = map.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, map.width, map.height);
  pen.drawImage(unmarked, 0, 0);
  const [q, k] = now.cell ?? [-1, -1];
  [...$("rows").children].forEach((item, i) => item.classList.toggle("on", i === q));
  [...$("columns").children].forEach((item, i) => item.classList.toggle("on", i === k));
  if (!now.cell) return;
  pen.scale(devicePixelRatio, devicePixelRatio);
  const [width, height] = [map.clientWidth, map.clientHeight];
  const [x, y, size] = [k * cellSize - 0.5, q * cellSize - 0.5, cellSize];
  Object.assign(pen, { strokeStyle: styleOf(map, "color"), globalAlpha: 0.6, lineWidth: 1 });
  pen.strokeRect(0.5, y, width - 1.5, size);
  pen.strokeRect(x, 0.5, size, height - 1.5);
  Object.assign(pen, { globalAlpha: 1, lineWidth: now.pinned ? 3 : 2 });
  pen.strokeRect(x, y, size, size);
}
