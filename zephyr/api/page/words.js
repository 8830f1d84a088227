/**
 * What the page says: pure functions from the documents of the node to words.
 *
 * Decides what is worth saying, how grave it is, and how it reads. Knows no element, no clock and no request, so each
 * of these can be tried with documents alone.
 */

/** @typedef {"calm"|"watch"|"alarm"|"lost"} Level */

const byName = new Intl.Collator("en", { numeric: true });

/** Members named before the rest is only counted: a sentence is read, a list of fifty is not. */
const NAMED_MAX = 6;
/** The gravest first. */
const LEVELS = ["lost", "alarm", "watch", "calm"];
/** Lines of the banner; more would push everything else off the first screen. */
const LINES_MAX = 6;
/** Members named in a change of the ring. */
const CHANGED_MAX = 3;
/** How long the last change of the ring is told. */
const CHANGE_TOLD_S = 3600;
/** How long a member that is gone for good is shown without being asked for. */
export const GONE_SHOWN_S = 300;

export const GOSSIP = {
  alive: { letter: "A", word: "alive" },
  suspect: { letter: "S", word: "suspected" },
  dead: { letter: "D", word: "dead" },
  left: { letter: "L", word: "left" },
  unknown: { letter: "U", word: "never met" },
};
export const ETCD = {
  registered: { letter: "R", word: "registered" },
  joining: { letter: "J", word: "registered as joining" },
  absent: { letter: "–", word: "not registered" },
  unreachable: { letter: "?", word: "etcd cannot be reached" },
  off: { letter: "O", word: "no etcd is configured" },
};
export const NOTHING = { letter: "·", word: "nothing known" };

/** What each authority means, in a few words. */
export const AUTHORITIES = {
  both: "etcd makes the ring, gossip agrees",
  etcd: "etcd makes the ring; gossip hears too few, or by TCP only",
  gossip: "gossip keeps the last ring; etcd is silent, or not trusted with it yet",
  relayed: "etcd makes the ring; a peer passes on its word",
  held: "neither leads; the last ring stands until all have registered again",
  none: "neither leads; this node is alone, in a minority or just started",
};

const EVENTS = {
  "member-alive": ["A", "heard for the first time"],
  "member-suspected": ["S", "suspected"],
  "member-dead": ["D", "declared dead"],
  "member-refuted": ["R", "refuted a suspicion"],
  "member-left": ["L", "left"],
  refuted: ["R", "refuted what was said of it"],
  "udp-blocked": ["B", "answers by TCP, not by UDP"],
  "name-conflict": ["N", "two processes have one name"],
  "user-event": ["U", "user event"],
  "seed-unresolved": ["?", "a seed's name leads nowhere"],
  registration: ["R", "registered"],
  registered: ["R", "registered itself"],
  "registration-gone": ["G", "registration gone"],
  "eviction-proposed": ["E", "eviction proposed"],
  "etcd-connected": ["C", "etcd reached"],
  "etcd-unreachable": ["X", "etcd cannot be reached"],
  "etcd-watch-ended": ["W", "watch ended"],
  "etcd-wiped": ["0", "etcd was wiped"],
  "view-adopted": ["V", "a peer's word of etcd taken"],
  "lease-lost": ["–", "lease lost"],
  takeover: ["T", "took over from an earlier life"],
  "settings-differ": ["≠", "settings differ from the cluster's"],
  "unusable-key": ["?", "a registration that cannot be read"],
  "ring-changed": ["◯", "ring changed"],
  removed: ["–", "out of the ring, by gossip"],
  hold: ["H", "the last ring is held"],
  "hold-ended": ["h", "the hold ended"],
  "hold-released": ["h", "the hold was released"],
  "gossip-leads": ["g", "gossip leads"],
  "etcd-leads": ["e", "etcd leads again"],
  "provisional-ring": ["p", "provisional ring"],
  authority: ["a", "who leads"],
  level: ["=", "slots fetched"],
  "peer-connected": ["+", "connection made"],
  "peer-disconnected": ["-", "connection ended"],
  overflow: ["…", "earlier entries are no longer kept"],
};
const GRAVE = new Set([
  "member-dead",
  "registration-gone",
  "etcd-unreachable",
  "etcd-wiped",
  "lease-lost",
  "removed",
  "hold",
  "name-conflict",
  "settings-differ",
  "unusable-key",
]);
const WATCHED = new Set([
  "member-suspected",
  "eviction-proposed",
  "gossip-leads",
  "udp-blocked",
  "etcd-watch-ended",
  "provisional-ring",
]);

