// The cases of this tab, one of which is shown. The next ones and their pictures are loaded ahead.
"use strict";

class ReviewQueue {
  static #LOW = 6; // cases ahead, below which further ones are fetched
  static #PRELOADED = 6; // cases ahead whose pictures are loaded
  static #MOST_IMAGES = 400;
  static #AGAIN_MS = 3000;

  #server;
  #root;
  #told; // what is called: report(sentence) when the server refuses further cases, ended() when no case is left
  #holder = document.getElementById("case");
  #cases = [];
  #at = -1;
  #isDone = false; // the server has no further case
  #isWaiting = false; // for the next cases, at the end of those that are there
  #fetching = null;
  #images = new Map(); // by address, so that what is loaded ahead stays

  constructor(server, root, told) {
    this.#server = server;
    this.#root = root;
    this.#told = told;
    document.addEventListener("focusin", (event) => {
      const picture = event.target.closest?.(".candidate");
      if (!picture) return;
      root.querySelectorAll(".candidate.at").forEach((other) => other.classList.remove("at"));
      picture.classList.add("at");
    });
    // One box of a picture excludes the other.
    this.#holder.addEventListener("change", (event) => {
      const picture = event.target.closest(".candidate");
      if (!picture || !event.target.checked) return;
      for (const box of picture.querySelectorAll("input")) if (box !== event.target) box.checked = false;
    });
  }

  get current() {
    return this.#cases[this.#at];
  }

  get isAtEnd() {
    return this.#isDone && this.#at >= this.#cases.length;
  }

  // The case that the server has sent with the page is the first.
  begin() {
    const sent = this.#holder.querySelector("form.case");
    if (!sent) return this.#show(0, { focus: false });
    const [job, question_no] = sent.dataset.key.split("-").map(Number);
    const again = location.search.includes("case=");
    const { key, version } = sent.dataset;
    this.#cases.push(new ReviewCase(sent, { key, job, question_no, version: Number(version), again }));
    this.#show(0, { focus: document.activeElement === document.body });
  }

  next() {
    this.#show(Math.min(this.#at + 1, this.#cases.length));
  }

  before() {
    this.#show(this.#at - 1);
  }

  goTo(item) {
    const index = this.#cases.indexOf(item);
    this.#show(index >= 0 ? index : this.#at);
  }

  // The keys of the cases that are open here.
  get held() {
    return this.#cases.slice(Math.max(0, this.#at - 1)).filter((item) => !item.opinion).map((item) => item.key);
  }

  // Leave out the cases ahead that another reviewer has opened.
  lose(keys) {
    const lost = this.#cases.slice(this.#at + 1).filter((item) => !item.opinion && keys.includes(item.key));
    for (const item of lost) this.#cases.splice(this.#cases.indexOf(item), 1);
  }

  #show(index, { focus = true } = {}) {
    this.#at = Math.max(0, index);
    const item = this.current;
    this.#isWaiting = !item && !this.#isDone;
    if (item) {
      this.#holder.replaceChildren(item.element);
      if (focus) item.focusFirst();
      window.scrollTo({ top: Math.min(window.scrollY, this.#root.offsetTop - 8) });
    } else if (this.#isDone) {
      this.#holder.replaceChildren(document.getElementById("no-case").content.cloneNode(true));
      if (focus) this.#holder.querySelector("section").focus({ preventScroll: true });
    } else {
      const line = document.createElement("p");
      line.className = "empty";
      line.textContent = "The next cases are on their way…";
      this.#holder.replaceChildren(line);
    }
    this.#preload();
    if (this.#cases.length - this.#at < ReviewQueue.#LOW) this.#fetchAhead();
    this.#tell();
  }

  #fetchAhead() {
    if (this.#fetching || this.#isDone) return;
    const last = this.#cases.findLast((item) => !item.again);
    const after = last ? { after_job: last.job, after_no: last.question_no } : {};
    const { reason, job, model, second } = this.#root.dataset;
    this.#fetching = this.#server.post("next", { ...after, reason, job, model, second }).then((answer) => {
      if (!answer.cases.length) this.#isDone = true;
      for (const { html, ...named } of answer.cases) {
        if (!this.#cases.some((item) => item.key === named.key)) this.#cases.push(ReviewCase.ofHtml(html, named));
      }
      this.#preload();
    }).catch((error) => {
      if (error instanceof ReviewRefused) {
        this.#isDone = true;
        this.#told.report(error.message);
      } else setTimeout(() => this.#fetchAhead(), ReviewQueue.#AGAIN_MS);
    }).finally(() => {
      this.#fetching = null;
      if (this.#isWaiting) this.#show(this.#at);
      this.#tell();
      if (this.isAtEnd) this.#told.ended();
    });
  }

  #preload() {
    const at = Math.max(this.#at, 0);
    for (const item of this.#cases.slice(at, at + 1 + ReviewQueue.#PRELOADED)) {
      for (const image of item.images) {
        if (this.#images.has(image.src)) continue;
        const ahead = new Image();
        ahead.src = image.src;
        this.#images.set(image.src, ahead);
      }
    }
    if (this.#images.size <= ReviewQueue.#MOST_IMAGES) return;
    for (const address of [...this.#images.keys()].slice(0, ReviewQueue.#MOST_IMAGES / 2)) this.#images.delete(address);
  }

  #tell() {
    this.#root.dataset.at = this.#at;
    this.#root.dataset.ahead = Math.max(0, this.#cases.length - this.#at);
  }
}
