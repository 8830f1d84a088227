/** Small pieces that several parts of the page are made of. */

import { html } from "./vendor/lit-html.js";

/** A member's name beside its colour. */
export function named(id, known) {
  return html`<span class="swatch ${known.colourOf(id)}" aria-hidden="true"></span><span class="id">${id}</span>`;
}

/** Words for those who listen to the page, where others see a sign. */
export function spoken(text) {
  return html`<span class="spoken-only">${text}</span>`;
}

/** A sign for those who see the page, and the word that it stands for. */
export function sign(letter, word, kind) {
  return html`<span class="mark ${kind}" title=${word}><span aria-hidden="true">${letter}</span>${spoken(word)}</span>`;
}

export function quiet(text) {
  return html`<span class="quiet">${text}</span>`;
}

/** A head of a table's column; `kind` says how it is set. */
export function head(text, kind = "") {
  return html`<th scope="col" class=${kind}>${text}</th>`;
}

/** A term and what is to be said of it. */
export function fact(term, text, kind = "") {
  return html`<div class=${kind}>
    <dt>${term}</dt>
    <dd>${text}</dd>
  </div>`;
}
