/** Who believes what of whom: a row for each node's gossip, one for etcd, one for the ring; a column for each member. */

import { html, nothing } from "./vendor/lit-html.js";
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
  const old = views.members.filter((row) => isGone(row) && (row.gossip.since_s ?? Infinity) > GONE_SHOWN_S).map((row) => row.id);
  const hidden = new Set(chosen.areGoneShown ? [] : old);
  const subjects = sortedIds([...rows.keys()].filter((id) => !hidden.has(id)));
  const withAges = subjects.length <= AGES_MEMBERS_MAX;
  const toggle = () => { chosen.areGoneShown = !chosen.areGoneShown; known.draw(); };
  return html`
    <section class="panel matrix">
      <h2 id="matrix-title">Who believes what of whom</h2>
      <div class="scroll" tabindex="0" role="group" aria-labelledby="matrix-title">
        <table class="${withAges ? "roomy" : "dense"} ${isTight(subjects) ? "upright" : ""}">
          <caption class="spoken-only">Each row is one observer, each column one member. The cell is what the observer's gossip says of the member; the last two rows are what etcd says and who is in the ring.</caption>
          <thead>
            <tr>
              <td></td>
              ${subjects.map((id) => html`<th scope="col"><span class="swatch ${known.colourOf(id)}" aria-hidden="true"></span><span class="id">${id}</span></th>`)}
              <th scope="col" class="aside">leads</th>
              <th scope="col" class="aside">ring</th>
            </tr>
          </thead>
          <tbody>
            ${nodes.map((node) => observerRow(node, subjects, views, withAges))}
          </tbody>
          <tbody class="witness">
            <tr>
              <th scope="row">etcd</th>
              ${subjects.map((id) => cell(ETCD[etcdState(rows.get(id))] ?? NOTHING, `etcd-${etcdState(rows.get(id))}`, age(rows.get(id).etcd.state !== "registered", rows.get(id).etcd.since_s, withAges)))}
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
      ${old.length ? html`<p><button type="button" class="plain" @click=${toggle}>${chosen.areGoneShown ? "Hide" : "Show"} ${old.length} that ${old.length > 1 ? "have" : "has"} been gone for long</button></p>` : nothing}
    </section>`;
}

function isTight(ids) {
  return ids.length * Math.max(0, ...ids.map((id) => id.length)) > HEAD_CHARACTERS_MAX;
}

function observerRow(node, subjects, views, withAges) {
  const isHere = node.id === views.node;
  const name = html`<th scope="row" class=${isHere ? "here" : ""}>${node.id}${isHere ? html`<span class="spoken-only"> (serves this page)</span>` : nothing}</th>`;
  if (!node.answered) {
    return html`<tr class="silent">${name}<td colspan=${subjects.length + 2}><span class="reason">did not answer: ${node.reason}</span></td></tr>`;
  }
  const said = new Map(node.views.members.map((row) => [row.id, row]));
  const digest = node.views.ring.digest ?? "";
  const isSame = digest === views.ring.digest;
  return html`
    <tr>
      ${name}
      ${subjects.map((id) => {
        const state = said.get(id)?.gossip.state;
        const kind = GOSSIP[state] ? `gossip-${state}` : "nothing";
        return cell(GOSSIP[state] ?? NOTHING, `${kind}${id === node.id ? " self" : ""}`, age(state && state !== "alive", said.get(id)?.gossip.since_s, withAges));
      })}
      <td class="aside ${node.views.authority === views.authority ? "" : "differs"}">${node.views.authority}</td>
      <td class="aside ${isSame ? "" : "differs"}"><code>${digest.slice(0, 4)}</code><span aria-hidden="true">${isSame ? "" : " ≠"}</span><span class="spoken-only">${isSame ? ", the same ring" : ", another ring"}</span></td>
    </tr>`;
}

function cell({ letter, word }, kind, since) {
  return html`<td class="cell"><span class="mark ${kind}" title=${word}><span aria-hidden="true">${letter}</span><span class="spoken-only">${word}</span></span>${since ? html`<small>${since}</small>` : nothing}</td>`;
}

function ringCell(row) {
  const [kind, letter, word] = row.in_ring ? ["in", "●", "in the ring"] : row.state === "joining" ? ["joining", "◐", "joining"] : ["out", "○", "not in the ring"];
  return html`<td class="cell"><span class="mark ring-${kind}" title=${word}><span aria-hidden="true">${letter}</span><span class="spoken-only">${word}</span></span></td>`;
}

function age(isTold, sinceS, withAges) {
  return isTold && withAges && Number.isFinite(sinceS) ? duration(sinceS) : "";
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
  return html`<ul class="legend" aria-label="Legend">${marks.map(([kind, letter, word]) => html`<li><span class="mark ${kind}" aria-hidden="true">${letter}</span> ${word}</li>`)}</ul>`;
}
