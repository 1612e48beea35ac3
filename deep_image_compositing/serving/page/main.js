// The page: chooses two photographs, requests the composite and lets the user edit it.

import { send, stages } from "./api.js";
import { Brush } from "./brush.js";
import { Placing } from "./place.js";
import { View } from "./view.js";

const SHOWN = 1600; // long side in pixels at which the cut-out is drawn
const SLOTS = { segmenter: "Segmenter", refiner: "Refiner", fuser: "Fuser" };
const COLOURS = {
  none: "unchanged", color_map: "match, learned", reinhard: "match, classical", white_balance: "white balance",
};
const FULL_STRENGTH = ["color_map"]; // harmonizers with a default strength of 1; others have 0.5
const HELP = {
  compare: "Drag across the picture, or move the slider. Zoom with the wheel, two fingers, or + and −; 0 fits the picture.",
  move: "Drag the subject, or its corner to scale it. Keys: arrows move it, comma and full stop scale it.",
  brush: "Blue marks what is not part of the subject. Paint roughly; the mask adapts. Keys: arrows move the brush, space starts and ends a stroke.",
};

const find = (selector) => document.querySelector(selector);
const every = (selector) => [...document.querySelectorAll(selector)];

const photos = { foreground: null, background: null };
const stale = { cut: true, composite: true };
let cuts = []; // the subject by number of strokes
let result = null;
let mode = "empty";
let limits = {};
let running = null;

const stage = find("#stage");
const view = new View(stage, find("#sheet"));
const placing = new Placing(find("#subject"), find("#box"), () => {
  cancel();
  stale.composite = true;
  find("#scale").value = placing.scale;
  find("#scale-shown").textContent = placing.scale.toFixed(2);
  show();
}, () => refresh());
const brush = new Brush(find("#paint"), find("#cursor"), () => {
  stale.cut = stale.composite = true;
  refresh();
});
const cut = () => cuts[brush.strokes.length] ?? null;
const frame = () => find("input[name=frame]:checked").value;

// Requests to the server

/** Update what is stale, the subject before the composite; a newer call replaces this one. */
async function refresh() {
  running?.abort();
  const controller = (running = new AbortController());
  try {
    if (photos.foreground && stale.cut) {
      say("Looking for the subject …", true);
      say(await findSubject(controller.signal));
    }
    if (photos.foreground && photos.background && stale.composite && cut()?.blob && mode !== "brush") {
      say("Making the composite …", true);
      const start = performance.now();
      const { blob } = await send("composite", compositeFields(), controller.signal);
      const url = URL.createObjectURL(blob);
      await Object.assign(new Image(), { src: url }).decode();
      if (controller.signal.aborted) return URL.revokeObjectURL(url);
      if (result) URL.revokeObjectURL(result.url);
      result = { blob, url, frame: frame() };
      stale.composite = false;
      say(`Composite made in ${((performance.now() - start) / 1000).toFixed(1)} s. ${cut().hint}`.trim());
    }
  } catch (error) {
    if (controller !== running || error.name === "AbortError") return;
    say("");
    tell(error.message);
  }
  if (controller === running) running = null;
  show();
}

/** Cancel the running request, whose result would be out of date. */
function cancel() {
  if (!running) return;
  running.abort();
  running = null;
  say("");
}

async function findSubject(signal) {
  const count = brush.strokes.length;
  const fields = { foreground: photos.foreground.file, ...chosen("segmenter", "refiner") };
  if (count) fields.strokes = await brush.picture();
  let hint = "";
  let blob = null;
  try {
    const answer = await send("mask", fields, signal);
    blob = answer.blob;
    if (!count && answer.doubt > 0.5) hint = "It is not clear what the subject is: mark it with the brush.";
  } catch (error) {
    if (error.status !== 422 || count) throw error;
    hint = "No subject was found: paint over it with the brush.";
    mode = "brush";
  }
  const mask = await readMask(blob);
  signal.throwIfAborted(); // the photograph may have been replaced meanwhile
  cuts[count] = { ...mask, hint };
  placing.position ??= [0.5, cuts[count].box[3] > 0.99 ? 1 : 0.5]; // a subject cut off below stays at the bottom
  stale.cut = false;
  brush.draw(false);
  return hint || (count ? "Mask updated." : "Subject found.");
}

