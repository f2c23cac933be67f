// The threshold: η is dragged by mouse or finger, or moved by keys; the figures at it are shown at once.
"use strict";

(() => {
  const slider = document.getElementById("eta");
  if (!slider) return;
  const chart = slider.ownerSVGElement;
  const plot = chart.querySelector(".plot");
  const points = JSON.parse(plot.dataset.points); // [η, precision, recall, no evidence]
  const own = Number(plot.dataset.own);
  const left = Number(plot.getAttribute("x"));
  const width = Number(plot.getAttribute("width"));
  const value = document.getElementById("eta-value");
  const reset = document.getElementById("eta-reset");
  const figures = [...document.querySelectorAll("[data-figure]")];
  const names = ["precision", "recall", "no evidence"];
  const STEP = 0.005;
  let eta = own;

  document.querySelectorAll(".scripted").forEach((element) => { element.hidden = false; });

  // Two shares as the server writes them.
  const told = (share) => share === null ? "–" : share === 0 || share === 1 ? `${100 * share} %` : `${(100 * share).toFixed(1)} %`;

  function set(next) {
    eta = Math.min(1, Math.max(0, next));
    // The figures of the nearest point, as the server's.
    const point = points.reduce((best, one) => Math.abs(one[0] - eta) < Math.abs(best[0] - eta) ? one : best);
    slider.setAttribute("transform", `translate(${(left + eta * width).toFixed(2)} 0)`);
    slider.setAttribute("aria-valuenow", eta.toFixed(3));
    slider.setAttribute("aria-valuetext", `${eta.toFixed(3)}: ${names.map((name, index) => `${name} ${told(point[index + 1])}`).join(", ")}`);
    value.textContent = eta.toFixed(3);
    figures.forEach((figure) => { figure.textContent = told(point[Number(figure.dataset.figure)]); });
    reset.hidden = Math.abs(eta - own) < 1e-9;
  }

  function at(event) {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    return Math.round((x - left) / width / STEP) * STEP;
  }

  let dragging = null;
  for (const handle of [slider, plot]) {
    handle.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      dragging = event.pointerId;
      handle.setPointerCapture(event.pointerId);
      slider.focus({ preventScroll: true });
      set(at(event));
    });
    handle.addEventListener("pointermove", (event) => { if (dragging === event.pointerId) set(at(event)); });
    for (const end of ["pointerup", "pointercancel"]) handle.addEventListener(end, () => { dragging = null; });
  }

  slider.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const to = {
      ArrowLeft: eta - STEP, ArrowDown: eta - STEP, ArrowRight: eta + STEP, ArrowUp: eta + STEP,
      PageDown: eta - 10 * STEP, PageUp: eta + 10 * STEP, Home: 0, End: 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    set(Math.round(to / STEP) * STEP);
  });
  reset.addEventListener("click", () => { set(own); slider.focus({ preventScroll: true }); });
  set(own);
})();
