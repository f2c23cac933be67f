// What HTML and htmx do not do: questions before changes, no polling of hidden tabs, local times, file drops.
"use strict";

(() => {
  // A form or button with data-confirm asks first. Without scripts the change is made at once.
  document.addEventListener("submit", (event) => {
    const asked = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
    if (asked && !window.confirm(asked)) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, true);

  // Parts that fetch themselves again and again (data-poll) rest while nobody sees them.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.target.dataset.poll !== undefined) event.preventDefault();
  });

  // What a part could not be fetched for is over when it can be.
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful && event.target.dataset?.poll !== undefined) document.getElementById("problem")?.remove();
  });

  // A file that is dropped on [data-drop] is chosen in the file input inside it.
  const zoneOf = (event) => event.target instanceof Element ? event.target.closest("[data-drop]") : null;
  document.addEventListener("dragover", (event) => {
    const zone = zoneOf(event);
    if (!zone) return;
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => zoneOf(event)?.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    const zone = zoneOf(event);
    if (!zone) return;
    event.preventDefault();
    zone.classList.remove("over");
    const input = zone.querySelector("input[type=file]");
    if (!input || !event.dataTransfer?.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // What can be scrolled can be scrolled by keyboard, too.
  const reach = () => document.querySelectorAll(".scroll").forEach((part) => {
    if (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  });
  window.addEventListener("resize", reach);
  document.addEventListener("htmx:afterSettle", reach);
  reach();

  // The navigation is folded on narrow screens.
  const menu = document.querySelector("details.menu");
  const narrow = window.matchMedia("(max-width: 60rem)");
  const fold = () => { if (menu) menu.open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
})();
