// The page polls api/status once a second and draws what it says. All that came from outside is set as text.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// what is unfolded; an address that ends in #ALERT_ID unfolds that alert
const opened = new Set([`alert ${location.hash.slice(1)}`]);
let alertsAt = 0;
let alertsShown = "";

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function count(value) {
  return isNumber(value) ? Math.round(value).toLocaleString("en") : "–";
}

function short(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  if (size >= 100 || Number.isInteger(value)) return String(Math.round(value));
  if (size >= 1) return value.toFixed(2).replace(/\.?0+$/, "");
  return String(Number(value.toPrecision(3)));
}

function rate(value) {
  return isNumber(value) ? (value < 10 && value > 0 ? value.toFixed(1) : count(value)) : "–";
}

function ms(value) {
  if (!isNumber(value)) return "–";
  if (value >= 60000) return span(value / 1000);
  if (value >= 10000) return (value / 1000).toFixed(1) + " s";
  return (value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en")) + " ms";
}

function span(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return (seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86400) return Math.floor(seconds / 3600) + " h " + Math.floor((seconds % 3600) / 60) + " min";
  return Math.floor(seconds / 86400) + " d " + Math.floor((seconds % 86400) / 3600) + " h";
}

function when(timeMs) {
  return isNumber(timeMs) ? new Date(timeMs).toISOString().slice(0, 19).replace("T", " ") : "–";
}

const words = (name) => name.replaceAll("_", " ");

function pairs(entries) {
  return el("dl", { class: "pairs" }, ...entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function table(heads, rows, numeric = []) {
  const side = (i) => (numeric.includes(i) ? "n" : null);
  const head = el("tr", {}, ...heads.map((text, i) => el("th", { class: side(i), scope: "col" }, text)));
  const body = rows.map((row) => el("tr", {}, ...row.map((cell, i) => el("td", { class: side(i) }, cell))));
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

const empty = (text) => el("p", { class: "empty" }, text);

// Lines over the last five minutes; with the pointer over them, the values of that second.
function chart(place, series, format) {
  const points = Math.max(2, ...series.map((line) => line.values.length));
  const most = Math.max(1e-9, ...series.flatMap((line) => line.values.filter(isNumber)));
  const width = 299;
  const first = width - (points - 1);
  const x = (i) => first + i;
  const y = (value) => 60 - (value / most) * 56;
  const picture = svg("svg", { viewBox: `0 0 ${width} 62`, preserveAspectRatio: "none", role: "img" });
  for (const line of series) {
    let path = "";
    let pen = false;
    line.values.forEach((value, i) => {
      if (isNumber(value)) path += `${pen ? "L" : "M"}${x(i)} ${y(value).toFixed(1)}`;
      pen = isNumber(value);
    });
    picture.append(svg("path", { d: path, class: line.key }));
  }
  const label = series.map((line) => `${line.name} now ${format(line.values.at(-1))}`).join(", ");
  picture.setAttribute("aria-label", `${label}; at most ${format(most)} in the last five minutes`);
  const left = el("span", {}, "5 min ago");
  const right = el("span", {}, most > 1e-9 ? `highest ${format(most)}` : "");
  const cursor = svg("line", { y1: 0, y2: 62, class: "cursor", visibility: "hidden" });
  picture.append(cursor);
  const point = (at) => {
    const i = Math.round(at * width - first);
    if (i < 0 || i >= points) return;
    cursor.setAttribute("x1", x(i));
    cursor.setAttribute("x2", x(i));
    cursor.setAttribute("visibility", "visible");
    left.textContent = `${points - 1 - i} s ago`;
    right.textContent = series.map((line) => `${line.name} ${format(line.values[i])}`).join(", ");
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    place.dataset.at = String((event.clientX - box.left) / box.width);
    point(Number(place.dataset.at));
  });
  picture.addEventListener("pointerleave", () => {
    delete place.dataset.at;
    cursor.setAttribute("visibility", "hidden");
    left.textContent = "5 min ago";
    right.textContent = `highest ${format(most)}`;
  });
  place.replaceChildren(picture, el("div", { class: "scale" }, left, right));
  if (place.dataset.at) point(Number(place.dataset.at));
}

function drawTiles(status) {
  $("name-in").textContent = words(status.flow.in);
  $("name-out").textContent = words(status.flow.out);
  $("rate-in").textContent = rate(status.events_per_s.in);
  $("rate-out").textContent = rate(status.events_per_s.out);
  const history = status.history;
  const lines = (first, second) => [
    { name: words(first[0]), key: "in", values: history[first[1]] },
    { name: words(second[0]), key: "out", values: history[second[1]] },
  ];
  chart($("chart-rate"), lines([status.flow.in, "in"], [status.flow.out, "out"]), rate);
  $("tile-latency").hidden = !status.latency_ms;
  if (status.latency_ms) {
    $("p50").textContent = ms(status.latency_ms.latency_ms_p50);
    $("p99").textContent = ms(status.latency_ms.latency_ms_p99);
    chart($("chart-latency"), lines(["p50", "p50"], ["p99", "p99"]), ms);
  }
  const lags = Object.values(status.lag || {});
  $("lag-records").textContent = count(lags.reduce((sum, lag) => sum + lag.records, 0));
  $("lag-seconds").textContent = lags.length ? span(Math.max(...lags.map((lag) => lag.seconds))) : "–";
  chart($("chart-lag"), [{ name: "records", key: "in", values: history.lag }], count);
}

function drawScores(scores) {
  $("scores").hidden = $("high").hidden = !scores;
  if (!scores) return;
  const top = Math.log1p(Math.max(1, ...scores.histogram));
  const n = scores.histogram.length;
  const bars = scores.histogram.map((value, i) => {
    const bar = el("i", {});
    bar.style.height = value ? `${Math.max(2, (100 * Math.log1p(value)) / top)}%` : "0";
    const range = `${(i / n).toFixed(2)} to ${((i + 1) / n).toFixed(2)}`;
    return el("div", { class: i >= n / 2 ? "hot" : null, title: `${range}: ${count(value)}` }, bar);
  });
  const total = scores.histogram.reduce((sum, value) => sum + value, 0);
  const summary = `${count(total)} scores, ${count(scores.histogram.slice(n / 2).reduce((a, b) => a + b, 0))} above 0.5`;
  $("histogram").replaceChildren(
    el("div", { class: "bars", role: "img", "aria-label": summary }, ...bars),
    el("div", { class: "scale" }, el("span", {}, "0"), el("span", {}, summary), el("span", {}, "1")),
  );
  const rows = scores.high.slice(0, 12).map((row) => [
    when(row.event_time),
    row.card_id,
    row.terminal_id,
    isNumber(row.amount) ? row.amount.toFixed(2) : "–",
    el("span", { class: "score" }, row.score.toFixed(3)),
    el("span", {}, ...(row.reasons || []).slice(0, 3).map(reason)),
  ]);
  const heads = ["Event time (UTC)", "Card", "Terminal", "Amount", "Score", "Reasons"];
  $("high-table").replaceChildren(rows.length ? table(heads, rows, [3, 4]) : empty("No score of 0.5 or more yet."));
}

function reason(of) {
  const less = of.contribution < 0;
  const much = `${less ? "−" : "+"}${Math.abs(of.contribution).toFixed(2)}`;
  return el("span", { class: "reason" }, `${of.feature} ${short(of.value)} `, el("b", { class: less ? "less" : null }, much));
}

function drawModels(status) {
  const models = status.models || {};
  $("models").hidden = !Object.keys(models).length;
  const by = new Map();
  for (const p of status.partitions || []) {
    for (const [role, label] of Object.entries(p.models)) {
      const key = JSON.stringify([role, label]);
      by.set(key, [...(by.get(key) || []), p.partition]);
    }
  }
  const rows = [...by.entries()].map(([key, partitions]) => {
    const [role, label] = JSON.parse(key);
    const share = role === "canary" && isNumber(models.share) ? ` (${Math.round(100 * models.share)} % of keys)` : "";
    return [role + share, label, partitions.join(", ")];
  });
  const none = models.champion ? `${models.champion}; no partitions here yet` : "No model.";
  $("model-list").replaceChildren(rows.length ? table(["Role", "Model", "Partitions"], rows) : empty(none));
}

function drawMonitor(monitor) {
  const curve = ((monitor && monitor.maturity) || []).filter((point) => isNumber(point.labelled));
  $("maturity").hidden = !monitor || !monitor.maturity;
  $("maturity-chart").replaceChildren(
    ...(curve.length ? curve : []).map((point) => {
      const bar = el("i", {});
      bar.style.width = `${100 * point.labelled}%`;
      const share = `${(100 * point.labelled).toFixed(1)} %`;
      return el("div", { class: "meter" }, el("span", {}, age(point.age_ms)), el("span", { class: "track" }, bar), el("span", { class: "n" }, share));
    }),
    ...(curve.length ? [] : [empty("No label has come yet.")]),
  );
  const rows = [];
  for (const [place, models] of Object.entries((monitor && monitor.watched) || {})) {
    for (const [model, found] of Object.entries(models)) {
      for (const half of ["scored", "labelled"]) {
        const of = found[half];
        if (!of) continue;
        const state = of.learning ? `learning, ${of.reference_periods} periods` : `watching, ${of.periods} periods`;
        rows.push([place.split("/").at(-1), model || "none", half, state, short(of.strongest)]);
      }
    }
  }
  drawPerformance(monitor);
  $("watched").hidden = !rows.length;
  $("watch-list").replaceChildren(table(["Partition", "Model", "Rows", "State", "Strongest (1 is the limit)"], rows, [4]));
}

function drawPerformance(monitor) {
  const rows = [];
  for (const [place, models] of Object.entries((monitor && monitor.watched) || {})) {
    for (const [model, found] of Object.entries(models)) {
      for (const [metric, of] of Object.entries((found.labelled && found.labelled.metrics) || {})) {
        const [low, high] = of.interval || [];
        rows.push([place.split("/").at(-1), model || "none", words(metric), short(of.value), `${short(low)} to ${short(high)}`, short(of.reference)]);
      }
    }
  }
  $("performance").hidden = !rows.length;
  $("performance-list").replaceChildren(table(["Partition", "Model", "Metric", "Now", "Interval", "Reference"], rows, [3, 4, 5]));
}

function age(timeMs) {
  const minutes = timeMs / 60000;
  if (minutes < 60) return `${Math.round(minutes)} min`;
  return minutes < 1440 ? `${Math.round(minutes / 60)} h` : `${Math.round(minutes / 1440)} d`;
}

function keep(details, name) {
  details.open = opened.has(name);
  details.addEventListener("toggle", () => (details.open ? opened.add(name) : opened.delete(name)));
  return details;
}

function drawStages(status) {
  const lags = Object.entries(status.lag || {}).map(([stage, lag]) => [stage, count(lag.records), span(lag.seconds)]);
  const partitions = (status.partitions || []).map((p) => [
    p.topic,
    p.partition,
    count(p.next_offset),
    count(p.next_offset - p.committed),
    count(p.in_flight),
    count(p.lag),
    p.recovering ? "recovering" : "whole",
  ]);
  const heads = ["Topic", "Partition", "Next offset", "Not committed", "In hand", "Wait", "State"];
  const list = table(heads, partitions, [1, 2, 3, 4, 5]);
  $("stage-list").replaceChildren(
    lags.length ? table(["Stage", "Records wait", "Oldest in hand"], lags, [1, 2]) : empty("Not in its group yet."),
    keep(el("details", {}, el("summary", {}, `${partitions.length} partitions`), list), "partitions"),
  );
}

function drawUpkeep(status) {
  const kept = status.checkpoints || {};
  const entries = [
    ["rebalances seen", count(status.rebalances)],
    ["checkpoints written", isNumber(kept.written) ? count(kept.written) : "none kept"],
    ["last one", isNumber(kept.age_s) ? `${span(kept.age_s)} ago` : "–"],
    ["pause for one, p99", ms(kept.pause_ms_p99)],
    ["commits, p99", ms((status.commits || {}).latency_ms_p99)],
    ["first recovery", status.recovery && isNumber(status.recovery.ready_s) ? span(status.recovery.ready_s) : "–"],
  ];
  const parts = Object.entries(status.seconds || {}).sort((a, b) => b[1] - a[1]);
  $("upkeep-list").replaceChildren(
    pairs(entries),
    keep(el("details", {}, el("summary", {}, "CPU seconds by part"), pairs(parts.map(([part, s]) => [words(part), s.toFixed(1)]))), "cpu"),
  );
}

function drawQuality(quality) {
  const rows = [];
  for (const [topic, fields] of Object.entries(quality || {})) {
    for (const [name, findings] of Object.entries(fields)) {
      for (const [finding, n] of Object.entries(findings)) rows.push([topic, name || "the record", words(finding), count(n)]);
    }
  }
  $("quality").hidden = !rows.length;
  $("quality-list").replaceChildren(table(["Topic", "Field", "Finding", "Values"], rows, [3]));
}

async function drawAlerts(status) {
  const total = status.alerts.reduce((sum, of) => sum + of.count, 0);
  if (!total) {
    $("alert-list").replaceChildren(empty("No alerts."));
    alertsShown = "";
    return;
  }
  if (Date.now() - alertsAt < 5000 && alertsShown) return;
  const answer = await fetch("api/alerts", { cache: "no-store" });
  if (!answer.ok) throw new Error(`api/alerts says ${answer.status}`);
  alertsAt = Date.now();
  const text = await answer.text();
  if (text === alertsShown) return;
  $("alert-list").replaceChildren(...JSON.parse(text).alerts.slice(0, 20).map(alertOf));
  if (total > 20) $("alert-list").append(empty(`The newest 20 of ${count(total)}; headrace alerts lists all.`));
  alertsShown = text;
}

function alertOf(alert) {
  const evidence = alert.evidence || {};
  const head = el(
    "summary",
    {},
    el("span", { class: "when" }, when(alert.event_time)),
    el("span", { class: alert.severity === "critical" ? "critical" : "warning" }, alert.severity),
    " ",
    el("span", { class: "kind" }, words(alert.kind)),
    ` of ${alert.subject}: ${short(alert.value)}, limit ${short(alert.threshold)}`,
  );
  const body = el("div", { class: "evidence" });
  const say = (name, text) => text && body.append(el("p", {}, ...(name ? [el("small", {}, `${name} `)] : []), text));
  say("", evidence.summary);
  say("changed about", isNumber(evidence.since) && when(evidence.since));
  say("strength", isNumber(evidence.strength) && `${short(evidence.strength)} times as far from the usual as is allowed`);
  say("model", evidence.model && `${evidence.model}, seen in ${evidence.partition || "all partitions"}`);
  say("features", evidence.features && evidence.features.join(", "));
  say("segments", evidence.segments && evidence.segments.join(", "));
  const watches = (evidence.watches || []).slice(0, 8).map((w) => [
    `${w.measure} of ${w.subject}`, w.periods, short(w.value), short(w.expected), short(w.threshold),
  ]);
  if (watches.length) body.append(table(["Watch", "Periods", "Value", "Usual", "Limit"], watches, [1, 2, 3, 4]));
  const spread = distribution(evidence.distribution);
  if (spread) body.append(spread);
  const examples = (evidence.examples || []).map((e) => `${e.transaction_id} (${short(e.score)})`).join(", ");
  say("examples", examples);
  const naive = evidence.naive;
  say("a naive detector", naive && naive.adwin_default && `to alert always: ${naive.always} by now; ADWIN as it comes ${naive.adwin_default.fired ? "had" : "had not"} fired`);
  const budget = evidence.budget;
  say("budget", budget && `${short(budget.false_alarms_per_30d)} false alarms in 30 days over ${budget.watches} watches`);
  say("action", alert.action);
  say("id", alert.alert_id);
  return keep(el("details", {}, head, body), `alert ${alert.alert_id}`);
}

// Shares of the bins then and now, side by side; the last two bins are unseen and missing values.
function distribution(of) {
  if (!of || !of.then || !of.now) return null;
  const most = Math.max(1e-9, ...of.then.filter(isNumber), ...of.now.filter(isNumber));
  const bar = (share) => {
    const node = el("i", {});
    node.style.height = `${isNumber(share) ? (100 * share) / most : 0}%`;
    return node;
  };
  const percent = (share) => (isNumber(share) ? `${(100 * share).toFixed(1)} %` : "–");
  const name = (i) => ["unseen", "missing"][i - of.then.length + 2] || `bin ${i + 1}`;
  const bins = of.then.map((share, i) =>
    el("div", { title: `${name(i)}: ${percent(share)} then, ${percent(of.now[i])} now` }, bar(share), bar(of.now[i])),
  );
  const title = el("small", {}, `${of.subject}: `, el("i", { class: "key then" }), "then ", el("i", { class: "key in" }), "now");
  return el("div", {}, title, el("div", { class: "twin", role: "img", "aria-label": `distribution of ${of.subject}, then and now` }, ...bins));
}

function drawHead(status) {
  $("pipeline").textContent = status.pipeline;
  const others = Object.entries(status.peers).filter(([name]) => name !== status.pipeline);
  $("peers").replaceChildren(...others.map(([name, port]) => el("a", { href: `//${location.hostname}:${port}/` }, name)));
  document.title = `headrace ${status.pipeline}: ${status.health.state}`;
  $("health").className = status.health.state;
  $("state").textContent = status.health.state;
  $("about").textContent = `group ${status.group}, version ${status.version}, up ${span(status.uptime_s)}`;
  $("trouble").hidden = status.health.ok;
  $("trouble").textContent = status.health.reason;
}

async function draw() {
  const answer = await fetch("api/status", { cache: "no-store" });
  if (!answer.ok) throw new Error(`api/status says ${answer.status}`);
  const status = await answer.json();
  drawHead(status);
  drawTiles(status);
  const counts = Object.entries(status.counts || {});
  $("counts").replaceChildren(counts.length ? pairs(counts.map(([name, n]) => [words(name), count(n)])) : empty("Nothing yet."));
  drawScores(status.scores);
  drawModels(status);
  drawMonitor(status.monitor);
  drawStages(status);
  drawQuality(status.quality);
  drawUpkeep(status);
  await drawAlerts(status);
  document.body.dataset.drawn = String(status.now_ms);
}

async function turn() {
  if (!document.hidden) {
    try {
      await draw();
    } catch (error) {
      $("health").className = "gone";
      $("state").textContent = "no answer";
      $("trouble").hidden = false;
      $("trouble").textContent = `The worker does not answer; what is below is what it said last. (${error.message})`;
    }
  }
  setTimeout(turn, 1000);
}

turn();
