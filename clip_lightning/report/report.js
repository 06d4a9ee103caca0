"use strict";
// Draws the charts from the page's own data with the embedded plotly.js, each when it is about to be seen.
(() => {
  const page = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Okabe and Ito's palette, and lighter shades of it on a dark ground.
  const colors = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a87400", "#4b9fd5", "#767676", "#000000"],
    dark: ["#56b4e9", "#f0936f", "#3ecf9f", "#e2a6c8", "#f0c24b", "#9ad0f5", "#b0b0b0", "#ffffff"],
  };
  const titles = { samples: "samples seen", flops: "training FLOPs", hours: "hours" };
  const hidden = new Set();
  const drawn = new Set();
  let axis = "samples";

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = (run) => { const all = colors[dark.matches ? "dark" : "light"]; return all[run % all.length]; };

  function traces(chart) {
    const factor = chart.is_share ? 100 : 1;
    const scaled = (values) => values.map((value) => (value === null ? null : value * factor));
    return chart.series.filter((one) => !hidden.has(one.run)).map((one) => {
      const y = scaled(one.y);
      const trace = {
        type: "scatter", x: one.x[axis] || [], y, name: one.label,
        mode: one.points ? "lines+markers" : (y.length === 1 ? "markers" : "lines"),
        line: { color: color(one.run + (page.runs.length === 1 && one.dash !== "solid" ? 1 : 0)), dash: one.dash, width: 1.8 },
        marker: { size: 6 }, hovertemplate: "%{y:.4~g}" + (chart.is_share ? " %" : ""),
      };
      if (one.low) {
        const low = scaled(one.low), high = scaled(one.high);
        trace.error_y = {
          type: "data", symmetric: false, thickness: 1, width: 3,
          array: high.map((value, k) => value - y[k]), arrayminus: low.map((value, k) => y[k] - value),
        };
      }
      return trace;
    });
  }

  function layout(chart) {
    const grid = css("--line"), text = css("--text");
    const factor = chart.is_share ? 100 : 1;
    const levels = chart.levels.map(([value, name]) => [chart.is_log ? Math.log10(value) : value * factor, name]);
    return {
      margin: { l: 56, r: 10, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, size: 12 }, hovermode: "x unified", showlegend: chart.series.length > 1,
      legend: { orientation: "h", y: -0.28, yanchor: "top", font: { size: 11 } },
      hoverlabel: { bgcolor: css("--ground"), bordercolor: grid, font: { color: text } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: text },
      xaxis: { title: { text: titles[axis], standoff: 4 }, gridcolor: grid, zeroline: false, rangemode: "tozero",
        tickformat: axis === "samples" ? "~s" : "", exponentformat: "power", nticks: 6, automargin: true,
        spikecolor: css("--muted"), spikethickness: -1 },
      yaxis: { title: { text: chart.unit + (chart.is_share ? ", %" : ""), standoff: 4 }, gridcolor: grid, zeroline: false,
        type: chart.is_log ? "log" : "linear", exponentformat: "SI", nticks: 6, automargin: true },
      shapes: levels.map(([value]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value,
        line: { color: css("--muted"), dash: "dash", width: 1 } })),
      annotations: levels.map(([value, name]) => ({ xref: "paper", x: 1, xanchor: "right", y: value, yanchor: "bottom",
        text: name, showarrow: false, font: { size: 11, color: css("--muted") } })),
    };
  }

  const settings = { responsive: true, displaylogo: false,
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d"] };

  function draw(place) {
    const chart = page.charts[Number(place.dataset.chart)];
    drawn.add(place);
    if (chart.series.length > 4) place.style.height = "22rem"; // room for the legend
    return window.Plotly.react(place, traces(chart), layout(chart), settings);
  }

  const redraw = () => drawn.forEach((place) => draw(place));

  function controls() {
    document.querySelectorAll("input[name=axis]").forEach((input) => input.addEventListener("change", () => {
      axis = input.value;
      redraw();
    }));
    document.querySelectorAll("input[name=run]").forEach((input) => input.addEventListener("change", () => {
      if (input.checked) hidden.delete(Number(input.value)); else hidden.add(Number(input.value));
      redraw();
    }));
    const paint = () => document.querySelectorAll(".swatch").forEach((one) => { one.style.background = color(Number(one.dataset.run)); });
    paint();
    dark.addEventListener("change", () => { paint(); redraw(); });
  }

  async function loadPlotly() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (one) => one.charCodeAt(0));
    const source = new ReadableStream({ start(sink) { sink.enqueue(packed); sink.close(); } });
    const stream = source.pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function start() {
    controls();
    const places = document.querySelectorAll(".chart");
    if (!places.length) return;
    await loadPlotly();
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
    }), { rootMargin: "400px" });
    places.forEach((place) => seen.observe(place));
    window.addEventListener("beforeprint", () => places.forEach((place) => draw(place)));
  }

  start().catch((error) => document.querySelectorAll(".chart").forEach((place) => {
    place.textContent = `This browser cannot draw the chart (${error.message}). Its last values are below.`;
  }));
})();
