/** What each node is doing and holds. */

import { html } from "./vendor/lit-html.js";
import { head, named, quiet } from "./parts.js";
import { count, duration, observers, size } from "./words.js";

/** What is counted as a request, and is no operation of a client. */
const NO_OPERATIONS = new Set(["page", "other"]);
const BAR_PX = 60;
/** A rate is taken over at least this long, so that it does not jump. */
const RATE_S_MIN = 2.5;

/** Node -> what it had answered at earlier looks, newest last, within the stretch that a rate needs. */
const seen = new Map();

export function figures(known) {
  const { link } = known;
  const nodes = observers(link.views, link.gathered);
  const rows = nodes.map((node) => ({
    node,
    info: node.info,
    perSecond: node.answered && node.info ? rate(node.id, node.info) : null,
  }));
  const answering = rows.filter((row) => row.info);
  const sum = (take) => answering.reduce((total, row) => total + (take(row) ?? 0), 0);
  return html`<section class="panel figures">
    <h2 id="figures-title">What each node does and holds</h2>
    <div class="scroll" tabindex="0" role="group" aria-labelledby="figures-title">
      <table>
        <thead>
          <tr>
            ${head("node")}${head("operations", "number")}${head("items", "number")}${head("memory")}
            ${head("to fetch", "number wide")}${head("loop lag", "number wide")}${head("up for", "number wide")}
          </tr>
        </thead>
        <tbody>
          ${rows.map((row) => nodeRow(row, known))}
        </tbody>
        <tfoot>
          <tr>
            <th scope="row">together</th>
            <td class="number">${perSecond(sum((row) => row.perSecond))}</td>
            <td class="number">${count(sum((row) => row.info.items))}</td>
            <td>${size(sum((row) => row.info.bytes))}</td>
            <td class="number wide">${count(sum((row) => row.info.slots_pending))}</td>
            <td class="wide"></td>
            <td class="wide"></td>
          </tr>
        </tfoot>
      </table>
    </div>
    <p class="quiet">
      Items and memory count each copy. Operations are those that clients asked of this node, in the last seconds.
    </p>
  </section>`;
}

function nodeRow({ node, info, perSecond: rateNow }, known) {
  const name = html`<th scope="row">${named(node.id, known)}</th>`;
  if (!info) {
    const reason = node.answered ? "no figures" : `did not answer: ${node.reason}`;
    return html`<tr class="silent">
      ${name}
      <td colspan="6"><span class="reason">${reason}</span></td>
    </tr>`;
  }
  const lagS = node.views.gossip?.event_loop_lag_s;
  return html`<tr>
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
  return value === null ? quiet("…") : `${value < 9.95 && value > 0 ? value.toFixed(1) : count(value)}/s`;
}

function memory(info) {
  const share = Math.min(1, (info.bytes ?? 0) / (info.bytes_max || 1));
  const usedPx = share > 0 ? Math.max(2, BAR_PX * share).toFixed(1) : 0;
  return html`<span class="memory">
    <svg class="bar" viewBox="0 0 ${BAR_PX} 6" width=${BAR_PX} height="6" aria-hidden="true">
      <rect class="bar-all" width=${BAR_PX} height="6" rx="3"></rect>
      <rect class="bar-used" width=${usedPx} height="6" rx="3"></rect>
    </svg>
    <span>${size(info.bytes)} <span class="quiet wide">of ${size(info.bytes_max)}</span></span>
  </span>`;
}

/** Operations a second since an earlier look, by the node's own clock; null at the first look of a life. */
function rate(id, info) {
  const operations = Object.entries(info.requests ?? {}).filter(([name]) => !NO_OPERATIONS.has(name));
  const total = operations.reduce((sum, [, number]) => sum + number, 0);
  let looks = (seen.get(id) ?? []).filter((look) => look.epoch === info.epoch);
  if (looks.at(-1)?.uptimeS !== info.uptime_s) looks.push({ uptimeS: info.uptime_s, total, epoch: info.epoch });
  while (looks.length > 2 && looks.at(-1).uptimeS - looks[1].uptimeS >= RATE_S_MIN) looks = looks.slice(1);
  seen.set(id, looks);
  const [first, last] = [looks[0], looks.at(-1)];
  return last.uptimeS > first.uptimeS ? (last.total - first.total) / (last.uptimeS - first.uptimeS) : null;
}
