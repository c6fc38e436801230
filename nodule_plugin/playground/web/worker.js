// A thread of the page without Python: the networks in onnxruntime-web, one run at a time.
import * as ort from "./vendor/onnxruntime-web/ort.wasm.bundle.min.mjs";

const sessions = {};
const tasks = {
  async load({ wasm, networks }) {
    ort.env.wasm.numThreads = 1; // more need headers that a plain web server does not send
    ort.env.wasm.wasmBinary = wasm;
    for (const [name, network] of Object.entries(networks)) sessions[name] = await ort.InferenceSession.create(network);
  },

  async run({ name, feeds }) {
    const tensors = Object.entries(feeds).map(([key, { type, data, dims }]) => [key, new ort.Tensor(type, data, dims)]);
    const { type, data, dims } = (await sessions[name].run(Object.fromEntries(tensors))).pred;
    return { pred: { type, data, dims } };
  },
};

onmessage = async ({ data: { task, given } }) => {
  try {
    postMessage({ result: await tasks[task](given) });
  } catch (error) {
    postMessage({ fault: error.message });
  }
};
