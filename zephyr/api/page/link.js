/**
 * The line to the node: follows its events, asks for what they change, and keeps trying when it does not answer.
 *
 * Asks this one node only, which asks the others. While the page is hidden nothing is asked and no stream is held
 * open, since a browser has but six connections to one host. Knows nothing of how any of it is shown.
 */

/** From one look at the cluster to the next. */
const LOOK_MS = 1000;
/** While things happen: as often as the node asks the others. */
const BUSY_LOOK_MS = 500;
/** How long things happen after an event. */
const BUSY_MS = 8000;
/** Between two of them, however much happens. */
const PAUSE_MS_MIN = 50;
/** Longest wait for an answer: the node itself gives the others a second. */
const ANSWER_MS_MAX = 4000;
/** Between two attempts when the node does not answer, and between two to follow its events. */
const RETRY_MS = 1000;
/** The stream has a sign of life each 15 s; without any for this long it is dead. */
const SILENCE_MS_MAX = 40000;
/** Events kept: as many as the node keeps. */
const EVENTS_MAX = 1000;

export class Link {
  /** What is known. Documents are as the node sent them; null while there is none. */
  views = null;
  gathered = null;
  ring = null;
  /** Events by their number, in order. */
  events = new Map();
  /** Earlier events that the node no longer keeps. */
  lostEvents = 0;
  /** Whether events are told as they happen. */
  isFollowing = false;
  /** What was wrong with the last attempt; empty when it succeeded. */
  trouble = "";

  #changed;
  #viewsAtMs = 0;
  #lostSinceMs = null;
  #happenedMs = -Infinity;
  #stop = null;
  /** Of the look and of the gathering: whether it is wanted at once, and what ends its pause. */
  #soon = [
    { isAsked: false, wake: () => {} },
    { isAsked: false, wake: () => {} },
  ];

  /** @param {() => void} changed called whenever something is known anew */
  constructor(changed) {
    this.#changed = changed;
  }

  /** For how long the node has not answered; null while it does. */
  get lostSinceS() {
    return this.#lostSinceMs === null ? null : (performance.now() - this.#lostSinceMs) / 1000;
  }

  /** The node's clock, in unix ms, as far as it is known. */
  get nowUnixMs() {
    return this.views === null ? Date.now() : this.views.now_unix_ms + performance.now() - this.#viewsAtMs;
  }

  start() {
    if (this.#stop !== null) return;
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    void this.#repeat(() => this.#look(), this.#soon[0], signal);
    void this.#repeat(() => this.#gather(), this.#soon[1], signal);
    void this.#follow(signal);
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
    this.isFollowing = false;
  }

  /** Ask the node for one page. Throws where there is no answer, or one without success: then with its `status`. */
  async get(path) {
    const response = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS_MAX), cache: "no-store" });
    const document = await response.json();
    if (!response.ok)
      throw Object.assign(new Error(document.detail ?? `status ${response.status}`), { status: response.status });
    return document;
  }

  /** Ask this node what it believes, which takes no time. */
  async #look() {
    try {
      this.#takeViews(await this.get("/debug/views"));
      this.#lostSinceMs = null;
      this.trouble = "";
      await this.#askRing();
    } catch (error) {
      this.#lostSinceMs ??= performance.now();
      this.trouble = error.message;
    }
  }

  /** Ask this node what all say, which takes a second where one of them is silent. */
  async #gather() {
    if (this.#lostSinceMs !== null) return;
    try {
      this.gathered = await this.get("/debug/cluster");
    } catch {
      // The look tells what is wrong.
    }
  }

  /** Do something each second, and at once after an event. */
  async #repeat(work, soon, signal) {
    while (!signal.aborted) {
      const beganMs = performance.now();
      await work();
      if (signal.aborted) return;
      this.#changed();
      const pauseMs = Math.max(PAUSE_MS_MIN, this.#lookMs - (performance.now() - beganMs));
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, soon.isAsked ? PAUSE_MS_MIN : pauseMs);
        soon.wake = () => {
          clearTimeout(timer);
          setTimeout(resolve, PAUSE_MS_MIN);
        };
      });
      soon.isAsked = false;
    }
  }

  get #lookMs() {
    return performance.now() - this.#happenedMs < BUSY_MS ? BUSY_LOOK_MS : LOOK_MS;
  }

  #hurry() {
    this.#happenedMs = performance.now();
    for (const soon of this.#soon) {
      soon.isAsked = true;
      soon.wake();
    }
  }

  async #askRing() {
    if (this.ring !== null && this.ring.digest === this.views.ring.digest && !this.ring.pending.length) return;
    this.ring = await this.get("/debug/ring");
  }

  /** An answer that others share may be older than what is known. */
  #takeViews(views) {
    if (this.views !== null && this.views.node === views.node && views.now_unix_ms < this.views.now_unix_ms) return;
    this.views = views;
    this.#viewsAtMs = performance.now();
  }

  /** Read the events, all that are kept first; after an interruption those that were missed. */
  async #follow(signal) {
    while (!signal.aborted) {
      try {
        const last = [...this.events.keys()].at(-1) ?? 0;
        if (this.#lostSinceMs === null) await this.#read(last, signal);
      } catch {
        // It ended, one way or the other; the look tells whether the node is gone, and when it is back.
      }
      if (this.isFollowing) {
        this.isFollowing = false;
        this.#hurry();
        this.#changed();
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async #read(last, signal) {
    const giveUp = new AbortController();
    let watchdog = setTimeout(() => giveUp.abort(), ANSWER_MS_MAX);
    try {
      const response = await fetch("/debug/events", {
        headers: { "Last-Event-ID": String(last) },
        cache: "no-store",
        signal: AbortSignal.any([signal, giveUp.signal]),
      });
      if (!response.ok) throw new Error(`status ${response.status}`);
      this.isFollowing = true;
      this.#changed();
      let text = "";
      for await (const piece of pieces(response.body.pipeThrough(new TextDecoderStream()))) {
        clearTimeout(watchdog);
        watchdog = setTimeout(() => giveUp.abort(), SILENCE_MS_MAX);
        const blocks = (text + piece).split("\n\n");
        text = blocks.pop();
        blocks.forEach((block) => this.#takeBlock(block));
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  #takeBlock(block) {
    const fields = new Map(
      block
        .split("\n")
        .filter((line) => !line.startsWith(":"))
        .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
    );
    if (!fields.has("data")) return;
    const document = JSON.parse(fields.get("data"));
    if (fields.get("event") === "overflow") this.lostEvents += document.lost;
    if (fields.has("id")) {
      this.events.set(document.sequence, document);
      while (this.events.size > EVENTS_MAX) this.events.delete(this.events.keys().next().value);
    }
    if (fields.get("event") === "view") this.#hurry();
    this.#changed();
  }
}

/** The pieces of a stream. (Not every browser lets one iterate over it.) */
async function* pieces(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