/** Fields of a composite; a mask edited by strokes is final, so it is not refined again. */
function compositeFields() {
  const fields = { foreground: photos.foreground.file, ...chosen("segmenter", "refiner", "fuser") };
  if (photos.background) fields.background = photos.background.file;
  if (brush.strokes.length) Object.assign(fields, { mask: cut().blob, refiner: "none" });
  fields.frame = frame();
  if (frame() === "background") Object.assign(fields, { scale: placing.scale, position: placing.position.join() });
  return Object.assign(fields, light());
}

/** Fields of colours and shadow; an unmoved slider leaves the strength to the server. */
function light() {
  const fields = { ...chosen("harmonizer"), shadow: find("#shadow").value };
  const strength = find("#strength");
  if (!strength.disabled && strength.dataset.moved) fields.harmonizer_option = `strength=${strength.value}`;
  if (fields.shadow === "cast" && find("#direction").value) fields.shadow_option = `direction=${find("#direction").value}`;
  return fields;
}

function chosen(...slots) {
  return Object.fromEntries(slots.map((slot) => [slot, find(`#${slot}`)?.value || null]));
}

/** Size, box and levels of a mask of the subject's photograph; an empty one without a file. */
async function readMask(blob) {
  const { width, height } = photos.foreground;
  const factor = Math.min(1, SHOWN / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor)));
  const context = canvas.getContext("2d");
  const levels = new Uint8ClampedArray(canvas.width * canvas.height);
  if (blob) {
    context.drawImage(await createImageBitmap(blob), 0, 0, canvas.width, canvas.height);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < levels.length; i++) levels[i] = data[4 * i];
  }
  const box = [1, 1, 0, 0];
  for (let y = 0, i = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, i++) {
      if (levels[i] < 128) continue;
      box[0] = Math.min(box[0], x / canvas.width);
      box[1] = Math.min(box[1], y / canvas.height);
      box[2] = Math.max(box[2], (x + 1) / canvas.width);
      box[3] = Math.max(box[3], (y + 1) / canvas.height);
    }
  }
  return { blob, levels, width: canvas.width, height: canvas.height, size: [width, height], box: box[2] ? box : [0, 0, 1, 1] };
}

// Display

function show() {
  const now = cut();
  const both = photos.foreground && photos.background;
  if (mode === "empty" && (photos.foreground || photos.background)) mode = photos.background ? "compare" : "brush";
  const fresh = result && !stale.composite;
  const behind = mode === "brush" || (mode === "compare" && frame() === "foreground" && photos.foreground)
    ? photos.foreground : photos.background ?? photos.foreground;
  stage.dataset.mode = mode;
  find("#empty").hidden = mode !== "empty";
  if (behind) {
    picture("#under", behind.url);
    view.resize(behind.width, behind.height);
  }
  picture("#result", result && mode !== "brush" && both && (fresh || (mode === "compare" && result.frame === frame())) ? result.url : null);
  find("#divider").hidden = mode !== "compare" || find("#result").hidden;
  find("#subject").hidden = !now || mode === "compare" || (mode === "move" && fresh);
  find("#paint").hidden = find("#cursor").hidden = mode !== "brush";
  find("#box").hidden = mode !== "move" || !now;
  if (now && now !== show.drawn) drawSubject(now);
  if (mode === "move" && now) {
    Object.assign(placing, { cut: now, frame: [photos.background.width, photos.background.height] });
    placing.show();
  } else placing.subject.removeAttribute("style");
  for (const button of every("[data-to]")) {
    button.disabled = { compare: !both, move: !both || !now?.blob, brush: !photos.foreground }[button.dataset.to];
    button.ariaPressed = String(button.dataset.to === mode);
  }
  for (const name of ["compare", "move", "brush"]) find(`#under-${name}`).hidden = mode !== name || (name === "compare" && !result);
  for (const button of every("#downloads button")) button.disabled = !now?.blob || (button.dataset.output === "composite" && !both);
  find("#undo").disabled = brush.strokes.length === 0;
  find("#strength").disabled = (find("#harmonizer").value || "none") === "none";
  find("#direction").disabled = find("#shadow").value !== "cast";
  find("#help").textContent = HELP[mode] ?? "";
  stage.classList.toggle("working", running !== null);
  view.tool = { compare: comparing, move: placing, brush }[mode] ?? null;
}

