"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const views = new Map();

  async function draw(box) {
    const name = box.dataset.chart;
    views.get(box)?.finalize();
    views.set(box, undefined);
    try {
      const view = await vegaEmbed(box, page.specs[name], {
        // The interpreter needs no eval, so the page's policy can forbid it.
        ast: true,
        renderer: "svg",
        config: dark.matches ? page.dark : page.light,
        actions: { export: true, source: false, compiled: false, editor: false },
        downloadFileName: name,
        tooltip: { theme: dark.matches ? "dark" : "light" },
      });
      views.set(box, view);
      box.dataset.drawn = "yes";
    } catch (error) {
      box.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(name, error);
    }
  }

  // A chart takes its width from its box, and a box in closed details has none: draw it when it is opened.
  function drawOpen(root) {
    for (const box of root.querySelectorAll(".chart")) {
      if (!views.has(box) && !box.closest("details:not([open])")) draw(box);
    }
  }

  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => drawOpen(details));
  }
  dark.addEventListener("change", () => { for (const box of [...views.keys()]) draw(box); });
  drawOpen(document);
})();
