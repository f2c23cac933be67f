// One noisy case on the page: its pictures, what is marked, and what is said of it.
"use strict";

class ReviewCase {
  static #SAID = { right: "saved as right", wrong: "saved as wrong", dismiss: "dismissed" };

  opinion = null; // { verdict, save_id }, once it is said
  #wasWarned = false;

  // `again`: it was asked for by its number, and says nothing about how far the queue is.
  constructor(element, { key, job, question_no, version, again = false }) {
    Object.assign(this, { element, key, job, question_no, version, again });
    element.querySelectorAll(".scripted").forEach((part) => { part.hidden = false; });
  }

  static ofHtml(html, named) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    return new ReviewCase(holder.content.firstElementChild, named);
  }

  // Pictures

  get #pictures() {
    return [...this.element.querySelectorAll(".candidate")].filter((picture) => picture.checkVisibility());
  }

  get #focused() {
    const inside = document.activeElement?.closest?.(".candidate");
    const pictures = this.#pictures;
    if (inside && this.element.contains(inside)) return inside;
    return pictures.find((picture) => picture.classList.contains("at")) ?? pictures[0];
  }

  // Those that are shown at first.
  get images() {
    return this.element.querySelectorAll(".candidates > .candidate img");
  }

  focusFirst() {
    (this.#pictures[0] ?? this.element.querySelector("h2")).focus({ preventScroll: true });
  }

  focusAgain() {
    (this.#focused ?? this.element.querySelector("h2")).focus({ preventScroll: true });
  }

  focusAnswer() {
    this.element.elements.answer.focus();
  }

  move(step) {
    const pictures = this.#pictures;
    const next = pictures[pictures.indexOf(this.#focused) + step];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  judge(isRelevant) {
    const picture = this.#focused;
    if (!picture) return;
    const [yes, no] = picture.querySelectorAll("input");
    yes.checked = isRelevant;
    no.checked = !isRelevant;
    this.move(1);
  }

  // Opinions

  get marks() {
    const data = new FormData(this.element);
    return {
      relevant: data.getAll("relevant[]"),
      irrelevant: data.getAll("irrelevant[]"),
      answer: String(data.get("answer")).trim(),
    };
  }

  // Why this verdict is not saved, as a sentence; an empty one: nothing speaks against it.
  objection(verdict) {
    const { answer, relevant, irrelevant } = this.marks;
    if (verdict === "right" && answer) {
      return "You wrote another answer, so this one is wrong: press x, or clear what you wrote.";
    }
    if (verdict === "right" && this.element.dataset.outcome === "no_evidence" && relevant.length) {
      return "You called a picture relevant, so “no evidence” is wrong: press x.";
    }
    if (verdict === "wrong" && !(answer || relevant.length || irrelevant.length) && !this.#wasWarned) {
      this.#wasWarned = true;
      return "Say what is right: y or n for the pictures, or e and the answer. Press x again to leave it at wrong.";
    }
    return "";
  }

  say(sentence) {
    this.element.querySelector(".say").textContent = sentence;
  }

  take(opinion) {
    this.opinion = opinion;
    this.mark(ReviewCase.#SAID[opinion.verdict]);
  }

  forget() {
    this.opinion = null;
    this.#wasWarned = false;
    this.mark("undone");
  }

  // The server has stored this opinion, or undone it.
  saved({ version, state }, saveId) {
    this.version = version;
    this.element.dataset.version = version;
    if (this.opinion?.save_id !== saveId) return;
    const said = ReviewCase.#SAID[this.opinion.verdict];
    this.mark(state === "open" ? `${said}; it stays open` : said);
  }

  refused(kind, saveId) {
    this.mark(kind === "save" ? "not saved" : "not undone", true);
    if (kind === "save" && this.opinion?.save_id === saveId) this.opinion = null;
  }

  mark(text, isBad = false) {
    const state = this.element.querySelector(".state");
    state.textContent = text ? ` · ${text}` : "";
    state.classList.toggle("bad", isBad);
  }
}
