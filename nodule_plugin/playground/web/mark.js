// The mark in the noise that an image is made from: what nodule_plugin.provenance.noise does, for the public key.

// Noise of channels x rows x columns whose slowest cosine coefficients take the signs of the seed's word. Of `mark`:
// `count` coefficients along a side, `bands` with the places of their grid that say something, `words` how many there
// are, `secret`, and `signs`, a bit of each word's signs after the other, first the bands' of all channels.
export function markNoise(noise, [channels, rows, columns], seed, mark) {
  const { bands, count, signs } = mark;
  const length = channels * bands.flat().length;
  const start = wordOf(seed, mark) * length;
  const sign = (at) => ((signs[(start + at) >> 3] >> (7 - ((start + at) & 7))) & 1 ? 1 : -1);
  const down = cosines(rows, count);
  const across = cosines(columns, count);
  const marked = Float64Array.from(noise);
  let before = 0; // signs of the bands before
  for (const band of bands) {
    for (let channel = 0; channel < channels; channel++) {
      const offset = channel * rows * columns;
      band.forEach((place, index) => {
        const [first, second] = [down[Math.floor(place / count)], across[place % count]];
        let found = 0;
        for (let row = 0; row < rows; row++) {
          for (let column = 0; column < columns; column++) {
            found += first[row] * second[column] * noise[offset + row * columns + column];
          }
        }
        const change = Math.abs(found) * sign(before + channel * band.length + index) - found;
        for (let row = 0; change && row < rows; row++) {
          for (let column = 0; column < columns; column++) {
            marked[offset + row * columns + column] += change * first[row] * second[column];
          }
        }
      });
    }
    before += channels * band.length;
  }
  return Float32Array.from(marked);
}

// Orthonormal rows of the cosine transform (DCT-II).
function cosines(size, count) {
  return Array.from({ length: count }, (_, index) =>
    Float64Array.from({ length: size }, (_, place) =>
      Math.cos((Math.PI * index * (place + 0.5)) / size) * Math.sqrt((index ? 2 : 1) / size)));
}

// As nodule_plugin.provenance.codebook.word_of: eight bytes of SHAKE-256, the first the most significant.
function wordOf(seed, { secret, words }) {
  const bytes = shake256(new TextEncoder().encode(`${secret}seed ${seed}`), 8);
  return Number(bytes.reduce((value, byte) => (value << 8n) | BigInt(byte), 0n) % BigInt(words));
}

const RATE = 136; // bytes, of SHAKE-256
const MASK = (1n << 64n) - 1n;
const rotate = (lane, by) => ((lane << BigInt(by)) | (lane >> BigInt(64 - by))) & MASK;

// At most RATE bytes of SHAKE-256 (FIPS 202); browsers have SHA-2 only, and that only in secure contexts.
function shake256(message, length) {
  const padded = new Uint8Array((Math.floor(message.length / RATE) + 1) * RATE);
  padded.set(message);
  padded[message.length] ^= 0x1f;
  padded[padded.length - 1] ^= 0x80;
  let lanes = Array(25).fill(0n);
  const view = new DataView(padded.buffer);
  for (let block = 0; block < padded.length; block += RATE) {
    for (let lane = 0; lane < RATE / 8; lane++) lanes[lane] ^= view.getBigUint64(block + 8 * lane, true);
    lanes = keccak(lanes);
  }
  return Array.from({ length }, (_, at) => Number((lanes[at >> 3] >> BigInt(8 * (at & 7))) & 0xffn));
}

// Keccak-f[1600] of 25 lanes, the lane of column x and row y at x + 5 y (FIPS 202, section 3.2).
function keccak(lanes) {
  let constants = 1; // the shift register of section 3.2.5
  for (let round = 0; round < 24; round++) {
    const column = Array.from({ length: 5 }, (_, x) => lanes.filter((_, at) => at % 5 === x).reduce((a, b) => a ^ b));
    const mixed = lanes.map((lane, at) => lane ^ column[(at + 4) % 5] ^ rotate(column[(at + 1) % 5], 1));
    const moved = [...mixed];
    for (let step = 0, x = 1, y = 0; step < 24; step++) {
      const by = (((step + 1) * (step + 2)) / 2) % 64;
      const [to, below] = [y, (2 * x + 3 * y) % 5];
      moved[to + 5 * below] = rotate(mixed[x + 5 * y], by);
      [x, y] = [to, below];
    }
    lanes = moved.map((lane, at) => {
      const row = 5 * Math.floor(at / 5);
      return lane ^ (~moved[row + ((at + 1) % 5)] & MASK & moved[row + ((at + 2) % 5)]);
    });
    for (let power = 0; power < 7; power++) {
      if (constants & 1) lanes[0] ^= 1n << BigInt(2 ** power - 1);
      constants = (constants << 1) ^ (constants & 0x80 ? 0x171 : 0);
    }
  }
  return lanes;
}
