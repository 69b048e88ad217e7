"use strict";

const el = (id) => document.getElementById(id);
const state = { file: null, models: [], values: null, page: 0, asked: 0 };
const MAPS_ON_A_PAGE = 64;

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (el("key").value) headers.Authorization = "Bearer " + el("key").value;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) el("key-line").hidden = false;
  if (!answer.ok) {
    let detail = answer.statusText;
    try { detail = (await answer.json()).detail; } catch { /* not a problem of ours */ }
    throw new Error(detail);
  }
  return answer;
}

const send = (path, accept = "application/json") =>
  ask(path, { method: "POST", body: state.file, headers: { "Content-Type": "application/octet-stream", Accept: accept } });

function say(text, bad = false) {
  el("message").textContent = text;
  el("message").classList.toggle("bad", bad);
}

function fill(select, names) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
}

const ofKind = (...kinds) => state.models.filter((one) => kinds.includes(one.kind));

async function start() {
  try {
    state.models = (await (await ask("/v1/models")).json()).data;
  } catch (error) {
    say(error.message, true);
    return;
  }
  el("key-line").hidden = true;
  say("");
  const network = ofKind("network")[0];
  el("about").textContent = `${network.id} (${network.weights.name}), layers ${Object.keys(network.layers).join(", ")}`;
  fill(el("layer"), Object.keys(network.layers));
  fill(el("head"), ofKind("head", "run").map((one) => one.id));
  fill(el("index"), ofKind("index").map((one) => one.id));
  fillIndexLayers();
  showCode();
}

function fillIndexLayers() {
  const index = ofKind("index").find((one) => one.id === el("index").value);
  fill(el("index-layer"), index ? Object.keys(index.layers) : []);
}

async function take(file) {
  if (!file) return;
  state.file = file;
  const asked = ++state.asked;
  el("preview").src = URL.createObjectURL(file);
  el("preview").alt = file.name;
  el("preview").hidden = false;
  el("hint").textContent = file.name;
  say("Computing ...");
  await started; // a photo may be there before it is known what is served
  if (!state.models.length) return;
  showCode();
  try {
    await Promise.all([showClasses(), showMaps(), showNearest()]);
    if (asked === state.asked) say("Done");
  } catch (error) {
    if (asked === state.asked) say(error.message, true);
  }
}

async function showClasses() {
  const head = el("head").value, file = state.file;
  el("classes").hidden = !head || !state.file;
  if (el("classes").hidden) return;
  const model = state.models.find((one) => one.id === head);
  const top = Math.min(5, model.classes.length);
  const found = await (await send(`/v1/predict?head=${encodeURIComponent(head)}&top=${top}`)).json();
  if (head !== el("head").value || file !== state.file) return; // something else was asked for meanwhile
  const image = found.images[0];
  const scores = Object.entries(image.scores);
  const all = scores.map(([, value]) => value);
  const low = Math.min(0, ...all), high = Math.max(...all);
  el("measure").textContent = found.kind === "svm" ? "Decision value" : "Logit";
  el("scores").replaceChildren(...scores.map(([name, value]) => {
    const row = document.createElement("tr");
    const label = row.insertCell(), number = row.insertCell(), bar = row.insertCell();
    label.textContent = name;
    if (name === image.label && image.probability !== null) label.textContent += ` (${(100 * image.probability).toFixed(1)} %)`;
    number.textContent = value.toFixed(3);
    number.className = "number";
    const meter = document.createElement("meter");
    meter.min = low; meter.max = high === low ? low + 1 : high; meter.value = value;
    meter.setAttribute("aria-label", name);
    bar.append(meter);
    return row;
  }));
}

/* A .npy file of little-endian float32: {shape, values}. */
function readNpy(buffer) {
  const view = new DataView(buffer);
  const long = view.getUint8(6) > 1;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const start = (long ? 12 : 10) + length;
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, long ? 12 : 10, length));
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((part) => part.trim()).map(Number);
  return { shape, values: new Float32Array(buffer.slice(start)) };
}

async function showMaps() {
  el("maps").hidden = !state.file;
  if (!state.file) return;
  const layer = el("layer").value, file = state.file;
  const answer = await send(`/v1/features?layers=${encodeURIComponent(layer)}`, "application/x-npy");
  const { shape, values } = readNpy(await answer.arrayBuffer());
  if (layer !== el("layer").value || file !== state.file) return;
  state.values = { shape: shape.slice(1), values };
  state.page = 0;
  drawMaps();
}

