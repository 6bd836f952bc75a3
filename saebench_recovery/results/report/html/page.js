// Texts come from strangers: they reach the document as text nodes only, never as markup.

const text = async (id) => {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const load = async (id) =>
  import(URL.createObjectURL(new Blob([await text(id)], { type: "text/javascript" })));
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const tableOf = (caption, heads, rows) =>
  make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))))));

const dark = matchMedia("(prefers-color-scheme: dark)");
const data = JSON.parse(await text("data"));
const { default: DataTable } = await load("table-library");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
follow();

// --- the table ---------------------------------------------------------------------------------

const numeric = new Set(["rank", "behaviour under attack", "suppressed", "kept", "KL"]);
const minor = new Set(["terms", "kept", "KL", "flags", "worst attack"]);
const toggle = (line) => make("button", {
  type: "button", className: "open", textContent: "+", ariaExpanded: "false",
  ariaLabel: `details of ${line.cells[data.heads.indexOf("defense")]}`,
});
data.lines.forEach((line, number) => { line.number = number; });
const table = new DataTable("#board", {
  data: data.lines,
  autoWidth: false,
  order: [],
  pageLength: 25,
  createdRow: (tr, line) => tr.classList.toggle("unranked", !line.ranked),
  language: { search: "Search:" },
  columns: [
    { title: "details", orderable: false, searchable: false, data: null,
      render: (_, type, line) => (type === "display" ? toggle(line) : "") },
    ...data.heads.map((head, i) => ({
      title: head, type: numeric.has(head) ? "num" : "string", data: null,
      className: minor.has(head) ? "minor" : "",
      render: (_, type, line) =>
        type === "display" ? document.createTextNode(line.cells[i])
          : type === "filter" ? line.cells[i] : line.order[i],
    })),
  ],
});

const chosen = {};
table.search.fixed("chosen", (_, line) =>
  data.filters.every((name, i) => !chosen[name] || line.cells[i] === chosen[name])
  && (!chosen.ranked || line.ranked));
for (const [i, name] of data.filters.entries()) {
  const values = [...new Set(data.lines.map((line) => line.cells[i]))].sort();
  const select = make("select", { name }, make("option", { value: "" }, "all"),
    ...values.map((value) => make("option", { value }, value)));
  select.onchange = () => { chosen[name] = select.value; table.draw(); };
  document.getElementById("filters").append(make("label", {}, `${name} `, select));
}
const ranked = make("input", { type: "checkbox", name: "ranked" });
ranked.onchange = () => { chosen.ranked = ranked.checked; table.draw(); };
document.getElementById("filters").append(make("label", {}, ranked, " only what is ranked"));

const open = (row, wanted = !row.child.isShown()) => {
  const button = row.node().querySelector("button.open");
  if (wanted && !row.child.isShown()) row.child(inside(row.data())).show();
  if (!wanted) row.child.hide();
  button.textContent = wanted ? "−" : "+";
  button.ariaExpanded = String(wanted);
  return button;
};
document.getElementById("board").addEventListener("click", (event) => {
  const button = event.target.closest("button.open");
  if (button) open(table.row(button.closest("tr")));
});
const openLine = (number) => {
  const shown = table.rows({ search: "applied", order: "applied" }).data().toArray();
  const place = shown.findIndex((line) => line.number === number);
  table.page(Math.floor(place / table.page.len())).draw(false);
  const button = open(table.row((_, line) => line.number === number), true);
  button.focus();
  button.scrollIntoView({ block: "start" });
};

// --- what opens below a line ---------------------------------------------------------------------

const inside = (line) => make("div", { className: "inside" },
  ...line.remarks.map((remark) => make("p", {}, remark)),
  ...(line.flags.length ? [tableOf("Flags", ["flag", "meaning", "remedy"], line.flags)] : []),
  tableOf("Attacks, strongest first", data.attackHeads, line.attacks.map((attack) => attack.cells)),
  ...line.attacks.map((attack) => make("details", {},
    make("summary", {}, `${attack.cells[0]}: all figures and the runs`),
    tableOf("Figures", ["measure", "value"], attack.figures),
    ...attack.entries.map(entry))));
const entry = (one) => {
  const said = make("span", { role: "status" });
  const copy = make("button", { type: "button", textContent: "copy",
    ariaLabel: `copy the command of ${one.title}` });
  copy.onclick = async () => {
    await navigator.clipboard.writeText(one.command);
    said.textContent = " copied";
  };
  return make("section", {}, make("h3", {}, one.title), copy, said, make("code", {}, one.command),
    ...(one.suite.length
      ? [tableOf("Members of the suite", ["attack", "broken", "FLOPs", "failed"], one.suite)] : []),
    ...one.attribution.flatMap((kind) => {
      const bars = make("div", { className: "chart" });
      if (kind.bars.length) draw(bars, { ...data.bars, datasets: { bars: kind.bars } });
      return [make("p", {}, kind.title), bars, tableOf("Parts of the deltas", kind.heads, kind.rows)];
    }),
    tableOf("Provenance", ["what", "value"], one.facts));
};

// --- the plots -----------------------------------------------------------------------------------

let library;
const colours = () => {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { labelColor: ink, titleColor: ink, tickColor: line, domainColor: line, gridOpacity: 0.25 };
  return { background: "transparent", axis, legend: { labelColor: ink, titleColor: ink },
    title: { color: ink }, view: { stroke: line } };
};
const draw = async (place, chart) => {
  library ??= load("plot-library");
  await library;
  return window.vegaEmbed(place, chart,
    { mode: "vega-lite", renderer: "canvas", actions: false, config: colours() });
};
const points = () => table.rows({ search: "applied" }).data().toArray()
  .flatMap((line) => line.points.map((point) => ({ ...point, line: line.number })));
const views = [];
const AROUND = 80; // pixels that an axis takes beside its plot
const drawAll = async () => {
  const place = document.getElementById("charts");
  place.replaceChildren();
  views.length = 0;
  for (const chart of Object.values(data.charts)) {
    const box = place.appendChild(make("div", { className: "chart" }));
    const width = Math.min(chart.width, place.clientWidth - AROUND);
    const { view } = await draw(box, { ...chart, width, datasets: { points: points() } });
    view.addEventListener("click", (_, item) => { if (item?.datum?.line >= 0) openLine(item.datum.line); });
    views.push(view);
  }
  document.documentElement.dataset.drawn = "true";
};
let waiting;
table.on("draw", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => views.forEach((view) => view.data("points", points()).runAsync()), 50);
});
dark.addEventListener("change", () => { follow(); drawAll(); });
document.documentElement.dataset.ready = "true";
(window.requestIdleCallback ?? setTimeout)(drawAll);

// --- print: all lines that the filters leave, if they fit a printer ------------------------------

const MOST = 500;
let length;
addEventListener("beforeprint", () => {
  length = table.page.len();
  if (table.rows({ search: "applied" }).count() <= MOST) table.page.len(-1).draw(false);
});
addEventListener("afterprint", () => table.page.len(length).draw(false));
