"use strict";

const make = (kind, text, name) => {
  const found = document.createElement(kind);
  if (text) found.textContent = text;
  if (name) found.className = name;
  return found;
};

function route(path, method, about) {
  const found = make("details"), line = make("summary");
  line.append(make("span", method.toUpperCase(), "method"), ` ${path}  `, make("span", about.summary || "", "quiet"));
  found.append(line);
  if (about.description) found.append(make("p", about.description));
  if (about.parameters) {
    const table = make("table"), head = table.createTHead().insertRow();
    head.append(...["Parameter", "Default", "Meaning"].map((text) => make("th", text)));
    const body = table.createTBody();
    for (const one of about.parameters) {
      const row = body.insertRow();
      row.insertCell().textContent = one.required ? `${one.name} (required)` : one.name;
      row.insertCell().textContent = one.schema.default ?? "";
      row.insertCell().textContent = one.description || one.schema.description || "";
    }
    found.append(table);
  }
  const sent = Object.keys(about.requestBody?.content ?? {}), back = Object.keys(about.responses["200"]?.content ?? {});
  if (sent.length) found.append(make("p", `Takes ${sent.join(", ")}`));
  if (back.length) found.append(make("p", `Answers ${back.join(", ")}`));
  return found;
}

async function show() {
  const described = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = `${described.info.description} Version ${described.info.version}`;
  const routes = Object.entries(described.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, about]) => route(path, method, about)));
  document.getElementById("routes").replaceChildren(make("h2", "Routes"), ...routes,
    make("p", "Errors are one sentence in the member “detail” of application/problem+json (RFC 9457).", "quiet"));
}

show();