/** A kind of event: its letter, what it means, how grave it is. Kinds of a later version have a letter of their own. */
export function eventWords(kind) {
  const [letter, words] = EVENTS[kind] ?? [kind.slice(0, 1).toUpperCase() || "?", kind.replaceAll("-", " ")];
  return { letter, words, level: GRAVE.has(kind) ? "alarm" : WATCHED.has(kind) ? "watch" : "calm" };
}

export function sortedIds(ids) {
  return [...ids].sort(byName.compare);
}

/** "n1", "n1 and n2", "n1, n2 and n3"; beyond a few, "n1, n2 and 7 more". */
export function listed(ids) {
  const names = sortedIds(ids);
  if (names.length > NAMED_MAX)
    return `${names.slice(0, NAMED_MAX - 1).join(", ")} and ${names.length - NAMED_MAX + 1} more`;
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** A duration for people: "0.4 s", "42 s", "3 min", "2 h", "5 d". */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "?";
  const s = Math.max(0, seconds);
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 99.5) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

/** A size for people, in binary units: "512 B", "1.4 MiB". */
export function size(bytes) {
  if (!Number.isFinite(bytes)) return "?";
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1000 || unit === "TiB")
      return unit === "B" || value >= 100 ? `${Math.round(value)} ${unit}` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
}

/** A count with thin spaces: "12 345". */
export function count(number) {
  return Number.isFinite(number)
    ? Math.round(number)
        .toString()
        .replace(/\B(?=(\d{3})+$)/g, "\u2009")
    : "?";
}

export function percent(share) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : "?";
}

