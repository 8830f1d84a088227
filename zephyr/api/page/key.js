/** Who owns a key, and what each of its replicas holds of it. */

import { html, nothing } from "./vendor/lit-html.js";
import { named, quiet } from "./parts.js";
import { clock } from "./words.js";

const STATES = {
  value: "has a value",
  tombstone: "has a deletion",
  absent: "has nothing",
  ghost: "had a value that expired or was evicted",
  unreachable: "cannot be asked",
};

const HOW = html`<p class="quiet">
  The slot of a key is CRC16 of its bytes, as Redis Cluster has it; a <code>{tag}</code> counts alone.
</p>`;

export class KeyOwners {
  #link;
  #changed;
  #key = null;
  #owners = null;
  #explanation = null;
  #trouble = "";
  #digest = "";

  constructor(link, changed) {
    this.#link = link;
    this.#changed = changed;
  }

  show(known) {
    if (this.#key !== null && this.#digest !== this.#link.views.ring.digest) void this.#ask(this.#key);
    const ask = (event) => {
      event.preventDefault();
      void this.#ask(new FormData(event.target).get("key"));
    };
    return html`<section class="panel key">
      <h2>Who owns this key?</h2>
      <form @submit=${ask} autocomplete="off" spellcheck="false">
        <label for="key" class="spoken-only">Key</label>
        <input id="key" name="key" type="text" required maxlength="1024" autocapitalize="off" placeholder="a key" />
        <button type="submit">Ask</button>
      </form>
      <div class="answer" role="status">${this.#answer(known)}</div>
    </section>`;
  }

  async #ask(key) {
    const digest = this.#link.views.ring.digest;
    if (key !== this.#key) this.#explanation = null;
    this.#key = key;
    this.#digest = digest;
    try {
      this.#owners = await this.#link.get(`/debug/ring?key=${encodeURIComponent(key)}`);
      this.#trouble = "";
      if (this.#owners.explain) this.#explanation = await this.#link.get(this.#owners.explain);
    } catch (error) {
      this.#trouble = error.message;
    }
    this.#changed();
  }

  #answer(known) {
    if (this.#trouble) return html`<p class="reason">${this.#trouble}</p>`;
    if (this.#owners === null) return HOW;
    const { slot, owners } = this.#owners;
    const replicas = new Map((this.#explanation?.replicas ?? []).map((replica) => [replica.node, replica]));
    const others = [...replicas.keys()].filter((id) => !owners.includes(id));
    const newest = [...replicas.values()].reduce((found, { version }) => (version > found ? version : found), "");
    const holder = (id) => html`<li>${named(id, known)}${held(replicas.get(id), newest)}</li>`;
    const besides = html`<p class="quiet">and besides</p>
      <ul class="owners">
        ${others.map(holder)}
      </ul>`;
    return html`<p>
        <code class="asked">${this.#key}</code> is in slot
        <b>${slot}</b>, which ${owners.length ? "belongs to" : "nobody owns"}
      </p>
      <ol class="owners">
        ${owners.map(holder)}
      </ol>
      ${others.length ? besides : nothing}`;
  }
}

/** What one node holds. Versions compare as their texts do. */
function held(replica, newest) {
  if (!replica) return nothing;
  const older = replica.version && replica.version < newest ? ", older" : "";
  const level = replica.level === false ? "; it still fetches what it missed" : "";
  const expires = replica.expires_unix_ms ? `, until ${clock(replica.expires_unix_ms)}` : "";
  const hinted = replica.hinted?.length ? `; keeps it for ${replica.hinted.join(", ")}` : "";
  const version = replica.version ? html` <code class="version">${replica.version}</code>` : nothing;
  return html` ${quiet(`${STATES[replica.state] ?? replica.state}${older}${expires}${hinted}${level}`)}${version}`;
}
