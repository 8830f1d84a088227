/** The verdict in words, and below it who leads, which ring stands, how etcd is and who answered. */

import { html, nothing } from "./vendor/lit-html.js";
import { duration, lastChange, leads, listed, observers } from "./words.js";

const SIGNS = { calm: "✓", watch: "!", alarm: "!!", lost: "?" };

export function banner(said, known) {
  return html`
    <section class="banner ${said.level}" aria-label="Verdict">
      <ul class="lines">
        ${said.lines.map((line) => html`
          <li class=${line.level}>
            <span class="sign" aria-hidden="true">${SIGNS[line.level]}</span>
            <p>${line.subject ? html`<b>${line.subject}</b>` : nothing}${line.text}</p>
          </li>`)}
      </ul>
      ${said.more ? html`<p class="quiet">and ${said.more} more</p>` : nothing}
      ${facts(known)}
    </section>`;
}

function facts({ link }) {
  const { views } = link;
  const change = lastChange(link.events.values(), link.nowUnixMs);
  const nodes = observers(views, link.gathered);
  const answered = nodes.filter((node) => node.answered);
  const silent = nodes.filter((node) => !node.answered);
  const rings = new Set(answered.map((node) => node.views.ring.digest).filter(Boolean));
  const etcd = { connected: "connected", relayed: "through a peer", unreachable: "cannot be reached", off: "none is configured" }[views.etcd.state] ?? views.etcd.state;
  const lease = views.etcd.lease_ttl_s === null ? nothing : html` <span class="quiet">lease of ${views.node} for ${duration(views.etcd.lease_ttl_s)} more</span>`;
  const notAsked = link.gathered?.not_asked?.length ? html`<span class="quiet">; ${link.gathered.not_asked.length} were not asked</span>` : nothing;
  return html`
    <dl class="facts">
      <div class="leads"><dt>Leads</dt><dd><b>${views.authority}</b> <span class="quiet">for ${duration(views.authority_since_s)}: ${leads(views)}</span></dd></div>
      <div><dt>Ring</dt><dd><b>${views.ring.owners.length} owners</b> <span class="quiet">${rings.size === 1 ? html`the same for all, <code>${views.ring.digest.slice(0, 8)}</code>` : `${rings.size} different rings`}${change ? html`; ${change}` : nothing}</span></dd></div>
      <div><dt>etcd</dt><dd><b>${etcd}</b>${lease}</dd></div>
      <div><dt>Answered</dt><dd><b>${answered.length} of ${nodes.length}</b> <span class="quiet">${silent.length ? html`not ${listed(silent.map((node) => node.id))}` : "nodes"}</span>${notAsked}</dd></div>
    </dl>`;
}
