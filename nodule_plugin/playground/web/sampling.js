// From a seed and a prompt to Hounsfield units: what nodule_plugin.diffusion.sampling does, on any ONNX runtime.

// torch.randn on a CPU, with torch.Generator().manual_seed(seed): MT19937 (Matsumoto & Nishimura 1998), 24 of its bits a
// uniform number, and the Box-Muller transform over blocks of 16 (ATen/native/cpu/DistributionTemplates.h, normal_fill).
export function randn(seed, count) {
  if (count < 16) throw new RangeError("torch draws fewer than 16 numbers in another way");
  const random = mersenneTwister(seed);
  const uniform = () => Math.fround((random() & 0xffffff) / 0x1000000);
  const values = Float32Array.from({ length: count }, uniform);
  for (let start = 0; start + 16 <= count; start += 16) boxMuller(values.subarray(start, start + 16));
  if (count % 16) {
    const last = values.subarray(count - 16).map(uniform); // drawn anew, as torch does
    boxMuller(last);
    values.set(last, count - 16);
  }
  return values;
}

function boxMuller(block) {
  for (let index = 0; index < 8; index++) {
    const radius = Math.fround(Math.sqrt(-2 * Math.log(Math.fround(1 - block[index]))));
    const angle = Math.fround(2 * Math.PI * block[index + 8]);
    block[index] = radius * Math.cos(angle);
    block[index + 8] = radius * Math.sin(angle);
  }
}

function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed % 2 ** 32; // torch takes the low 32 bits
  for (let index = 1; index < 624; index++) {
    const previous = state[index - 1] ^ (state[index - 1] >>> 30);
    state[index] = Math.imul(1812433253, previous) + index;
  }
  let next = 624;
  return () => {
    if (next === 624) {
      for (let index = 0; index < 624; index++) {
        const mixed = (state[index] & 0x80000000) | (state[(index + 1) % 624] & 0x7fffffff);
        state[index] = state[(index + 397) % 624] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
      }
      next = 0;
    }
    let value = state[next++];
    value ^= value >>> 11;
    value ^= (value << 7) & 0x9d2c5680;
    value ^= (value << 15) & 0xefc60000;
    return (value ^ (value >>> 18)) >>> 0;
  };
}

// The wording of nodule_plugin.prompts.
export function wordFindings(findings, template) {
  const phrase = (name) => template.wording[name][findings[name]] ?? "";
  const opening = template.opening.replace(/\{(\w+)\}/g, (_, name) => phrase(name));
  return [opening, ...template.remarks.map(phrase)].filter(Boolean).join(" ");
}

// A model whose networks are onnxruntime's sessions, or anything that runs on {type, data, dims} by name. `mark` is given
// the noise of an image and its seed, and gives the noise that it is made from.
export class Model {
  constructor(settings, sessions, tokenizer, mark = (noise) => noise) {
    Object.assign(this, { settings, sessions, tokenizer, mark });
    this.contexts = new Map();
  }

  // Token ids of a prompt, padded to the text encoder's length.
  tokens(prompt) {
    const { length, pad } = this.settings.tokens;
    const ids = this.tokenizer.encode(prompt).ids;
    if (ids.length > length) throw new RangeError(`the prompt has ${ids.length} tokens, and the model takes ${length}`);
    return [...ids, ...Array(length - ids.length).fill(pad)];
  }

  async context(prompt) {
    if (!this.contexts.has(prompt)) {
      const ids = BigInt64Array.from(this.tokens(prompt), BigInt);
      const feeds = { input_ids: { type: "int64", data: ids, dims: [1, ids.length] } };
      this.contexts.set(prompt, (await this.sessions.text_encoder.run(feeds)).pred);
    }
    return this.contexts.get(prompt);
  }

  // An image, rows * columns Hounsfield units; `progress` is called with the fraction of steps done, and may throw.
  async generate({ prompt, guidance, seed, steps }, progress = () => {}) {
    const { shape, window_hu: [lower, upper] } = this.settings;
    const schedule = this.settings.schedules[steps];
    const conditional = await this.context(prompt);
    const unconditional = await this.context("");
    // Every latent of a run is a weighted sum of the noise and of what the network has said so far.
    const terms = [this.mark(randn(seed, shape[0] * shape[1] * shape[2]), seed)];
    for (const [step, weights] of schedule.inputs.entries()) {
      progress(step / schedule.inputs.length);
      const image = weightedSum(weights, terms);
      const said = (context) => this.predict(image, schedule.timesteps[step], context);
      const asked = guidance === 0 ? [unconditional] : guidance === 1 ? [conditional] : [conditional, unconditional];
      const [guided, free] = await Promise.all(asked.map(said));
      free?.forEach((value, at) => (guided[at] = value + guidance * (guided[at] - value)));
      terms.push(guided);
    }
    const latents = { type: "float32", data: weightedSum(schedule.latents, terms), dims: [1, ...shape] };
    const { data, dims } = (await this.sessions.decoder.run({ image: latents })).pred;
    const pixels = dims[2] * dims[3];
    progress(1);
    return Int16Array.from({ length: pixels }, (_, at) => {
      let sum = 0;
      for (let channel = 0; channel < dims[1]; channel++) sum += data[channel * pixels + at];
      return Math.round(lower + ((sum / dims[1] + 1) * (upper - lower)) / 2);
    });
  }

  async predict(image, timestep, context) {
    const feeds = {
      image: { type: "float32", data: image, dims: [1, ...this.settings.shape] },
      timesteps: { type: "int64", data: BigInt64Array.of(BigInt(timestep)), dims: [1] },
      context,
    };
    return (await this.sessions.unet.run(feeds)).pred.data;
  }
}

function weightedSum(weights, terms) {
  const sum = new Float64Array(terms[0].length);
  weights.forEach((weight, index) => {
    if (weight) for (let at = 0; at < sum.length; at++) sum[at] += weight * terms[index][at];
  });
  return Float32Array.from(sum);
}
