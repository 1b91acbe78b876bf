"use strict";
(() => {
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const data = read("explore-data");
  const what = document.getElementById("explore-what");
  const place = document.getElementById("explore-chart");
  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const sideColor = side => color(side === 0 ? "--b" : "--accent");
  const number = value => value == null ? "—" : Number(value.toPrecision(4)).toLocaleString("en");

  // Each choice: a label and a function that gives uPlot its series, scales and columns.
  const choices = [];
  for (const metric of data.metrics) {
    choices.push({
      group: "Over the load",
      label: metric.name,
      x: "clients",
      y: metric.unit,
      logX: metric.loads.length > 1 && metric.loads.at(-1) / metric.loads[0] >= 8,
      points: true,
      columns: () => [metric.loads, ...metric.values],
      names: data.sides,
      colors: [0, 1],
    });
  }
  for (const kind of data.distributions) for (const load of kind.loads) {
    choices.push({
      group: "Distribution of " + kind.name,
      label: kind.name + ", " + load.name,
      x: "ms",
      y: "share below",
      logX: true,
      columns: () => joined(load.quantiles),
      names: data.sides,
      colors: [0, 1],
    });
  }
  for (const course of data.courses) {
    choices.push({
      group: "Course over time",
      label: course.name,
      x: "s",
      y: "tok/s",
      columns: () => [course.tokens_per_s.map((_, index) => index * course.step_s), course.tokens_per_s],
      names: ["output tokens per second"],
      colors: [data.sides.indexOf(data.sides.find(name => course.name.startsWith(name + " ("))) === 0 ? 0 : 1],
    });
  }

  // Quantiles of both sides on one axis of values.
  function joined(sides) {
    const curves = sides.map(quantiles => quantiles && [quantiles.map(value => Math.max(value, 0.01)), quantiles.map((_, index) => index / (quantiles.length - 1))]);
    const present = curves.map(curve => curve || [[], []]);
    return uPlot.join(present.map(([x, y]) => { const at = new Map(); x.forEach((value, index) => at.set(value, y[index])); return [[...at.keys()], [...at.values()]]; }));
  }

  let chart;
  function draw() {
    chart?.destroy();
    place.textContent = "";
    const choice = choices[what.value];
    if (!choice) return;
    const ink = color("--soft"), grid = { stroke: color("--rule"), width: 1 };
    const axis = (label, more) => ({ label, stroke: ink, grid, ticks: grid, font: "12px system-ui", labelFont: "12px system-ui", values: (_, splits) => splits.map(value => value == null ? "" : number(value)), ...more });
    chart = new uPlot({
      width: Math.max(280, place.clientWidth),
      height: 340,
      scales: { x: { time: false, distr: choice.logX ? 3 : 1 }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.05 : 1] } },
      axes: [axis(choice.x, choice.points && choice.logX ? { splits: () => choice.columns()[0], filter: (_, splits) => splits } : {}), axis(choice.y, { size: 66 })],
      series: [{ label: choice.x, value: (_, value) => number(value) }, ...choice.names.map((label, index) => ({
        label, stroke: sideColor(choice.colors[index]), width: 2, spanGaps: true, points: { show: !!choice.points, size: 7 }, value: (_, value) => number(value),
      }))],
    }, choice.columns(), place);
  }

  const groups = new Map();
  choices.forEach((choice, index) => {
    if (!groups.has(choice.group)) {
      const group = document.createElement("optgroup");
      group.label = choice.group;
      what.append(group);
      groups.set(choice.group, group);
    }
    groups.get(choice.group).append(new Option(choice.label, index));
  });
  what.addEventListener("change", draw);
  addEventListener("resize", () => chart?.setSize({ width: Math.max(280, place.clientWidth), height: 340 }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();

  for (const button of document.querySelectorAll(".save")) {
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([JSON.stringify(read("raw-" + button.dataset.file), null, 2)], { type: "application/json" }));
      link.download = button.dataset.file + ".json";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
  // A printed page has no summaries to open.
  addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach(details => { details.open = true; }));
})();
