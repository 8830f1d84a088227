/** What each node is doing and holds. */

import { html, nothing, svg } from "./vendor/lit-html.js";
import { count, duration, observers, size } from "./words.js";

/** Operations of clients; pages and what was no request are none. */
const OPERATIONS = ["get", "head", "put", "delete", "patch", "incr", "batch", "scan"];
/** A rate is taken over at least this long, so that it does not jump. */
const RATE_S_MIN = 2.5;

/** Node -> what it had answered at earlier looks, newest last, within the stretch that a rate needs. */
const seen = new Map();

export function figures(known) {
  const { link } = known;
  const nodes = observers(link.views, link.gathered);
  const rows = nodes.map((node) => ({ node, info: node.info, perSecond: node.answered && node.info ? rate(node.id, node.info) : null }));
  const answering = rows.filter((row) => row.info);
  const sum = (take) => answering.reduce((total, row) => total + (take(row) ?? 0), 0);
  return html`
    <section class="panel figures">
      <h2 id="figures-title">What each node does and holds</h2>
      <div class="scroll" tabindex="0" role="group" aria-labelledby="figures-title">
        <table>
          <thead>
            <tr>
              <th scope="col">node</th><th scope="col" class="number">operations</th><th scope="col" class="number">items</th>
              <th scope="col">memory</th><th scope="col" class="number wide">to fetch</th><th scope="col" class="number wide">loop lag</th>
              <th scope="col" class="number wide">up for</th>
            </tr>
          </thead>
          <tbody>${rows.map((row) => nodeRow(row, known))}</tbody>
          <tfoot>
            <tr>
              <th scope="row">together</th><td class="number">${perSecond(sum((row) => row.perSecond))}</td><td class="number">${count(sum((row) => row.info.items))}</td>
              <td>${size(sum((row) => row.info.bytes))}</td><td class="number wide">${count(sum((row) => row.info.slots_pending))}</td><td class="wide"></td><td class="wide"></td>
            </tr>
          </tfoot>
        </table>
      </div>
      <p class="quiet">Items and memory count each copy. Operations are those that clients asked of this node, in the last seconds.</p>
    </section>`;
}

function nodeRow({ node, info, perSecond: rateNow }, known) {
  const name = html`<th scope="row"><span class="swatch ${known.colourOf(node.id)}" aria-hidden="true"></span>${node.id}</th>`;
  if (!info) return html`<tr class="silent">${name}<td colspan="6"><span class="reason">${node.answered ? "no figures" : `did not answer: ${node.reason}`}</span></td></tr>`;
  const lagS = node.views.gossip?.event_loop_lag_s;
  return html`
    <tr>
      ${name}
      <td class="number">${perSecond(rateNow)}</td>
      <td class="number">${count(info.items)}</td>
      <td>${memory(info)}</td>
      <td class="number wide">${info.slots_pending ? count(info.slots_pending) : "–"}</td>
      <td class="number wide">${Number.isFinite(lagS) ? `${(1000 * lagS).toFixed(1)} ms` : "?"}</td>
      <td class="number wide">${duration(info.uptime_s)}</td>
    </tr>`;
}

function perSecond(value) {
  return value === null ? html`<span class="quiet">…</span>` : `${value < 9.95 && value > 0 ? value.toFixed(1) : count(value)}/s`;
}

function memory(info) {
  const share = Math.min(1, (info.bytes ?? 0) / (info.bytes_max || 1));
  return html`<span class="memory">${svgBar(share)}<span>${size(info.bytes)} <span class="quiet wide">of ${size(info.bytes_max)}</span></span></span>`;
}

function svgBar(share) {
  return html`<svg class="bar" viewBox="0 0 60 6" width="60" height="6" aria-hidden="true">${svg`<rect class="bar-all" width="60" height="6" rx="3"></rect>${share > 0 ? svg`<rect class="bar-used" width=${Math.max(2, 60 * share).toFixed(1)} height="6" rx="3"></rect>` : nothing}`}</svg>`;
}

/** Operations a second since an earlier look, by the node's own clock; null at the first look of a life. */
function rate(id, info) {
  const total = OPERATIONS.reduce((sum, name) => sum + (info.requests?.[name] ?? 0), 0);
  let looks = (seen.get(id) ?? []).filter((look) => look.epoch === info.epoch);
  if (looks.at(-1)?.uptimeS !== info.uptime_s) looks.push({ uptimeS: info.uptime_s, total, epoch: info.epoch });
  while (looks.length > 2 && looks.at(-1).uptimeS - looks[1].uptimeS >= RATE_S_MIN) looks = looks.slice(1);
  seen.set(id, looks);
  const [first, last] = [looks[0], looks.at(-1)];
  return last.uptimeS > first.uptimeS ? (last.total - first.total) / (last.uptimeS - first.uptimeS) : null;
}
