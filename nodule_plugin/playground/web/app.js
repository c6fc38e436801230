// The page without Python: its controls, and the model of model.json in onnxruntime-web.
import { Tokenizer } from "./vendor/tokenizers/tokenizers.min.mjs";
import { markNoise } from "./mark.js";
import { Model, wordFindings } from "./sampling.js";
import { Threads } from "./threads.js";

const element = (id) => document.getElementById(id);
const viewer = createNoduleViewer(element("viewer"));
const asJson = async (bytes) => JSON.parse(new TextDecoder().decode(await bytes));
let job = 0;

async function unpacked(name) {
  const response = await fetch(`${name}.packed`);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return new Response(response.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// The model, and the one of few steps if there is one.
async function load(settings) {
  const names = ["text_encoder", "unet", "decoder", ...(settings.quick ? ["quick"] : [])];
  const [wasm, tokens, signs, quickSigns, ...networks] = await Promise.all([
    unpacked("vendor/onnxruntime-web/ort-wasm-simd-threaded.wasm"),
    asJson(unpacked("tokenizer.json")),
    unpacked("mark.bin"),
    settings.quick && unpacked("quick_mark.bin"),
    ...names.map((name) => unpacked(`networks/${name}.onnx`)),
  ]);
  const threads = new Threads(Math.min(2, navigator.hardwareConcurrency));
  const sessions = await threads.load(wasm, Object.fromEntries(names.map((name, index) => [name, networks[index]])));
  const tokenizer = new Tokenizer(tokens, settings.tokens.config);
  const model = (own, unet, signs) => {
    const mark = own.mark && { ...own.mark, signs: new Uint8Array(signs) };
    const marked = (noise, seed) => (mark ? markNoise(noise, own.shape, seed, mark) : noise);
    return new Model(own, { ...sessions, unet }, tokenizer, marked);
  };
  const quick = settings.quick && model({ ...settings, ...settings.quick }, sessions.quick, quickSigns);
  return { full: model(settings, sessions.unet, signs), quick };
}

function title(rating) {
  return rating[0].toUpperCase() + rating.slice(1).replaceAll("_", " ");
}

function addControls({ ratings, start, schedules, defaults, quick }) {
  for (const [name, { labels, ordinal }] of Object.entries(ratings)) {
    const label = document.createElement("label");
    label.htmlFor = name; // or it would be the output's
    const codes = Object.keys(labels);
    label.innerHTML = ordinal
      ? `${title(name)} <output for="${name}"></output><input id="${name}" type="range" min="${codes[0]}"
          max="${codes.at(-1)}">`
      : `${title(name)} <select id="${name}"></select>`;
    element("ratings").append(label);
    if (!ordinal) element(name).append(...codes.map((code) => new Option(labels[code], code)));
    element(name).value = start[name];
    element("rating").append(new Option(title(name), name));
  }
  element("steps").append(...Object.keys(schedules).map((steps) => new Option(steps)));
  for (const name of ["guidance", "steps", "seed"]) element(name).value = defaults[name];
  element("quick").checked = Boolean(quick);
  element("quick").parentElement.hidden = !quick;
  element("quick_label").textContent = quick?.label ?? "";
}

// What the controls say, as nodule_plugin.playground.drawing.Order.
function order({ quick }) {
  const number = (id) => Number(element(id).value);
  const how = element("quick").checked ? { quick: true, guidance: 1, steps: quick.steps }
    : { guidance: number("guidance"), steps: number("steps") };
  return { prompt: element("prompt").value.trim(), seed: number("seed"), ...how };
}

function findings(ratings) {
  return Object.fromEntries(Object.keys(ratings).map((name) => [name, Number(element(name).value)]));
}

function describe(settings) {
  for (const output of document.querySelectorAll("form output")) {
    const [name] = output.htmlFor;
    const value = element(name).value;
    const word = settings.ratings[name]?.labels[value];
    output.textContent = word ? `${value}, ${word}` : value;
    if (word) element(name).setAttribute("aria-valuetext", output.textContent);
  }
  for (const name of ["guidance", "steps"]) element(name).disabled = element("quick").checked;
}

// Draw one after the other, until another job begins.
async function draw(models, requests) {
  const mine = ++job;
  const { window_hu, size: [rows, columns] } = models.full.settings;
  const images = [];
  const started = performance.now();
  const show = (note) => viewer.show({ job: mine, window_hu, images, total: requests.length, note });
  show(`Drawing ${requests.length}`);
  try {
    for (const request of requests) {
      const hu = await (request.quick ? models.quick : models.full).generate(request, (done) => {
        if (mine !== job) throw new DOMException("another job", "AbortError");
        show(`Drawing ${images.length + 1} of ${requests.length}: ${Math.round(100 * done)} %`);
      });
      const how = request.quick ? "quick" : `guidance ${request.guidance}`;
      const caption = [request.moved, how, `seed ${request.seed}`].filter(Boolean).join(", ");
      images.push({ caption, rows, columns, hu });
    }
    show(`${images.length} of ${requests.length}, ${((performance.now() - started) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (error.name !== "AbortError") viewer.show({ job: mine, window_hu, images, total: images.length, note: error.message });
  }
}

function connect(settings, models) {
  const { ratings, template } = settings;
  const one = () => draw(models, [order(settings)]);
  const change = (event) => {
    if (event.target.id in ratings) element("prompt").value = wordFindings(findings(ratings), template);
    describe(settings);
    if (!["count", "rating"].includes(event.target.id)) one();
  };
  element("controls").addEventListener("change", change);
  element("controls").addEventListener("input", () => describe(settings));
  element("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    const first = order(settings);
    draw(models, Array.from({ length: Number(element("count").value) }, (_, at) => ({ ...first, seed: first.seed + at })));
  });
  element("guidance_row").addEventListener("click", () => {
    const steps = Number(element("steps").value);
    const row = settings.guidance_scales.map((guidance) => ({ ...order(settings), quick: false, guidance, steps }));
    draw(models, row);
  });
  element("sweep").addEventListener("click", () => {
    const name = element("rating").value;
    draw(models, settings.steps_of[name].map((code) => ({
      ...order(settings),
      prompt: wordFindings({ ...findings(ratings), [name]: code }, template),
      moved: `${name} ${code} (${ratings[name].labels[code]})`,
    })));
  });
  element("stop").addEventListener("click", () => job++);
  return one();
}

const settings = await (await fetch("model.json")).json();
element("notice").textContent = settings.notice;
element("attribution").textContent = settings.attribution;
addControls(settings);
element("prompt").value = wordFindings(findings(settings.ratings), settings.template);
describe(settings);
const note = (text) => viewer.show({ job, window_hu: settings.window_hu, images: [], total: 0, note: text });
note("Loading the model");
try {
  await connect(settings, await load(settings));
} catch (error) {
  note(`The model cannot be loaded: ${error.message}`);
}
