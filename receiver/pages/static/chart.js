"use strict";

// Draws [[seconds since 1970], [delivered], [failed], [other]] as stacked areas with the colours of the page.
function draw(element) {
  const data = JSON.parse(document.getElementById(element.dataset.chart).textContent);
  const [times, delivered, failed, other] = data;
  const upTo = (...series) => times.map((_, i) => series.reduce((sum, values) => sum + values[i], 0));
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const part = (label, name, values) => ({
    label, stroke: colour(name), fill: colour(`${name}-area`), width: 1.5, points: { show: times.length < 40 },
    value: (_, __, ___, i) => (i === null ? "" : values[i].toLocaleString()),
  });
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const size = () => ({ width: element.clientWidth, height: 260 });
  element.replaceChildren();
  const plot = new uPlot({
    ...size(),
    scales: { y: { range: (_, __, max) => [0, Math.max(1, max * 1.05)] } },
    axes: [axis, { ...axis, size: 70 }],
    series: [{}, part("other", "--open", other), part("failed", "--bad", failed), part("delivered", "--good", delivered)],
  }, [times, upTo(delivered, failed, other), upTo(delivered, failed), delivered], element);
  new ResizeObserver(() => plot.setSize(size())).observe(element);
  return plot;
}

const charts = new Map();
function drawNew() {
  for (const element of document.querySelectorAll("[data-chart]")) {
    if (!charts.has(element)) charts.set(element, draw(element));
  }
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [element, plot] of charts) { plot.destroy(); charts.set(element, draw(element)); }
});
// Numbers that take longer to count come after the page.
document.addEventListener("htmx:after:swap", drawNew);
drawNew();
