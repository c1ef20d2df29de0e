const WAIT = 250; // milliseconds without a key, before what was typed is translated

const source = document.querySelector("#source");
const target = document.querySelector("#target");
const says = document.querySelector("#says");
const hint = document.querySelector("#hint");
let timer = 0;
let asking = null; // what ends the request that is under way

source.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(translate, WAIT);
});

async function translate() {
  asking?.abort();
  const texts = source.value.split("\n").filter((line) => line.trim());
  if (!texts.length) {
    show([]);
    return;
  }
  const mine = (asking = new AbortController());
  target.setAttribute("aria-busy", "true");
  try {
    const translations = await ask(texts, mine.signal);
    if (mine === asking) show(texts.map((text, i) => [text, translations[i][0]]));
  } catch (error) {
    if (mine === asking) say(error.message, true);
  } finally {
    if (mine === asking) target.setAttribute("aria-busy", "false");
  }
}

async function ask(texts, signal) {
  let answer;
  try {
    answer = await fetch("/translate", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ texts, align: true }),
      signal,
    });
  } catch (error) {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body.translations;
}

function say(text, isError = false) {
  says.textContent = text;
  says.classList.toggle("error", isError);
}

function show(pairs) {
  if (!pairs.length) asking = null;
  target.replaceChildren(...pairs.map(([text, best]) => pairOf(text, best)));
  target.setAttribute("aria-busy", "false");
  hint.hidden = !pairs.length;
  say("");
}

function pairOf(text, best) {
  const pair = make("div", "pair");
  const links = best.alignment ?? [];
  const written = wordsOf(best.text, "written");
  const read = wordsOf(text, "read");
  light(written.words, read.words, links.map(([s, t]) => [t, s]));
  light(read.words, written.words, links);
  walk([...written.words, ...read.words]);
  const more = make("p", "more");
  const link = make("a", "");
  link.href = `/explain?text=${encodeURIComponent(text)}`;
  link.textContent = "See its attention";
  more.append(link);
  pair.append(written.line, read.line, more);
  return pair;
}

/** A line whose words, parted by white space as the server parts them, are elements. */
function wordsOf(text, kind) {
  const line = make("p", kind);
  line.dir = "auto";
  const words = [];
  for (const part of text.split(/(\s+)/u)) {
    if (!part.trim()) {
      line.append(part);
      continue;
    }
    const word = make("span", "word");
    word.textContent = part;
    words.push(word);
    line.append(word);
  }
  return { line, words };
}

/** Pointing at a word, or going there by keyboard, lights it and what it belongs to. */
function light(words, others, links) {
  words.forEach((word, i) => {
    const lit = [word, ...links.filter(([from]) => from === i).map(([, to]) => others[to])];
    const turn = (on) => lit.forEach((each) => each?.classList.toggle("lit", on));
    for (const event of ["pointerenter", "focus"]) word.addEventListener(event, () => turn(true));
    for (const event of ["pointerleave", "blur"]) word.addEventListener(event, () => turn(false));
  });
}

/** Tab reaches the first word, arrows the others. */
function walk(words) {
  words.forEach((word, i) => {
    word.tabIndex = i ? -1 : 0;
    word.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = step && words[i + step];
      if (!next) return;
      event.preventDefault();
      word.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
}

function make(name, kind) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  return made;
}
