// The page: sends the drawing, shows what the network makes of it.

import { Paper } from "/static/paper.js";

const $ = (id) => document.getElementById(id);
const percent = (p) => {
  if (p < 0.001) return "<0.1%";
  return p > 0.999 ? ">99.9%" : `${(100 * p).toFixed(1)}%`;
};
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

let classes = [];
let explain = null; // the class asked for; null follows the prediction
let examples = 0;
let last = null; // the answer shown
let busy = false;
let waiting = false; // a newer drawing waits for the running request
let announce = false; // the next answer is read out

// ---------------------------------------------------------------------------------- the server

async function get(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The program behind this page has ended. Start it again: gpulayers demo");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function complain(error) {
  $("alert").textContent = error.message;
  $("alert").hidden = false;
}

async function look() {
  if (busy) {
    waiting = true;
    return;
  }
  busy = true;
  try {
    do {
      waiting = false;
      const { rows, cols, ink } = paper.pixels();
      let text = "";
      for (let i = 0; i < ink.length; i += 8192) {
        text += String.fromCharCode(...ink.subarray(i, i + 8192));
      }
      last = await get("/api/look", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ rows, cols, pixels: btoa(text), explain }),
      });
      $("alert").hidden = true;
      show();
    } while (waiting);
  } catch (error) {
    complain(error);
  } finally {
    busy = false;
  }
}

// ------------------------------------------------------------------------------------- showing

// Colours as [r, g, b]; they depend on light or dark.
function colours() {
  const found = {};
  for (const probe of $("probes").children) {
    found[probe.id] = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  }
  return found;
}

function paint(canvas, count, colour) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < count; i++) {
    const rgb = colour(i);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = rgb[c];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

const mix = (a, b, t) => a.map((value, c) => value + (b[c] - value) * t);

function show() {
  const c = colours();
  const { blank, probabilities, predicted } = last;
  const best = classes[predicted];
  $("verdict").textContent = blank ? "?" : best;
  $("sure").textContent = blank ? "nothing drawn yet" : `${percent(probabilities[predicted])} sure`;
  for (const [i, bar] of [...$("bars").children].entries()) {
    const p = blank ? 0 : probabilities[i];
    bar.classList.toggle("best", !blank && i === predicted);
    bar.setAttribute("aria-pressed", String(i === explain));
    bar.querySelector(".fill").style.transform = `scaleX(${p})`;
    bar.querySelector(".share").textContent = blank ? "–" : percent(p);
    bar.setAttribute("aria-label", `${classes[i]}: ${blank ? "no drawing" : percent(p)}`);
  }
  const input = bytes(last.input);
  paint($("input"), input.length, (i) => mix(c.plain, c.ink, input[i] / 255));
  const gradient = bytes(last.gradient);
  paint($("gradient"), gradient.length, (i) => {
    const g = blank ? 0 : (gradient[i] - 128) / 127;
    const heat = mix(c.plain, g > 0 ? c.raise : c.lower, Math.abs(g) ** 0.8);
    return mix(heat, c.ink, 0.3 * (input[i] / 255));
  });
  $("explained").textContent = blank && explain === null ? "the prediction" : classes[last.explained];
  $("time").textContent = `${last.milliseconds.toFixed(1)} ms`;
  for (const [i, layer] of last.layers.entries()) showLayer(i, layer, blank, c);
  if (announce && !blank) say(`Looks like ${best}, ${percent(probabilities[predicted])}`);
  announce = false;
}

function showLayer(i, layer, blank, c) {
  const [, rows, cols] = layer.size;
  const item = $("layers").children[i] || makeLayer(layer);
  const levels = bytes(layer.maps);
  for (const [k, canvas] of [...item.querySelectorAll("canvas")].entries()) {
    const from = k * rows * cols;
    const size = rows * cols;
    paint(canvas, size, (j) => mix(c.low, c.high, blank ? 0 : (levels[from + j] / 255) ** 0.75));
  }
}

function makeLayer(layer) {
  const [count, rows, cols] = layer.size;
  const item = document.createElement("li");
  const units = layer.shape.length === 1;
  const shape = layer.shape.join(" × ");
  const part = units && cols < layer.shape[0] ? `, the first ${cols}` : "";
  const some = !units && count < layer.shape[2] ? `, the first ${count}` : "";
  item.className = "card";
  const title = item.appendChild(document.createElement("h3"));
  title.textContent = layer.kind;
  const text = item.appendChild(document.createElement("p"));
  text.textContent = [layer.detail.replace(" x ", " × "), `${shape}${part}${some}`].filter(Boolean).join(" · ");
  const maps = item.appendChild(document.createElement("div"));
  maps.className = "maps";
  maps.setAttribute("role", "img");
  maps.setAttribute(
    "aria-label",
    units ? `${cols} unit values` : `${count} feature maps of ${rows} by ${cols}`,
  );
  const columns = units ? (cols <= 16 ? cols : Math.ceil(Math.sqrt(cols * 3))) : cols;
  for (let k = 0; k < count; k++) {
    const canvas = maps.appendChild(document.createElement("canvas"));
    canvas.width = columns;
    canvas.height = units ? Math.ceil(cols / columns) : rows;
    if (units) canvas.className = "units";
    else if (cols <= 7) canvas.className = "small";
  }
  $("layers").append(item);
  return item;
}

function say(text) {
  $("say").textContent = text;
}

// ---------------------------------------------------------------------------------- controls

const paper = new Paper(
  $("paper"),
  $("cursor"),
  (done) => {
    $("invitation").hidden = !paper.empty;
    allow();
    announce ||= done;
    look();
  },
  say,
);

// Buttons with nothing to do keep the focus, so they are not disabled outright.
function allow() {
  for (const id of ["clear", "undo"]) $(id).setAttribute("aria-disabled", String(paper.empty));
}

$("clear").addEventListener("click", () => paper.clear());
$("undo").addEventListener("click", () => paper.undo());
$("example").addEventListener("click", async () => {
  try {
    const { image } = await get(`/api/example/${Math.floor(Math.random() * examples)}`);
    paper.showPicture(bytes(image), 28);
  } catch (error) {
    complain(error);
  }
});

function redraw() {
  paper.redraw();
  if (last) show();
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

function makeBar(name, i) {
  const bar = document.createElement("button");
  bar.type = "button";
  for (const kind of ["name", "track", "share"]) {
    bar.appendChild(document.createElement("span")).className = kind;
  }
  bar.querySelector(".name").textContent = name;
  bar.querySelector(".track").appendChild(document.createElement("span")).className = "fill";
  bar.addEventListener("click", () => {
    explain = explain === i ? null : i;
    look();
  });
  return bar;
}

async function start() {
  try {
    const network = await get("/api/network");
    classes = network.classes;
    examples = network.examples;
    $("title").textContent = `${network.title} · ${network.parameters.toLocaleString("en")} parameters`;
    $("version").textContent = `gpulayers ${network.version}`;
    $("example").hidden = examples === 0;
    $("bars").append(...classes.map(makeBar));
    allow();
    await look();
  } catch (error) {
    complain(error);
  }
}

start();
