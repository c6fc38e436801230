// Networks in worker threads, with the interface of onnxruntime-web's sessions. Guidance asks for two runs at once.
export class Threads {
  constructor(count) {
    this.all = Array.from({ length: count }, () => new Worker(new URL("worker.js", import.meta.url), { type: "module" }));
    this.free = [...this.all];
    this.waiting = [];
  }

  // Sessions of networks, name -> bytes of an ONNX file; `wasm` is the runtime.
  async load(wasm, networks) {
    await Promise.all(this.all.map(() => this.ask("load", { wasm, networks })));
    const session = (name) => ({ run: (feeds) => this.ask("run", { name, feeds }) });
    return Object.fromEntries(Object.keys(networks).map((name) => [name, session(name)]));
  }

  // Give a task to a thread as soon as one is free.
  ask(task, given) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ task, given, resolve, reject });
      this.next();
    });
  }

  next() {
    if (!this.free.length || !this.waiting.length) return;
    const [worker, { task, given, resolve, reject }] = [this.free.pop(), this.waiting.shift()];
    const done = (settle) => {
      settle();
      this.free.push(worker);
      this.next();
    };
    worker.onmessage = ({ data: { result, fault } }) => done(() => (fault ? reject(new Error(fault)) : resolve(result)));
    worker.onerror = ({ message }) => done(() => reject(new Error(message ?? "worker.js does not load")));
    worker.postMessage({ task, given });
  }
}
