// Review by keyboard and by mouse: joins the server, the outbox, the cases and the keys, each of which has its own file.
// Each decision is shown at once and sent in the background.
"use strict";

(() => {
  const root = document.getElementById("review");
  if (!root) return;
  const RENEW_MS = 30000;
  const PROGRESS_MS = 5000;

  const server = new ReviewServer(root.dataset);
  const outbox = new ReviewOutbox(server, root, { saved, refused, emptied });
  const queue = new ReviewQueue(server, root, { report: (sentence) => outbox.report(sentence, ""), ended });
  const history = []; // { item, opinion } that `u` undoes, the newest last
  let progressAt = Date.now();

  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });

  // Decisions

  function decide(item, verdict) {
    const sentence = item.objection(verdict);
    item.say(sentence);
    if (sentence) return;
    const save_id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    const { job, question_no, version, marks } = item;
    item.take({ verdict, save_id });
    history.push({ item, opinion: item.opinion });
    count(1);
    queue.next();
    outbox.add({ kind: "save", item, fields: { job, question_no, version, save_id, verdict, ...marks } });
  }

  function undo() {
    const last = history.pop();
    if (!last) return queue.current?.say("Nothing to undo since this page was opened.");
    const { item, opinion } = last;
    count(-1);
    item.forget();
    if (!outbox.withdraw(opinion.save_id)) outbox.add({ kind: "undo", item, fields: { save_id: opinion.save_id } });
    queue.goTo(item);
  }

  // The first number of the progress, until the server tells it again.
  function count(step) {
    const mine = document.getElementById("mine-today");
    if (mine) mine.textContent = String(Math.max(0, Number(mine.textContent.replaceAll(",", "")) + step));
  }

  // What the outbox tells

  function saved(entry, answer) {
    entry.item?.saved(answer, entry.kind === "save" ? entry.fields.save_id : null);
  }

  function refused(entry) {
    const index = history.findIndex((said) => said.opinion.save_id === entry.fields.save_id);
    if (entry.kind === "save" && index >= 0) history.splice(index, 1);
    entry.item?.refused(entry.kind, entry.fields.save_id);
  }

  // At the end, or after a while of quick work: whether the labels are enough for a training is to be seen at once.
  function emptied() {
    if (queue.isAtEnd || Date.now() - progressAt > PROGRESS_MS) showProgress();
  }

  // What the queue tells: the last reviews may be saved before it is known that they are the last.
  function ended() {
    if (history.length && !outbox.unsent) showProgress();
  }

  // Forms and keys

  document.getElementById("case").addEventListener("submit", (event) => {
    const item = queue.current;
    if (!item || event.target !== item.element) return;
    event.preventDefault();
    decide(item, event.submitter?.value ?? "wrong");
  });
  document.querySelector(".undo-form")?.addEventListener("submit", (event) => {
    if (!history.length) return; // of an earlier visit: the server knows it
    event.preventDefault();
    undo();
  });
  new ReviewKeys(queue, { decide, undo });

  // Progress, leases, and leaving

  async function showProgress() {
    progressAt = Date.now();
    const html = await server.progress();
    const line = document.getElementById("review-progress");
    if (html !== null && !outbox.unsent && !line.matches(":focus-within")) line.innerHTML = html;
  }

  setInterval(() => {
    if (!document.hidden && !outbox.unsent) showProgress();
  }, RENEW_MS / 2);

  setInterval(async () => {
    const keys = queue.held;
    if (!keys.length) return;
    try {
      const { held } = await server.post("renew", { held: keys });
      queue.lose(keys.filter((key) => !held.includes(key)));
    } catch { /* the next time; a save is checked anyway */ }
  }, RENEW_MS);

  window.addEventListener("pagehide", () => server.release());

  queue.begin();
  outbox.resume();
})();
