// Shows the buttons that copy a line, and says when one has.
for (const button of document.querySelectorAll("button.copy")) {
  if (!navigator.clipboard) break; // it needs https, or this host
  button.hidden = false;
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      said = "It could not be copied";
    }
    document.getElementById("said").textContent = said;
    button.textContent = said;
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
