/**
 * What happened, against time: gossip above, etcd below, changes of the ring across both; and the same as a list.
 *
 * Only this node's timeline is shown: clocks of different nodes are not one.
 */

import { html, nothing, svg } from "./vendor/lit-html.js";
import { head, spoken } from "./parts.js";
import { clock, duration, eventWords, ringChange, withRingChanges } from "./words.js";

const STRETCHES_S = [30, 120, 600, 3600];
/** Entries of the list; the whole is at /debug/timeline. */
const LISTED_MAX = 200;
/** Rows of marks in one lane; what does not fit is counted at the end of the last one. */
const ROWS = 4;
const ROW_PX = 21;
const MARK_PX = 17;
const LETTER_PX = 7.2;
const EDGE_PX = 12;
const MEMBER_CHARACTERS_MAX = 12;
const HEAD_PX = 24;
const AXIS_PX = 22;
const LANE_PX = ROWS * ROW_PX + 8;
const MIDDLE_PX = HEAD_PX + LANE_PX;
const HEIGHT_PX = MIDDLE_PX + LANE_PX + AXIS_PX;
const NARROW_PX = 520;
/** A span that is narrower has no room for its name; of these leaders the line at its beginning tells. */
const SPAN_NAMED_PX_MIN = 90;
const UNNAMED_SPANS = new Set(["gossip", "held"]);
/** Marks of one kind that begin so close to each other are one. */
const JOINED_PX_MAX = 26;
/** Connections and repair are for those who look for them. */
const BACKGROUND = new Set(["node", "repair"]);

export class Timeline {
  #changed;
  #stretchS = 30;
  #isAllListed = false;
  #widthPx = 0;
  #observed = null;
  #observer = new ResizeObserver(([entry]) => {
    const widthPx = Math.round(entry.contentRect.width);
    if (widthPx !== this.#widthPx) {
      this.#widthPx = widthPx;
      this.#changed();
    }
  });

  constructor(changed) {
    this.#changed = changed;
  }

  /** Draw as wide as this element is. */
  observe(element) {
    if (element === this.#observed || element === null) return;
    this.#observer.disconnect();
    this.#observer.observe(element);
    this.#observed = element;
  }

  show(known) {
    const entries = withRingChanges(known.link.events.values());
    const shown = this.#isAllListed ? entries : entries.filter((entry) => !BACKGROUND.has(entry.source));
    const newest = shown.slice(-LISTED_MAX).reverse();
    const lost = known.link.lostEvents ? `${known.link.lostEvents} earlier entries are no longer kept` : "";
    const choose = (seconds) => () => {
      this.#stretchS = seconds;
      this.#changed();
    };
    const choice = (seconds) => {
      const isChosen = String(seconds === this.#stretchS);
      const text = duration(seconds);
      return html`<button type="button" aria-pressed=${isChosen} @click=${choose(seconds)}>${text}</button>`;
    };
    const toggle = () => {
      this.#isAllListed = !this.#isAllListed;
      this.#changed();
    };
    return html`<section class="panel timeline">
      <div class="panel-head">
        <h2 id="timeline-title">What happened</h2>
        <div class="choice" role="group" aria-label="Stretch of time">
          ${STRETCHES_S.map(choice)}
        </div>
      </div>
      <div class="timeline-picture">${this.#widthPx > 0 ? this.#picture(entries, known) : nothing}</div>
      <div class="scroll events" tabindex="0" role="group" aria-label="Events, the newest first">
        <table>
          <thead>
            <tr>
              ${head("time")}${head("by")}${head("what")}${head("detail", "wide")}
            </tr>
          </thead>
          <tbody>
            ${newest.map((entry) => listed(entry, known))}
          </tbody>
        </table>
        ${shown.length === 0 ? html`<p class="quiet">Nothing yet.</p>` : nothing}
      </div>
      <p class="quiet">
        <label>
          <input type="checkbox" .checked=${this.#isAllListed} @change=${toggle} /> list connections and repair, too
        </label>
        ${lost && ` · ${lost}`}
      </p>
    </section>`;
  }

  #picture(entries, known) {
    const nowMs = known.link.nowUnixMs;
    const beginMs = nowMs - this.#stretchS * 1000;
    const widthPx = this.#widthPx;
    const x = (atMs) => EDGE_PX + ((atMs - beginMs) / (nowMs - beginMs)) * (widthPx - 2 * EDGE_PX);
    const within = entries.filter((entry) => entry.at_unix_ms >= beginMs);
    const of = (source) => within.filter((entry) => entry.source === source);
    const isLedByGossipAlone = known.link.views.etcd.state === "off";
    const box = `0 0 ${widthPx} ${HEIGHT_PX}`;
    return html`<svg width=${widthPx} height=${HEIGHT_PX} viewBox=${box} role="group" aria-labelledby="timeline-title">
      <rect class="lane" x="0" y=${HEAD_PX} width=${widthPx} height=${LANE_PX - 1} rx="4"></rect>
      <rect class="lane" x="0" y=${MIDDLE_PX + 1} width=${widthPx} height=${LANE_PX - 1} rx="4"></rect>
      ${isLedByGossipAlone ? nothing : spans(entries, beginMs, nowMs).map((span) => shaded(span, x))}
      ${axis(nowMs, this.#stretchS, x, widthPx)}
      <text class="lane-name" x="6" y=${MIDDLE_PX - 7}>gossip</text>
      <text class="lane-name" x="6" y=${MIDDLE_PX + LANE_PX - 6}>etcd</text>
      ${ringChanges(within, x, widthPx)} ${marks(of("gossip"), x, HEAD_PX + 4, widthPx, known)}
      ${marks(of("etcd"), x, MIDDLE_PX + 5, widthPx, known)}
    </svg>`;
  }
}

