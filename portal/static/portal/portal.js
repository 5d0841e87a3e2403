// The portal works without a script, but for opening a link: the link's token is where only a script can read it.
'use strict';

const opening = document.querySelector('form[data-open]');
if (opening) {
    const token = window.location.hash.slice(1);
    // Not in the history, and not there for who looks over a shoulder.  With a query: to a browser, another link that
    // is pasted over the same address would only be another place on this page.
    window.history.replaceState(null, '', `${window.location.pathname}?link`);
    if (token) {
        opening.elements.token.value = token;
        opening.submit();
    } else {
        opening.querySelector('[data-open-state]').textContent =
            'This link has no secret part. Copy the whole link, or open the portal again from where you got it.';
    }
}

// Changes what differs from a fresh copy and leaves the rest alone: the focus stays where it is, and screen readers
// speak only of what is new.
function renew(old, fresh) {
    if (old.isEqualNode(fresh)) {
        return;
    }
    const [its, theirs] = [[...old.childNodes], [...fresh.childNodes]];
    const isAlike = old.nodeType === Node.ELEMENT_NODE && old.nodeName === fresh.nodeName && its.length === theirs.length;
    if (!isAlike || !its.every((node, number) => node.nodeName === theirs[number].nodeName)) {
        old.replaceWith(fresh);
        return;
    }
    for (const name of new Set([...old.getAttributeNames(), ...fresh.getAttributeNames()])) {
        if (fresh.hasAttribute(name)) {
            old.setAttribute(name, fresh.getAttribute(name));
        } else {
            old.removeAttribute(name);
        }
    }
    its.forEach((node, number) => renew(node, theirs[number]));
}

// A page about something that goes on asks for itself again, and renews that part; once it is over, the parts that its
// `data-follow` names, too.  After a while it leaves that to a reload.
async function follow(box, others, turn) {
    let page;
    try {
        const response = await fetch(window.location.href, {redirect: 'error'});
        page = new DOMParser().parseFromString(await response.text(), 'text/html');
    } catch (error) {
        return;  // the page is being left, or the connection is lost
    }
    const fresh = page.getElementById(box.id);
    if (!fresh) {
        return;
    }
    const goesOn = 'follow' in fresh.dataset;
    const hadFocus = box.contains(document.activeElement);
    box.className = fresh.className;
    // A live region has to stay the same element, or what it says next isn't spoken.
    const [its, theirs] = [[...box.children], [...fresh.children]];
    theirs.forEach((child, number) => (number < its.length ? renew(its[number], child) : box.append(child)));
    its.slice(theirs.length).forEach((child) => child.remove());
    for (const id of goesOn ? [] : others) {
        const [old, other] = [document.getElementById(id), page.getElementById(id)];
        // The focus isn't taken away from what is inside.
        if (old && other && (old === document.activeElement || !old.contains(document.activeElement))) {
            old.replaceChildren(...other.childNodes);
        }
    }
    if (hadFocus && !box.contains(document.activeElement)) {
        box.tabIndex = -1;
        box.focus();
    }
    if (!goesOn) {
        box.removeAttribute('data-follow');
    } else if (turn < 300) {
        setTimeout(() => follow(box, others, turn + 1), 2000);
    }
}

const running = document.querySelector('[data-follow]');
if (running) {
    setTimeout(() => follow(running, running.dataset.follow.split(' ').filter(Boolean), 0), 1500);
}
