// What a pointer or the arrow keys show over a chart; the page says all the rest without it.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);

  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[1] - x) < Math.abs(a[1] - x) ? b : a));

  for (const svg of document.querySelectorAll("svg[data-lines]")) {
    const lines = JSON.parse(svg.dataset.lines);
    const pointer = svg.querySelector(".pointer");
    const spots = svg.querySelectorAll(".spot");
    const steps = [...new Set(lines.flatMap((line) => line[2].map((point) => point[1])))].sort((a, b) => a - b);
    let at = steps.length - 1;

    const show = (x, clientX, clientY) => {
      const under = lines.map((line) => nearest(line[2], x));
      const first = under.reduce((a, b) => (Math.abs(b[1] - x) < Math.abs(a[1] - x) ? b : a));
      pointer.setAttribute("x1", first[1]);
      pointer.setAttribute("x2", first[1]);
      pointer.style.visibility = "visible";
      tip.replaceChildren();
      const head = document.createElement("div");
      head.textContent = `step ${first[0].toLocaleString("en")}`;
      tip.append(head);
      under.forEach((point, i) => {
        const near = Math.abs(point[1] - first[1]) < 12;
        spots[i].style.visibility = near ? "visible" : "hidden";
        if (!near) return;
        spots[i].setAttribute("cx", point[1]);
        spots[i].setAttribute("cy", point[2]);
        const row = document.createElement("div");
        const name = document.createElement("span");
        name.className = lines[i][1];
        name.textContent = `● ${lines[i][0]} `;
        const value = document.createElement("b");
        value.textContent = point[3];
        row.append(name, value);
        tip.append(row);
      });
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      const left = clientX + 14 + box.width > innerWidth ? clientX - 14 - box.width : clientX + 14;
      const top = clientY + 14 + box.height > innerHeight ? clientY - 14 - box.height : clientY + 14;
      tip.style.left = `${Math.max(4, left)}px`;
      tip.style.top = `${Math.max(4, top)}px`;
    };
    const hide = () => {
      tip.hidden = true;
      pointer.style.visibility = "hidden";
      spots.forEach((spot) => (spot.style.visibility = "hidden"));
    };
    const scale = () => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;

    svg.addEventListener("pointermove", (event) =>
      show((event.clientX - svg.getBoundingClientRect().left) / scale(), event.clientX, event.clientY),
    );
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return event.key === "Escape" && hide();
      event.preventDefault();
      at = Math.min(Math.max(at + move, 0), steps.length - 1);
      const box = svg.getBoundingClientRect();
      show(steps[at], box.left + steps[at] * scale(), box.top + 20);
    });
  }
})();