function picture(selector, url) {
  const image = find(selector);
  image.hidden = !url;
  if (url && image.src !== url) image.src = url;
}

/** Draw the subject: the photograph with the mask as its alpha. */
function drawSubject(now) {
  const canvas = Object.assign(find("#subject"), { width: now.width, height: now.height });
  const context = canvas.getContext("2d");
  context.drawImage(photos.foreground.image, 0, 0, now.width, now.height);
  const pixels = context.getImageData(0, 0, now.width, now.height);
  now.levels.forEach((level, i) => (pixels.data[4 * i + 3] = level));
  context.putImageData(pixels, 0, 0);
  show.drawn = now;
}

function say(text, working = false) {
  if (find("#status").textContent !== text) find("#status").textContent = text;
  find("#progress").hidden = !working;
  stage.classList.toggle("working", working);
}

function tell(text) {
  find("#notice span").textContent = text;
  find("#notice").hidden = !text;
}

function split(share) {
  find("#split").value = share;
  stage.style.setProperty("--split", `${share}%`);
}

const comparing = {
  down: ([x]) => stage.classList.contains("zoomed") || split(Math.min(100, Math.max(0, 100 * x))),
  move: ([x], dx, dy) => (stage.classList.contains("zoomed") ? view.panBy(dx, dy) : split(Math.min(100, Math.max(0, 100 * x)))),
  arrow: (x, y) => (stage.classList.contains("zoomed") ? view.panBy(-60 * x, -60 * y) : split(Math.min(100, Math.max(0, Number(find("#split").value) + 2 * x)))),
};

// User actions

async function take(name, file) {
  tell("");
  if (limits.bytes && file.size > limits.bytes) return tell(`${file.name} is larger than this server accepts.`);
  const url = URL.createObjectURL(file);
  const image = Object.assign(new Image(), { src: url });
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return tell(`This browser cannot show ${file.name}; give a JPEG, PNG, WebP or AVIF file.`);
  }
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  if (limits.pixels && width * height > limits.pixels) {
    URL.revokeObjectURL(url);
    return tell(`${file.name} has more pixels than this server accepts.`);
  }
  if (photos[name]) URL.revokeObjectURL(photos[name].url);
  photos[name] = { file, url, image, width, height };
  const zone = find(`#zone-${name}`);
  zone.classList.add("filled");
  Object.assign(zone.querySelector("img"), { src: url, hidden: false });
  zone.querySelector("small").textContent = `${file.name || "Pasted photograph"}, ${width}\u00a0×\u00a0${height}`;
  stale.composite = true;
  if (name === "foreground") {
    stale.cut = true;
    cuts = [];
    placing.position = null;
    brush.clear(width, height);
  }
  if (result) URL.revokeObjectURL(result.url);
  result = null;
  if (mode !== "move" || name === "foreground") mode = "empty";
  show();
  await refresh();
}

/** Take two files as subject and new background; take a single one for `target`, else for the empty place. */
function takeAll(files, target = null) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (files.length && !images.length) tell("This is not a picture.");
  const free = photos.foreground ? "background" : "foreground";
  if (images.length > 1) take("foreground", images[0]).then(() => take("background", images[1]));
  else if (images.length) take(target ?? free, images[0]);
}

function enter(next) {
  mode = next;
  if (next === "move" && frame() !== "background") {
    find("input[name=frame][value=background]").checked = true;
    stale.composite = true;
  }
  if (next === "brush") brush.point();
  show();
  stage.focus({ preventScroll: true });
  refresh();
}

