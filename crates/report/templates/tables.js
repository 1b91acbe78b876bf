"use strict";
(() => {
  // A click on a head sorts by its column: numbers by their value, words by their letters, empty cells last.
  for (const table of document.querySelectorAll(".sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const key = cell => {
      const data = cell.querySelector("data");
      const text = cell.dataset.sort ?? data?.value ?? cell.textContent.trim();
      const number = data || cell.dataset.sort ? Number(text) : NaN;
      return { empty: text === "—" || text === "", number, text };
    };
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map(row => ({ row, key: key(row.cells[column]) }));
        rows.sort((a, b) => {
          if (a.key.empty !== b.key.empty) return a.key.empty ? 1 : -1;
          const order = isNaN(a.key.number) || isNaN(b.key.number) ? a.key.text.localeCompare(b.key.text, "en", { numeric: true }) : a.key.number - b.key.number;
          return up ? order : -order;
        });
        table.tBodies[0].append(...rows.map(({ row }) => row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
    });
  }

  const data = JSON.parse(document.getElementById("trend-data").textContent);
  const group = document.getElementById("trend-group"), metric = document.getElementById("trend-metric");
  const place = document.getElementById("trend-chart");
  if (!data.trends.length) {
    document.getElementById("no-trends").hidden = false;
    document.querySelector("#trends .chooser").hidden = true;
    return;
  }
  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = value => value == null ? "—" : Number(value.toPrecision(4)).toLocaleString("en");
  data.trends.forEach((trend, index) => group.append(new Option(trend.name, index)));
  data.metrics.forEach((name, index) => metric.append(new Option(name, index)));
  let chart;
  const draw = () => {
    chart?.destroy();
    const trend = data.trends[group.value], grid = { stroke: color("--rule"), width: 1 };
    const times = trend.began_at.map(at => Date.parse(at) / 1000);
    const axis = { stroke: color("--soft"), grid, ticks: grid, font: "12px system-ui" };
    chart = new uPlot({
      width: Math.max(280, place.clientWidth),
      height: 280,
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [axis, { ...axis, size: 66, values: (_, splits) => splits.map(number) }],
      series: [{}, { label: data.metrics[metric.value], stroke: color("--accent"), width: 2, points: { show: true, size: 7 }, value: (_, value) => number(value) }],
    }, [times, trend.values[metric.value]], place);
  };
  group.addEventListener("change", draw);
  metric.addEventListener("change", draw);
  addEventListener("resize", () => chart?.setSize({ width: Math.max(280, place.clientWidth), height: 280 }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
