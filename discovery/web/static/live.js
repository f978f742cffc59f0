// Replaces the parts of the page that are marked data-live as they change on the server. Without this file the page
// reloads itself instead. What arrives is parsed, never run: the policy allows no other script.
"use strict";
(() => {
  const main = document.querySelector("main[data-refresh]");
  if (!main) return;
  const usual = Number(main.dataset.refresh) * 1000;
  let wait = usual;
  async function refresh() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "error", cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const now = fresh.getElementById(part.id);
        if (now && now.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
          part.replaceChildren(...document.importNode(now, true).childNodes);
        }
      }
      wait = usual;
      main.removeAttribute("data-stale");
    } catch {
      wait = Math.min(wait * 2, 60000);
      main.setAttribute("data-stale", "");
    }
  }
  (async () => { for (;;) { await new Promise((done) => setTimeout(done, wait)); await refresh(); } })();
  document.addEventListener("visibilitychange", refresh);
})();