async function download(output) {
  const form = output === "cutout" && find("#format").value === "jpeg" ? "png" : find("#format").value;
  let blob = output === "composite" && form === "png" && !stale.composite ? result?.blob : null;
  if (!blob) {
    const { foreground, mask, segmenter, refiner, fuser } = compositeFields();
    const maskFields = { foreground, mask, segmenter, refiner };
    let [kind, fields] = ["composite", { ...compositeFields(), output }];
    if (!photos.background) {
      [kind, fields] = output === "alpha" ? ["mask", maskFields] : ["cutout", { ...maskFields, fuser }];
    }
    say("Making the file …", true);
    try {
      ({ blob } = await send(kind, { ...fields, format: form }));
    } catch (error) {
      return tell(error.message);
    } finally {
      say("");
    }
  }
  const stem = (photos.foreground.file.name || "photograph").replace(/\.\w+$/, "");
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${stem}-${output}.${form === "jpeg" ? "jpg" : form}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function undo() {
  if (!brush.strokes.length) return;
  cancel();
  brush.strokes.pop();
  cuts.length = brush.strokes.length + 1;
  stale.composite = true;
  stale.cut = !cut();
  say("Stroke undone.");
  show();
  if (stale.cut) refresh();
}

let soon;
/** A setting changed: ask the server after a short pause. */
function changed(withCut = false) {
  cancel();
  stale.composite = true;
  if (withCut) {
    stale.cut = true;
    cuts = [];
  }
  if (mode === "move" && frame() === "foreground") mode = "compare";
  show();
  clearTimeout(soon);
  soon = setTimeout(refresh, 250);
}

for (const name of ["foreground", "background"]) {
  const zone = find(`#zone-${name}`);
  const input = zone.querySelector("input");
  input.addEventListener("change", () => {
    takeAll(input.files, input.files.length > 1 ? null : name);
    input.value = "";
  });
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, () => zone.classList.add("over"));
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
}
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  takeAll(event.dataTransfer.files, event.target.closest?.(".zone")?.id.slice(5));
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) takeAll(event.clipboardData.files, document.activeElement.closest?.(".zone")?.id.slice(5));
});
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && mode === "brush") undo();
});
for (const button of every("[data-to]")) button.addEventListener("click", () => enter(button.dataset.to));
for (const button of every("#downloads button")) button.addEventListener("click", () => download(button.dataset.output));
for (const input of every("input[name=frame], #strength, #shadow, #direction")) input.addEventListener("change", () => changed());
find("#strength").addEventListener("input", ({ target }) => (target.dataset.moved = "yes"));
find("#harmonizer").addEventListener("change", ({ target }) => {
  find("#strength").value = FULL_STRENGTH.includes(target.value) ? 1 : 0.5;
  delete find("#strength").dataset.moved;
  changed();
});
for (const input of every("input[name=brush]")) input.addEventListener("change", () => (brush.sign = Number(input.value)));
find("#split").addEventListener("input", (event) => split(event.target.value));
find("#scale").addEventListener("input", (event) => placing.resize(Number(event.target.value)));
find("#scale").addEventListener("change", () => refresh());
find("#brush-size").addEventListener("input", (event) => {
  brush.width = Number(event.target.value);
  brush.point();
});
find("#undo").addEventListener("click", undo);
find("#zoom-in").addEventListener("click", () => view.zoomBy(1.5));
find("#zoom-out").addEventListener("click", () => view.zoomBy(1 / 1.5));
find("#zoom-fit").addEventListener("click", () => view.fit());
find("#notice button").addEventListener("click", () => tell(""));
find("form").addEventListener("submit", (event) => event.preventDefault());

/** Fill a choice with stages, under these labels or else their names. */
function fill(select, entries, labels = {}) {
  for (const { name, description, default: selected } of entries) {
    select.append(Object.assign(new Option(labels[name] ?? name, name, selected, selected), { title: description }));
  }
  return select;
}

try {
  const offered = await stages();
  limits = offered.limits;
  fill(find("#harmonizer"), offered.harmonizer, COLOURS);
  if (FULL_STRENGTH.includes(find("#harmonizer").value)) find("#strength").value = 1;
  for (const [slot, label] of Object.entries(SLOTS)) {
    const line = document.createElement("label");
    const select = fill(Object.assign(document.createElement("select"), { id: slot }), offered[slot]);
    select.addEventListener("change", () => changed(slot !== "fuser"));
    line.className = "wide";
    line.append(Object.assign(document.createElement("span"), { textContent: label }), select);
    find("#stages").append(line);
  }
} catch (error) {
  tell(error.message);
}
show();
