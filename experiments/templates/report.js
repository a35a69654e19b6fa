for (const chart of document.querySelectorAll(".chart")) {
  const { names, points, left, right, last } = JSON.parse(chart.querySelector("script").textContent);
  const svg = chart.querySelector("svg"), cursor = chart.querySelector(".cursor"), tip = chart.querySelector(".tip");
  const show = (on) => { cursor.style.visibility = tip.style.visibility = on ? "visible" : "hidden"; };
  svg.addEventListener("pointerleave", () => show(false));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), width = svg.viewBox.baseVal.width;
    const at = ((event.clientX - box.left) / box.width * width - left) / (right - left) * last;
    const nearest = points.map((line) => line.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    const update = nearest.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)[0];
    const x = left + update / last * (right - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    tip.textContent = nearest.map(([u, v], i) => `${names[i]} ${Number(v.toPrecision(6))}  (update ${u})`).join("\n");
    tip.style.left = x / width < 0.5 ? `${x / width * 100 + 1.5}%` : "auto";
    tip.style.right = x / width < 0.5 ? "auto" : `${101.5 - x / width * 100}%`;
    show(true);
  });
}
