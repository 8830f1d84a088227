/** The verdict in words, and below it who leads, which ring stands, how etcd is and who answered. */

import { html, nothing } from "./vendor/lit-html.js";
import { fact, quiet } from "./parts.js";
import { duration, lastChange, leads, listed, observers } from "./words.js";

const ETCD_STATES = {
  connected: "connected",
  relayed: "through a peer",
  unreachable: "cannot be reached",
  off: "none is configured",
};
const SIGNS = { calm: "✓", watch: "!", alarm: "!!", lost: "?" };

export function banner(said, known) {
  return html`<section class="banner ${said.level}" aria-label="Verdict">
    <ul class="lines">
      ${said.lines.map(
        (line) =>
          html`<li class=${line.level}>
            <span class="sign" aria-hidden="true">${SIGNS[line.level]}</span>
            <p>${line.subject ? html`<b>${line.subject}</b>` : nothing}${line.text}</p>
          </li>`,
      )}
    </ul>
    ${said.more ? html`<p class="quiet">and ${said.more} more</p>` : nothing} ${facts(known)}
  </section>`;
}

function facts({ link }) {
  const { views } = link;
  const nodes = observers(views, link.gathered);
  return html`<dl class="facts">
    ${fact("Leads", leader(views), "leads")} ${fact("Ring", theRing(link, nodes))} ${fact("etcd", theEtcd(views))}
    ${fact("Answered", link.gathered === null ? quiet("asking …") : whoAnswered(nodes, link.gathered.not_asked))}
  </dl>`;
}

function leader(views) {
  return html`<b>${views.authority}</b> ${quiet(`for ${duration(views.authority_since_s)}: ${leads(views)}`)}`;
}

function theRing(link, nodes) {
  const { ring } = link.views;
  const digests = new Set(nodes.map((node) => node.views?.ring.digest).filter(Boolean));
  const same = html`the same for all, <code>${ring.digest.slice(0, 8)}</code>`;
  const which = digests.size > 1 ? `${digests.size} different rings` : same;
  const change = lastChange(link.events.values(), link.nowUnixMs);
  const owners = `${ring.owners.length} ${ring.owners.length === 1 ? "owner" : "owners"}`;
  return html`<b>${owners}</b> ${quiet(html`${which}${change && `; ${change}`}`)}`;
}

function theEtcd(views) {
  const { state, lease_ttl_s: leaseS } = views.etcd;
  const lease = leaseS === null ? nothing : quiet(`lease of ${views.node} for ${duration(leaseS)} more`);
  return html`<b>${ETCD_STATES[state] ?? state}</b> ${lease}`;
}

function whoAnswered(nodes, notAsked) {
  const silent = nodes.filter((node) => !node.answered).map((node) => node.id);
  const others = notAsked.length ? `; ${notAsked.length} were not asked` : "";
  const text = silent.length ? `not ${listed(silent)}` : "nodes";
  return html`<b>${nodes.length - silent.length} of ${nodes.length}</b> ${quiet(text + others)}`;
}
