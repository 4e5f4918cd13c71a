// Choosing a class (list or click on a point) lights it up in every map of its group. The page works without.
for (const maps of document.querySelectorAll(".maps")) {
  const list = maps.querySelector("select");
  const show = (label) => {
    maps.classList.toggle("chosen", label !== "");
    for (const mark of maps.querySelectorAll("[data-class]")) {
      mark.classList.toggle("lit", mark.dataset.class === label);
    }
    if (list) list.value = label;
  };
  if (list) list.addEventListener("change", () => show(list.value));
  maps.addEventListener("click", (event) => {
    const point = event.target.closest(".p");
    if (point) show(maps.classList.contains("chosen") && point.classList.contains("lit") ? "" : point.dataset.class);
  });
}
