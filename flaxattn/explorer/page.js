// What is said beside the map, and what people do: choosing, pointing, keys, themes.

// ---- The chosen cell -------------------------------------------------------------------------

function drawInspector() {
  $("hint").hidden = Boolean(now.cell);
  $("found").hidden = !now.cell;
  $("pinned").hidden = !now.pinned;
  if (!now.cell) return;
  const here = layer();
  const [q, k] = now.cell;
  const note = (text) => make("span", { className: "note" }, ` ${text}`);
  const writes = here.writes ? [note("→ "), token(here.writes[q])] : [];
  $("query").replaceChildren(token(here.queries[q]), ...writes, note(`at ${q}`));
  $("key").replaceChildren(token(here.keys[k]), note(`at ${k}`));
  const hides = isHidden(here, now.head, q, k);
  const weighs = inDigits(weight(here, now.head, q, k));
  $("weight").replaceChildren(weighs, hides ? note("hidden by the mask") : "");
  drawRow(here, q, k);
}

// The keys as running text, each in the colour of its weight.
function drawRow(here, q, chosen) {
  const weights = row(here, now.head, q);
  const most = top(here, now.head);
  const seen = weights.filter((_, k) => !isHidden(here, now.head, q, k)).length;
  const sum = inDigits(weights.reduce((a, b) => a + b, 0));
  $("row-says").textContent = `This query sees ${seen} of ${weights.length} keys; its weights sum to ${sum}.`;
  const keys = weights.map((w, k) => {
    const item = token(here.keys[k]);
    const rgb = colour(w / most);
    item.title = `${here.keys[k]} ${inDigits(w)}`;
    item.classList.toggle("on", k === chosen);
    if (isHidden(here, now.head, q, k)) item.classList.add("hidden");
    else Object.assign(item.style, { background: css(rgb), color: isBright(rgb) ? "#16181d" : "#fff" });
    return item;
  });
  $("looks").replaceChildren(...keys);
}

function setCell(cell, pinned = now.pinned) {
  Object.assign(now, { cell, pinned: Boolean(cell) && pinned });
  drawMarks();
  drawInspector();
  markWritten();
}

// ---- Tokens that were written, and hypotheses ------------------------------------------------

function drawWritten() {
  const { written } = sentence();
  $("written-part").hidden = !written.length;
  $("written").replaceChildren(...written.map(({ token: text, p, others }, i) => {
    const button = make("button", { type: "button" }, token(text));
    button.addEventListener("click", () => pinWritten(i));
    const fill = make("i");
    fill.style.width = `${100 * clamp(p, 0, 1)}%`;
    const other = ([name, q]) => make("span", {}, token(name), q < 5e-5 ? " < 0.0001" : ` ${inDigits(q)}`);
    const head = make("th", { scope: "row" }, button);
    const bar = make("span", { className: "bar" }, fill);
    return make("tr", {}, head, make("td", { className: "p" }, bar, inDigits(p)),
      make("td", { className: "others" }, ...others.map(other)));
  }));
}

// The place in the map where a token was written, at the key that weighs most.
function pinWritten(q) {
  if (!layer().writes) {
    const writing = sentence().kinds.findLastIndex((kind) => kind.layers[0].writes);
    if (writing < 0) return;
    choose({ kind: writing });
  }
  const weights = row(layer(), now.head, q);
  setCell([q, weights.indexOf(Math.max(...weights))], true);
}

function markWritten() {
  const q = layer().writes && now.cell ? now.cell[0] : -1;
  [...$("written").children].forEach((item, i) => item.classList.toggle("on", i === q));
}

function drawHypotheses() {
  const { hypotheses } = sentence();
  $("hypotheses-part").hidden = !hypotheses.length;
  $("hypotheses").replaceChildren(...hypotheses.map(({ text, score, logProb }) => {
    const numbers = `score ${signed(score)}, log-probability ${signed(logProb)}`;
    const words = make("p", {}, ...differing(text, hypotheses[0].text));
    return make("li", {}, words, make("small", {}, numbers));
  }));
}

