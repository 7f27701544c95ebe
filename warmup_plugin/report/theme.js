// Chooses the theme before anything is drawn: what was chosen last, else the system's.
(function () {
  "use strict";

  let theme = null;

  try {
    theme = localStorage.getItem("warmup-report-theme");
  } catch (error) {
    // A file may have no storage.
  }

  if (theme === "light" || theme === "dark") {
    document.documentElement.dataset.theme = theme;
  }
})();
