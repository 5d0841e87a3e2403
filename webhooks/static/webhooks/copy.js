// Buttons that copy: ids, commands, secrets.  Every page works without.
'use strict';

// Says what came of it to screen readers, for which a button whose text changes stays silent.
const said = document.createElement('div');
said.className = 'spoken';
said.setAttribute('role', 'status');
document.body.append(said);

async function copy(text, button) {
    // The browser's clipboard is there only under HTTPS and on localhost, and a frame of another site may not use it.
    try {
        await navigator.clipboard.writeText(text);
        return;
    } catch (error) {
        // The older way works there, too.
    }
    const field = document.createElement('textarea');
    field.className = 'copying';
    field.setAttribute('aria-label', 'Text to copy');
    field.value = text;
    button.after(field);
    field.select();
    if (!document.execCommand('copy')) {
        throw new Error('not copied');  // the text stays selected, so that it can be copied by hand
    }
    field.remove();
    button.focus();
}

document.addEventListener('click', async (event) => {
    const button = event.target.closest('button[data-copy], button[data-copy-from]');
    if (!button) {
        return;
    }
    event.preventDefault();
    button.parentNode.querySelector('textarea.copying')?.remove();
    // `data-copy` is the text itself; `data-copy-from` names the elements whose texts are joined by a pipe.
    const text = button.dataset.copy || button.dataset.copyFrom.split(' ')
        .map((id) => document.getElementById(id).textContent).join(' | ');
    button.dataset.label ||= button.textContent;
    let result = 'Copied';
    try {
        await copy(text, button);
    } catch (error) {
        result = 'Press Ctrl+C';
    }
    button.textContent = result === 'Copied' && button.classList.contains('copy') ? '✓' : result;
    said.textContent = result;
    setTimeout(() => {
        button.textContent = button.dataset.label;
        said.textContent = '';
    }, 2000);
});