/** A moment, as clocks on this machine show it, with milliseconds. */
export function clock(unixMs) {
  if (!Number.isFinite(unixMs)) return "?";
  const at = new Date(unixMs);
  const two = (number) => String(number).padStart(2, "0");
  const ms = String(at.getMilliseconds()).padStart(3, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${ms}`;
}

/** Whether a member is of the past: no witness and no ring has it. */
export function isGone(row) {
  return ["dead", "left"].includes(row.gossip.state) && !row.in_ring && row.etcd.state !== "registered";
}

/** What etcd says of a member, as this node reads it. */
export function etcdState(row) {
  return row.etcd.state === "registered" && row.state === "joining" ? "joining" : row.etcd.state;
}

/**
 * The nodes that were asked, and this one, by id: who answered has `views`.
 *
 * @param views this node's view; @param gathered what all said a moment ago, or null
 */
export function observers(views, gathered) {
  const said = new Map((gathered?.nodes ?? []).map((node) => [node.id, node]));
  if (!said.has(views.node))
    said.set(views.node, { id: views.node, answered: true, reason: "", took_ms: 0, views, info: null });
  return sortedIds(said.keys()).map((id) => said.get(id));
}

/**
 * The verdict: what the banner says.
 *
 * What this node believes is taken from its newest view. Nodes are compared by what they said at one moment: else
 * every change would look like a disagreement, since not all of them are asked again at once.
 *
 * @returns {{level: Level, lines: {level: Level, subject: string, text: string}[], more: number, spoken: string}}
 * a line reads as its subject followed by its text
 */
export function verdict(views, gathered, link) {
  const nodes = observers(views, gathered);
  const then = nodes.find((node) => node.id === views.node).views;
  const lines = [
    ...lostLines(views, link),
    ...leadLines(views),
    ...memberLines(views, then, nodes),
    ...silenceLines(views, nodes),
    ...differenceLines(then, nodes),
  ];
  lines.sort((one, other) => LEVELS.indexOf(one.level) - LEVELS.indexOf(other.level));
  if (lines.length === 0) lines.push(calmLine(views, nodes));
  const told = lines.slice(0, LINES_MAX);
  return {
    level: told[0].level,
    lines: told,
    more: lines.length - told.length,
    spoken: told.map((line) => withoutAges(line.subject + line.text)).join(" "),
  };
}

function lostLines(views, link) {
  if (link.lostSinceS === null) return [];
  const text = ` has not answered for ${duration(link.lostSinceS)}. What follows is what it said last.`;
  return [{ level: "lost", subject: views.node, text }];
}

function leadLines(views) {
  if (views.authority === "both" || (views.authority === "gossip" && views.etcd.state === "off")) return [];
  const level = views.authority === "none" ? "alarm" : "watch";
  const because = views.etcd.reason && views.etcd.state !== "connected" ? ` (${views.etcd.reason})` : "";
  const since = duration(views.authority_since_s);
  const cause =
    views.etcd.state === "connected"
      ? "etcd is back, and takes over when everybody has registered"
      : "etcd cannot be reached by anyone heard, and the last ring stands";
  const texts = {
    etcd: `etcd leads alone for ${since}: gossip hears too few members, or by TCP only`,
    gossip: `Gossip leads for ${since}: ${cause}`,
    relayed: `${views.node} cannot reach etcd for ${since}: a peer passes on its word`,
    held: `The last ring is held for ${since}: etcd lost most registrations at once, and gossip hears those members`,
    none: `Nobody leads for ${since}: ${views.node} is alone, in a minority, or knows no ring yet`,
  };
  const text = texts[views.authority] ?? `${views.authority} leads for ${since}`;
  return [{ level, subject: "", text: `${text}${because}.` }];
}

/** Who leads, for a reader who has never seen the word "authority". */
export function leads(views) {
  const meaning = AUTHORITIES[views.authority] ?? "";
  return views.authority === "gossip" && views.etcd.state === "off" ? "gossip: no etcd is configured" : meaning;
}

function memberLines(views, then, nodes) {
  const lines = [];
  for (const row of views.members) {
    const opinions = opinionsOn(row.id, nodes);
    const isSplit = opinions.size > 1 && !isGone(row);
    if (!isSplit && (row.verdict === "agree" || isToldOfAll(row, views))) continue;
    const isGrave = row.in_ring && ["dead", "left"].includes(row.gossip.state);
    const said = stateOf(row.id, then);
    const what = row.verdict === "agree" ? "the members do not agree." : sentence(row.reason);
    const who = isSplit ? ` ${bySide(opinions, views.node, said)}` : isGrave ? knownBy(opinions.get(said)) : "";
    lines.push({ level: isGrave ? "alarm" : "watch", subject: row.id, text: `: ${what}${who}` });
  }
  return lines;
}

/** While the ring does not come from etcd, the same is true of every living member: one sentence says so already. */
function isToldOfAll(row, views) {
  return (
    views.authority !== "both" &&
    row.gossip.state === "alive" &&
    ["unconfirmed", "held", "unregistered"].includes(row.verdict)
  );
}

function sentence(text) {
  return text.endsWith(".") ? text : `${text}.`;
}

function stateOf(id, views) {
  return views.members.find((row) => row.id === id)?.gossip.state ?? "unknown";
}

/** What gossip says of one member -> who says so. */
function opinionsOn(id, nodes) {
  const observing = nodes.filter((node) => node.answered && node.id !== id);
  return grouped(observing, (node) => stateOf(id, node.views));
}

/** "n1 says dead; n2 and n3 say alive." */
function bySide(opinions, here, said) {
  const others = [...opinions].filter(([state]) => state !== said);
  return `${[[said, [here]], ...others].map(([state, ids]) => opinion(ids, state)).join("; ")}.`;
}

function opinion(ids, state) {
  return `${listed(ids)} ${ids.length > 1 ? "say" : "says"} ${GOSSIP[state]?.word ?? state}`;
}

function knownBy(ids = []) {
  return ids.length > 1 ? ` All ${ids.length} who answer say so.` : "";
}

function silenceLines(views, nodes) {
  const dead = new Set(views.members.filter((row) => ["dead", "left"].includes(row.gossip.state)).map((row) => row.id));
  // That a dead member is silent is no news.
  const silent = nodes.filter((node) => !node.answered && !dead.has(node.id));
  return [...grouped(silent, (node) => node.reason || "no reason is known")].map(([reason, ids]) => {
    return { level: "watch", subject: listed(ids), text: ` did not answer ${views.node}: ${reason}.` };
  });
}

/** How others differ from this node in what they said at one moment. */
function differenceLines(then, nodes) {
  const others = nodes.filter((node) => node.answered && node.id !== then.node);
  const lines = [];
  const here = (then.ring.digest ?? "").slice(0, 8);
  for (const [digest, ids] of grouped(others, (node) => (node.views.ring.digest ?? "").slice(0, 8))) {
    const text = ` ${ids.length > 1 ? "have" : "has"} another ring (${digest}) than ${then.node} (${here}).`;
    if (digest !== here) lines.push({ level: "watch", subject: listed(ids), text });
  }
  for (const [authority, ids] of grouped(others, (node) => node.views.authority ?? "nobody")) {
    const says = ` ${ids.length > 1 ? "say" : "says"} that ${leaderWord(authority)}`;
    const text = `${says}; ${then.node} says that ${leaderWord(then.authority)}.`;
    const level = authority === "none" ? "alarm" : "watch";
    if (authority !== then.authority) lines.push({ level, subject: listed(ids), text });
  }
  return lines;
}

function leaderWord(authority) {
  return (
    {
      both: "etcd and gossip lead",
      etcd: "etcd leads alone",
      gossip: "gossip leads",
      relayed: "etcd leads, by way of a peer",
      held: "the last ring is held",
      none: "nobody leads",
    }[authority] ?? `${authority} leads`
  );
}

function grouped(nodes, keyOf) {
  const found = new Map();
  for (const node of nodes) found.set(keyOf(node), [...(found.get(keyOf(node)) ?? []), node.id]);
  return found;
}

function calmLine(views, nodes) {
  const owners = views.ring.owners.length;
  const who = owners === 1 ? "1 member owns all data" : `${owners} members, one ring`;
  const said = nodes.filter((node) => node.answered).length;
  const witness = views.etcd.state === "off" ? "Gossip hears everybody." : "Etcd and gossip agree on every member.";
  return {
    level: "calm",
    subject: "",
    text: `All is well: ${who}. ${witness}${said > 1 ? ` So say all ${said} nodes.` : ""}`,
  };
}

/** A sentence without its durations: what is spoken again only when something else than time has changed. */
export function withoutAges(text) {
  return text.replace(/ (for|after) [\d.]+ (s|min|h|d)\b/g, "").replace(/ [\d.]+ (s|min|h|d) ago\b/g, "");
}

/** Who came and who went between two lists of owners; `before` is null where nobody remembers it. */
export function ringChange(before, after) {
  if (before === null) return `${after.length} ${after.length === 1 ? "owner" : "owners"}`;
  const came = after.filter((id) => !before.includes(id));
  const went = before.filter((id) => !after.includes(id));
  const signs = [...sortedIds(went).map((id) => `−${id}`), ...sortedIds(came).map((id) => `+${id}`)];
  if (signs.length > CHANGED_MAX)
    return [went.length ? `−${went.length}` : "", came.length ? `+${came.length}` : ""].filter(Boolean).join(" ");
  return signs.join(" ") || "of new lives";
}

/** The entries of the timeline, each change of the ring with the owners `before` and `after` it and the `change`. */
export function withRingChanges(events) {
  let owners = null;
  return [...events].map((entry) => {
    if (entry.kind !== "ring-changed" || !entry.detail.startsWith("owners: ")) return entry;
    const before = owners;
    owners = entry.detail.slice("owners: ".length).split(", ").filter(Boolean);
    return { ...entry, before, after: owners, change: ringChange(before, owners) };
  });
}

/** What became of the ring last, and when; empty where it is too long ago to matter. */
export function lastChange(events, nowUnixMs) {
  const last = withRingChanges(events).findLast((entry) => entry.after);
  const agoS = last ? (nowUnixMs - last.at_unix_ms) / 1000 : Infinity;
  return agoS < CHANGE_TOLD_S && last.before !== null ? `${last.change}, ${duration(agoS)} ago` : "";
}

/** Why a member was declared dead, as sentences. A stub has two. */
export function explained(document) {
  const { accuser, accusers, exit, member, suspicion } = document;
  if (!suspicion) {
    const heard = clock(document.declared_at_unix_ms);
    return [
      `${accuser} declared ${member} dead; this node heard of it at ${heard}.`,
      `The certificate is kept by ${accuser}, which cannot be asked just now.`,
    ];
  }
  const [first, ...others] = accusers;
  const lastedS = (document.declared_at_unix_ms - document.suspected_at_unix_ms) / 1000;
  const confirmed = others.length ? `${listed(others)} confirmed that` : "nobody else had to confirm that";
  const lines = [
    document.cause === "exit" ? "Its process ended." : "It did not answer.",
    `${first ?? "Somebody"} suspected it ${duration(lastedS)} before, and ${confirmed}.`,
  ];
  const signs = [exit.refused && "a connection refused", exit.udp_silent && "no answer by UDP"].filter(Boolean);
  const itself = signs.length ? `; ${accuser} itself had ${signs.join(" and ")}` : "";
  if (exit.observers.length) lines.push(`Its end was seen by ${listed(exit.observers)}${itself}.`);
  if (exit.timeout_s !== null) lines.push(`That cut its time to refute to ${duration(exit.timeout_s)}.`);
  const pauseS = suspicion.own_pause_s;
  if (pauseS) lines.push(`${accuser} itself did not run for ${duration(pauseS)} of that time.`);
  return lines;
}
