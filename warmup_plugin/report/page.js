// The plots, the theme and the sentence browser of a report. Texts of the data become text
// nodes only, so nothing in them is ever read as HTML.
(function () {
  "use strict";

  const root = document.documentElement;

  const figures = JSON.parse(document.getElementById("figure-data").textContent);
  const data = JSON.parse(document.getElementById("browser-data").textContent);

  // The indices of the runs that are switched off.
  const hidden = new Set();

  // ---- Theme -------------------------------------------------------------------------

  const darkSystem = matchMedia("(prefers-color-scheme: dark)");

  function showThemeName() {
    const theme = root.dataset.theme;

    document.getElementById("theme-name").textContent =
      theme === undefined ? "Auto" : theme === "dark" ? "Dark" : "Light";
  }

  document.getElementById("theme").addEventListener("click", () => {
    const next = { undefined: "light", light: "dark", dark: undefined }[root.dataset.theme];

    if (next === undefined) {
      delete root.dataset.theme;
    } else {
      root.dataset.theme = next;
    }

    try {
      if (next === undefined) {
        localStorage.removeItem("warmup-report-theme");
      } else {
        localStorage.setItem("warmup-report-theme", next);
      }
    } catch (error) {
      // A file may have no storage; the choice then lasts as long as the page.
    }

    showThemeName();
    redrawPlots();
  });

  darkSystem.addEventListener("change", redrawPlots);

  // ---- Plots -------------------------------------------------------------------------

  const plotConfig = {
    responsive: true,
    // Where nothing hovers, plotly would show it all the time, over the curves.
    displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
    displaylogo: false,
    // Not among them: the one that would send the plot to a server.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    toImageButtonOptions: { format: "svg" },
  };

  const plots = [...document.querySelectorAll(".plot")];

  const drawn = new Set();

  let axis = "steps";

  // Replaces the variables of the style sheet, of which plotly knows nothing.
  function resolveColors(value, style) {
    if (typeof value === "string") {
      const match = /^var\((--[\w-]+)\)$/.exec(value);

      return match === null ? value : style.getPropertyValue(match[1]).trim();
    }

    if (Array.isArray(value)) {
      return value.map((item) => resolveColors(item, style));
    }

    if (value !== null && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([key, item]) => [key, resolveColors(item, style)]),
      );
    }

    return value;
  }

  function buildFigure(plot) {
    const { data: traces, layout } = resolveColors(
      figures[plot.dataset.figure],
      getComputedStyle(root),
    );

    for (const trace of traces) {
      trace.visible = !hidden.has(trace.meta.run);
    }

    if (axis === "times" && "steps" in plot.dataset) {
      const longest = Math.max(...traces.flatMap((trace) => trace.meta.times));

      const [unit, seconds] = longest >= 7200 ? ["hours", 3600] : ["minutes", 60];

      for (const trace of traces) {
        trace.x = trace.meta.times.map((time) => (time === null ? null : time / seconds));
      }

      layout.xaxis.title.text = `training time (${unit})`;
      layout.xaxis.hoverformat = ".2f";
    }

    return { data: traces, layout, config: plotConfig };
  }

  function drawPlot(plot) {
    drawn.add(plot);

    Plotly.react(plot, buildFigure(plot));
  }

  function redrawPlots() {
    drawn.forEach(drawPlot);
  }

  // A page has dozens of plots; they are drawn as they come near.
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          observer.unobserve(entry.target);
          drawPlot(entry.target);
        }
      }
    },
    { rootMargin: "400px" },
  );

  plots.forEach((plot) => observer.observe(plot));

  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.addEventListener("change", () => {
      axis = input.value;

      redrawPlots();
    });
  }

  // Paper is light, and has no plots that come near.
  let themeBeforePrint;

  addEventListener("beforeprint", () => {
    themeBeforePrint = root.dataset.theme;
    root.dataset.theme = "light";
    plots.forEach(drawPlot);
  });

  addEventListener("afterprint", () => {
    if (themeBeforePrint === undefined) {
      delete root.dataset.theme;
    } else {
      root.dataset.theme = themeBeforePrint;
    }

    redrawPlots();
  });

  // ---- Runs to show ------------------------------------------------------------------

  for (const chip of document.querySelectorAll(".chip")) {
    chip.addEventListener("click", () => {
      const run = Number(chip.dataset.run);

      if (!hidden.delete(run)) {
        hidden.add(run);
      }

      chip.setAttribute("aria-pressed", String(!hidden.has(run)));

      redrawPlots();
      showPage();
    });
  }

  showThemeName();

  // ---- Sentence browser --------------------------------------------------------------

  const { runs, sentences, baseline } = data;

  let showPage = () => {};

  if (sentences.length > 0) {
    startBrowser();
  }

  function startBrowser() {
    const $ = (id) => document.getElementById(id);

    const translated = [...runs.keys()].filter((idx) => runs[idx].there);
    const others = translated.filter((idx) => idx !== baseline);
    const areScored = runs.some((run) => run.scored);

    // ---- Keys of a sentence ----

    const chrf = (sentence, run) => sentence.o[run]?.f ?? null;

    function gain(sentence, run) {
      const [mine, its] = [chrf(sentence, run), chrf(sentence, baseline)];

      // As it is shown: without the noise of floating point.
      return run === baseline || mine === null || its === null
        ? null
        : Math.round((mine - its) * 100) / 100;
    }

    const logGain = (sentence, run) => sentence.o[run]?.k?.g ?? null;

    const sortKeys = { line: (s) => s.n, gain, chrf, logp: logGain, length: (s) => s.l };

    function addOption(select, value, label) {
      select.append(Object.assign(document.createElement("option"), { value, textContent: label }));
    }

    addOption($("sort"), "line up", "line of the file");

    if (others.length > 0) {
      addOption($("sort"), "gain down", "chrF++ gain, best first");
      addOption($("sort"), "gain up", "chrF++ gain, worst first");
    }

    addOption($("sort"), "chrf down", "chrF++, highest first");
    addOption($("sort"), "chrf up", "chrF++, lowest first");

    if (areScored) {
      addOption($("sort"), "logp down", "log P gain, highest first");
      addOption($("sort"), "logp up", "log P gain, lowest first");
    }

    addOption($("sort"), "length up", "source length, shortest first");
    addOption($("sort"), "length down", "source length, longest first");

    for (const idx of translated) {
      addOption($("run"), String(idx), runs[idx].name);
    }

    $("run").value = String(others.find((idx) => runs[idx].warmup) ?? others[0] ?? baseline);
    $("run").options[$("run").selectedIndex].defaultSelected = true;

    // Nothing to choose, or nothing to compare with.
    $("run-label").hidden = translated.length < 2;
    $("change-label").hidden = others.length === 0;

    // ---- Search ----

    const fold = (text) => text.normalize("NFC").toLowerCase();

    function listTexts(sentence) {
      const outputs = sentence.o.filter((output) => output !== null);

      const warmups = outputs.flatMap((output) => [
        output.c,
        ...(output.h ?? []).map((hypothesis) => hypothesis.c),
        ...(output.k?.d ?? []).map((draw) => draw.c),
      ]);

      return {
        source: [sentence.s],
        reference: [sentence.r.map(([text]) => text).join("")],
        output: outputs.flatMap((output) => [
          output.t,
          ...(output.h ?? []).map((hypothesis) => hypothesis.t),
        ]),
        warmup: warmups.filter((parts) => parts !== undefined).map((parts) => parts.join("")),
      };
    }

    const searched = new Map();

    function matches(sentence, query, field) {
      if (query === "") {
        return true;
      }

      if (!searched.has(sentence)) {
        const texts = listTexts(sentence);

        // A line feed between them, so that nothing is found across two texts.
        const folded = Object.fromEntries(
          Object.entries(texts).map(([name, list]) => [name, fold(list.join("\n"))]),
        );

        folded.all = Object.values(folded).join("\n");

        searched.set(sentence, folded);
      }

      return searched.get(sentence)[field].includes(query);
    }

    // ---- Selection ----

    let selected = [];

    let pageNr = 1;

    function readNumber(id, otherwise) {
      const value = $(id).valueAsNumber;

      return Number.isNaN(value) ? otherwise : value;
    }

    function select() {
      const query = fold($("query").value.trim());
      const field = $("field").value;
      const run = Number($("run").value);
      const change = $("change").value;
      const [least, most] = [readNumber("min", 0), readNumber("max", Infinity)];

      const isWanted = {
        all: () => true,
        better: (value) => value !== null && value > 0,
        worse: (value) => value !== null && value < 0,
        same: (value) => value === 0,
      }[change];

      selected = sentences.filter(
        (sentence) =>
          sentence.l >= least &&
          sentence.l <= most &&
          (change === "all" || isWanted(gain(sentence, run))) &&
          matches(sentence, query, field),
      );

      const [name, direction] = $("sort").value.split(" ");

      const sign = direction === "up" ? 1 : -1;

      const keys = new Map(selected.map((s) => [s, sortKeys[name](s, run)]));

      selected.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];

        // Without a value at the end, whatever the direction; equal ones by line.
        if (x === null || y === null) {
          return (x === null) - (y === null) || a.n - b.n;
        }

        return sign * (x - y) || a.n - b.n;
      });

      pageNr = 1;

      showPage();
    }

    // ---- Elements ----

    function create(tag, className, ...children) {
      const element = document.createElement(tag);

      if (className !== "") {
        element.className = className;
      }

      element.append(...children);

      return element;
    }

    function createText(tag, className, ...children) {
      const element = create(tag, className, ...children);

      // Right to left where the text is.
      element.dir = "auto";

      if (element.textContent.trim() === "") {
        element.replaceChildren(create("i", "soft", "empty"));
      }

      return element;
    }

    const format = (value, digits) =>
      value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");

    const formatSigned = (value, digits) => (value > 0 ? "+" : "") + format(value, digits);

    // Every second part is marked.
    const markParts = (parts) =>
      parts.map((part, idx) => (idx % 2 === 1 ? create("mark", "", part) : part));

    // One line below a word for each run whose warmup has it.
    function markReference(parts) {
      const shown = (mask) => translated.filter((idx) => (mask >> idx) & 1 && !hidden.has(idx));

      return parts.map(([text, mask]) => {
        const marking = shown(mask);

        if (marking.length === 0) {
          return text;
        }

        const mark = create("mark", "", text);

        if (runs.filter((run) => run.warmup && run.there).length > 1) {
          mark.style.backgroundImage = marking
            .map((idx) => `linear-gradient(var(--run-${runs[idx].color}), var(--run-${runs[idx].color}))`)
            .join(", ");

          mark.style.backgroundPosition = marking
            .map((_, nr) => `0 calc(100% - ${2 * nr}px)`)
            .join(", ");

          mark.title = marking.map((idx) => runs[idx].name).join(", ");
        }

        return mark;
      });
    }

    function createRunName(idx) {
      const dot = create("span", "dot");

      dot.style.setProperty("--color", `var(--run-${runs[idx].color})`);

      return create("span", "run", dot, create("bdi", "", runs[idx].name));
    }

    function createChange(value, unit, digits) {
      const kind = value > 0 ? "up" : value < 0 ? "down" : "";

      return create("span", `change ${kind}`, `${formatSigned(value, digits)} ${unit}`);
    }

    function createTable(caption, columns, rows) {
      const heads = columns.map(([label, className]) => {
        const head = create("th", className, label);

        head.scope = "col";

        return head;
      });

      const table = create(
        "table",
        "",
        create("thead", "", create("tr", "", ...heads)),
        create("tbody", "", ...rows.map((cells) => create("tr", "", ...cells))),
      );

      table.setAttribute("aria-label", caption);

      // Outside of what scrolls.
      return [create("p", "caption", caption), create("div", "scroll", table)];
    }

    const numberCell = (value, digits) => create("td", "num", format(value, digits));

    function createWeight(weight) {
      const bar = create("span", "bar");

      bar.style.setProperty("--share", String(weight ?? 0));

      return create("td", "num weight", bar, format(weight, 3));
    }

    const countDraws = (pair) => pair.d.reduce((sum, draw) => sum + draw.n, 0);

    function createDraws(pair) {
      const columns = [
        ["weight", "num", (draw) => createWeight(draw.w)],
        ["log P(c|x)", "num", (draw) => numberCell(draw.a, 2)],
        ["log P(y|c,x)", "num", (draw) => numberCell(draw.b, 2)],
        ["times", "num", (draw) => numberCell(draw.n, 0)],
        ["warmup", "", (draw) => createText("td", "text", ...markParts(draw.c))],
      ].filter(([label]) => label !== "times" || pair.d.some((draw) => draw.n > 1));

      const rows = pair.d.map((draw) => columns.map(([, , createCell]) => createCell(draw)));

      const facts = [
        `log P(y|x) without warmup ${format(pair.y, 2)}`,
        `with ${countDraws(pair)} warmups ${format(pair.m, 2)}`,
        `gain ${pair.g === null ? "–" : formatSigned(pair.g, 2)} nats`,
        `effective sample size ${format(pair.e, 2)}`,
      ];

      return [
        ...createTable(
          "Warmups drawn, and what they make of the reference y",
          columns.map(([label, className]) => [label, className]),
          rows,
        ),
        create("p", "soft facts", facts.join(" · ")),
      ];
    }

    function createHypotheses(hypotheses) {
      const has = (key) => hypotheses.some((hypothesis) => hypothesis[key] !== undefined);

      const columns = [
        ["w", "weight", "num", (h) => createWeight(h.w)],
        ["s", "score", "num", (h) => numberCell(h.s, 3)],
        ["p", "log P", "num", (h) => numberCell(h.p, 2)],
        ["a", "log P(c|x)", "num", (h) => numberCell(h.a, 2)],
        ["b", "log P(y|c,x)", "num", (h) => numberCell(h.b, 2)],
        ["c", "warmup", "", (h) => createText("td", "text", ...markParts(h.c ?? []))],
        ["t", "output", "", (h) => createText("td", "text", h.t)],
      ].filter(([key]) => has(key));

      return createTable(
        "Hypotheses, the output first",
        columns.map(([, label, className]) => [label, className]),
        hypotheses.map((hypothesis) => columns.map(([, , , createCell]) => createCell(hypothesis))),
      );
    }

    function createDetails(output) {
      const parts = [];

      const labels = [];

      if (output.k?.d.length > 0) {
        labels.push(`${countDraws(output.k)} warmups drawn`);
        parts.push(...createDraws(output.k));
      }

      if (output.h !== undefined) {
        labels.push(`${output.h.length} hypotheses`);
        parts.push(...createHypotheses(output.h));
      } else if (parts.length > 0 || output.a !== undefined) {
        const facts = [
          ["log P", output.p],
          ["log P(c|x)", output.a],
          ["log P(y|c,x)", output.b],
        ].filter(([, value]) => value !== undefined);

        if (facts.length > 0) {
          const text = facts.map(([name, value]) => `${name} ${format(value, 2)}`).join(" · ");

          parts.push(create("p", "soft facts", `Of the output and its warmup: ${text}`));
        }

        labels.push("log-probabilities");
      }

      if (parts.length === 0) {
        return null;
      }

      const details = create("details", "", create("summary", "", labels.join(", ")), ...parts);

      details.open = $("open").checked;

      return details;
    }

    function createOutput(sentence, idx) {
      const output = sentence.o[idx];

      const texts = [];

      if (output.c !== undefined) {
        texts.push(
          create(
            "div",
            "warmup",
            create("span", "tag", "warmup"),
            createText("span", "text", ...markParts(output.c)),
          ),
        );
      }

      texts.push(createText("div", "text", output.t));

      const details = createDetails(output);

      if (details !== null) {
        texts.push(details);
      }

      const score = create("span", "score", format(output.f, 1));

      score.title = "chrF++";

      return create(
        "div",
        "row output",
        create("div", "label", createRunName(idx), score),
        create("div", "texts", ...texts),
      );
    }

    function createSentence(sentence, run) {
      const facts = [
        create("b", "", `Line ${sentence.n}`),
        create("span", "soft", `${sentence.l} word${sentence.l === 1 ? "" : "s"}`),
      ];

      const [change, logChange] = [gain(sentence, run), logGain(sentence, run)];

      if (change !== null || logChange !== null) {
        facts.push(createRunName(run));
      }

      if (change !== null) {
        facts.push(createChange(change, "chrF++", 1));
      }

      if (logChange !== null) {
        facts.push(createChange(logChange, "nats", 2));
      }

      const shown = translated.filter((idx) => !hidden.has(idx) && sentence.o[idx] !== null);

      return create(
        "li",
        "sentence panel",
        create("div", "facts", ...facts),
        create(
          "div",
          "row",
          create("div", "label soft", "source"),
          createText("div", "text", sentence.s),
        ),
        create(
          "div",
          "row",
          create("div", "label soft", "reference"),
          createText("div", "text", ...markReference(sentence.r)),
        ),
        ...shown.map((idx) => createOutput(sentence, idx)),
      );
    }

    showPage = () => {
      const size = Number($("size").value);
      const run = Number($("run").value);
      const numPages = Math.max(1, Math.ceil(selected.length / size));

      pageNr = Math.min(Math.max(1, pageNr), numPages);

      const begin = (pageNr - 1) * size;

      const shown = selected.slice(begin, begin + size);

      $("list").replaceChildren(...shown.map((sentence) => createSentence(sentence, run)));

      $("list").start = begin + 1;

      const number = (value) => value.toLocaleString("en");

      let count =
        shown.length === 0
          ? "No sentence matches."
          : `${number(begin + 1)} to ${number(begin + shown.length)} of ${number(selected.length)} sentences`;

      if (data.total > sentences.length) {
        count += ` (the first ${number(sentences.length)} of ${number(data.total)} lines are here; scores are of all)`;
      }

      $("count").textContent = count;
      $("page").value = String(pageNr);
      $("page").max = String(numPages);
      $("num-pages").textContent = `of ${number(numPages)}`;

      for (const id of ["previous", "previous-2"]) {
        $(id).disabled = pageNr === 1;
      }

      for (const id of ["next", "next-2"]) {
        $(id).disabled = pageNr === numPages;
      }
    };

    // ---- Events ----

    function turn(target, scroll) {
      pageNr = target;

      showPage();

      if (scroll) {
        $("sentences").scrollIntoView();
      }
    }

    $("previous").addEventListener("click", () => turn(pageNr - 1, false));
    $("next").addEventListener("click", () => turn(pageNr + 1, false));
    $("previous-2").addEventListener("click", () => turn(pageNr - 1, true));
    $("next-2").addEventListener("click", () => turn(pageNr + 1, true));

    $("page").addEventListener("change", () => turn(Math.round(readNumber("page", 1)), false));

    $("size").addEventListener("change", () => turn(1, false));

    $("open").addEventListener("change", () => {
      for (const details of document.querySelectorAll("#list details")) {
        details.open = $("open").checked;
      }
    });

    for (const id of ["field", "sort", "run", "change", "min", "max"]) {
      $(id).addEventListener("change", select);
    }

    let timer;

    $("query").addEventListener("input", () => {
      clearTimeout(timer);

      timer = setTimeout(select, 150);
    });

    $("controls").addEventListener("submit", (event) => event.preventDefault());

    // The fields have their old values until after the event.
    $("controls").addEventListener("reset", () => setTimeout(select));

    addEventListener("keydown", (event) => {
      const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");

      if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();

        $("query").focus();
      }
    });

    select();
  }
})();
