/** Who believes what of whom: a row for each node's gossip, one for etcd, one for the ring; a column a member. */

import { html, nothing } from "./vendor/lit-html.js";
import { head, named, sign, spoken } from "./parts.js";
import { ETCD, GONE_SHOWN_S, GOSSIP, NOTHING, duration, etcdState, isGone, observers, sortedIds } from "./words.js";

/** Beyond so many members, cells have no room for how long it has been so. */
const AGES_MEMBERS_MAX = 16;
/** Names that are longer together stand upright above their columns. */
const HEAD_CHARACTERS_MAX = 40;

export function matrix(known) {
  const { link, chosen } = known;
  const { views } = link;
  const nodes = observers(views, link.gathered);
  const rows = new Map(views.members.map((row) => [row.id, row]));
  const old = views.members
    .filter((row) => isGone(row) && (row.gossip.since_s ?? Infinity) > GONE_SHOWN_S)
    .map((row) => row.id);
  const hidden = new Set(chosen.areGoneShown ? [] : old);
  const subjects = sortedIds([...rows.keys()].filter((id) => !hidden.has(id)));
  const withAges = subjects.length <= AGES_MEMBERS_MAX;
  return html`<section class="panel matrix">
    <h2 id="matrix-title">Who believes what of whom</h2>
    <div class="scroll" tabindex="0" role="group" aria-labelledby="matrix-title">
      <table class="${withAges ? "roomy" : "dense"} ${isTight(subjects) ? "upright" : ""}">
        <caption class="spoken-only">
          Each row is one observer, each column one member. The cell is what the observer's gossip says of the member;
          the last two rows are what etcd says and who is in the ring.
        </caption>
        <thead>
          <tr>
            <td></td>
            ${subjects.map((id) => head(named(id, known)))}${head("leads", "aside")}${head("ring", "aside")}
          </tr>
        </thead>
        <tbody>
          ${nodes.map((node) => observerRow(node, subjects, views, withAges))}
        </tbody>
        <tbody class="witness">
          <tr>
            <th scope="row">etcd</th>
            ${subjects.map((id) => etcdCell(rows.get(id), withAges))}
            <td class="aside" colspan="2">as ${views.node} reads it</td>
          </tr>
          <tr>
            <th scope="row">ring</th>
            ${subjects.map((id) => ringCell(rows.get(id)))}
            <td class="aside" colspan="2">as ${views.node} has it</td>
          </tr>
        </tbody>
      </table>
    </div>
    ${legend()}
    ${old.length ? goneButton(old.length, known) : nothing}
  </section>`;
}

function goneButton(number, { chosen, draw }) {
  const toggle = () => {
    chosen.areGoneShown = !chosen.areGoneShown;
    draw();
  };
  const whom = `${number} that ${number > 1 ? "have" : "has"} been gone for long`;
  const text = `${chosen.areGoneShown ? "Hide" : "Show"} ${whom}`;
  return html`<p><button type="button" class="plain" @click=${toggle}>${text}</button></p>`;
}

function isTight(ids) {
  return ids.length * Math.max(0, ...ids.map((id) => id.length)) > HEAD_CHARACTERS_MAX;
}

function observerRow(node, subjects, views, withAges) {
  const isHere = node.id === views.node;
  const here = isHere ? spoken(" (serves this page)") : nothing;
  const name = html`<th scope="row" class=${isHere ? "here" : ""}>${node.id}${here}</th>`;
  if (!node.answered) {
    return html`<tr class="silent">
      ${name}
      <td colspan=${subjects.length + 2}><span class="reason">did not answer: ${node.reason}</span></td>
    </tr>`;
  }
  const said = new Map(node.views.members.map((row) => [row.id, row]));
  const digest = node.views.ring.digest ?? "";
  const isSame = digest === views.ring.digest;
  return html`<tr>
    ${name}${subjects.map((id) => gossipCell(said.get(id), id === node.id, withAges))}
    <td class="aside ${node.views.authority === views.authority ? "" : "differs"}">${node.views.authority}</td>
    <td class="aside ${isSame ? "" : "differs"}">
      <code>${digest.slice(0, 4)}</code>${isSame ? spoken(", the same ring") : html` ≠${spoken(", another ring")}`}
    </td>
  </tr>`;
}

function gossipCell(row, isSelf, withAges) {
  const state = row?.gossip.state;
  const { letter, word } = GOSSIP[state] ?? NOTHING;
  const kind = GOSSIP[state] ? `gossip-${state}` : "nothing";
  const since = state && state !== "alive" ? age(row.gossip.since_s, withAges) : "";
  return cell(sign(letter, word, isSelf ? `${kind} self` : kind), since);
}

function etcdCell(row, withAges) {
  const state = etcdState(row);
  const { letter, word } = ETCD[state] ?? NOTHING;
  const since = row.etcd.state === "registered" ? "" : age(row.etcd.since_s, withAges);
  return cell(sign(letter, word, `etcd-${state}`), since);
}

function ringCell(row) {
  if (row.in_ring) return cell(sign("●", "in the ring", "ring-in"), "");
  if (row.state === "joining") return cell(sign("◐", "joining", "ring-joining"), "");
  return cell(sign("○", "not in the ring", "ring-out"), "");
}

function cell(mark, since) {
  return html`<td class="cell">${mark}${since ? html`<small>${since}</small>` : nothing}</td>`;
}

function age(sinceS, withAges) {
  return withAges && Number.isFinite(sinceS) ? duration(sinceS) : "";
}

function legend() {
  const marks = [
    ...Object.entries(GOSSIP).map(([state, words]) => [`gossip-${state}`, words.letter, words.word]),
    ["nothing", NOTHING.letter, NOTHING.word],
    ["etcd-registered", ETCD.registered.letter, "lease in etcd"],
    ["etcd-absent", ETCD.absent.letter, "none"],
    ["etcd-unreachable", ETCD.unreachable.letter, "etcd silent"],
    ["ring-in", "●", "owns data"],
    ["ring-out", "○", "owns none"],
  ];
  const item = ([kind, letter, word]) =>
    html`<li><span class="mark ${kind}" aria-hidden="true">${letter}</span> ${word}</li>`;
  return html`<ul class="legend" aria-label="Legend">
    ${marks.map(item)}
  </ul>`;
}
