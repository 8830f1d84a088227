/** Why a member was declared dead: the certificate that its accuser keeps, in a dialog. */

import { html, nothing, render } from "./vendor/lit-html.js";
import { fact } from "./parts.js";
import { clock, duration, explained, listed } from "./words.js";

const NOT_ASKED = html`<p class="quiet">Nobody had to be asked: the end of the process was seen first.</p>`;

export class Certificates {
  #link;
  #changed;
  #member = "";
  #document = null;
  #trouble = "";
  #dialog = null;

  constructor(link, changed) {
    this.#link = link;
    this.#changed = changed;
  }

  async open(member) {
    this.#member = member;
    this.#document = null;
    this.#trouble = "";
    if (this.#dialog === null) {
      this.#dialog = document.createElement("dialog");
      this.#dialog.setAttribute("aria-labelledby", "certificate-title");
      this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
      document.body.append(this.#dialog);
    }
    this.draw();
    this.#dialog.showModal();
    try {
      this.#document = await this.#link.get(`/debug/cluster/certificate/${encodeURIComponent(member)}`);
    } catch (error) {
      this.#trouble = error.message;
    }
    this.draw();
  }

  #body() {
    if (this.#trouble) return html`<p class="reason">${this.#trouble}</p>`;
    return this.#document === null ? html`<p class="quiet">Asking …</p>` : told(this.#document);
  }

  draw() {
    if (this.#dialog === null) return;
    render(
      html`<div class="certificate">
        <h2 id="certificate-title">Death certificate of ${this.#member}</h2>
        ${this.#body()}
        <form method="dialog"><button type="submit" autofocus>Close</button></form>
      </div>`,
      this.#dialog,
    );
  }
}

function told(document) {
  const [verdict, ...rest] = explained(document);
  return html`<p class="declared">
      Declared dead by <b>${document.accuser}</b> at <time>${clock(document.declared_at_unix_ms)}</time>.
      <b>${verdict}</b>
    </p>
    ${rest.map((line) => html`<p>${line}</p>`)} ${document.suspicion ? details(document) : nothing}`;
}

function details(document) {
  const { suspicion } = document;
  const expected = suspicion.confirmations_expected;
  return html`<h3>Time to refute</h3>
    <ol class="steps">
      ${suspicion.timeouts.map(accusation)}
      <li><time>${clock(document.declared_at_unix_ms)}</time> over, after ${duration(suspicion.timeout_s)}</li>
    </ol>
    <p class="quiet">
      At least ${duration(suspicion.min_s)}, at most ${duration(suspicion.max_s)}; ${expected}
      ${expected === 1 ? "confirmation" : "confirmations"} expected.
    </p>
    <h3>Asked without an answer</h3>
    ${document.probes.length ? html`<ul class="steps">${document.probes.map(probe)}</ul>` : NOT_ASKED}
    <h3>The accuser itself</h3>
    <dl class="facts">
      ${fact("phi", document.phi)}
      ${fact("round trip", document.rtt_ms === null ? "not measured" : `${document.rtt_ms} ms`)}
      ${fact("doubt of itself", `${document.local_health} of 8`)}
      ${fact("loop lag", duration(document.event_loop_lag_s))}
      ${fact("members live", document.members_live)}
    </dl>
    <p class="quiet">Life: epoch ${document.epoch}, incarnation ${document.incarnation}.</p>`;
}

function at(step) {
  return html`<time>${clock(step.at_unix_ms)}</time>`;
}

function accusation(step) {
  return html`<li>${at(step)} <b>${step.accuser}</b> accuses: ${duration(step.timeout_s)} to refute</li>`;
}

function probe(asked) {
  const within = asked.direct_timeout_s === null ? "" : ` within ${duration(asked.direct_timeout_s)}`;
  const nacks = asked.nacks.length ? `, of whom ${listed(asked.nacks)} got none either` : "";
  const helpers = asked.helpers.length ? `; asked ${listed(asked.helpers)}${nacks}` : "";
  return html`<li>${at(asked)} no answer${within}${helpers}${asked.tcp_tried ? "; tried TCP" : ""}</li>`;
}
