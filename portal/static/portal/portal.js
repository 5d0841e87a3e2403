// The portal works without a script, but for opening a link: the link's token is where only a script can read it.
'use strict';

const opening = document.querySelector('form[data-open]');
if (opening) {
    const token = window.location.hash.slice(1);
    // Not in the history, and not there for who looks over a shoulder.
    window.history.replaceState(null, '', window.location.pathname);
    if (token) {
        opening.elements.token.value = token;
        opening.submit();
    } else {
        opening.querySelector('[data-open-state]').textContent =
            'This link has no secret part. Copy the whole link, or open the portal again from where you got it.';
    }
}

// A page about something that goes on asks for itself again, and replaces that part.
async function follow(box) {
    const response = await fetch(window.location.href, {redirect: 'error'});
    const page = new DOMParser().parseFromString(await response.text(), 'text/html');
    const fresh = page.getElementById(box.id);
    if (!fresh) {
        return;
    }
    box.replaceChildren(...fresh.childNodes);
    if ('follow' in fresh.dataset) {
        setTimeout(() => follow(box), 2000);
    }
}

const running = document.querySelector('[data-follow]');
if (running) {
    setTimeout(() => follow(running), 1500);
}
