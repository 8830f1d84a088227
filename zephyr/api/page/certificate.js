/** Why a member was declared dead: the certificate that its accuser keeps, in a dialog. */

import { html, nothing, render } from "./vendor/lit-html.js";
import { clock, duration, explained, listed } from "./words.js";

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

  draw() {
    if (this.#dialog === null) return;
    render(html`
      <div class="certificate">
        <h2 id="certificate-title">Death certificate of ${this.#member}</h2>
        ${this.#trouble ? html`<p class="reason">${this.#trouble}</p>` : this.#document === null ? html`<p class="quiet">Asking …</p>` : body(this.#document)}
        <form method="dialog"><button type="submit" autofocus>Close</button></form>
      </div>`, this.#dialog);
  }
}

function body(document) {
  const [verdict, ...rest] = explained(document);
  return html`
    <p class="declared">Declared dead by <b>${document.accuser}</b> at <time>${clock(document.declared_at_unix_ms)}</time>. <b>${verdict}</b></p>
    ${rest.map((line) => html`<p>${line}</p>`)}
    ${document.suspicion ? details(document) : nothing}`;
}

function details(document) {
  const { suspicion } = document;
  return html`
    <h3>Time to refute</h3>
    <ol class="steps">
      ${suspicion.timeouts.map((step) => html`<li><time>${clock(step.at_unix_ms)}</time> <b>${step.accuser}</b> accuses: ${duration(step.timeout_s)} to refute</li>`)}
      <li><time>${clock(document.declared_at_unix_ms)}</time> over, after ${duration(suspicion.timeout_s)}</li>
    </ol>
    <p class="quiet">At least ${duration(suspicion.min_s)}, at most ${duration(suspicion.max_s)}; ${suspicion.confirmations_expected} ${suspicion.confirmations_expected === 1 ? "confirmation" : "confirmations"} expected.</p>
    <h3>Asked without an answer</h3>
    ${document.probes.length ? html`
      <ul class="steps">
        ${document.probes.map((probe) => html`<li><time>${clock(probe.at_unix_ms)}</time> no answer${probe.direct_timeout_s === null ? "" : ` within ${duration(probe.direct_timeout_s)}`}${probe.helpers.length ? `; asked ${listed(probe.helpers)}${probe.nacks.length ? `, of whom ${listed(probe.nacks)} got none either` : ""}` : ""}${probe.tcp_tried ? "; tried TCP" : ""}</li>`)}
      </ul>` : html`<p class="quiet">Nobody had to be asked: the end of the process was seen first.</p>`}
    <h3>The accuser itself</h3>
    <dl class="facts">
      <div><dt>phi</dt><dd>${document.phi}</dd></div>
      <div><dt>round trip</dt><dd>${document.rtt_ms === null ? "not measured" : `${document.rtt_ms} ms`}</dd></div>
      <div><dt>doubt of itself</dt><dd>${document.local_health} of 8</dd></div>
      <div><dt>loop lag</dt><dd>${duration(document.event_loop_lag_s)}</dd></div>
      <div><dt>members live</dt><dd>${document.members_live}</dd></div>
    </dl>
    <p class="quiet">Life: epoch ${document.epoch}, incarnation ${document.incarnation}.</p>`;
}
