/**
 * The page: what is known, as its parts show it, drawn anew when something changes.
 *
 * Decides when to draw and what a reader has chosen (paused, which stretch of time, which key, which certificate).
 */

import { html, nothing, render } from "./vendor/lit-html.js";
import { banner } from "./banner.js";
import { Certificates } from "./certificate.js";
import { figures } from "./figures.js";
import { KeyOwners } from "./key.js";
import { Link } from "./link.js";
import { matrix } from "./matrix.js";
import { quiet } from "./parts.js";
import { ring } from "./ring.js";
import { Timeline } from "./timeline.js";
import { verdict } from "./words.js";

/** Ages and the timeline move although nothing happens. */
const TICK_MS = 1000;
/** Members for whom the matrix has room beside the ring. */
const BESIDE_MEMBERS_MAX = 8;
/** Colours of members; beyond so many they are used again, and the names tell. */
const COLOURS = 12;
const TITLE_SIGNS = { calm: "", watch: "! ", alarm: "!! ", lost: "? " };

const root = document.getElementById("page");
root.replaceChildren();
const spoken = document.getElementById("spoken");
const link = new Link(draw);
const timeline = new Timeline(draw);
const keyOwners = new KeyOwners(link, draw);
const certificates = new Certificates(link, draw);
const chosen = { isPaused: false, areGoneShown: false };
const colours = new Map();
let isDrawAsked = false;

/** A member keeps its colour as long as the page is open. */
function colourOf(id) {
  if (!colours.has(id)) colours.set(id, colours.size % COLOURS);
  return `member-${colours.get(id)}`;
}

function draw() {
  if (isDrawAsked) return;
  isDrawAsked = true;
  requestAnimationFrame(() => {
    isDrawAsked = false;
    if (link.views === null) {
      const text = link.trouble ? `The node does not answer yet: ${link.trouble}.` : "Asking the node …";
      render(html`<p class="starting">${text}</p>`, root);
      return;
    }
    if (chosen.isPaused) {
      render(header(), root.querySelector(".top-holder"));
      certificates.draw();
      return;
    }
    drawAll();
  });
}

function drawAll() {
  const said = verdict(link.views, link.gathered, link);
  link.views.members.forEach((row) => colourOf(row.id)); // In their order, whoever is drawn first.
  const known = { link, colourOf, chosen, draw, openCertificate: (id) => certificates.open(id) };
  render(page(said, known), root);
  render(header(), root.querySelector(".top-holder"));
  certificates.draw();
  timeline.observe(root.querySelector(".timeline-picture"));
  document.title = `${TITLE_SIGNS[said.level]}${link.views.cluster} · ${link.views.node} · ZephyrCache`;
  if (spoken.textContent !== said.spoken) spoken.textContent = said.spoken;
}

function page(said, known) {
  return html`<div class="top-holder"></div>
    <main id="main">
      ${banner(said, known)}
      <div class="columns ${link.views.members.length > BESIDE_MEMBERS_MAX ? "stacked" : ""}">
        ${matrix(known)} ${ring(known)}
      </div>
      ${timeline.show(known)}
      <div class="columns figures-first">${figures(known)} ${keyOwners.show(known)}</div>
    </main>
    <footer>
      <p>
        The same as JSON: <a href="/debug/views">views</a>, <a href="/debug/cluster">cluster</a>,
        <a href="/debug/ring">ring</a>, <a href="/debug/timeline">timeline</a>, <a href="/info">info</a>;
        <a href="/metrics">metrics</a> for Prometheus.
      </p>
    </footer>`;
}

function header() {
  const { views } = link;
  const self = link.gathered?.nodes.find((node) => node.id === views.node);
  const [level, state] = linkState();
  return html`<header>
    <h1><img src="/debug/page/icon.svg" alt="" width="22" height="22" />ZephyrCache</h1>
    <p class="seen">
      cluster <b>${views.cluster}</b>, as <b>${views.node}</b> sees it
      ${self?.info ? quiet(`· ${self.http} · ${self.info.version}`) : nothing}
    </p>
    <p class="state ${level}"><span class="dot" aria-hidden="true"></span>${chosen.isPaused ? "paused" : state}</p>
    <button type="button" aria-pressed=${String(chosen.isPaused)} @click=${togglePause}>
      ${chosen.isPaused ? "Go on" : "Pause"}
    </button>
  </header>`;
}

function linkState() {
  if (link.lostSinceS !== null) return ["lost", "no answer"];
  return link.isFollowing ? ["calm", "live"] : ["watch", "asking each second"];
}

function togglePause() {
  chosen.isPaused = !chosen.isPaused;
  draw();
}

document.addEventListener("visibilitychange", () => (document.hidden ? link.stop() : link.start()));
setInterval(draw, TICK_MS);
if (!document.hidden) link.start();
draw();
