// The keys of the review. They are off while somebody types, and can be turned off.
"use strict";

class ReviewKeys {
  static #STORE = "ragllava-review-keys";
  static #NOT_REPEATED = "axdu"; // a key that is held down does these once

  #help = document.getElementById("keys");
  #areOn = document.getElementById("keys-on");
  #queue;
  #does; // { decide(item, verdict), undo() }

  constructor(queue, does) {
    this.#queue = queue;
    this.#does = does;
    this.#areOn.checked = localStorage.getItem(ReviewKeys.#STORE) !== "off";
    this.#areOn.addEventListener("change", () => {
      localStorage.setItem(ReviewKeys.#STORE, this.#areOn.checked ? "on" : "off");
    });
    document.getElementById("keys-button").addEventListener("click", () => this.#help.showModal());
    document.addEventListener("keydown", (event) => this.#press(event));
  }

  #press(event) {
    const target = event.target instanceof Element ? event.target : document.body;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || this.#help.open) return;
    if (ReviewKeys.#isTyping(target)) return this.#type(event, target);
    if (!this.#areOn.checked) return;
    const action = this.#actions()[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || (event.repeat && ReviewKeys.#NOT_REPEATED.includes(event.key))) return;
    event.preventDefault();
    action();
  }

  #type(event, target) {
    const item = this.#queue.current;
    if (target.name !== "answer" || !item || !["Escape", "Enter"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") item.focusAgain();
    else this.#does.decide(item, "wrong");
  }

  #actions() {
    const item = this.#queue.current;
    const next = () => this.#queue.next(), before = () => this.#queue.before();
    const always = { "?": () => this.#help.showModal(), u: this.#does.undo, ArrowRight: next, j: next, ArrowLeft: before, k: before };
    if (!item) return always;
    return {
      ...always,
      y: () => item.judge(true),
      n: () => item.judge(false),
      ArrowDown: () => item.move(1),
      ArrowUp: () => item.move(-1),
      a: () => this.#does.decide(item, "right"),
      x: () => this.#does.decide(item, "wrong"),
      d: () => this.#does.decide(item, "dismiss"),
      e: () => item.focusAnswer(),
    };
  }

  static #isTyping(element) {
    return element.isContentEditable || element.matches("textarea, select, input:not([type=checkbox], [type=radio], [type=button])");
  }
}
