// What sampling.js and mark.js make of a request on standard input: noise of its seeds, marked noise, prompts of findings,
// images of a network that is arithmetic (see test_sampling.py).
import { readFileSync } from "node:fs";
const { Model, randn, wordFindings } = await import(process.argv[2]);
const { markNoise } = await import(process.argv[3]);
const given = JSON.parse(readFileSync(0, "utf8"));

const said = (data, dims) => ({ pred: { type: "float32", data: Float32Array.from(data), dims } });
const mean = (values) => values.reduce((sum, value) => sum + Number(value), 0) / values.length;
const sessions = {
  text_encoder: { run: async ({ input_ids }) => said([mean(input_ids.data.slice(0, 5)) / 1e5], [1, 1, 1]) },
  unet: {
    run: async ({ image, timesteps, context }) =>
      said(image.data.map((value) => 0.3 * value + context.data[0] - Number(timesteps.data[0]) / 2000), image.dims),
  },
  decoder: {
    run: async ({ image: { data, dims: [, , rows, columns] } }) =>
      said([0.9, 1, 1.1].flatMap((scale) => Array.from(data.slice(0, rows * columns), (value) => Math.tanh(scale * value))),
        [1, 3, rows, columns]),
  },
};
const tokenizer = { encode: (prompt) => ({ ids: [...prompt].map((letter) => letter.codePointAt(0)) }) };
const model = new Model(given.settings, sessions, tokenizer);
const images = [];
for (const request of given.requests) images.push(Array.from(await model.generate(request)));
const { shape, seeds } = given.marked;
const mark = { ...given.marked.mark, signs: Buffer.from(given.marked.signs, "base64") };
const marked = seeds.map((seed) => markNoise(randn(seed, shape.reduce((a, b) => a * b)), shape, seed, mark));
const refused = await model.generate({ ...given.requests[0], prompt: "a".repeat(200) }).catch((error) => error.message);
console.log(
  JSON.stringify({
    noise: given.noise.map(([seed, count]) => Array.from(randn(seed, count))),
    prompts: given.findings.map((findings) => wordFindings(findings, given.settings.template)),
    images,
    marked: marked.map((noise) => Array.from(noise)),
    refused,
  }),
);