// The words of a text, those marked that the best one has not in the same order.
function differing(text, best) {
  const [a, b] = [text.split(" "), best.split(" ")];
  const common = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
  const parts = [];
  for (let i = 0, j = 0; i < a.length; i++) {
    while (j < b.length && a[i] !== b[j] && common[i][j + 1] === common[i][j]) j++;
    const isSame = j < b.length && a[i] === b[j];
    if (isSame) j++;
    parts.push(i ? " " : "", isSame ? a[i] : make("mark", {}, a[i]));
  }
  return parts;
}

// ---- Choosing --------------------------------------------------------------------------------

function choose(changes) {
  Object.assign(now, changes);
  now.kind = clamp(now.kind, 0, sentence().kinds.length - 1);
  now.layer = clamp(now.layer, 0, kind().layers.length - 1);
  now.head = clamp(now.head, 0, layer().heads - 1);
  const fits = now.cell && now.cell[0] < layer().queries.length && now.cell[1] < layer().keys.length;
  if ("sentence" in changes || "kind" in changes || !fits) Object.assign(now, { cell: null, pinned: false });
  $("tip").hidden = true;
  draw();
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name, i) => make("option", { value: i }, name)));
  select.value = chosen;
}

function drawChoices() {
  fill($("layer"), kind().layers.map((l) => l.layer), now.layer);
  fill($("head"), Array.from({ length: layer().heads }, (_, h) => h), now.head);
  $("kinds").replaceChildren(...sentence().kinds.map(({ name }, i) => {
    const button = make("button", { type: "button", title: "k" }, name);
    button.setAttribute("aria-pressed", i === now.kind);
    button.addEventListener("click", () => {
      choose({ kind: i });
      $("kinds").children[i].focus();
    });
    return button;
  }));
  $("path").textContent = layer().name;
  map.setAttribute("aria-label", `${kind().name}, layer ${layer().layer}, head ${now.head}`);
}

function drawTexts() {
  $("text").textContent = sentence().text;
  $("translation").textContent = sentence().translation;
  $("translation").hidden = !sentence().translation;
}

function drawLegend() {
  const steps = Array.from({ length: 17 }, (_, i) => css(colour(i / 16)));
  $("scale").style.background = `linear-gradient(to right, ${steps.join(", ")})`;
  $("top").textContent = now.toMost ? inDigits(top(layer(), now.head)) : "1";
  $("most").textContent = now.toMost ? "Scale to 1" : "Scale to this head's largest";
  const { queries, keys, writes } = layer();
  $("writes-key").hidden = !writes;
  $("hidden-key").hidden = !queries.some((_, q) => keys.some((_, k) => isHidden(layer(), now.head, q, k)));
  $("theme").textContent = isDark() ? "Light colours" : "Dark colours";
}

function drawOne() {
  fitCells();
  drawLabels();
  fitCells(); // labels take room; the frame knows now how much is left
  drawLabels();
  drawCells();
  drawMarks();
}

function draw() {
  drawTexts();
  drawChoices();
  drawOverview();
  drawOne();
  drawLegend();
  drawInspector();
  drawHypotheses();
  drawWritten();
  markWritten();
}

// ---- Pointing --------------------------------------------------------------------------------

function cellAt(event) {
  const { queries, keys } = layer();
  const at = (x, count) => clamp(Math.floor(x / cellSize), 0, count - 1);
  return [at(event.offsetY, queries.length), at(event.offsetX, keys.length)];
}

function drawTip() {
  const [q, k] = now.cell;
  const here = layer();
  const hides = isHidden(here, now.head, q, k) ? ", hidden" : "";
  const number = make("b", {}, inDigits(weight(here, now.head, q, k)) + hides);
  $("tip").replaceChildren(number, token(here.queries[q]), " sees ", token(here.keys[k]));
  if (hides) $("tip").childNodes[2].textContent = " must not see ";
  $("tip").hidden = false;
  const [width, room] = [$("tip").offsetWidth, $("scroll").scrollLeft + $("scroll").clientWidth];
  const left = clamp(map.offsetLeft + (k + 1) * cellSize + 8, 0, Math.max(0, room - width - 2));
  const below = (q + 1) * cellSize + 6;
  const fits = below + $("tip").offsetHeight < map.clientHeight;
  const height = fits ? below : q * cellSize - $("tip").offsetHeight - 6;
  Object.assign($("tip").style, { left: `${left}px`, top: `${Math.max(0, map.offsetTop + height)}px` });
}