function listed(entry, known) {
  const { words, level } = eventWords(entry.kind);
  const what = entry.change ? `${words}: ${entry.change}` : words;
  return html`<tr class=${level}>
    <td><time>${clock(entry.at_unix_ms)}</time></td>
    <td class="source">${entry.source}</td>
    <td>
      ${entry.member ? html`<b>${entry.member}</b>` : nothing} ${what}
      ${entry.kind === "member-dead" ? why(entry.member, known) : nothing}
    </td>
    <td class="wide detail">${entry.detail}</td>
  </tr>`;
}

function why(member, known) {
  const open = () => known.openCertificate(member);
  const more = spoken(` Death certificate of ${member}`);
  return html`<button type="button" class="plain" @click=${open}>why?${more}</button>`;
}

/** Marks of one lane: each begins at its moment, in the first row where there is room. */
function marks(entries, x, topPx, widthPx, known) {
  const ends = Array(ROWS).fill(-Infinity);
  const drawn = [];
  let crowded = 0;
  for (const group of joined(entries, x)) {
    const [entry] = group;
    const { letter, words, level } = eventWords(entry.kind);
    const whose = group.length > 1 ? `×${group.length}` : entry.member.slice(0, MEMBER_CHARACTERS_MAX);
    const label = `${letter} ${whose}`.trim();
    const lengthPx = Math.round(label.length * LETTER_PX) + 10;
    const leftPx = Math.min(x(entry.at_unix_ms), widthPx - lengthPx - 2);
    const row = ends.findIndex((endPx) => endPx + 3 <= leftPx);
    if (row < 0) {
      crowded += group.length;
      continue;
    }
    ends[row] = leftPx + lengthPx;
    const place = { leftPx, atPx: x(entry.at_unix_ms), yPx: topPx + row * ROW_PX, lengthPx };
    drawn.push(mark(group, { label, words, level }, place, known));
  }
  if (crowded) {
    const text = `+${crowded} more in the list`;
    drawn.push(svg`<text class="crowded" x=${widthPx - 6} y=${topPx + LANE_PX - 12}>${text}</text>`);
  }
  return drawn;
}

/** The entries, those of one kind at about one moment together; each death by itself, since each can be opened. */
function joined(entries, x) {
  const groups = [];
  const open = new Map();
  for (const entry of entries) {
    const group = open.get(entry.kind);
    const isNear = group && x(entry.at_unix_ms) - x(group[0].at_unix_ms) <= JOINED_PX_MAX;
    if (isNear && entry.kind !== "member-dead") {
      group.push(entry);
    } else {
      open.set(entry.kind, [entry]);
      groups.push(open.get(entry.kind));
    }
  }
  return groups;
}

function mark(group, { label, words, level }, { leftPx, atPx, yPx, lengthPx }, known) {
  const [entry] = group;
  const title = group
    .map((each) => `${clock(each.at_unix_ms)} ${each.member} ${words}${each.detail ? `: ${each.detail}` : ""}`)
    .join("\n");
  const shape = svg`
    <line class="moment" x1=${atPx} x2=${atPx} y1=${yPx} y2=${yPx + MARK_PX}></line>
    <rect x=${leftPx} y=${yPx} width=${lengthPx} height=${MARK_PX} rx="3"></rect>
    <text x=${leftPx + 5} y=${yPx + 12.5}>${label}</text>
    <title>${title}</title>`;
  if (entry.kind !== "member-dead") return svg`<g class="event ${level}">${shape}</g>`;
  const open = () => known.openCertificate(entry.member);
  const press = (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open();
    }
  };
  const name = `${label}: declared dead at ${clock(entry.at_unix_ms)}, show its death certificate`;
  return svg`
    <g class="event opens ${level}" role="button" tabindex="0" aria-label=${name} @click=${open} @keydown=${press}>
      ${shape}
    </g>`;
}

