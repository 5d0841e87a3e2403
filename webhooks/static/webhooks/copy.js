// Buttons that copy: ids, commands, secrets.  Every page works without.
'use strict';

async function copy(text, button) {
    // The browser's clipboard is there only under HTTPS and on localhost.
    if (navigator.clipboard) {
        await navigator.clipboard.writeText(text);
        return;
    }
    const field = document.createElement('textarea');
    field.value = text;
    button.after(field);
    field.select();
    if (!document.execCommand('copy')) {
        throw new Error('not copied');  // the text stays selected, so that it can be copied by hand
    }
    field.remove();
}

document.addEventListener('click', async (event) => {
    const button = event.target.closest('button[data-copy], button[data-copy-from]');
    if (!button) {
        return;
    }
    event.preventDefault();
    // `data-copy` is the text itself; `data-copy-from` names the elements whose texts are joined by a pipe.
    const text = button.dataset.copy || button.dataset.copyFrom.split(' ')
        .map((id) => document.getElementById(id).textContent).join(' | ');
    const isShort = 'copy' in button.dataset;
    button.dataset.label ||= button.textContent;
    try {
        await copy(text, button);
        button.textContent = isShort ? '✓' : 'Copied';
    } catch (error) {
        button.textContent = isShort ? '✗' : 'Press Ctrl+C';
    }
    setTimeout(() => {
        button.textContent = button.dataset.label;
    }, 2000);
});