function drawMaps() {
  const { shape, values } = state.values;
  const isMap = shape.length === 3;
  const side = Math.ceil(Math.sqrt(values.length));
  const [count, height, width] = isMap ? shape : [1, Math.ceil(values.length / side), side];
  const pages = Math.ceil(count / MAPS_ON_A_PAGE), first = state.page * MAPS_ON_A_PAGE;
  const shown = Math.min(MAPS_ON_A_PAGE, count - first);
  const columns = Math.ceil(Math.sqrt(shown)), rows = Math.ceil(shown / columns), gap = isMap ? 1 : 0;
  const grid = el("grid");
  grid.width = columns * (width + gap) - gap;
  grid.height = rows * (height + gap) - gap;
  const context = grid.getContext("2d");
  for (let n = 0; n < shown; n++) {
    const size = height * width, from = (first + n) * size;
    const part = values.subarray(from, from + size);
    const largest = part.reduce((most, value) => Math.max(most, value), 0) || 1;
    const picture = context.createImageData(width, height);
    for (let i = 0; i < part.length; i++) {
      const level = 255 * Math.max(0, part[i]) / largest;
      picture.data.set([level, level, level, 255], 4 * i);
    }
    context.putImageData(picture, (n % columns) * (width + gap), Math.floor(n / columns) * (height + gap));
  }
  const kind = isMap ? `${count} maps of ${height} x ${width}` : `${values.length} values`;
  grid.setAttribute("aria-label", `Layer ${el("layer").value}: ${kind}`);
  el("page-of").textContent = isMap ? `maps ${first} to ${first + shown - 1} of ${count}` : kind;
  el("before").disabled = state.page === 0;
  el("after").disabled = state.page >= pages - 1;
}

function turn(step) {
  state.page += step;
  drawMaps();
}

async function showNearest() {
  const index = el("index").value;
  el("nearest").hidden = !index || !state.file;
  if (el("nearest").hidden) return;
  const layer = el("index-layer").value, file = state.file;
  const query = `index=${encodeURIComponent(index)}&layer=${encodeURIComponent(layer)}&k=12`;
  const found = await (await send(`/v1/neighbors?${query}`)).json();
  if (index !== el("index").value || layer !== el("index-layer").value || file !== state.file) return;
  el("neighbors").replaceChildren(...found.images[0].neighbors.map((near) => {
    const item = document.createElement("li");
    const picture = document.createElement("img");
    picture.alt = near.path;
    thumbnail(picture, near.thumbnail);
    const name = document.createElement("span"), about = document.createElement("span");
    name.textContent = near.label === null ? near.path : `${near.label}: ${near.path}`;
    about.textContent = `distance ${near.distance.toFixed(3)}`;
    about.className = "quiet";
    item.append(picture, name, about);
    return item;
  }));
}

async function thumbnail(picture, path) {
  try {
    picture.src = URL.createObjectURL(await (await ask(path)).blob());
  } catch { /* its file is gone; the path says which it was */ }
}

function showCode() {
  const name = state.file ? state.file.name : "photo.jpg", layer = el("layer").value || "fc7";
  const quoted = "'" + name.replaceAll("'", "'\\''") + "'", key = el("key").value ? " -H \"Authorization: Bearer $KEY\"" : "";
  el("curl").textContent =
    `curl --data-binary @${quoted} -H "Content-Type: image/jpeg"${key} \\\n  -H "Accept: application/x-npy" -o features.npy \\\n  "${location.origin}/v1/features?layers=${layer}"`;
  el("python").textContent =
    `import featx\n\nclient = featx.Client(${JSON.stringify(location.origin)})\nfeatures = client(${JSON.stringify(name)}, layers=[${JSON.stringify(layer)}])`;
}

async function copy(button) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(el(button.dataset.of).textContent);
  } else { // over plain HTTP from another machine
    getSelection().selectAllChildren(el(button.dataset.of));
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const again = (show) => () => { if (state.file) show().catch((error) => say(error.message, true)); showCode(); };

el("file").addEventListener("change", () => take(el("file").files[0]));
for (const name of ["dragenter", "dragover"]) {
  el("drop").addEventListener(name, (event) => { event.preventDefault(); el("drop").classList.add("over"); });
}
el("drop").addEventListener("dragleave", () => el("drop").classList.remove("over"));
el("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  el("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
el("head").addEventListener("change", again(showClasses));
el("layer").addEventListener("change", again(showMaps));
el("index").addEventListener("change", () => { fillIndexLayers(); again(showNearest)(); });
el("index-layer").addEventListener("change", again(showNearest));
el("before").addEventListener("click", () => turn(-1));
el("after").addEventListener("click", () => turn(1));
el("key-use").addEventListener("click", () => { started = start(); });
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));
let started = start();