/** Lines across both lanes. What follows so closely that its name has no room is named with what it follows. */
function ringChanges(entries, x, widthPx) {
  const groups = [];
  for (const entry of entries.filter((item) => item.source === "ring")) {
    const group = groups.at(-1);
    const endPx = group ? x(group[0].at_unix_ms) + nameOf([...group, entry]).length * LETTER_PX + 8 : -Infinity;
    if (x(entry.at_unix_ms) < endPx) group.push(entry);
    else groups.push([entry]);
  }
  return groups.map((group) => {
    const leftPx = Math.max(2, Math.min(x(group[0].at_unix_ms), widthPx - nameOf(group).length * LETTER_PX));
    return svg`
      ${group.map((entry, number) => ringLine(entry, x(entry.at_unix_ms), number === 0))}
      <text class="ring-change-name" x=${leftPx} y="13">${nameOf(group)}</text>`;
  });
}

function ringLine(entry, atPx, isNamed) {
  const { words, level } = eventWords(entry.kind);
  return svg`<g class="ring-change ${level}">
    <line x1=${atPx} x2=${atPx} y1=${isNamed ? HEAD_PX - 7 : HEAD_PX} y2=${HEIGHT_PX - AXIS_PX}></line>
    <title>${clock(entry.at_unix_ms)} ${words}: ${entry.detail}</title>
  </g>`;
}

/** One name for what happened to the ring at about one moment. */
function nameOf(group) {
  const changes = group.filter((entry) => entry.after);
  const others = group.filter((entry) => !entry.after && !["hold", "hold-ended"].includes(entry.kind));
  return [
    holdOf(group),
    changes.length ? `ring: ${ringChange(changes[0].before, changes.at(-1).after)}` : "",
    ...new Set(others.map((entry) => eventWords(entry.kind).words)),
  ]
    .filter(Boolean)
    .join(", ");
}

function holdOf(group) {
  const held = group.find((entry) => entry.kind === "hold");
  const ended = group.findLast((entry) => entry.kind === "hold-ended");
  if (held && ended) return `held for ${duration((ended.at_unix_ms - held.at_unix_ms) / 1000)}`;
  if (held) return "the last ring is held";
  return ended ? "the hold ended" : "";
}

/** When somebody else than both witnesses together led. */
function spans(entries, beginMs, nowMs) {
  const found = [];
  for (const entry of entries) {
    if (entry.kind !== "authority") continue;
    const authority = entry.detail.split(" -> ").at(-1);
    if (found.length) found.at(-1).to = entry.at_unix_ms;
    found.push({ from: entry.at_unix_ms, to: nowMs, authority });
  }
  return found
    .filter((span) => span.authority !== "both" && span.to > beginMs)
    .map((span) => ({ ...span, from: Math.max(span.from, beginMs) }));
}

function shaded({ from, to, authority }, x) {
  const lengthPx = Math.max(2, x(to) - x(from));
  const isNamed = lengthPx >= SPAN_NAMED_PX_MIN && !UNNAMED_SPANS.has(authority);
  return svg`
    <rect class="span" x=${x(from)} y=${HEAD_PX} width=${lengthPx} height=${2 * LANE_PX}>
      <title>${authority} leads</title>
    </rect>
    <text class="span-name" x=${x(from) + 4} y=${MIDDLE_PX - 7}>${isNamed ? `${authority} leads` : ""}</text>`;
}

function axis(nowMs, stretchS, x, widthPx) {
  const count = widthPx < NARROW_PX ? 3 : 6;
  return Array.from({ length: count + 1 }, (_, number) => {
    const agoS = (number * stretchS) / count;
    const atPx = x(nowMs - agoS * 1000);
    const [anchor, shiftPx] = number === 0 ? ["end", EDGE_PX] : number === count ? ["start", -EDGE_PX] : ["middle", 0];
    const name = number === 0 ? "now" : `−${duration(agoS)}`;
    return svg`
      <line class="tick" x1=${atPx} x2=${atPx} y1=${HEAD_PX} y2=${HEIGHT_PX - AXIS_PX + 4}></line>
      <text class="tick-name" text-anchor=${anchor} x=${atPx + shiftPx} y=${HEIGHT_PX - 5}>${name}</text>`;
  });
}
