// What the pages do by themselves: the home refreshes, pickers need no button.  Every page works without.
'use strict';

const LIVE_EVERY_MS = 15000;

function clock(date) {
    return date.toISOString().slice(11, 19) + ' UTC';
}

async function refresh(box, said) {
    // Not while somebody is in it with the keyboard, reads a tooltip or has marked something.
    const marked = window.getSelection();
    if (document.hidden || box.contains(document.activeElement) ||
            (marked && !marked.isCollapsed && box.contains(marked.anchorNode))) {
        return;
    }
    try {
        const response = await fetch(box.dataset.live, {redirect: 'manual', headers: {Accept: 'text/html'}});
        if (response.type === 'opaqueredirect') {
            said.textContent = 'You are logged out: the figures stand still.';
            said.classList.add('stale');
            return;
        }
        if (!response.ok) {
            throw new Error(response.status);
        }
        box.innerHTML = await response.text();
        said.textContent = `Updated ${clock(new Date())}, every ${LIVE_EVERY_MS / 1000} s`;
        said.classList.remove('stale');
    } catch (error) {
        said.textContent = `Not updated since ${said.dataset.last || 'the page was opened'}: no response.`;
        said.classList.add('stale');
        return;
    }
    said.dataset.last = clock(new Date());
}

document.addEventListener('DOMContentLoaded', () => {
    const box = document.querySelector('[data-live]');
    const said = document.querySelector('[data-live-state]');
    if (box && said) {
        said.textContent = `Refreshes every ${LIVE_EVERY_MS / 1000} s`;
        setInterval(() => refresh(box, said), LIVE_EVERY_MS);
    }
    document.querySelectorAll('select[data-submit]').forEach((picker) => picker.addEventListener('change', () => {
        picker.form.submit();
    }));
});

// Names for screen readers, which two of Django's widgets leave out.  They are made by scripts, so later than the page:
// an autocomplete when jQuery calls back, which may be after `load`, and in the order in which scripts asked for it.
window.django?.jQuery?.(() => {
    document.querySelectorAll('select.admin-autocomplete').forEach((picker) => {
        const name = picker.labels.length ? picker.labels[0].textContent.trim().replace(/:$/, '') : '';
        picker.parentElement.querySelectorAll('.select2-container [role]').forEach((part) => {
            part.setAttribute('aria-label', name);
        });
    });
});
window.addEventListener('load', () => {
    document.querySelectorAll('.help-tooltip[aria-label]').forEach((tip) => tip.setAttribute('role', 'img'));
});

// The file comes as a download, beside which the page asks how many rows it has so far.
function follow(link) {
    const said = document.querySelector('[data-export-state]');
    const token = crypto.randomUUID ? crypto.randomUUID() : '10000000-1000-4000-8000-100000000000'.replace(/[018]/g,
        (c) => (+c ^ crypto.getRandomValues(new Uint8Array(1))[0] & 15 >> +c / 4).toString(16));
    const progress = link.dataset.export.replace('00000000-0000-0000-0000-000000000000', token);
    let silent = 0;
    said.textContent = 'Starting …';
    window.location.assign(`${link.href}&token=${token}`);
    const timer = setInterval(async () => {
        let found = {rows: null};
        try {
            found = await (await fetch(progress, {redirect: 'error'})).json();
        } catch (error) {
            // Asked again.
        }
        silent = found.rows === null ? silent + 1 : 0;
        if (found.is_complete || silent > 30) {
            clearInterval(timer);
        }
        if (found.rows !== null) {
            const rows = found.rows.toLocaleString('en-US');
            said.textContent = found.is_complete ? `Done: ${rows} rows.` : `${rows} rows so far …`;
        }
    }, 1000);
}

document.addEventListener('click', (event) => {
    const link = event.target.closest('a[data-export]');
    if (link && event.button === 0 && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        follow(link);
    }
});
