// A button with `data-copy` puts the texts of the elements that it names, joined by a pipe, on the clipboard.
'use strict';
document.addEventListener('click', async (event) => {
    const button = event.target.closest('button[data-copy]');
    if (!button) {
        return;
    }
    const text = button.dataset.copy.split(' ').map((id) => document.getElementById(id).textContent).join(' | ');
    const label = button.dataset.label || button.textContent;
    button.dataset.label = label;
    try {
        await navigator.clipboard.writeText(text);
        button.textContent = 'Copied';
    } catch {
        // Without HTTPS there is no clipboard: select the text, so that it can be copied by hand.
        const area = document.createElement('textarea');
        area.value = text;
        button.after(area);
        area.select();
        const copied = document.execCommand('copy');
        if (copied) {
            area.remove();
        }
        button.textContent = copied ? 'Copied' : 'Press Ctrl+C';
    }
    setTimeout(() => { button.textContent = label; }, 2000);
});
