/** The ring: who owns which share of the first copies and of all copies, and what is still to be moved. */

import { html, nothing, svg } from "./vendor/lit-html.js";
import { head, named } from "./parts.js";
import { count, listed, percent, sortedIds } from "./words.js";

const SLOTS = 16384;
const CENTRE = 120;
/** Radii of the two bands: all copies inside, first copies outside. */
const BANDS = { replicas: [62, 84], primaries: [88, 116] };
/** The gap between two arcs, in turns. */
const GAP = 0.0025;
/** A longer name stands in the table alone, beside its colour. */
const NAME_CHARACTERS_MAX = 5;
/** An arc that is thinner than this has no room for a name. */
const NAMED_SHARE_MIN = 0.035;

export function ring(known) {
  const { link } = known;
  const document = link.ring;
  if (document === null) return html`<section class="panel ring"><h2>The ring</h2></section>`;
  const infos = new Map((link.gathered?.nodes ?? []).filter((node) => node.info).map((node) => [node.id, node.info]));
  const order = sortedIds(document.owners.map((owner) => owner.id));
  const owners = order.map((id) => document.owners.find((owner) => owner.id === id));
  const copies = owners.reduce((sum, owner) => sum + owner.replica_share, 0);
  const dead = new Set(
    link.views.members.filter((row) => ["dead", "left"].includes(row.gossip.state)).map((row) => row.id),
  );
  const moving = owners.filter((owner) => infos.get(owner.id)?.slots_pending > 0);
  return html`<section class="panel ring">
    <h2>The ring</h2>
    <div class="ring-body">
      ${picture(owners, copies, infos, dead, known)}
      <div class="scroll" tabindex="0" role="group" aria-label="Shares of the ring">
        <table class="shares">
          <thead>
            <tr>
              ${head("owner")}${head("first copies", "number")}${head("all copies", "number")}
              ${head("to fetch", "number")}
            </tr>
          </thead>
          <tbody>
            ${owners.map((owner) => ownerRow(owner, infos.get(owner.id), known))}
          </tbody>
        </table>
      </div>
    </div>
    <p class="quiet">
      ${moves(document, moving, infos)} Of each of ${count(SLOTS)} slots there ${howMany(copies)};
      ${count(document.virtual_nodes)} virtual nodes for each member.
    </p>
  </section>`;
}

function ownerRow(owner, info, known) {
  return html`<tr>
    <th scope="row">${named(owner.id, known)}</th>
    <td class="number">${percent(owner.share)}</td>
    <td class="number">${percent(owner.replica_share)}</td>
    <td class="number">${pending(info)}</td>
  </tr>`;
}

function howMany(copies) {
  return Math.round(copies) === 1 ? "is one copy" : `are ${Math.round(copies)} copies`;
}

function pending(info) {
  if (!Number.isFinite(info?.slots_pending)) return "?";
  return info.slots_pending ? count(info.slots_pending) : "–";
}

function moves(document, moving, infos) {
  const { pending: joining } = document;
  const who = joining.length ? `${listed(joining)} ${joining.length > 1 ? "are" : "is"} joining. ` : "";
  if (!moving.length) return `${who}Nothing is to be moved.`;
  const slots = moving.reduce((sum, owner) => sum + infos.get(owner.id).slots_pending, 0);
  const fetching = `${listed(moving.map((owner) => owner.id))} still ${moving.length > 1 ? "fetch" : "fetches"}`;
  return `${who}${fetching} ${count(slots)} slots from the other owners.`;
}

function picture(owners, copies, infos, dead, known) {
  const arcs = [];
  let firstFrom = 0;
  let allFrom = 0;
  for (const owner of owners) {
    const colour = known.colourOf(owner.id);
    const share = owner.replica_share / (copies || 1);
    const isDead = dead.has(owner.id) ? "of-the-dead" : "";
    const arc = (kind, [radii, from, to], title) =>
      arcs.push(svg`<path class=${kind} d=${band(radii, from, to)}><title>${owner.id}: ${title}</title></path>`);
    const first = [BANDS.primaries, firstFrom, firstFrom + owner.share];
    arc(`arc ${colour} ${isDead}`, first, `${percent(owner.share)} of the first copies`);
    const every = [BANDS.replicas, allFrom, allFrom + share];
    arc(`arc copies ${colour} ${isDead}`, every, `${percent(owner.replica_share)} of the slots, in whichever copy`);
    const fetching = Math.min(share, (infos.get(owner.id)?.slots_pending ?? 0) / SLOTS / (copies || 1));
    const toFetch = [BANDS.replicas, allFrom + share - fetching, allFrom + share];
    if (fetching > 0) arc("fetching", toFetch, "still to be fetched");
    if (owner.share >= NAMED_SHARE_MIN) arcs.push(name(owner.id, isDead, firstFrom + owner.share / 2));
    firstFrom += owner.share;
    allFrom += share;
  }
  const label = `First copies: ${owners.map((owner) => `${owner.id} ${percent(owner.share)}`).join(", ")}`;
  return html`<svg class="ring-picture" viewBox="0 0 240 240" role="img" aria-label=${label}>
    <defs>
      <pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
        <rect width="2.5" height="5"></rect>
      </pattern>
    </defs>
    ${arcs}
    <text class="ring-count" x=${CENTRE} y=${CENTRE + 2}>${owners.length}</text>
    <text class="ring-word" x=${CENTRE} y=${CENTRE + 20}>${owners.length === 1 ? "owner" : "owners"}</text>
  </svg>`;
}

function name(id, isDead, turn) {
  const [x, y] = point((BANDS.primaries[0] + BANDS.primaries[1]) / 2, turn);
  const text = `${isDead ? "✕ " : ""}${id.length <= NAME_CHARACTERS_MAX ? id : ""}`;
  return svg`<text class="arc-name ${isDead}" x=${x} y=${y + 3.5}>${text}</text>`;
}

/** The outline of a part of a band between two turns, clockwise from the top. */
function band([inner, outer], from, to) {
  if (to - from > 0.999) return `${circle(outer)}${circle(inner)}`;
  const gap = Math.min(GAP, (to - from) / 4);
  const [begin, end] = [from + gap, to - gap];
  const isLarge = end - begin > 0.5 ? 1 : 0;
  const corner = (radius, turn) => point(radius, turn).join(" ");
  const outward = `M${corner(outer, begin)}A${outer} ${outer} 0 ${isLarge} 1 ${corner(outer, end)}`;
  return `${outward}L${corner(inner, end)}A${inner} ${inner} 0 ${isLarge} 0 ${corner(inner, begin)}Z`;
}

function circle(radius) {
  return `M${CENTRE} ${CENTRE - radius}a${radius} ${radius} 0 1 1 -0.01 0Z`;
}

function point(radius, turn) {
  const angle = 2 * Math.PI * turn;
  const rounded = (number) => Number(number.toFixed(2));
  return [rounded(CENTRE + radius * Math.sin(angle)), rounded(CENTRE - radius * Math.cos(angle))];
}
