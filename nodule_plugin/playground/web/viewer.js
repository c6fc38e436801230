// A grid of CT images in Hounsfield units: windows, inversion, zoom, and the value under the pointer or the arrow keys.
//
// createNoduleViewer(element).show({job, window_hu, images: [{caption, warning, rows, columns, hu, outline}], total, note})
// draws; `hu` is an Int16Array or the base64 of one (little-endian), `outline` numbers pixels that are coloured. A job with
// fewer images than `total` goes on. A click, or Enter on a focused image, is the event "place" with its row and column.
"use strict";

const VIEWER_WINDOWS = {
  generated: { label: "as generated" },
  lung: { label: "lung", level: -600, width: 1500 },
  mediastinum: { label: "mediastinum", level: 40, width: 400 },
  free: { label: "free" },
};
const OUTLINE = [255, 176, 0];

// `windows` are those that are offered, the first one at first.
function createNoduleViewer(root, windows = Object.keys(VIEWER_WINDOWS)) {
  const options = windows.map((name) => `<option value="${name}">${VIEWER_WINDOWS[name].label}</option>`);
  root.innerHTML = `
    <div class="viewer-tools" role="group" aria-label="Display">
      <label>Window <select data-tool="window">${options.join("")}</select></label>
      <label>Level, HU <input data-tool="level" type="number" step="10"></label>
      <label>Width, HU <input data-tool="width" type="number" min="1" step="10"></label>
      <label><input data-tool="invert" type="checkbox"> Invert</label>
      <label>Zoom <input data-tool="zoom" type="range" min="1" max="4" step="0.5" value="1"></label>
    </div>
    <p class="viewer-state"><progress max="1" value="0" aria-label="Images drawn" hidden></progress>
      <span data-tool="note" role="status"></span></p>
    <p class="viewer-value"><output data-tool="value">Point at an image, or focus it and use the arrow keys, to read
      Hounsfield units.</output></p>
    <div class="viewer-grid"></div>`;
  const tool = (name) => root.querySelector(`[data-tool=${name}]`);
  const grid = root.querySelector(".viewer-grid");
  const progress = root.querySelector("progress");
  let images = [];
  let shownJob;
  let lastRead; // row and column, where the arrow keys go on in other images
  let generated = [-1000, 400];

  function setWindow(level, width) {
    [tool("level").value, tool("width").value] = [level, width];
    redraw();
  }

  function chooseWindow() {
    const { level, width } = VIEWER_WINDOWS[tool("window").value];
    if (level !== undefined) setWindow(level, width);
    else if (tool("window").value === "generated") {
      setWindow((generated[0] + generated[1]) / 2, generated[1] - generated[0]);
    }
  }

  function redraw() {
    root.style.setProperty("--zoom", tool("zoom").value);
    for (const image of images) draw(image);
  }

  function draw({ canvas, hu, rows, columns, outline = [] }) {
    const [level, width] = [Number(tool("level").value), Math.max(1, Number(tool("width").value))];
    const pixels = new ImageData(columns, rows);
    hu.forEach((value, at) => {
      const grey = ((value - level) / width + 0.5) * 255;
      pixels.data.fill(tool("invert").checked ? 255 - grey : grey, 4 * at, 4 * at + 3);
      pixels.data[4 * at + 3] = 255;
    });
    for (const at of outline) pixels.data.set(OUTLINE, 4 * at);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  function read({ caption, hu, rows, columns }, row, column) {
    const [y, x] = [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
    tool("value").textContent = `${hu[y * columns + x]} HU at row ${y + 1}, column ${x + 1} (${caption})`;
    lastRead = [y, x];
    return lastRead;
  }

  function add(image) {
    const figure = document.createElement("figure");
    figure.innerHTML = `<canvas tabindex="0" role="application" aria-roledescription="CT image"></canvas>
      <figcaption></figcaption>`;
    const canvas = figure.firstElementChild;
    [canvas.width, canvas.height] = [image.columns, image.rows];
    canvas.setAttribute("aria-label", `${image.caption}. Arrow keys read Hounsfield units.`);
    figure.lastElementChild.textContent = image.caption;
    if (image.warning) {
      const warning = document.createElement("strong");
      warning.textContent = image.warning;
      figure.lastElementChild.append(" ", warning);
    }
    const shown = { ...image, canvas, hu: typeof image.hu === "string" ? decode(image.hu) : image.hu };
    let at = lastRead ?? [Math.floor(image.rows / 2), Math.floor(image.columns / 2)];
    const point = ({ offsetX, offsetY }) => {
      const scale = image.columns / canvas.clientWidth;
      at = read(shown, Math.floor(offsetY * scale), Math.floor(offsetX * scale));
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point); // a finger does not hover
    const place = () => root.dispatchEvent(new CustomEvent("place", { detail: { row: at[0], column: at[1] } }));
    canvas.addEventListener("click", place);
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter") place();
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      at = read(shown, at[0] + move[0], at[1] + move[1]);
    });
    canvas.addEventListener("focus", () => tool("value").setAttribute("aria-live", "polite"));
    canvas.addEventListener("blur", () => tool("value").removeAttribute("aria-live")); // a pointer would be read aloud
    grid.append(figure);
    images.push(shown);
    draw(shown);
  }

  function show({ job, window_hu, images: given, total, note }) {
    if (job !== shownJob && given.length) { // what is there stays until there is something else
      const focused = images.findIndex(({ canvas }) => canvas === document.activeElement);
      grid.replaceChildren();
      [images, shownJob] = [[], job];
      given.forEach(add);
      images[focused]?.canvas.focus();
    }
    if (String(generated) !== String(window_hu) || !tool("width").value) {
      generated = window_hu;
      chooseWindow();
    }
    if (job === shownJob) given.slice(images.length).forEach(add);
    grid.ariaBusy = given.length < total;
    progress.hidden = given.length >= total;
    [progress.max, progress.value] = [total, given.length];
    tool("note").textContent = note;
  }

  tool("window").addEventListener("change", chooseWindow);
  tool("zoom").addEventListener("input", redraw);
  tool("invert").addEventListener("change", redraw);
  for (const name of ["level", "width"]) {
    tool(name).addEventListener("input", () => {
      tool("window").value = "free";
      redraw();
    });
  }
  return { show };
}

function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Int16Array.from({ length: bytes.length / 2 }, (_, at) => view.getInt16(2 * at, true));
}