map.addEventListener("pointermove", (event) => {
  if (event.pointerType !== "mouse" || now.pinned) return;
  const cell = cellAt(event);
  if (String(cell) !== String(now.cell)) setCell(cell);
  drawTip();
});
map.addEventListener("pointerleave", () => {
  $("tip").hidden = true;
  if (!now.pinned) setCell(null);
});
map.addEventListener("click", (event) => {
  const cell = cellAt(event);
  $("tip").hidden = true;
  const isSame = now.pinned && String(cell) === String(now.cell);
  setCell(cell, !isSame);
});
$("unpin").addEventListener("click", () => setCell(null));

// ---- Keys ------------------------------------------------------------------------------------

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  Home: [0, -Infinity], End: [0, Infinity] };

function moveCell(step) {
  const { queries, keys } = layer();
  const ends = [queries.length - 1, keys.length - 1];
  setCell(now.cell?.map((x, i) => clamp(x + step[i], 0, ends[i])) ?? [0, 0], true);
  const [room, x] = [$("scroll").clientWidth, now.cell[1] * cellSize];
  $("scroll").scrollLeft = clamp($("scroll").scrollLeft, x + cellSize - room, x);
  say();
}

// For those who hear the page.
function say() {
  const [q, k] = now.cell;
  const [here, hides] = [layer(), isHidden(layer(), now.head, ...now.cell)];
  const says = `${here.queries[q]} to ${here.keys[k]}: ${inDigits(weight(here, now.head, q, k))}`;
  $("said").textContent = hides ? `${says}, hidden by the mask` : says;
}

map.addEventListener("keydown", (event) => {
  if (!ARROWS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  moveCell(ARROWS[event.key]);
});

$("overview").addEventListener("keydown", (event) => {
  if (!ARROWS[event.key]) return;
  event.preventDefault();
  choose({ layer: now.layer + ARROWS[event.key][0], head: now.head + ARROWS[event.key][1] });
});

const next = (name, step) => () => choose({ [name]: now[name] + step });
const KEYS = {
  "[": next("head", -1), H: next("head", -1), "]": next("head", 1), h: next("head", 1),
  "{": next("layer", -1), L: next("layer", -1), "}": next("layer", 1), l: next("layer", 1),
  K: next("kind", -1), k: next("kind", 1),
  m: () => choose({ toMost: !now.toMost }),
  t: () => setTheme(isDark() ? "light" : "dark"),
  Escape: () => setCell(null),
};

document.addEventListener("keydown", (event) => {
  const typed = event.getModifierState("AltGraph") || !(event.ctrlKey || event.metaKey || event.altKey);
  if (typed && event.target.tagName !== "SELECT") KEYS[event.key]?.();
});

// ---- Themes ----------------------------------------------------------------------------------

function kept(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch {
    return null; // some browsers keep nothing for files
  }
}

function setTheme(theme) {
  root.dataset.theme = theme;
  kept(theme);
  draw();
}

// ---- Begin -----------------------------------------------------------------------------------

$("picker").hidden = data.sentences.length < 2;
fill($("sentence"), data.sentences.map((s, i) => `${i + 1}. ${s.text}`), 0);
$("sentence").addEventListener("change", (event) => choose({ sentence: Number(event.target.value) }));
$("layer").addEventListener("change", (event) => choose({ layer: Number(event.target.value) }));
$("head").addEventListener("change", (event) => choose({ head: Number(event.target.value) }));
$("most").addEventListener("click", KEYS.m);
$("theme").addEventListener("click", KEYS.t);
prefersDark.addEventListener("change", draw);
if (["light", "dark"].includes(kept())) root.dataset.theme = kept();
addEventListener("resize", drawOne);
draw();
