// Review by keyboard. Each decision is shown at once and sent in the background, one after another; what is not sent yet
// is kept in this browser and sent again after a failure; leaving the page then asks first.
"use strict";

(() => {
  const root = document.getElementById("review");
  if (!root) return;
  const { archive, tab, owner, csrf } = root.dataset;
  const place = document.getElementById("case");
  const outboxLine = document.getElementById("outbox");
  const STORE = "ragllava-review-outbox";
  const LOW = 6; // cases ahead, below which further ones are fetched
  const PRELOADED = 6; // cases ahead whose pictures are loaded
  const RENEW_MS = 30000;
  const PROGRESS_MS = 5000;
  const RETRY_MS = [1000, 2000, 4000, 8000, 15000];

  const cases = []; // { key, job, question_no, version, element, opinion }
  let at = -1;
  let done = false; // the queue has no further case
  let fetching = null;
  const history = []; // saved cases that `u` undoes, the newest last

  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });

  // Requests

  class Refused extends Error {}
  class Retry extends Error {}

  async function post(path, fields) {
    const body = new URLSearchParams();
    for (const [name, value] of Object.entries({ archive, tab, ...fields })) {
      for (const item of Array.isArray(value) ? value : [value]) {
        if (item !== null && item !== undefined && item !== "") body.append(Array.isArray(value) ? `${name}[]` : name, item);
      }
    }
    const headers = { accept: "application/json", "hx-request": "true", "x-csrf-token": csrf };
    let response;
    try {
      response = await fetch(`/console/review/${path}`, { method: "POST", body, headers });
    } catch {
      throw new Retry("The server cannot be reached.");
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    if (response.status === 401) throw new Retry("You are signed out. Sign in again in another tab.");
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const sentence = page.getElementById("problem")?.textContent ?? `The server answered ${response.status}.`;
    if (response.status >= 500 || response.status === 429 || response.status === 408) throw new Retry(sentence);
    throw new Refused(sentence);
  }

  // The outbox: what is to be sent, in this order

  const outbox = []; // { kind: "save" | "undo", item, fields }
  const problems = [];
  let sending = false;
  let failures = 0;
  let waiting = "";

  const stored = () => {
    try {
      return JSON.parse(localStorage.getItem(STORE) ?? "[]");
    } catch {
      return [];
    }
  };
  function keep() {
    const others = stored().filter((entry) => entry.tab !== tab);
    const mine = outbox.filter((entry) => entry.kind === "save").map((entry) => ({ owner, archive, tab, fields: fieldsOf(entry) }));
    try {
      if (others.length + mine.length) localStorage.setItem(STORE, JSON.stringify([...others, ...mine]));
      else localStorage.removeItem(STORE);
    } catch { /* without storage, the warning before leaving is what is left */ }
  }

  const fieldsOf = (entry) => entry.kind === "save" ? { ...entry.fields, version: entry.item?.version ?? entry.fields.version } : entry.fields;

  function enqueue(entry) {
    outbox.push(entry);
    keep();
    showOutbox();
    send();
  }

  async function send() {
    if (sending) return;
    sending = true;
    while (outbox.length) {
      const entry = outbox[0];
      showOutbox();
      try {
        const answer = await post(entry.kind, fieldsOf(entry));
        failures = 0;
        waiting = "";
        outbox.shift();
        succeeded(entry, answer);
      } catch (error) {
        if (error instanceof Retry) {
          waiting = error.message;
          showOutbox();
          await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]));
          continue;
        }
        outbox.shift();
        refused(entry, error);
      }
      keep();
    }
    sending = false;
    showOutbox();
    // At the end, or after a while of quick work: whether the labels are enough for a training is to be seen at once.
    if ((done && at >= cases.length) || Date.now() - progressAt > PROGRESS_MS) showProgress();
  }

  function succeeded(entry, answer) {
    if (!entry.item) return;
    entry.item.version = answer.version;
    entry.item.element.dataset.version = answer.version;
    if (entry.kind === "save" && entry.item.opinion?.save_id === entry.fields.save_id) {
      mark(entry.item, answer.state === "open" ? `${told(entry.item.opinion)}; it stays open` : told(entry.item.opinion));
    }
  }

  function refused(entry, error) {
    const item = entry.item;
    const key = item?.key ?? `${entry.fields.job}-${entry.fields.question_no}`;
    problems.push({ sentence: error.message, key });
    const index = history.findIndex((old) => old.opinion.save_id === entry.fields.save_id);
    if (entry.kind === "save" && index >= 0) history.splice(index, 1);
    if (item) {
      mark(item, entry.kind === "save" ? "not saved" : "not undone", true);
      if (entry.kind === "save" && item.opinion?.save_id === entry.fields.save_id) item.opinion = null;
    }
  }

  function showOutbox() {
    const parts = [];
    if (waiting && outbox.length) parts.push(line("notice bad", `${waiting} ${outbox.length} ${outbox.length === 1 ? "review waits" : "reviews wait"} and will be sent again.`));
    for (const problem of problems) {
      const notice = line("notice bad", `${problem.sentence} `);
      const link = document.createElement("a");
      link.href = `/console/review?archive=${encodeURIComponent(archive)}&case=${problem.key}`;
      link.textContent = "Open this case";
      const gone = document.createElement("button");
      gone.type = "button";
      gone.className = "plain";
      gone.textContent = "Close";
      gone.addEventListener("click", () => { problems.splice(problems.indexOf(problem), 1); showOutbox(); });
      notice.append(link, " ", gone);
      parts.push(notice);
    }
    outboxLine.replaceChildren(...parts);
    root.dataset.unsent = outbox.length;
  }

  function line(name, text) {
    const element = document.createElement("p");
    element.className = name;
    element.textContent = text;
    return element;
  }

  // What an earlier visit of this person has not sent: the ids of the saves make a repetition harmless.
  function resume() {
    const old = stored().filter((entry) => entry.owner === owner && entry.archive === archive && entry.tab !== tab);
    if (!old.length) return;
    const left = stored().filter((entry) => !old.some((one) => one.fields.save_id === entry.fields.save_id));
    localStorage.setItem(STORE, JSON.stringify(left));
    for (const entry of old) enqueue({ kind: "save", item: null, fields: { ...entry.fields, tab: entry.tab } });
  }

  // Cases

  function adopt(listed) {
    for (const one of listed) {
      if (cases.some((item) => item.key === one.key)) continue;
      const holder = document.createElement("template");
      holder.innerHTML = one.html;
      add({ ...one, element: holder.content.firstElementChild });
    }
  }

  function add(item, index = cases.length) {
    item.element.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });
    item.opinion = null;
    cases.splice(index, 0, item);
  }

  function fetchAhead() {
    if (fetching || done) return fetching;
    const last = cases.findLast((item) => !item.again);
    const after = last ? { after_job: last.job, after_no: last.question_no } : {};
    const { reason, job, model, second } = root.dataset;
    const asked = { ...after, reason, job, model, second };
    fetching = post("next", asked).then((answer) => {
      if (!answer.cases.length) done = true;
      adopt(answer.cases);
      preload();
    }).catch((error) => {
      if (error instanceof Refused) { problems.push({ sentence: error.message, key: "" }); done = true; showOutbox(); }
      else setTimeout(fetchAhead, 3000);
    }).finally(() => {
      fetching = null;
      if (isWaiting) show(at);
      tell();
    });
    return fetching;
  }

  const loaded = new Map(); // address → Image, so that what is loaded ahead stays
  function preload() {
    for (const item of cases.slice(Math.max(at, 0), at + 1 + PRELOADED)) {
      for (const image of item.element.querySelectorAll(".candidates > .candidate img")) {
        if (loaded.has(image.src)) continue;
        const ahead = new Image();
        ahead.src = image.src;
        loaded.set(image.src, ahead);
      }
    }
    if (loaded.size > 400) for (const address of [...loaded.keys()].slice(0, 200)) loaded.delete(address);
  }

  let isWaiting = false; // for the next cases, at the end of those that are there
  function tell() {
    root.dataset.at = at;
    root.dataset.ahead = Math.max(0, cases.length - at);
  }

  function show(index, { focus = true } = {}) {
    at = Math.max(0, index);
    const item = cases[at];
    isWaiting = !item && !done;
    if (item) {
      place.replaceChildren(item.element);
      if (focus) focusFirst(item);
      window.scrollTo({ top: Math.min(window.scrollY, root.offsetTop - 8) });
    } else if (done) {
      const end = document.getElementById("no-case").content.cloneNode(true);
      place.replaceChildren(end);
      if (focus) place.querySelector("section").focus({ preventScroll: true });
    } else {
      place.replaceChildren(line("empty", "The next cases are on their way…"));
    }
    preload();
    if (cases.length - at < LOW) fetchAhead();
    tell();
  }

  const pictures = (item) => [...item.element.querySelectorAll(".candidate")].filter((one) => one.checkVisibility());

  function focusFirst(item) {
    const first = pictures(item)[0] ?? item.element.querySelector("h2");
    first.focus({ preventScroll: true });
  }

  function focusedPicture(item) {
    const inside = document.activeElement?.closest?.(".candidate");
    return inside && item.element.contains(inside) ? inside : pictures(item).find((one) => one.classList.contains("at")) ?? pictures(item)[0];
  }

  document.addEventListener("focusin", (event) => {
    const picture = event.target.closest?.(".candidate");
    if (!picture) return;
    root.querySelectorAll(".candidate.at").forEach((one) => one.classList.remove("at"));
    picture.classList.add("at");
  });

  function movePicture(item, step) {
    const all = pictures(item);
    const next = all[all.indexOf(focusedPicture(item)) + step];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }

  function judge(item, picture, isRelevant) {
    if (!picture) return;
    const [yes, no] = picture.querySelectorAll("input");
    yes.checked = isRelevant;
    no.checked = !isRelevant;
    movePicture(item, 1);
  }

  // One box of a picture excludes the other.
  place.addEventListener("change", (event) => {
    const picture = event.target.closest(".candidate");
    if (!picture || !event.target.checked) return;
    for (const box of picture.querySelectorAll("input")) if (box !== event.target) box.checked = false;
  });

  // Decisions

  const told = (opinion) => ({ right: "saved as right", wrong: "saved as wrong", dismiss: "dismissed" })[opinion.verdict];

  function mark(item, text, isBad = false) {
    const state = item.element.querySelector(".state");
    state.textContent = text ? ` · ${text}` : "";
    state.classList.toggle("bad", isBad);
  }

  function say(item, text) {
    item.element.querySelector(".say").textContent = text;
  }

  function read(item) {
    const data = new FormData(item.element);
    return {
      relevant: data.getAll("relevant[]"),
      irrelevant: data.getAll("irrelevant[]"),
      answer: String(data.get("answer")).trim(),
    };
  }

  function decide(item, verdict) {
    const marks = read(item);
    const outcome = item.element.dataset.outcome;
    if (verdict === "right" && marks.answer) {
      return say(item, "You wrote another answer, so this one is wrong: press x, or clear what you wrote.");
    }
    if (verdict === "right" && outcome === "no_evidence" && marks.relevant.length) {
      return say(item, "You called a picture relevant, so “no evidence” is wrong: press x.");
    }
    const teaches = marks.answer || marks.relevant.length || marks.irrelevant.length;
    if (verdict === "wrong" && !teaches && item.warned !== "wrong") {
      item.warned = "wrong";
      return say(item, "Say what is right: y or n for the pictures, or e and the answer. Press x again to leave it at wrong.");
    }
    say(item, "");
    const save_id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    item.opinion = { verdict, save_id };
    mark(item, told(item.opinion));
    history.push({ item, opinion: item.opinion });
    count(1);
    const fields = { job: item.job, question_no: item.question_no, version: item.version, save_id, verdict, ...marks };
    show(at + 1);
    enqueue({ kind: "save", item, fields });
  }

  function undo() {
    const last = history.pop();
    if (!last) return place.querySelector("form") && say(cases[at], "Nothing to undo since this page was opened.");
    const { item, opinion } = last;
    count(-1);
    item.opinion = null;
    item.warned = null;
    mark(item, "undone");
    const index = outbox.findIndex((entry) => entry.fields.save_id === opinion.save_id);
    if (index > 0) { // not on its way yet
      outbox.splice(index, 1);
      keep();
    } else {
      enqueue({ kind: "undo", item, fields: { save_id: opinion.save_id } });
    }
    const there = cases.indexOf(item);
    show(there >= 0 ? there : at);
  }

  function count(step) {
    const mine = document.getElementById("mine-today");
    if (mine) mine.textContent = String(Math.max(0, Number(mine.textContent.replaceAll(",", "")) + step));
  }

  place.addEventListener("submit", (event) => {
    const item = cases[at];
    if (!item || event.target !== item.element) return;
    event.preventDefault();
    decide(item, event.submitter?.value ?? "wrong");
  });

  document.querySelector(".undo-form")?.addEventListener("submit", (event) => {
    if (!history.length) return; // of an earlier visit: the server knows it
    event.preventDefault();
    undo();
  });

  // Keys

  const help = document.getElementById("keys");
  const keysOn = document.getElementById("keys-on");
  keysOn.checked = localStorage.getItem("ragllava-review-keys") !== "off";
  keysOn.addEventListener("change", () => localStorage.setItem("ragllava-review-keys", keysOn.checked ? "on" : "off"));
  document.getElementById("keys-button").addEventListener("click", () => help.showModal());

  const isTyping = (element) =>
    element.isContentEditable || element.matches("textarea, select, input:not([type=checkbox], [type=radio], [type=button])");

  document.addEventListener("keydown", (event) => {
    const target = event.target instanceof Element ? event.target : document.body;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || help.open) return;
    const item = cases[at];
    if (isTyping(target)) {
      if (target.name !== "answer" || !item) return;
      if (event.key === "Escape") { event.preventDefault(); (focusedPicture(item) ?? item.element.querySelector("h2")).focus({ preventScroll: true }); }
      if (event.key === "Enter") { event.preventDefault(); decide(item, "wrong"); }
      return;
    }
    if (!keysOn.checked) return;
    const action = {
      "?": () => help.showModal(),
      u: undo,
      ArrowRight: () => show(Math.min(at + 1, cases.length)), j: () => show(Math.min(at + 1, cases.length)),
      ArrowLeft: () => show(at - 1), k: () => show(at - 1),
      ...(item && {
        y: () => judge(item, focusedPicture(item), true),
        n: () => judge(item, focusedPicture(item), false),
        ArrowDown: () => movePicture(item, 1),
        ArrowUp: () => movePicture(item, -1),
        a: () => decide(item, "right"),
        x: () => decide(item, "wrong"),
        d: () => decide(item, "dismiss"),
        e: () => item.element.elements.answer.focus(),
      }),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || (event.repeat && "axdu".includes(event.key))) return;
    event.preventDefault();
    action();
  });

  // Leases, and leaving

  const held = () => cases.slice(Math.max(0, at - 1)).filter((item) => !item.opinion).map((item) => item.key);

  setInterval(async () => {
    const keys = held();
    if (!keys.length) return;
    try {
      const { held: left } = await post("renew", { held: keys });
      for (const item of cases.slice(at + 1).filter((one) => !one.opinion && keys.includes(one.key) && !left.includes(one.key))) {
        cases.splice(cases.indexOf(item), 1); // another reviewer opened it
      }
    } catch { /* the next time; a save is checked anyway */ }
  }, RENEW_MS);

  let progressAt = Date.now();
  async function showProgress() {
    progressAt = Date.now();
    const query = new URLSearchParams({ archive, tab });
    const response = await fetch(`/console/review/progress?${query}`, { headers: { "hx-request": "true" } }).catch(() => null);
    const line = document.getElementById("review-progress");
    if (response?.ok && !outbox.length && !line.matches(":focus-within")) line.innerHTML = await response.text();
  }

  setInterval(() => {
    if (!document.hidden && !outbox.length) showProgress();
  }, RENEW_MS / 2);

  window.addEventListener("beforeunload", (event) => {
    if (outbox.length) event.preventDefault();
  });
  window.addEventListener("pagehide", () => {
    navigator.sendBeacon("/console/review/release", new URLSearchParams({ archive, tab, csrf }));
  });

  // The case that the server has sent is the first.
  const sent = place.querySelector("form.case");
  if (sent) {
    const [job, question_no] = sent.dataset.key.split("-").map(Number);
    add({ key: sent.dataset.key, job, question_no, version: Number(sent.dataset.version), element: sent, again: location.search.includes("case=") });
    show(0, { focus: document.activeElement === document.body });
  } else {
    show(0, { focus: false });
  }
  resume();
})();
